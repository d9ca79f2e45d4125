"""Read foreign checkpoints that torch.save wrote (.pt, .ckpt, .bin, .pkl): the one place that does.

Such a file is a pickle, a program that names functions to call. A child process reads it with
torch's weights-only unpickler, which knows tensors and plain containers, under limits on memory,
time and what it may write; it hands back safetensors and JSON, and this process reads only those.

This reduces the risk and is not a sandbox: the child has the user's rights, so a hole in torch's
unpickler is still a hole. The memory limit holds on Linux alone.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

# Absolute, unlike elsewhere: the child runs this file alone, without the rest of its package.
from pdae_cli.engine.tensors import NAMES, check
from pdae_cli.errors import InputError, ModelError
from pdae_cli.files import mistaken_for, read_limited

if sys.platform != "win32":
    import resource

# Top-level entries that no conversion needs; optimizers alone are twice the weights.
DROPPED = frozenset({
    "optimizer", "optimizer_states", "scaler", "lr_schedulers", "callbacks",
    "native_amp_scaling_state", "loops",
})  # fmt: skip
# Far more than is needed: importing torch takes 2 s, and disks give 100 MB/s.
TIMEOUT_S, SLOWEST_BYTES_PER_S = 120.0, 10 << 20
# What all tensors together may claim: tied weights count twice, hence more than the file holds.
CLAIM_BASE, CLAIM_FACTOR = 1 << 20, 2
# What the child may allocate after importing torch. Measured: 2 MiB, once the file's size (mapped
# or read), and copies of tensors that share memory, which are at most what may be claimed.
MEMORY_BASE, MEMORY_FACTOR = 256 << 20, 3
# Everything but the tensors, as JSON; containers that hold one another often can claim any size.
MAX_STRUCTURE, MAX_DEPTH = 32 << 20, 64

SCRIPT = Path(__file__).resolve()  # what the child runs
TENSORS, ANSWER, ERRORS = "tensors.safetensors", "answer.json", "errors.txt"
ZIP = b"PK\x03\x04"
LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # torch's magic number, pickled
LIGHTNING_KEY = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
# What NumPy's numbers and arrays name, in a trainer's bookkeeping; nothing of it is called.
NUMPY = (
    "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy._core.multiarray._reconstruct",
)  # fmt: skip
NOT_READ = "<a number or an array of NumPy's, not read>"  # no value that a setting could have
RESAVE = "re-save it as tensors only, where you trust it"
NO_ROOM = "check that the folder for temporary files (TMPDIR) has room"
UNKNOWN_GLOBAL = re.compile(r"GLOBAL (.+?) (?:was not an allowed|whose module)")


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a file that torch.save wrote, without the top-level entries in DROPPED.

    Dictionaries have str keys (numbers become text), tuples are lists, tensors are on the CPU with
    the dtype they were stored in, and the rest is None, bool, int, float or str. Raises ModelError
    where the file is anything else, or needs more memory or time than its size explains.
    """
    try:
        read_limited(path, sys.maxsize, head=0)
        size = path.stat().st_size
        with tempfile.TemporaryDirectory(prefix="pdae-") as name:
            folder = Path(name)
            _run_child(path, folder, size)
            answer = json.loads((folder / ANSWER).read_bytes())
            if "refused" in answer:
                raise ModelError(f"{path} {_one_line(answer['refused'])}")
            check(folder / TENSORS)
            # Into memory of ours: mapped files would be gone with the folder.
            return dict(_rebuilt(answer, load_file(folder / TENSORS, backend="pread")))
    except InputError as error:
        raise ModelError(f"{error}; give the checkpoint itself") from error
    except OSError as error:
        raise ModelError(f"{path} can't be unpacked: {error.strerror}; {NO_ROOM}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(
            f"{path} can't be read: the process that read it gave a damaged answer "
            f"({_one_line(str(error))}); {RESAVE}"
        ) from error


