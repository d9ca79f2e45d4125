"""A training set: pictures in a folder tree, a zip or a table."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InputError, UsageError
from ..files import read_member
from ..pictures.decoding import READABLE
from ..pictures.images import open_picture, prepare
from .labels import Labels
from .tables import MAX_FILE, Table, open_table

CACHE_BYTES = 4 << 30  # decoded pictures are kept in memory up to this size
ENOUGH = 32  # held-out pictures that figures mean something on
BAD_SHARE = 0.01  # unreadable pictures are replaced by their neighbours up to this share


@dataclass
class Pictures:
    """Pictures by number, each uint8 (C, size, size) in a model's frame.

    Decoded pictures are remembered while all of them fit into CACHE_BYTES. An unreadable picture
    is replaced by the next readable one and counted in `bad`.
    """

    root: Path
    names: list[str]  # paths in a folder or zip, numbers of a table's rows
    size: int
    channels: int = 3
    fit: str = "crop"
    table: Table | None = None
    bad: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        zipped = self.table is None and self.root.is_file()
        self._zip = zipfile.ZipFile(self.root) if zipped else None
        shape = (len(self.names), self.channels, self.size, self.size)
        fits = len(self.names) * self.channels * self.size**2 <= CACHE_BYTES
        self._cache = torch.empty(shape, dtype=torch.uint8) if fits else None
        self._cached = torch.zeros(len(self.names), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Return picture `index`, or the next readable one. Raises InputError when too many are
        bad."""
        if self._cache is not None and self._cached[index]:
            return self._cache[index]
        name = self.names[index]
        label = name if self.table is None else f"row {name}"
        try:
            picture = prepare(
                open_picture(self._bytes(name), label), self.size, self.channels, self.fit
            )
        except (InputError, OSError) as error:
            self.bad[name] = str(error)
            if len(self.bad) > min(max(1, BAD_SHARE * len(self)), len(self) - 1):
                raise InputError(
                    f"{self.root}: {len(self.bad)} of {len(self)} pictures can't be read, "
                    f"the first: {next(iter(self.bad.values()))}"
                ) from error
            picture = self[(index + 1) % len(self)]
        if self._cache is not None:
            self._cache[index] = picture
            self._cached[index] = True
        return picture

    def _bytes(self, name: str) -> bytes:
        if self.table is not None:
            return self.table.read(int(name))
        if self._zip is not None:
            return read_member(self._zip, name, MAX_FILE)
        return (self.root / name).read_bytes()

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Return pictures as one uint8 tensor (N, C, size, size)."""
        if self._cache is not None and bool(self._cached[torch.as_tensor(indices)].all()):
            return self._cache[torch.as_tensor(indices)]
        with ThreadPoolExecutor() as pool:
            return torch.stack(list(pool.map(self.__getitem__, map(int, indices))))

    def subset(self, names: list[str]) -> Pictures:
        """Return the pictures of these names, in this order."""
        return Pictures(self.root, names, self.size, self.channels, self.fit, self.table)


@dataclass(frozen=True)
class Task:
    """What a run learns from, where it writes the model, and in which dtype."""

    train: Pictures
    held_out: Pictures
    folder: Path
    dtype: torch.dtype = torch.float32


def open_pictures(data: Path, size: int, channels: int = 3, fit: str = "crop") -> Pictures:
    """Open all pictures below a folder or in a zip, sorted by name, or of a table (see
    `tables.source_of`), by row. Raises InputError, UsageError."""
    if table := open_table(data):
        names = [str(row) for row in range(len(table))]
        return Pictures(data, names, size, channels, fit, table)
    if data.is_dir():
        files = (path for path in data.rglob("*") if path.is_file())
        names = [path.relative_to(data).as_posix() for path in files]
    elif data.is_file() and zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            names = archive.namelist()
    elif data.exists():
        raise UsageError(f"{data} is no folder, zip, Parquet file or tar shard of pictures")
    else:
        raise InputError(f"{data}: no such folder, zip or data set")
    names = sorted(name for name in names if Path(name).suffix.lower() in READABLE)
    if not names:
        raise InputError(f"{data} holds no pictures ({', '.join(sorted(READABLE))})")
    return Pictures(data, names, size, channels, fit)


def split(pictures: Pictures, labels: Labels | None) -> tuple[Pictures, Pictures]:
    """Part training and validation pictures: by the labels' `split`, else by their names' hashes,
    the same 2 % whatever else there is; of small sets a tenth, or ENOUGH where that is less."""
    held_out = labels.held_out if labels and labels.held_out else None
    if held_out is None:
        shares = sorted((_hash_share(name), name) for name in pictures.names)
        count = sum(share < 0.02 for share, _ in shares)
        least = min(ENOUGH, max(2, len(shares) // 10), len(shares) // 2)
        held_out = {name for _, name in shares[: max(count, least)]}
    train = [name for name in pictures.names if name not in held_out]
    validation = [name for name in pictures.names if name in held_out]
    if not train or not validation:
        raise UsageError(f"{pictures.root} needs at least two pictures to hold one out")
    return pictures.subset(train), pictures.subset(validation)


def _hash_share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") / 2**32
