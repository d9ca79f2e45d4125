"""pdae env: what a bug report needs to know of a machine, and nothing of whose it is."""

from __future__ import annotations

import getpass
import importlib.metadata
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..files import bundled, sha256
from .output import Output
from .run.launch import NAMES, TASKS

DEVELOPERS = ("test", "bench", "dev", "docs")  # extras that no command needs
# Of variables that change results, speed or places.
BEGINNINGS = (
    "PDAE_", "HF_", "XDG_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_",
    "ATEN_", "TORCH", "PYTORCH_", "CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "NCCL_", "HIP_", "ROCR_",
    "HSA_", "ACCELERATE_", "PILLOW_", "PYTHON", "LC_", "LANG", "LD_", "DYLD_", "TMPDIR", "TERM",
    "SOURCE_DATE_EPOCH", "COLUMNS", "NO_COLOR", *NAMES, *TASKS, *TASKS.values(),
    "WANDB_", "MLFLOW_", "TRACKIO_", "HTTP_", "HTTPS_", "ALL_PROXY", "NO_PROXY",
)  # fmt: skip
SECRET = re.compile("TOKEN|KEY|SECRET|PASS|PWD|AUTH|CRED|COOKIE|SIGN|USER|PROXY")
# Whatever the variable is called: of URLs, who asks and what for; keys as services hand them out.
SECRETIVE = re.compile(r"://\S*[@?]|(?<![a-zA-Z0-9])(hf|sk|pk|gh[a-z]|glpat|xox[a-z])[_-]\w{8,}")


def env(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print what a bug report needs: versions, devices, variables, caches, weights. Of secrets it
    says that they are set, of your home folder ~.

    Example: pdae env --json
    """
    out, record = Output(json=as_json), dict[str, Any]()
    parts: dict[str, Callable[[], Any]] = {
        "version": lambda: __version__, "package": lambda: str(Path(__file__).parents[1]),
        "python": lambda: f"{platform.python_version()} ({platform.python_implementation()})",
        "packages": _packages, "system": _system, "pillow": _pillow, "bundled": lambda: {
            f"{one.parent.name}/{one.name}": sha256(one) for one in bundled("*/*.safetensors")
        },
        "environment": _environment, "caches": _caches, "torch": _torch,
    }  # fmt: skip
    for name, find in parts.items():  # torch last: if broken, it may end the process
        found = {name: _private(_tried(find))}
        record |= found
        if not as_json:
            out.facts(found)
    if as_json:
        out.facts(record)


def _tried(find: Callable[[], Any]) -> Any:
    """What is found, or why it isn't: what is broken is what a report is about."""
    try:
        return find()
    except Exception as error:
        return f"broken: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _private(value: Any) -> Any:
    """The same with ~ for home folders."""
    if isinstance(value, dict):
        return {_private(key): _private(one) for key, one in value.items()}
    if not isinstance(value, str):
        return value
    homes = {os.path.expanduser("~")}  # noqa: PTH111, Path's raises where there is none
    with suppress(Exception):  # the account's own, where HOME says another
        homes.add(os.path.expanduser(f"~{getpass.getuser()}"))  # noqa: PTH111
    homes |= {os.path.realpath(home) for home in homes}
    for home in sorted(homes, key=len, reverse=True):
        if Path(home).is_absolute() and Path(home).name:
            value = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", value)
    return value


def _packages() -> dict[str, str]:
    """Versions of what the package asks for, and of what its extras do."""
    found = dict[str, str]()
    for line in importlib.metadata.requires("pdae-cli") or ():
        name, extra = re.split(r"[^\w.-]", line)[0], re.search(r"extra == .(\w+)", line)
        if extra is None or extra[1] not in DEVELOPERS:
            found[name] = "not installed" + (f", of the extra {extra[1]}" if extra else "")
            with suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
    return found


def _system() -> dict[str, str]:
    told, cores = Path("/proc/cpuinfo"), os.cpu_count()
    model = re.search(r"model name\s*:\s*(.+)", told.read_text()) if told.is_file() else None
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    return {
        "platform": platform.platform(),
        "processor": model[1] if model else platform.processor() or platform.machine(),
        "cores": f"{cores} of {os.cpu_count()}",
        "encoding": f"{sys.stdout.encoding}, of names {sys.getfilesystemencoding()}",
    }


def _pillow() -> dict[str, str | None]:
    """What decodes pictures: other versions may give other pixels."""
    from PIL import features

    names = ("jpg", "libjpeg_turbo", "zlib", "webp", "avif", "libtiff", "littlecms2")
    return {name: features.version(name) for name in names}


def _environment() -> dict[str, str]:
    """Variables by name; of those that may hold secrets no more than that they are set."""
    return {
        name: "set" if SECRET.search(name.upper()) or SECRETIVE.search(value) else value
        for name, value in sorted(os.environ.items())
        if name.upper().startswith(BEGINNINGS)
    }


def _caches() -> dict[str, str]:
    """Their folders, and how large they are."""
    from huggingface_hub import constants

    places = {one: one for one in (constants.HF_HUB_CACHE, f"{constants.HF_HOME}/datasets")}
    with suppress(KeyError, OSError, ImportError):  # a user without an account
        places["torch.compile's"] = f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"
    for name in ("HF_DATASETS_CACHE", "TORCHINDUCTOR_CACHE_DIR"):
        if name in os.environ:
            places[name] = os.environ[name]
    return {name: f"{_size(place) / 2**20:,.1f} MiB" for name, place in places.items()}


def _size(folder: str) -> int:
    """Bytes of the files below a folder, each once: the Hub's cache links to its own."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # another process's, gone meanwhile
                size += (Path(place) / name).lstat().st_size
    return size


def _torch() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "version": torch.__version__,
        "built for": torch.version.cuda or torch.version.hip or "no GPU of CUDA or ROCm",
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "oneDNN": torch.backends.mkldnn.is_available(),
    }
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator(check_available=True)
        for number in range(torch.accelerator.device_count()):
            name = torch.cuda.get_device_name(number) if torch.cuda.is_available() else "there"
            found[f"{kind}:{number}"] = name
    return found
