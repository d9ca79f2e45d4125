"""From what a user names on the command line to pictures and codes in memory."""

from __future__ import annotations

import io
import os
import re
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from ..codes import Codes
    from ..engine import Model

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
CODES = ".safetensors"
MAX_STDIN = 1 << 30
READERS = 2  # threads that read and decode pictures


@dataclass(frozen=True)
class Item:
    """One input as named: a file, or standard input (path None)."""

    label: str
    path: Path | None
    place: Path  # where its output goes below an output folder, without suffix


@dataclass(frozen=True)
class Loaded:
    """One picture, float32 (1, C, H, W), or the codes of one."""

    label: str
    place: Path
    digest: str  # of the 8-bit picture: names its own random numbers
    picture: Tensor | None = None
    codes: Codes | None = None


def collect(names: Sequence[str] | None, files_from: str | None, recursive: bool) -> list[Item]:
    """The inputs in order, folders expanded in natural order. Raises UsageError."""
    names = [*(names or []), *_listed(files_from)]
    if not names:
        raise UsageError("no input; name pictures, folders, codes, or - for standard input")
    if names.count("-") > 1 or ("-" in names and files_from == "-"):
        raise UsageError("standard input can be read only once")
    items: list[Item] = []
    for name in names:
        if name == "-":
            items.append(Item("-", None, Path("stdin")))
        elif Path(name).is_dir():
            items += _folder(Path(name), recursive)
        else:
            items.append(Item(name, Path(name), Path(Path(name).stem)))
    return items


def _listed(files_from: str | None) -> list[str]:
    if files_from is None:
        return []
    try:
        text = sys.stdin.read() if files_from == "-" else Path(files_from).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--files-from {files_from}: can't be read: {error}") from error
    return [line for line in text.splitlines() if line]


def _folder(folder: Path, recursive: bool) -> list[Item]:
    """Pictures and codes in a folder, or with `recursive` below it, not through links."""
    found = []
    for parent, folders, files in os.walk(folder):
        if not recursive:
            folders.clear()
        for file in files:
            path = Path(parent, file)
            if path.suffix.lower() in PICTURES | {CODES} and not file.startswith("."):
                found.append(path)
    if not found:
        hint = "" if recursive else "; -r looks into its folders"
        raise UsageError(f"{folder} holds no pictures or codes{hint}")
    found.sort(key=lambda path: _natural(path.relative_to(folder)))
    return [Item(str(p), p, p.relative_to(folder).with_suffix("")) for p in found]


def _natural(path: Path) -> list[tuple[int, str]]:
    """a2 before a10."""
    parts = re.split(r"(\d+)", path.as_posix().casefold())
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def load_item(item: Item, model: Model, fit: str) -> Iterator[Loaded]:
    """Read one input: a picture, or each row of a codes file, checked against the model.

    Raises InputError.
    """
    from ..codes import read_codes
    from ..images import digest, open_picture, prepare, to_float

    data = _bytes(item)
    if data[8:9] == b"{" or (item.path and item.path.suffix.lower() == CODES):
        codes = read_codes(io.BytesIO(data), item.label)
        try:
            model.check(codes)
        except InputError as error:
            raise InputError(f"{item.label}: {error}") from error
        for row in range(len(codes)):
            one = codes[row : row + 1]
            suffix = f"-{row:04d}" if len(codes) > 1 else ""
            place = item.place.with_name(item.place.name + suffix)
            yield Loaded(item.label + suffix, place, one.digests[0], codes=one)
        return
    unet = model.config.unet
    pixels = prepare(
        open_picture(io.BytesIO(data), item.label), unet.image_size, unet.channels, fit
    )
    yield Loaded(item.label, item.place, digest(pixels), picture=to_float(pixels)[None])


def loaded_ahead(
    items: Sequence[Item], model: Model, fit: str, ahead: int
) -> Iterator[tuple[Item, list[Loaded] | InputError]]:
    """What `load_item` makes of each input, or its InputError, in order. Up to `ahead` inputs are
    read and decoded by other threads while the network computes."""

    def load(item: Item) -> list[Loaded] | InputError:
        try:
            return list(load_item(item, model, fit))
        except InputError as error:
            return error

    pool = ThreadPoolExecutor(READERS)
    try:
        waiting: deque[tuple[Item, Future[list[Loaded] | InputError]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(load, item)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _bytes(item: Item) -> bytes:
    if item.path is None:
        data = sys.stdin.buffer.read(MAX_STDIN + 1)
        if len(data) > MAX_STDIN:
            raise InputError(f"standard input holds more than {MAX_STDIN >> 30} GiB")
        if not data:
            raise InputError("standard input is empty")
        return data
    try:
        if item.path.exists() and not item.path.is_file():
            raise InputError(f"{item.label}: not a regular file")
        return item.path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{item.label}: {error.strerror or error}".replace(
                "No such file or directory", "no such file"
            )
        ) from error
