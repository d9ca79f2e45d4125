"""A training set: pictures in a folder tree, a zip or a table."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ..engine.computing import Say, ignore
from ..errors import InputError, UsageError
from ..pictures.decoding import turn
from ..pictures.images import open_picture, prepare
from ..pictures.listing import is_archive, is_folder, list_pictures
from .labels import Labels
from .tables import open_table

CACHE_BYTES = 4 << 30  # decoded pictures are kept in memory up to this size
ENOUGH = 32  # held-out pictures that figures mean something on
NAMED = 20  # unreadable pictures that are said one by one
BAD_SHARE = 0.5  # of a data set: more unreadable pictures than this aren't left out


@dataclass
class PictureSource:
    """The files of a data set: by name, `read` gives their bytes; `warn` is told of each that is no
    picture, once."""

    root: Path
    names: list[str]  # paths in a folder or zip, numbers of a table's rows
    read: Callable[[str], bytes]
    warn: Say = ignore
    label: str = ""  # what stands before a name where it is said
    closed: dict[str, str] = field(default_factory=dict)  # folders that can't be opened: why
    bad: dict[str, str] = field(default_factory=dict)  # pictures that can't be read: why

    def leave_out(self, name: str, reason: str) -> None:
        """Note and say that a picture can't be read. Raises InputError when most can't."""
        if name in self.bad:
            return
        self.bad[name] = reason
        if len(self.bad) > BAD_SHARE * len(self.names):
            raise InputError(
                f"{self.root}: {len(self.bad)} of {len(self.names)} pictures can't be read, "
                f"the first: {next(iter(self.bad.values()))}"
            )
        if len(self.bad) <= NAMED:
            self.warn(f"{reason}; left out")
        elif len(self.bad) == NAMED + 1:
            self.warn(f"more can't be read: `pdae data check {self.root}` names them all")


class Pictures:
    """Pictures of a source in a model's frame, by number, each uint8 (C, size, size): all, or a
    `subset`. They are remembered, for all subsets alike, while the source fits into CACHE_BYTES."""

    def __init__(self, source: PictureSource, size: int, channels: int, fit: str) -> None:
        self.source, self.size, self.channels, self.fit = source, size, channels, fit
        self.root, self.names, self.bad = source.root, source.names, source.bad
        self._large = Lock()
        count = len(source.names)
        fits = count * channels * size**2 <= CACHE_BYTES
        shape = (count, channels, size, size)
        self._cache = torch.empty(shape, dtype=torch.uint8) if fits else None
        self._cached = torch.zeros(count, dtype=torch.bool)
        self._rows = torch.arange(count)  # of the source, and of what is remembered

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Return a picture. Raises InputError where it can't be read."""
        row, name = int(self._rows[index]), self.names[index]
        if self._cache is not None and self._cached[row]:
            return self._cache[row]
        data = self.source.read(name)
        with turn(self._large, data):
            image = open_picture(data, self.source.label + name)
            picture = prepare(image, self.size, self.channels, self.fit)
        if self._cache is not None:
            self._cache[row] = picture
            self._cached[row] = True
        return picture

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Return pictures as one uint8 tensor (N, C, size, size). Raises InputError where one can't
        be read: nothing takes its place."""
        rows = self._rows[torch.as_tensor(indices)]
        if self._cache is not None and bool(self._cached[rows].all()):
            return self._cache[rows]
        with ThreadPoolExecutor() as pool:
            return torch.stack(list(pool.map(self.__getitem__, indices)))

    def why_not(self, index: int) -> str:
        """Say why a picture can't be read; nothing where it can."""
        try:
            self[index]
        except InputError as error:
            return str(error)
        return ""

    def subset(self, indices: Sequence[int]) -> Pictures:
        """Return these pictures, in this order, numbered anew."""
        some = copy.copy(self)
        some.names = [self.names[index] for index in indices]
        some._rows = self._rows[torch.tensor(indices, dtype=torch.long)]
        return some

    def readable(
        self,
        indices: Sequence[int],
        count: int | None = None,
        progress: Callable[[int], None] = ignore,
    ) -> list[int]:
        """Read pictures until `count` can be read, by default all, and return their numbers. Those
        that can't are said. Raises InputError where none can.
        """
        found, waiting = list[int](), list(indices)
        count = len(waiting) if count is None else count
        while waiting and len(found) < count:
            part, waiting = waiting[: count - len(found)], waiting[count - len(found) :]
            with ThreadPoolExecutor() as pool:
                reasons = pool.map(self.why_not, part)
                for index, reason in zip(part, reasons, strict=True):
                    if reason:
                        self.source.leave_out(self.names[index], reason)
                    else:
                        found.append(index)
                    progress(1)
        if not found:
            raise InputError(
                f"{self.root}: none of the {len(indices)} pictures that are needed can be read"
            )
        return found

    def checked(self, progress: Callable[[int], None] = ignore) -> Pictures:
        """Read all, and return those that can be read, numbered anew: whoever numbers them before a
        run pairs no label with another picture. Raises InputError where none can be read."""
        return self.subset(self.readable(range(len(self)), progress=progress))


