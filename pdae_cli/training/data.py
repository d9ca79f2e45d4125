"""A training set: pictures in a folder tree, a zip or tar shards; optional labels from a CSV."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..diffusion.noise import generator
from ..errors import InputError, UsageError
from ..files import read_member
from ..pictures.images import READABLE, open_picture, prepare
from .shards import Shards, find_shards

CACHE_BYTES = 4 << 30  # decoded pictures are kept in memory up to this size
MAX_FILE = 256 << 20  # bytes that a picture in a zip may unpack to
BAD_SHARE = 0.01  # unreadable pictures are replaced by their neighbours up to this share
LABELS = "labels.csv"


@dataclass
class Pictures:
    """Pictures by number, each uint8 (C, size, size) in a model's frame.

    Decoded pictures are remembered while all of them fit into CACHE_BYTES. An unreadable picture
    is replaced by the next readable one and counted in `bad`.
    """

    root: Path
    names: list[str]
    size: int
    channels: int = 3
    fit: str = "crop"
    shards: Shards | None = None
    bad: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        zipped = self.shards is None and self.root.is_file()
        self._zip = zipfile.ZipFile(self.root) if zipped else None
        self._cache: Tensor | None = None
        self._cached = torch.zeros(len(self.names), dtype=torch.bool)
        if len(self.names) * self.channels * self.size**2 <= CACHE_BYTES:
            shape = (len(self.names), self.channels, self.size, self.size)
            self._cache = torch.empty(shape, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Picture `index`, or the next readable one. Raises InputError when too many are bad,
        StorageError where a server fails, which says nothing about the picture."""
        if self._cache is not None and self._cached[index]:
            return self._cache[index]
        name = self.names[index]
        try:
            data = self._bytes(name)
            picture = prepare(open_picture(data, name), self.size, self.channels, self.fit)
        except (InputError, OSError) as error:
            self.bad[name] = str(error)
            if len(self.bad) > max(1, BAD_SHARE * len(self)):
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
        if self.shards is not None:
            return self.shards.read(name, MAX_FILE)
        if self._zip is None:
            return (self.root / name).read_bytes()
        return read_member(self._zip, name, MAX_FILE)

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Pictures as one uint8 tensor (N, C, size, size)."""
        if self._cache is not None and bool(self._cached[torch.as_tensor(indices)].all()):
            return self._cache[torch.as_tensor(indices)]
        with ThreadPoolExecutor() as pool:
            return torch.stack(list(pool.map(self.__getitem__, map(int, indices))))

    def subset(self, names: list[str]) -> Pictures:
        """The pictures of these names, in this order."""
        return Pictures(self.root, names, self.size, self.channels, self.fit, self.shards)


def open_pictures(
    data: Path, size: int, channels: int = 3, fit: str = "crop", cache: Path | None = None
) -> Pictures:
    """All pictures below a folder, in a zip or in tar shards (a pattern: see `find_shards`, as for
    `cache`), sorted by name. Raises InputError, UsageError, StorageError for a remote shard."""
    shards = None
    if found := find_shards(data, cache):
        shards = Shards(found)
        names = list(shards.members)
    elif data.is_dir():
        files = (path for path in data.rglob("*") if path.is_file())
        names = [path.relative_to(data).as_posix() for path in files]
    elif data.is_file() and zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            names = archive.namelist()
    elif data.exists():
        raise UsageError(f"{data} is neither a folder, a zip nor tar shards of pictures")
    else:
        raise InputError(f"{data}: no such folder, zip or shards")
    names = sorted(name for name in names if Path(name).suffix.lower() in READABLE)
    if not names:
        raise InputError(f"{data} holds no pictures ({', '.join(sorted(READABLE))})")
    return Pictures(data, names, size, channels, fit, shards)


def split(pictures: Pictures, labels: Labels | None) -> tuple[Pictures, Pictures]:
    """Training and validation pictures: by the labels' `split` column, else 2 % by name's hash."""
    held_out = labels.held_out if labels and labels.held_out else None
    if held_out is None:
        held_out = {name for name in pictures.names if _hash_share(name) < 0.02}
        held_out = held_out or {pictures.names[-1]}
    train = [name for name in pictures.names if name not in held_out]
    validation = [name for name in pictures.names if name in held_out]
    if not train or not validation:
        raise UsageError(f"{pictures.root} needs at least two pictures to hold one out")
    return pictures.subset(train), pictures.subset(validation)


def _hash_share(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little") / 2**32


@dataclass
class Labels:
    """A CSV of labels: 1 with the attribute, 0 (or -1 where there are no 0s) without it."""

    attributes: list[str]
    rows: dict[str, list[int]]  # picture name → 1, 0 or -1 (unknown) per attribute
    held_out: set[str]  # names whose `split` isn't "train"; empty without that column
    groups: dict[str, str]  # picture name → its `source`, where the CSV has that column
    texts: dict[str, dict[str, str]]  # of each other column: picture name → what it says

    def matrix(self, names: Sequence[str]) -> Tensor:
        """int8 (N, A); -1 is unknown."""
        unknown = [-1] * len(self.attributes)
        return torch.tensor([self.rows.get(name, unknown) for name in names], dtype=torch.int8)


def read_labels(path: Path, data: Path) -> Labels:
    """Read a CSV whose first column (or `file`) names pictures of `data`; other columns of 1, 0 and
    -1 are attributes. CelebA's 1 / -1 is understood. `path` may name a member of a zip `data`.

    Raises InputError for a file that isn't such a CSV.
    """
    try:
        if not path.exists() and zipfile.is_zipfile(data):
            with zipfile.ZipFile(data) as archive:
                text = archive.read(path.name).decode("utf-8-sig")
        else:
            text = path.read_text(encoding="utf-8-sig")
        table = list(csv.DictReader(io.StringIO(text)))
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: can't be read as a CSV of labels: {error}") from error
    if not table:
        raise InputError(f"{path}: holds no rows")
    columns = list(table[0])
    key = "file" if "file" in columns else columns[0]
    values = {c: {row[c] for row in table} for c in columns if c != key}
    attributes = [c for c in values if values[c] <= {"1", "0", "-1"} and "1" in values[c]]
    texts = [c for c in values if c not in (*attributes, "split", "source")]
    if not attributes and not texts:
        raise InputError(f"{path}: no column holds labels")
    meaning = {c: {"1": 1, "0": 0, "-1": -1 if "0" in values[c] else 0} for c in attributes}
    return Labels(
        attributes=attributes,
        rows={row[key]: [meaning[c][row[c]] for c in attributes] for row in table},
        held_out={row[key] for row in table if row.get("split", "train") != "train"},
        groups={row[key]: row["source"] for row in table if row.get("source")},
        texts={c: {row[key]: row[c] for row in table if row[c]} for c in texts},
    )


def find_labels(data: Path, labels: Path | None) -> Labels | None:
    """The labels that go with `data`: the named CSV, else its own `labels.csv` if it has one."""
    if labels is not None:
        return read_labels(labels, data)
    if data.is_dir() and (data / LABELS).is_file():
        return read_labels(data / LABELS, data)
    if data.is_file() and zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            if LABELS in archive.namelist():
                return read_labels(Path(LABELS), data)
    return None


@lru_cache(maxsize=2)  # asked for in every step, and 10 ms a million pictures to make
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "order", epoch))


def order(count: int, seed: int, position: int, length: int) -> Tensor:
    """Numbers of the pictures at positions position … position+length-1 of an endless stream that
    goes through all `count` pictures in a new order each epoch; a pure function of its arguments.
    """
    chosen = []
    while length > 0:
        epoch, offset = divmod(position, count)
        part = _permutation(count, seed, epoch)[offset : offset + length]
        chosen.append(part)
        position, length = position + len(part), length - len(part)
    return torch.cat(chosen)