def _run_child(path: Path, folder: Path, size: int) -> None:
    """Have a child write ANSWER and perhaps TENSORS to `folder`."""
    # What the loader of shared libraries may need, our modules, and one thread on the CPU.
    kept = {"PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"} & os.environ.keys()
    places = [one for one in sys.path if Path(one).is_absolute()] + [str(SCRIPT.parents[2])]
    environment = {name: os.environ[name] for name in kept}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(places)
    # -P, since modules beside this file have names of packages.
    command = [sys.executable, "-P", "-s", str(SCRIPT), str(path.absolute()), str(folder)]
    seconds, null = TIMEOUT_S + size / SLOWEST_BYTES_PER_S, subprocess.DEVNULL
    with (folder / ERRORS).open("wb") as errors:
        files: Any = {"stdin": null, "stdout": null, "stderr": errors, "cwd": folder}
        try:
            done = subprocess.run(command, env=environment, timeout=seconds, **files)
        except subprocess.TimeoutExpired as error:
            raise ModelError(
                f"{path} was not read within {seconds:.0f} s; check the disk it is on, or {RESAVE}"
            ) from error
    if (code := done.returncode) != 0:
        status = f"exit code {code}" if code > 0 else signal.strsignal(-code) or f"signal {-code}"
        said = (folder / ERRORS).read_text(errors="replace").split("\n")[-2:]
        raise ModelError(
            f"{path} can't be read: the process that read it stopped "
            f"({_one_line(' '.join([status, *said]), 150)}); check that there is memory for it"
        )


def _rebuilt(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Invert `_Flattener.flat`."""
    if isinstance(node, list):
        return [_rebuilt(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    if "tensor" in node:
        return tensors[node["tensor"]]
    return {key: _rebuilt(item, tensors) for key, item in node["dict"].items()}


def _one_line(text: str, limit: int = 300) -> str:
    """Make text of a file or a library fit for a message: no control characters, not long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


# From here on: what runs in the child.
class _Refusal(Exception):
    """Why the file isn't converted: what follows its path in the message."""


class _Inert:
    """Stands for a class that Lightning's checkpoints name as a key. It has nothing to run."""

    def __new__(cls) -> NoReturn:
        raise TypeError(f"{LIGHTNING_KEY} is a name here, not something to be made")


class _Skipped:
    """Stands for whatever NumPy would make. It takes anything and keeps nothing."""

    def __new__(cls, *args: Any) -> _Skipped:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def _child(path: Path, folder: Path) -> None:
    """Read the file within limits that its size explains, and leave an answer in the folder."""
    size = path.stat().st_size
    torch.set_num_threads(1)
    if sys.platform != "win32":
        limits = {
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_CPU: int(TIMEOUT_S + size / SLOWEST_BYTES_PER_S),  # if a parent died
            resource.RLIMIT_FSIZE: CLAIM_BASE + CLAIM_FACTOR * size + 2 * MAX_STRUCTURE,
            resource.RLIMIT_NOFILE: 64,
        }
        if sys.platform == "linux":
            # RLIMIT_AS would count the libraries that torch maps, gigabytes in a build with CUDA.
            used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
            limits[resource.RLIMIT_DATA] = used + MEMORY_BASE + MEMORY_FACTOR * size
        for limit, value in limits.items():
            hard = resource.getrlimit(limit)[1]
            least = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (least, least))
    try:
        answer, tensors = _unpack(path, size)
        save_file(tensors, folder / TENSORS)
    except _Refusal as refusal:
        answer = {"refused": str(refusal)}
    except (OSError, SafetensorError) as error:
        answer = {"refused": f"can't be unpacked: {_one_line(str(error), 150)}; {NO_ROOM}"}
    # Out here the exception's frames, and the memory that they hold, are gone.
    (folder / ANSWER).write_text(json.dumps(answer))


def _unpack(path: Path, size: int) -> tuple[Any, dict[str, Tensor]]:
    """Read the content as JSON values, and its tensors by the numbers that stand for them there."""
    with path.open("rb") as file:
        head = file.read(200)
    zipped = head.startswith(ZIP)
    if (other := mistaken_for(head)) is not None:
        raise _Refusal(f"is {other}")
    if not zipped and LEGACY not in head[:32]:
        raise _Refusal(
            "is not a file that torch.save wrote, and nothing in it was run; "
            "give a .pt, .ckpt, .bin or .pkl checkpoint"
        )
    try:
        if zipped:
            _check_records(path)
        stand_ins: list[Any] = [(_Inert, LIGHTNING_KEY), *((_Skipped, name) for name in NUMPY)]
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise _Refusal(f"holds a {kind}, not named tensors; save a state dict")
        flattener = _Flattener(size)
        kept = {key: value for key, value in content.items() if key not in DROPPED}
        return flattener.flat(kept, "", 0), flattener.tensors
    except _Refusal:
        raise
    except Exception as error:  # what is read is arbitrary, and so is how that fails
        raise _Refusal(_failure(error, size)) from error


