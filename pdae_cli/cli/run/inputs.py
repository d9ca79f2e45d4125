"""From what a user names on the command line to the items of work, before anything is read."""

from __future__ import annotations

import codecs
import glob
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ...errors import InputError, UsageError
from ...files import read_limited, read_member

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
CODES = ".safetensors"
MAX_PICTURE = 1 << 30  # bytes of a picture file
MAX_CODES = 8 << 30
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Item:
    """One piece of work as named: a file, a zip's member, standard input, or a number."""

    label: str
    place: Path  # where its output goes below an output folder, without suffix
    read: Callable[[], bytes] = bytes  # its content; raises InputError
    name: str = ""  # of its file, as typed

    @property
    def is_codes(self) -> bool:
        """Whether its name says that it holds codes."""
        return self.name.lower().endswith(CODES)


def collect(
    names: Sequence[str] | None,
    files_from: str | None = None,
    recursive: bool = False,
    *,
    null: bool = False,
    stream: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterable[Item]:
    """The inputs in order, folders, zips and globs expanded in natural order; `say` is told what is
    left out.

    A list, or for a `stream` of pictures on standard input an iterator. Raises UsageError.
    """
    names = [*(one for name in names or [] for one in _globbed(name, recursive))]
    names += _listed(files_from, null)
    if not names:
        raise UsageError("no input; name pictures, folders, codes, or - for standard input")
    if names.count("-") > 1 or ("-" in names and files_from == "-"):
        raise UsageError("standard input can be read only once")
    if stream is not None:
        if names != ["-"]:
            raise UsageError("--stream reads standard input: give - as the one input")
        return _streamed()
    return [item for name in names for item in _expanded(name, recursive, say)]


def _listed(files_from: str | None, null: bool) -> list[str]:
    """The lines of a list of files, or what stands between its NULs."""
    if files_from is None:
        if null:
            raise UsageError("-0 says how --files-from is separated; give that too")
        return []
    try:
        data = sys.stdin.buffer.read() if files_from == "-" else Path(files_from).read_bytes()
    except OSError as error:
        raise UsageError(f"--files-from {files_from}: can't be read: {error.strerror}") from error
    text = os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    lines = text.split("\0") if null else [line.rstrip("\r") for line in text.split("\n")]
    return [line for line in lines if line]


def _globbed(name: str, recursive: bool) -> list[str]:
    """What a pattern stands for, where the shell left it as it is; else the name itself."""
    if os.path.lexists(name) or not glob.has_magic(name):
        return [name]
    return sorted(glob.glob(name, recursive=recursive), key=_natural) or [name]  # noqa: PTH207


def _expanded(name: str, recursive: bool, say: Callable[[str], None]) -> list[Item]:
    path = Path(name)
    if name == "-":
        return [Item("-", Path("stdin"), _stdin, "-")]
    if os.path.isdir(path):  # noqa: PTH112, Path.is_dir raises on names that are too long
        return _folder(path, recursive, say)
    if path.suffix.lower() == ".zip" and os.path.isfile(path):  # noqa: PTH113
        return _zip(path)
    return [_file(name, _mirrored(path) if recursive else Path(path.stem))]


def _file(name: str, place: Path) -> Item:
    limit = MAX_CODES if name.lower().endswith(CODES) else MAX_PICTURE
    return Item(name, place, partial(read_limited, Path(name), limit), name)


def _mirrored(path: Path) -> Path:
    """A named file's own path, below the output folder: never above it, never absolute."""
    return Path(*(part for part in path.parts if part not in (path.anchor, ".."))).with_suffix("")


def _folder(folder: Path, recursive: bool, say: Callable[[str], None]) -> list[Item]:
    """Pictures and codes in a folder, or with `recursive` below it, not through links."""
    found, deeper = [], 0
    for parent, folders, files in os.walk(folder):
        folders[:] = [one for one in folders if not one.startswith(".")]
        here = [Path(parent, file) for file in files if _taken(file)]
        if recursive or Path(parent) == folder:
            found += here
        else:
            deeper += len(here)
    lie = "lies" if deeper == 1 else "lie"
    if not found:
        hint = f"; {deeper} {lie} deeper, -r looks there" if deeper else ""
        raise UsageError(f"{folder} holds no pictures or codes{hint}")
    if deeper:
        say(f"{folder}: {deeper} more {lie} in its folders; -r takes them too")
    found.sort(key=lambda path: _natural(path.relative_to(folder).as_posix()))
    return [_file(str(path), path.relative_to(folder).with_suffix("")) for path in found]


def _zip(path: Path) -> list[Item]:
    """Pictures and codes in a zip; its folders are mirrored."""
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: can't be read as a zip: {error}") from error
    names = sorted((n for n in archive.namelist() if _taken(PurePosixPath(n).name)), key=_natural)
    if not names:
        raise UsageError(f"{path} holds no pictures or codes")
    return [
        Item(
            f"{path}/{name}",
            _mirrored(Path(name)),
            partial(read_member, archive, name, MAX_PICTURE),
            f"{path}/{name}",
        )
        for name in names
    ]


def _taken(name: str) -> bool:
    return Path(name).suffix.lower() in PICTURES | {CODES} and not name.startswith(".")


def _natural(path: str) -> list[tuple[int, str]]:
    """a2 before a10."""
    parts = re.split(r"([0-9]+)", Path(path).as_posix().casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _stdin() -> bytes:
    data = sys.stdin.buffer.read(MAX_CODES + 1)
    if len(data) > MAX_CODES:
        raise InputError(f"standard input holds more than {MAX_CODES >> 30} GiB")
    if not data:
        raise InputError("standard input is empty")
    return data


def _streamed() -> Iterator[Item]:
    """The pictures of concatenated PNGs on standard input, as they come."""
    for number, data in enumerate(split_pngs(sys.stdin.buffer, MAX_PICTURE)):
        yield Item(f"-:{number}", Path(f"{number:06d}"), partial(bytes, data), "-")


def split_pngs(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """Each PNG's bytes, found by its chunks (PNG specification, sec. 5.3).

    Raises InputError where the stream isn't one of whole PNGs, or one exceeds `limit` bytes; the
    pictures before are good.
    """
    number = 0
    while signature := stream.read(len(SIGNATURE)):
        if signature != SIGNATURE:
            raise InputError(f"standard input: what follows picture {number} is no PNG")
        parts, size, kind = [signature], 0, b""
        while kind != b"IEND":
            header = stream.read(8)
            length, kind = int.from_bytes(header[:4]), header[4:]
            size += length + 12
            if size > limit:
                raise InputError(f"standard input: picture {number} exceeds {limit >> 20} MiB")
            body = stream.read(length + 4)  # and its checksum
            if len(header) < 8 or len(body) < length + 4:
                raise InputError(f"standard input ends within picture {number}")
            parts += [header, body]
        yield b"".join(parts)
        number += 1
