"""Foreign checkpoints that torch.save wrote (.pt, .ckpt, .bin, .pkl): the one place to read them.

Such a file is a pickle, a program that names functions to call. A child process reads it with
torch's weights-only unpickler, which knows tensors and plain containers, under limits on memory,
time and what it may write; it hands back safetensors and JSON, and this process reads only those.

This reduces the risk and is not a sandbox: the child has the user's rights, so a hole in torch's
unpickler is still a hole. The memory limit holds on Linux alone, the others where the platform has
them, the time limit and the refusals everywhere.
"""

from __future__ import annotations

import json
import math
import os
import pickletools
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

# Absolute, unlike elsewhere: the child runs this file alone, without the rest of its package.
from pdae_cli.engine.tensors import check
from pdae_cli.errors import ModelError

if sys.platform != "win32":
    import resource

# Top-level entries that no conversion needs; optimizers alone are twice the weights.
DROPPED = frozenset({
    "optimizer", "optimizer_states", "scaler", "lr_schedulers", "callbacks",
    "native_amp_scaling_state", "loops",
})  # fmt: skip
# Far more than is needed: importing torch takes 2 s, and disks give 100 MB/s.
TIMEOUT_S = 120.0
SLOWEST_BYTES_PER_S = 10 << 20
# What the child may allocate after importing torch. Measured: 2 MiB, once the file's size (mapped
# or read), and copies of tensors that share memory, which are at most what may be claimed.
MEMORY_BASE = 256 << 20
MEMORY_FACTOR = 3
# What all tensors together may claim: tied weights count twice, hence more than the file holds.
CLAIM_BASE = 1 << 20
CLAIM_FACTOR = 2
# Everything but the tensors, as JSON; containers that hold one another often can claim any size.
MAX_STRUCTURE = 32 << 20
MAX_DEPTH = 64

TENSORS, ANSWER, ERRORS = "tensors.safetensors", "answer.json", "errors.txt"
ZIP = b"PK\x03\x04"
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # torch's magic number, pickled
LIGHTNING_KEY = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
RESAVE = "re-save it as tensors only, where you trust it"
NO_ROOM = "check that the folder for temporary files (TMPDIR) has room"
FOREIGN = "is not a file that torch.save wrote; give a .pt, .ckpt, .bin or .pkl checkpoint"
HARMLESS = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2")
UNKNOWN_GLOBAL = re.compile(r"GLOBAL (.+?) (?:was not an allowed|whose module)")
DTYPES = frozenset({
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.complex64, torch.bool, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
})  # fmt: skip

START = "import runpy, sys as s; s.path[:] = s.argv[5:]; runpy.run_path(s.argv[1], {}, '__main__')"


def read_pickle(path: Path, drop: Collection[str] = DROPPED) -> dict[str, Any]:
    """The content of a file that torch.save wrote, without the top-level entries in `drop`.

    Dictionaries have str keys (numbers become text), tuples are lists, tensors are on the CPU with
    the dtype they were stored in, and the rest is None, bool, int, float or str. Raises ModelError
    where the file is anything else, or needs more memory or time than its size explains.
    """
    size = _size(path)
    try:
        with tempfile.TemporaryDirectory(prefix="pdae-") as name:
            _run_child(path, Path(name), drop, size)
            return _collect(path, Path(name))
    except OSError as error:
        raise ModelError(f"{path} can't be unpacked: {error.strerror}; {NO_ROOM}") from error


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}; check the name") from error
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ModelError(f"{path} is not a file that can be read; give the checkpoint itself")
    return size


def _run_child(path: Path, folder: Path, drop: Collection[str], size: int) -> None:
    """Have a child write ANSWER and perhaps TENSORS to `folder`."""
    script = Path(__file__).resolve()
    command = [sys.executable, "-I", "-c", START, str(script)]
    command += [str(path.absolute()), str(folder), json.dumps(sorted(drop))]
    # -I hides the places that PYTHONPATH and the user's site name, so they are handed over.
    command += [place for place in sys.path if Path(place).is_absolute()] + [str(script.parents[2])]
    too_slow = ModelError(
        f"{path} was not read within {_seconds(size):.0f} s; check the disk it is on, or {RESAVE}"
    )
    with (folder / ERRORS).open("wb") as errors:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                cwd=folder,
                env=_environment(folder),
                timeout=_seconds(size),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise too_slow from error
    if sys.platform != "win32" and done.returncode == -signal.SIGXCPU:
        raise too_slow
    if done.returncode != 0:
        raise ModelError(
            f"{path} can't be read: the process that read it stopped "
            f"({_last_words(folder, done.returncode)}); check that there is memory for it"
        )


def _seconds(size: int) -> float:
    return TIMEOUT_S + size / SLOWEST_BYTES_PER_S


