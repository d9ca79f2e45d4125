"""From what a user names on the command line to the items of work, before anything is read."""

from __future__ import annotations

import codecs
import glob
import hashlib
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from copy import copy
from dataclasses import dataclass
from functools import cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, BinaryIO, get_args

from ...errors import InputError, UsageError
from ...files import read_limited, read_stream
from ...pictures.listing import (
    CODES,
    MAX_PICTURE,
    OTHER,
    Listing,
    is_archive,
    is_folder,
    list_pictures,
    natural,
)
from .launch import launched
from .tables import TABLE, CodesTable, open_codes

MAX_CODES = 8 << 30
MAX_LIST = 256 << 20  # of --files-from
SIGNATURE = b"\x89PNG\r\n\x1a\n"
SEALED = b"\0\0\0\0{"  # bytes 4 to 9 of a safetensors file: of its header's size, and its beginning
# Options that name a file: an empty name would be the current folder's, or none at all.
NAMES = ("output", "files_from", "sheet", "report", "mask", "like", "unlike", "landmarks",
         "classifier")  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One piece of work as named: a file, a zip's member, standard input, or a number."""

    label: str
    place: Path  # where its output goes below an output folder, without suffix
    read: Callable[[], bytes] = bytes  # its content; raises InputError
    name: str = ""  # of its file, as typed
    table: Any = None  # that it is a row of
    source: str = ""  # what that calls the picture
    made_of: tuple[str, ...] = ()  # names of inputs, where they are several
    found: bool = False  # in a folder or zip that was named, where it wasn't itself

    @property
    def is_codes(self) -> bool:
        """Whether its name or its table says that it holds codes."""
        return isinstance(self.table, CodesTable) or self.name.lower().endswith(CODES)

    def whereabouts(self, folder: Path) -> list[str]:
        """Return what tells it from others but not where it is: digests of its path as named and of
        where links lead, seen from an output's folder, so that both may be moved at once. Standard
        input has none of its own, and a sample is made of nothing."""
        if self.name == "-":
            return ["-"]
        names = self.made_of or ((self.label,) if self.name else ())
        found = {
            "\0".join(_seen_from(way(folder), way(name)) for name in names)
            for way in (os.path.abspath, os.path.realpath)
        }
        return sorted(hashlib.sha256(os.fsencode(one)).hexdigest()[:16] for one in found if one)


def _seen_from(folder: str, path: str) -> str:
    """A path relative to a folder, as far as it can be."""
    try:
        return os.path.normcase(os.path.relpath(path, folder))
    except ValueError:  # on another drive
        return os.path.normcase(path)


class Items(Sequence[Item]):
    """Items by number, each made when it is asked for: a table may have more than memory holds."""

    def __init__(self, make: Callable[[int], Item], numbers: range) -> None:
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        found = self._numbers[index]
        return self._make(found) if isinstance(found, int) else Items(self._make, found)


def check_names(given: dict[str, Any]) -> None:
    """Raise UsageError for an empty name among a command's parameters, as scripts make them."""
    for name in NAMES:
        if given.get(name) == "":
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is empty, as of a variable that isn't set; name a file")


def path(text: str | Path) -> Path:
    """A name as the path that it means. Raises UsageError for an empty one, which Path takes for
    the current folder."""
    if not str(text):
        raise UsageError("a name is empty, as of a variable that isn't set; name a file")
    return Path(text)


def paths_named(annotation: Any) -> Any:
    """A parameter's annotation, in which paths are parsed by `path`."""
    kind, *about = get_args(annotation)
    if about and Path in (get_args(kind) or (kind,)):
        about[0] = copy(about[0])
        about[0].parser = path
        return Annotated[kind, about[0]]
    return annotation


