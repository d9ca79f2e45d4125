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

from .errors import InputError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: Path, claimed: bool = False) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success rename it onto `path`, else remove it.

    The name is this process's own, and what dead processes left of `path` is removed; or where
    `path` is `claimed`, so that nobody else writes it, always the same. Raises InputError where the
    folder can't be made or written, StorageError where it is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path, claimed)
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
        _sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path, claimed: bool) -> Path:
    stem = f".{path.name[:20]}.{hash_name(path.name)}"
    if claimed:
        return path.with_name(f"{stem}.tmp")
    stem = f"{stem}.{hash_name(platform.node())}"  # of this machine: folders may be shared
    for left in path.parent.glob(f"{glob.escape(stem)}.*.tmp"):
        if not _alive(left.name.split(".")[-2]):
            left.unlink(missing_ok=True)
    return path.with_name(f"{stem}.{os.getpid()}.tmp")


def _alive(process: str) -> bool:
    """Whether a process of this number runs; True where that can't be asked harmlessly."""
    if sys.platform == "win32" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power failure, where folders can be synchronised."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def unwritable(path: Path, error: OSError) -> InputError | StorageError:
    """What a failed write means: no room at all, or this file alone."""
    if error.errno in FULL:
        return StorageError(
            f"can't write {path}: {error.strerror}; make room and run the same command again"
        )
    return InputError(f"can't write {path}: {error.strerror or error}; choose another -o")


def write_bytes(path: Path, data: bytes, claimed: bool = False) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path, claimed) as temporary:
        temporary.write_bytes(data)


def read_limited(path: Path, limit: int) -> bytes:
    """A regular file's content. Raises InputError for what is none, can't be read or is larger."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{path}: not a regular file")
            if facts.st_size > limit:
                raise InputError(f"{path}: larger than {limit >> 20} MiB")
            return file.read(limit + 1)
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
    """A zip member's content. Raises InputError for one that is damaged, encrypted or larger."""
    try:
        if archive.getinfo(name).file_size > limit:
            raise InputError(f"{name}: unpacks to more than {limit >> 20} MiB")
        return archive.read(name)
    except (OSError, RuntimeError, NotImplementedError, EOFError) as error:
        raise InputError(f"{name}: can't be unpacked: {error}") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{name}: the zip is damaged: {error}") from error


def hash_name(name: str) -> str:
    """A short name for a name."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