def _environment(folder: Path) -> dict[str, str]:
    """What the loader of shared libraries may need, and one thread on the CPU."""
    kept = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    limits = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {name: os.environ[name] for name in kept if name in os.environ} | temporary | limits


def _last_words(folder: Path, code: int) -> str:
    status = f"exit code {code}" if code >= 0 else signal.strsignal(-code) or f"signal {-code}"
    lines = (folder / ERRORS).read_text(errors="replace").split("\n")
    return _one_line(f"{status} {' '.join(lines[-2:])}", 150)


def _collect(path: Path, folder: Path) -> dict[str, Any]:
    """Read what the child wrote; the tensors are memory of ours, not mapped files."""
    try:
        answer = json.loads((folder / ANSWER).read_bytes())
        if "refused" in answer:
            raise ModelError(f"{path} {_one_line(answer['refused'])}")
        check(folder / TENSORS)
        return dict(_rebuilt(answer, load_file(folder / TENSORS, backend="pread")))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"{path} can't be read: the process that read it gave a damaged answer "
            f"({_one_line(str(error))}); {RESAVE}"
        ) from error


def _rebuilt(node: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `_Flattener.flat`."""
    if isinstance(node, list):
        return [_rebuilt(item, tensors) for item in node]
    if isinstance(node, dict) and "tensor" in node:
        return tensors[node["tensor"]]
    if isinstance(node, dict):
        return {key: _rebuilt(value, tensors) for key, value in node["dict"].items()}
    return node


def _one_line(text: str, limit: int = 300) -> str:
    """Text from a file or a library, fit for a message: no control characters, not long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _claimable(size: int) -> int:
    return CLAIM_BASE + CLAIM_FACTOR * size


# From here on: what runs in the child.
class _Refusal(Exception):
    """Why the file isn't converted: what follows its path in the message."""


class _Inert:
    """Stands for a class that Lightning's checkpoints name as a key. It has nothing to run."""

    __slots__ = ()

    def __new__(cls) -> NoReturn:
        raise TypeError(f"{LIGHTNING_KEY} is a name here, not something to be made")


def _child() -> None:
    path, folder, drop = Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    size = path.stat().st_size
    torch.set_num_threads(1)
    _set_limits(size)
    try:
        answer, tensors = _unpack(path, drop, size)
        save_file(tensors, folder / TENSORS)
    except _Refusal as refusal:
        answer = {"refused": str(refusal)}
    except (OSError, SafetensorError) as error:
        answer = {"refused": f"can't be unpacked: {_one_line(str(error), 150)}; {NO_ROOM}"}
    # Out here the exception's frames, and the memory that they hold, are gone.
    (folder / ANSWER).write_text(json.dumps(answer))


def _set_limits(size: int) -> None:
    """Bound this process by what reading a file of `size` bytes needs, where that can be done."""
    if sys.platform == "win32":
        return
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: math.ceil(_seconds(size)),
        resource.RLIMIT_FSIZE: _claimable(size) + 2 * MAX_STRUCTURE,
        resource.RLIMIT_NOFILE: 64,
    }
    if sys.platform == "linux":
        # RLIMIT_AS would count the libraries that torch maps, gigabytes in a build with CUDA.
        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        limits[resource.RLIMIT_DATA] = used + MEMORY_BASE + MEMORY_FACTOR * size
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        hard = sys.maxsize if hard == resource.RLIM_INFINITY else hard
        # One more, since at the hard limit of CPU time the system kills without saying why.
        resource.setrlimit(limit, (min(value, hard), min(value + 1, hard)))


def _unpack(path: Path, drop: Collection[str], size: int) -> tuple[Any, dict[str, Tensor]]:
    """The content as JSON values, and its tensors by the numbers that stand for them there."""
    content = _load(path, size)
    if not isinstance(content, dict):
        raise _Refusal(f"holds a {type(content).__name__}, not named tensors; save a state dict")
    flattener = _Flattener(size)
    try:
        answer = flattener.flat({k: v for k, v in content.items() if k not in drop}, "", 0)
    except (MemoryError, RuntimeError, ValueError) as error:
        raise _Refusal(_damage(error, size)) from error
    return answer, flattener.tensors


