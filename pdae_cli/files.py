"""Files: written so that a reader sees the whole new content or the old one, never a part, and
read with a limit on what they may make us hold."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import platform
import stat
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import InputError, StorageError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success rename it onto `path`, else remove it. What
    dead processes left of `path` is removed. Raises InputError where the folder can't be made or
    written, StorageError where it is full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The name is of this machine, since folders may be shared, and of this process.
        stem = f".{path.name[:20]}.{hash_name(path.name)}.{hash_name(platform.node())}"
        for left in path.parent.glob(f"{glob.escape(stem)}.*.tmp"):
            if not _alive(left.name.split(".")[-2]):
                left.unlink(missing_ok=True)
        temporary = path.with_name(f"{stem}.{os.getpid()}.tmp")
        temporary.touch()
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        mode = temporary.stat().st_mode  # as this user's files are; safetensors makes private ones
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        if hasattr(os, "O_DIRECTORY"):  # a rename outlives a power failure, where that can be asked
            handle = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _alive(process: str) -> bool:
    """Whether a process of this number runs; True where that can't be asked harmlessly."""
    try:
        if sys.platform != "win32":
            os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError, ValueError):
        pass
    return True


def unwritable(path: Path, error: OSError) -> InputError | StorageError:
    """Tell what a failed write means: no room at all, or this file alone."""
    what = f"can't write {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{what}; make room and run the same command again")
    return InputError(f"{what}; choose another -o")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_limited(path: Path, limit: int) -> bytes:
    """Read a regular file. Raises InputError for what is none, can't be read or is larger."""
    with _opened(path, limit) as (file, size):
        return file.read(size)


def sha256_limited(path: Path, limit: int) -> str:
    """Compute the SHA-256 of what `read_limited` reads, and raises, without holding it."""
    sha = hashlib.sha256()
    with _opened(path, limit) as (file, size):
        while some := file.read(min(size, 1 << 20)):
            sha.update(some)
            size -= len(some)
    return sha.hexdigest()


@contextmanager
def _opened(path: Path, limit: int) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, and say how large it is. Raises InputError as `read_limited`."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{path}: not a regular file")
            if facts.st_size > limit:
                raise InputError(f"{path}: larger than {limit >> 20} MiB")
            yield file, facts.st_size
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: not a regular file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _without_waiting(path: str, flags: int) -> int:
    """Open also what would wait for another program, a FIFO say, at once."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """Read a zip's member. Raises InputError for one that is damaged, encrypted or larger."""
    try:
        if archive.getinfo(name).file_size > limit:
            raise InputError(f"{name}: unpacks to more than {limit >> 20} MiB")
        return archive.read(name)
    except (OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise InputError(f"{name}: can't be unpacked: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{name}: the zip is damaged: {error}") from error


def hash_name(name: str) -> str:
    """Shorten a name to twelve digits."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def sha256(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundled_models() -> dict[str, Path]:
    """Name → folder of each model that comes with the package: in an installed wheel, or beside
    the package in a checkout."""
    package, found = Path(__file__).parent, dict[str, Path]()
    for weights in (package / "weights", package.parent / "weights"):
        for config in sorted(weights.glob("*/config.json")):
            found.setdefault(config.parent.name, config.parent)
    return found