def collect(
    names: Sequence[str] | None,
    files_from: str | None = None,
    recursive: bool = False,
    *,
    null: bool = False,
    stream: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    without: Collection[str] = (),
    once: bool = False,
) -> Iterable[Item]:
    """The inputs in order, folders, zips and globs expanded in natural order; `say` is told what is
    left out, among it the command's own output: real paths `without`, and where each is wanted
    `once` what is named again. A table is an item a row.

    A sequence, or for a `stream` of pictures on standard input an iterator. Raises UsageError.
    """
    names = [*(one for name in names or [] for one in _globbed(name, recursive))]
    piped = [*names, files_from].count("-")
    if piped and launched()[1] > 1:
        shared = "launched processes share standard input, and each would get parts of it"
        raise UsageError(f"{shared}; write it to a file, and name that")
    names += _listed(files_from, null)
    if not names:
        raise UsageError("no input; name pictures, folders, codes, or - for standard input")
    if "" in names:
        raise UsageError("an input's name is empty, as of a variable that isn't set; name a file")
    if names.count("-") > 1 or ("-" in names and files_from == "-"):
        raise UsageError("standard input can be read only once")
    if stream is not None:
        if names != ["-"]:
            raise UsageError("--stream reads standard input: give - as the one input")
        return _streamed()
    parts = [part for name in names for part in _expanded(name, recursive, say, without)]
    if once and len(names) > 1:
        parts = _without_twins(parts, say)
    if all(isinstance(part, Item) for part in parts):
        return parts
    parts = [[part] if isinstance(part, Item) else part for part in parts]
    ends = list(accumulate(map(len, parts)))

    def item(number: int) -> Item:
        part = bisect_right(ends, number)
        return parts[part][number - ends[part]]  # counted from its end

    return Items(item, range(ends[-1]))


def shared_out(items: Sequence[Item], share: int, shares: int) -> Sequence[Item]:
    """One share of the items in their order, whichever order the others' lists of names have."""
    if shares == 1 or not isinstance(items, list):  # a folder's and a table's are everywhere alike
        return items[share::shares]
    numbers = sorted(range(len(items)), key=lambda number: items[number].label)
    return [items[number] for number in sorted(numbers[share::shares])]


def files_named() -> Callable[[str | Path], str]:
    """Return what finds the file that a name stands for, by whichever links to its folder: a link
    in the file's own place is one of its own."""
    real = cache(os.path.realpath)  # of folders: many files have the same

    def file(name: str | Path) -> str:
        folder, own = os.path.split(name)
        folder, own = (folder, own) if own else os.path.split(folder)  # of a folder's "out/"
        with suppress(ValueError):  # a NUL, which no file's name has: reading it says so
            return os.path.join(real(folder), own)  # noqa: PTH118, for a million names
        return str(name)

    return file


def _without_twins(parts: Sequence[Any], say: Callable[[str], None]) -> list[Any]:
    """Leave out what is the same file again, by whichever links to its folder."""
    file, found, again = files_named(), dict[str, Any](), list[str]()
    for part in parts:
        label = part.label if isinstance(part, Item) else part[0].label
        if (path := file(label)) in found:
            again.append(label)
        found.setdefault(path, part)
    if again:
        more = f" and {len(again) - 1} more" if len(again) > 1 else ""
        say(f"{again[0]}{more}: named more than once, done once")
    return list(found.values())


def _listed(files_from: str | None, null: bool) -> list[str]:
    """The lines of a list of files, or what stands between its NULs."""
    if files_from is None:
        if null:
            raise UsageError("-0 says how --files-from is separated; give that too")
        return []
    try:
        piped = files_from == "-"
        with nullcontext(sys.stdin.buffer) if piped else Path(files_from).open("rb") as file:
            data = read_stream(file, MAX_LIST)
    except OSError as error:
        raise UsageError(f"--files-from {files_from}: can't be read: {error.strerror}") from error
    if len(data) > MAX_LIST:
        raise UsageError(f"--files-from {files_from}: larger than {MAX_LIST >> 20} MiB; split it")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # by > in older PowerShells
        text = data.decode("utf-16", "replace")
    else:
        text = os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    lines = text.split("\0") if null else [line.rstrip("\r") for line in text.split("\n")]
    return [line for line in lines if line]


def _globbed(name: str, recursive: bool) -> list[str]:
    """What a pattern stands for, where the shell left it as it is; else the name itself."""
    if os.path.lexists(name) or not glob.has_magic(name):
        return [name]
    return sorted(glob.glob(name, recursive=recursive), key=natural) or [name]  # noqa: PTH207