def _check_records(path: Path) -> None:
    """Refuse compressed records: torch maps them as they are, and would read noise."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise _Refusal("is a TorchScript program; save its state_dict() with torch.save")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED:
            name = _one_line(record.filename, 100)
            raise _Refusal(f"has compressed records ({name}), unlike torch.save's files; {RESAVE}")


def _failure(error: Exception, size: int) -> str:
    """Say why a file that begins as torch's files do can't be read to its end."""
    text = str(error)
    if found := UNKNOWN_GLOBAL.search(text):
        name = found[1] if "." in found[1] else f"builtins.{found[1]}"  # torch leaves that out
        return (
            f"asks for {_one_line(name, 100)}, which is neither a tensor nor a plain container, "
            f"and was not run; {RESAVE}"
        )
    if isinstance(error, MemoryError) or "memory" in text.lower():
        return f"needs more memory than its {size} bytes explain, as no checkpoint does; {RESAVE}"
    detail = text.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    return (
        "is damaged, cut short, or not written with torch.save's defaults "
        f"({_one_line(detail, 150) or type(error).__name__}); download it again, or {RESAVE}"
    )


class _Flattener:
    """Turns nested content into JSON values and numbered tensors, and counts what it claims."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.tensors: dict[str, Tensor] = {}
        self._storages: set[int] = set()
        self._tensor_bytes = CLAIM_BASE + CLAIM_FACTOR * size
        self._structure_bytes = MAX_STRUCTURE

    def flat(self, value: Any, where: str, depth: int) -> Any:
        """Give `value` as JSON: {"dict": …}, {"tensor": number}, a list or a scalar."""
        scalar = value is None or type(value) in (bool, int, float, str)
        self._count(value if scalar else None)
        if depth > MAX_DEPTH:
            raise _Refusal(f"nests deeper than {MAX_DEPTH} levels; {RESAVE}")
        if scalar:
            return value
        if type(value) is _Skipped:
            return NOT_READ
        if isinstance(value, Tensor):
            return {"tensor": self._number(value, where)}
        if isinstance(value, (list, tuple)):
            return [self.flat(item, f"{where}[{n}]", depth + 1) for n, item in enumerate(value)]
        if not isinstance(value, dict):
            raise _unknown(f"a {type(value).__name__}", where)
        entries: dict[str, Any] = {}
        for key, item in value.items():
            if type(key) not in (str, int) or str(key) in entries:
                raise _unknown(f"a {type(key).__name__} as a key, or one twice,", where)
            self._count(key)
            entries[str(key)] = self.flat(item, f"{where}.{key}" if where else str(key), depth + 1)
        return {"dict": entries}

    def _count(self, value: Any) -> None:
        self._structure_bytes -= 24 + len(json.dumps(value))
        if self._structure_bytes < 0:
            raise _Refusal(f"holds more than {MAX_STRUCTURE >> 20} MiB beside tensors; {RESAVE}")

    def _number(self, value: Tensor, where: str) -> str:
        """Keep a tensor, with memory that no other shares, as safetensors wants it."""
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.dtype in NAMES
        dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_nested
        if not (plain and dense):
            kind = f"{value.dtype}, {value.layout}, {value.device}"
            raise _unknown(f"a special {type(value).__name__} ({kind})", where)
        # A stride of 0 makes any size out of one number.
        self._tensor_bytes -= math.prod(value.shape) * value.element_size()
        if self._tensor_bytes < 0:
            place = _one_line(where, 100)
            raise _Refusal(
                f"claims larger tensors, at {place}, than its {self.size} bytes can hold; {RESAVE}"
            )
        tensor = value.detach().resolve_conj().resolve_neg()
        storage = tensor.untyped_storage()
        whole = storage.nbytes() == tensor.nbytes and tensor.is_contiguous()
        if not whole or storage.data_ptr() in self._storages:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        self._storages.add(storage.data_ptr())
        self.tensors[number := str(len(self.tensors))] = tensor
        return number


def _unknown(what: str, where: str) -> _Refusal:
    place = _one_line(where, 100) or "its top level"
    return _Refusal(f"holds {what} at {place}, which is neither a tensor nor plain; {RESAVE}")


if __name__ == "__main__":
    _child(Path(sys.argv[1]), Path(sys.argv[2]))
