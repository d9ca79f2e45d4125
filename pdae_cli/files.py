"""Files: written so that a reader sees the whole new content or the old one, never a part, and
read with a limit on what they may make us hold."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, BinaryIO

from .errors import InputError, StorageError

if sys.platform != "win32":
    import fcntl

ROOM = 64 << 10  # bytes of a small output


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file beside `path`, which on success takes that name, else is removed; so is what
    dead processes left in the folder. Raises InputError where the folder can't be made or written,
    StorageError where it is full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.absolute())
        temporary, file = _temporary(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if sys.platform == "win32":  # which renames no open file
                file.close()
            temporary.replace(path)
        _keep_names(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _keep_names(folder: Path) -> None:
    """Have renames outlive a power failure, where a folder and its disk let that be asked."""
    if hasattr(os, "O_DIRECTORY"):
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _temporary(folder: Path) -> tuple[Path, BinaryIO]:
    """Make a file whose name nobody foresees, locked while its process lives."""
    while True:
        path = folder / f".pdae-{secrets.token_hex(8)}.tmp"
        file = open(path, "xb", opener=_no_link)  # noqa: SIM115
        with suppress(OSError):  # a disk without locks, which isn't swept either
            _lock(file, wait=True)
        if path.exists():  # else swept before it was locked
            return path, file
        file.close()


@cache  # a folder of many files is looked through once
def _sweep(folder: Path) -> None:
    """Remove temporary files that no living process has locked."""
    for path in folder.glob(".pdae-*.tmp"):
        if re.fullmatch(r"\.pdae-[0-9a-f]{16}\.tmp", path.name):
            with suppress(OSError), open(path, "r+b", opener=_no_link) as file:
                _lock(file, wait=False)
                path.unlink()


def _lock(file: BinaryIO, wait: bool) -> None:
    """Lock a file until it is closed. Raises OSError; on Windows an open file can't be removed."""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def append(path: Path, data: bytes) -> None:
    """Add to a file's end in one write, onto the disk, and never through a link. Raises InputError,
    StorageError."""
    try:
        with open(path, "ab", buffering=0, opener=_no_link) as file:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def check_writable(folder: Path, size: int = ROOM) -> None:
    """Try, before work is done for it, whether a folder, which is to be made if it isn't there, has
    room for a file of so many bytes. Raises InputError, StorageError."""
    there = folder.absolute()
    try:
        while not os.path.lexists(there):
            there = there.parent
        _sweep(there)  # of what was killed while it tried this
        path, file = _temporary(there)
        try:
            with file:
                file.write(bytes(min(size, ROOM)))
        finally:
            path.unlink(missing_ok=True)  # closed, another process may have swept it
        if shutil.disk_usage(there).free < size > ROOM:
            raise OSError(errno.ENOSPC, f"No space left for {size >> 20} MiB")
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(path: Path | str, error: OSError) -> InputError | StorageError:
    """Tell what a failed write means: no room at all, or this file alone."""
    what = f"can't write {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{what}; make room and run the same command again")
    return InputError(f"{what}; choose another -o")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as file:
        file.write(data)


# What lies around in place of a file: how it begins, and what it is.
MISTAKEN = {
    rb"version https://git-lfs": "a Git-LFS pointer, not the file itself: run `git lfs pull` there",
    rb"(?:\.\./)*/?\.?(?:git/)?annex/objects/": "a git-annex pointer: run `git annex get` there",
    rb"(?i)<(?:!doctype|html|head|body)": "a web page (HTML), not the file: download it again",
    rb"<\?xml|<Error>": "a server's answer (XML), not the file: download it again",
}


def mistaken_for(data: bytes) -> str | None:
    """Tell what a file is that was saved in another's place, by how it begins; None if nothing."""
    begin = data[:200].removeprefix(b"\xef\xbb\xbf").lstrip()
    return next((what for how, what in MISTAKEN.items() if re.match(how, begin)), None)


def read_stream(stream: IO[bytes], limit: int) -> bytes:
    """Read a stream to its end, or to a byte more than the limit; piece by piece, since asked for
    all at once Python sets aside as much as might come."""
    pieces, left = [], limit + 1
    while left > 0 and (piece := stream.read(min(left, 1 << 20))):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def read_limited(path: Path, limit: int, head: int | None = None) -> bytes:
    """Read a regular file, or its first `head` bytes. Raises InputError for what is none, can't be
    read or is larger than `limit`."""
    with _opened(path, limit) as (file, size):
        return file.read(size if head is None else head)


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
            if stat.S_ISFIFO(facts.st_mode):
                raise InputError(f"{path}: a pipe, not a regular file; write what it gives to one")
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{path}: not a regular file")
            if facts.st_size > limit:
                most = f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"
                raise InputError(f"{path}: larger than {most}")
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


def sha256(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundled(pattern: str) -> Iterator[Path]:
    """Find what comes with the package's weights: in an installed wheel, or beside the package in a
    checkout."""
    package = Path(__file__).parent
    for weights in (package / "weights", package.parent / "weights"):
        yield from sorted(weights.glob(pattern))


def bundled_models() -> dict[str, Path]:
    """Name → folder of each model that comes with the package."""
    found = dict[str, Path]()
    for config in bundled("*/config.json"):
        found.setdefault(config.parent.name, config.parent)
    return found