def _expanded(
    name: str, recursive: bool, say: Callable[[str], None], without: Collection[str]
) -> list[Any]:
    """The items of a name, and all those of a table as one Items."""
    path = Path(name)
    if name == "-":
        return [Item("-", Path("stdin"), _stdin, "-")]
    folder, suffix = is_folder(path), path.suffix.lower()
    if not folder and not is_archive(path):
        place = _place(path) if recursive else Path(_place(path).name)
        try:
            table: Any = open_codes(path)
            # A name in a folder that is here is a file, and none of the Hub's business.
            if table is None and (suffix in (TABLE, ".tar") or not is_folder(path.parent)):
                from ...training.tables import open_table  # imports torch

                table = open_table(path)
                if table is not None and (told := table.told()):
                    say(told)
        except InputError as error:
            return [_failed(name, place, str(error))]
        if table is not None:
            if not len(table):
                raise UsageError(f"{name} holds no pictures or codes: it has no rows")
            return [_of_table(table, name, place)]
        return [Item(name, place, partial(read_limited, path, _most(name)), name)]
    try:
        listing = list_pictures(path, {CODES}, without)
    except InputError as error:  # it costs itself alone
        return [_failed(name, _place(path), str(error))]
    others = [one for one, why in listing.left_out if why == OTHER and folder]
    tables = {one: table for one in others if (table := open_codes(path / one))}
    listing.left_out = [one for one in listing.left_out if one[0] not in tables]
    listing.names = sorted([*listing.names, *tables], key=natural)
    deeper = 0
    if folder and not recursive:
        whole, listing = listing, listing.here()
        deeper = len(whole.names) - len(listing.names)
    told, lie = listing.told(), "lies" if deeper == 1 else "lie"
    if not listing.names and not listing.closed:
        hint = f"; {deeper} {lie} deeper, -r looks there" if deeper else ""
        raise UsageError(f"{name} holds no pictures or codes{hint}" + (f"; {told}" if told else ""))
    if deeper:
        say(f"{name}: {deeper} more {lie} in its folders; -r takes them too")
    if told:
        say(told)
    return list(_items(listing, tables))


def _of_table(table: Any, name: str, place: Path) -> Items:
    digits, is_codes = max(4, len(str(len(table) - 1))), isinstance(table, CodesTable)

    def item(row: int) -> Item:
        part = place.with_name(f"{place.name}-{row:0{digits}d}")
        source = "" if is_codes else table.name(row)  # codes know theirs
        return Item(f"{name}:{row}", part, partial(table.read, row), name, table, source)

    return Items(item, range(len(table)))


def _items(listing: Listing, tables: Mapping[str, Any]) -> Iterator[Item | Items]:
    """What a folder or zip holds, and the folders in it that can't be opened, which will fail."""
    for name in listing.names:
        label = f"{listing.root}/{name}" if listing.archive else str(listing.root / name)
        if name in tables:
            yield _of_table(tables[name], label, _place(Path(name)))
            continue
        read = partial(listing.read, name, _most(name))
        yield Item(label, _place(Path(name)), read, label, found=True)
    for name, reason in sorted(listing.closed.items()):
        label = str(listing.root / name)
        yield _failed(label, Path(name), f"{label}: can't be opened: {reason}")


def _most(name: str) -> int:
    """Bytes that a file of this name may have."""
    return MAX_CODES if name.lower().endswith(CODES) else MAX_PICTURE


def _failed(label: str, place: Path, error: str) -> Item:
    """What can't be read, as we know already."""

    def read() -> bytes:
        raise InputError(error)

    return Item(label, place / "-", read, label)


def _place(path: Path) -> Path:
    """A file's own path without suffix, below the output folder: never above it, never absolute."""
    parts = [part for part in path.parts if part not in (path.anchor, "..")] or ["out"]
    stem = Path(parts[-1]).stem
    return Path(*parts[:-1], stem if stem.strip(".") else parts[-1])


def _stdin() -> bytes:
    data = read_stream(sys.stdin.buffer, MAX_CODES)
    if len(data) > MAX_CODES:
        raise InputError(f"standard input holds more than {MAX_CODES >> 30} GiB")
    if not data:
        raise InputError("standard input is empty")
    return data


def pipes_codes() -> bool:
    """Whether standard input begins as codes do. Waits for it to begin, and takes nothing of it."""
    try:
        return sys.stdin.buffer.peek(9)[4:9] == SEALED  # type: ignore[union-attr]
    except OSError:
        return False  # reading says why


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