def _load(path: Path, size: int) -> Any:
    with path.open("rb") as file:
        head = file.read(32)
    zipped = head.startswith(ZIP)
    try:
        if zipped:
            _check_records(path)
        with torch.serialization.safe_globals([(_Inert, LIGHTNING_KEY)]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except _Refusal:
        raise
    except Exception as error:  # what is read is arbitrary, and so is how that fails
        known = zipped or LEGACY in head
        if name := _unknown_global(error) if known else _foreign_global(path):
            raise _Refusal(
                f"asks for {_one_line(name, 100)}, which is neither a tensor nor a plain "
                f"container, and was not run; {RESAVE}"
            ) from error
        raise _Refusal(_damage(error, size) if known else FOREIGN) from error


def _check_records(path: Path) -> None:
    """torch maps records as they are, so compressed ones would be read as noise."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise _Refusal("is a TorchScript program; save its state_dict() with torch.save")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED:
            name = _one_line(record.filename, 100)
            raise _Refusal(f"has compressed records ({name}), unlike torch.save's files; {RESAVE}")


def _unknown_global(error: Exception) -> str:
    found = UNKNOWN_GLOBAL.search(str(error))
    name = found[1] if found else ""
    return name if "." in name or not name else f"builtins.{name}"  # torch leaves that out


def _foreign_global(path: Path) -> str:
    """What a bare pickle asks for beside HARMLESS; "" where the file isn't one up to its STOP."""
    names, texts = list[str](), deque([""], maxlen=2)
    try:
        with path.open("rb") as file:
            for opcode, argument, _ in pickletools.genops(file):  # lists instructions, runs none
                if opcode.name in ("GLOBAL", "INST"):
                    names.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.append(".".join(texts))
                elif isinstance(argument, str):
                    texts.append(argument)
    except (ValueError, MemoryError):
        return ""
    return next((name for name in names if name not in HARMLESS), "")


def _damage(error: Exception, size: int) -> str:
    """Why a file that begins as torch's files do can't be read to its end."""
    text = str(error)
    if isinstance(error, MemoryError) or "memory" in text.lower():
        return f"needs more memory than its {size} bytes explain, as no checkpoint does; {RESAVE}"
    if "resize storage" in text:
        return _claims_more(size)
    detail = text.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    return (
        "is damaged, cut short, or not written with torch.save's defaults "
        f"({_one_line(detail, 150) or type(error).__name__}); download it again, or {RESAVE}"
    )


def _claims_more(size: int, place: str = "") -> str:
    return f"claims larger tensors{place} than its {size} bytes can hold; {RESAVE}"


class _Flattener:
    """Turns nested content into JSON values and numbered tensors, and counts what it claims."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tensors: dict[str, Tensor] = {}
        self._storages: set[int] = set()
        self._tensor_bytes = _claimable(size)
        self._structure_bytes = MAX_STRUCTURE

    def flat(self, value: Any, where: str, depth: int) -> Any:
        """`value` as JSON: {"dict": …}, {"tensor": number}, a list or a scalar."""
        scalar = value is None or type(value) in (bool, int, float, str)
        self._count(value if scalar else None)
        if depth > MAX_DEPTH:
            raise _Refusal(f"nests deeper than {MAX_DEPTH} levels; {RESAVE}")
        if isinstance(value, dict):
            return {"dict": self._entries(value, where, depth)}
        if isinstance(value, (list, tuple)):
            return [self.flat(item, f"{where}[{n}]", depth + 1) for n, item in enumerate(value)]
        if isinstance(value, Tensor):
            return {"tensor": self._number(value, where)}
        if not scalar:
            raise _unknown(f"a {type(value).__name__}", where)
        return value

    def _entries(self, value: dict[Any, Any], where: str, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, item in value.items():
            if type(key) not in (str, int) or str(key) in entries:
                raise _unknown(f"a {type(key).__name__} as a key, or one twice,", where)
            self._count(key)
            below = f"{where}.{key}" if where else str(key)
            entries[str(key)] = self.flat(item, below, depth + 1)
        return entries

    def _count(self, value: Any) -> None:
        self._structure_bytes -= 24 + len(json.dumps(value))
        if self._structure_bytes < 0:
            raise _Refusal(f"holds more than {MAX_STRUCTURE >> 20} MiB beside tensors; {RESAVE}")

    def _number(self, value: Tensor, where: str) -> str:
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.dtype in DTYPES
        dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
        if not (plain and dense):
            kind = f"{value.dtype}, {value.layout}, {value.device}"
            raise _unknown(f"a special {type(value).__name__} ({kind})", where)
        # A stride of 0 makes any size out of one number.
        self._tensor_bytes -= math.prod(value.shape) * value.element_size()
        if self._tensor_bytes < 0:
            raise _Refusal(_claims_more(self.size, f", at {_one_line(where, 100)},"))
        self.tensors[number := str(len(self.tensors))] = self._owned(value.detach())
        return number

    def _owned(self, tensor: Tensor) -> Tensor:
        """The tensor with memory that no other shares, as safetensors wants it."""
        tensor = tensor.resolve_conj().resolve_neg()
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.nbytes and tensor.is_contiguous()
        if not whole or storage.data_ptr() in self._storages:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        self._storages.add(storage.data_ptr())
        return tensor


def _unknown(what: str, where: str) -> _Refusal:
    place = _one_line(where, 100) or "its top level"
    return _Refusal(f"holds {what} at {place}, which is neither a tensor nor plain; {RESAVE}")


if __name__ == "__main__":
    _child()