@dataclass(frozen=True)
class Task:
    """What a run learns from, where it writes the model, and in which dtype."""

    train: Pictures
    held_out: Pictures
    folder: Path
    dtype: torch.dtype = torch.float32
    name: str = ""  # of the data, as the model's record says it
    held_out_sha: str = ""  # `names_sha` of all that is held out, also of what can't be read

    @property
    def least_share(self) -> float:
        """Compute the least share that the names' hashes give of those learnt from: what is below
        it, in `split`, was not among them."""
        return min(map(_hash_share, self.train.names))


def names_sha(*parts: Pictures) -> str:
    """Compute the first 12 digits of a SHA-256 of the pictures' names, by which a run that goes on
    knows that their numbers, and which are held out, are what they were."""
    names = "\0".join("\n".join(one.names) for one in parts)
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:12]


def learnt_with(
    runs: Sequence[Mapping[str, Any]],
    option: str,
    stages: Collection[str] = ("encoder", "autoencoder", "diffae"),
) -> object:
    """Return an option of the last of a model's runs of these stages, by default those that learn
    z; None where it isn't said."""
    of_them = (one.get("options") for one in reversed(runs) if one.get("stage") in stages)
    options = next(of_them, None)
    return options.get(option) if isinstance(options, dict) else None


def learnt_otherwise(runs: Sequence[Mapping[str, Any]], data: str, held_out: Pictures) -> str:
    """Say that the last of a model's runs on data of this name may have learnt from what is held
    out; nothing where it didn't, or doesn't tell. Pictures that were added don't matter where names
    part them, nor those that can't be read."""
    last: Mapping[str, Any] = next((one for one in reversed(runs) if one.get("data") == data), {})
    options = last.get("options")
    before = options if isinstance(options, dict) else {}
    least = before.get("least_share")
    unseen = isinstance(least, float) and max(map(_hash_share, held_out.names)) < least
    if unseen or before.get("held_out_sha") in (None, "", names_sha(held_out)):
        return ""
    return (
        f"was trained on {data} with others held out, so it may have learnt from what is held out "
        "now; give the --labels that it was trained with"
    )


def picture_source(
    data: Path, warn: Say = ignore, say: Say = ignore, without: Collection[str] = ()
) -> PictureSource:
    """Open a folder or zip, by name, or a table (see `tables.source_of`), by row. `say` is told
    what is left out, among it the real paths `without`. Raises InputError, UsageError."""
    if table := open_table(data):
        if told := table.told():
            say(told)
        rows = [str(row) for row in range(len(table))]
        return PictureSource(data, rows, lambda name: table.read(int(name)), warn, "row ")
    if not is_folder(data) and not is_archive(data):
        if os.path.exists(data):  # noqa: PTH110
            raise UsageError(f"{data} is no folder, zip, Parquet file or tar shard of pictures")
        both = len(data.parts) == 2 and not data.is_absolute() and is_folder(data.parent)
        hint = f"; to ask the Hub, write {data.as_posix()}@main" if both else ""
        raise InputError(f"{data}: no such folder, zip or data set{hint}")
    listing = list_pictures(data, without=without)
    if told := listing.told():
        say(told)
    if not listing.names:
        raise InputError(f"{data} holds no pictures")
    return PictureSource(data, sorted(listing.names), listing.read, warn, closed=listing.closed)


def open_pictures(
    data: Path,
    size: int,
    channels: int = 3,
    fit: str = "crop",
    warn: Say = ignore,
    say: Say = ignore,
    without: Collection[str] = (),
) -> Pictures:
    """Open all of `picture_source` in a model's frame. Raises InputError, also where a folder
    of it can't be opened, UsageError."""
    source = picture_source(data, warn, say, without)
    for name, reason in source.closed.items():
        raise InputError(f"{data / name}: can't be opened: {reason}; let it be read, or move it")
    return Pictures(source, size, channels, fit)


def split(pictures: Pictures, labels: Labels | None) -> tuple[Pictures, Pictures]:
    """Part training and validation pictures: by the labels' `split`, else by their names' hashes,
    the same 2 % whatever else there is; of small sets a twelfth, or ENOUGH where that is less.
    Raises UsageError where one of the two parts is empty."""
    held_out = labels.held_out if labels and labels.held_out else None
    if held_out is None:
        shares = sorted((_hash_share(name), name) for name in pictures.names)
        count = sum(share < 0.02 for share, _ in shares)
        least = min(ENOUGH, max(1, len(shares) // 12))
        held_out = {name for _, name in shares[: max(count, least)]}
    parts: tuple[list[int], list[int]] = [], []
    for number, name in enumerate(pictures.names):
        parts[name in held_out].append(number)
    train, validation = parts
    if not train or not validation:
        why = "needs at least two pictures to hold one out"
        if len(validation) > 1:
            why = f"has {len(validation)} pictures, all held out by its labels; say train of some"
        raise UsageError(f"{pictures.root} {why}")
    return pictures.subset(train), pictures.subset(validation)


def _hash_share(name: str) -> float:
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:4], "little") / 2**32
