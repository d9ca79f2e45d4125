"""Pictures in tar shards, as WebDataset writes them: read at random, by an index of offsets.

A stream of shards has an order of its own, which depends on buffers and workers; here any picture
can be read at any time, so that a step's batch stays a function of (seed, step). The shards may
lie on several disks, /disk{0..3}/{000..099}.tar, or behind URLs, s3://bucket/{000..099}.tar.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from ..errors import InputError, StorageError, UsageError
from ..files import write_bytes
from .remote import Blocks, RemoteShard, as_url, found_by

SUFFIX = ".tar"
INDEX = ".index.json"  # appended to a shard's name
MOST = 100_000  # shards that a pattern may name
MAX_INDEX = 256 << 20  # bytes that a shard's index may take
ENTRY = 200  # of them for a file, besides its name
READERS = 32  # shards that are indexed at once

Entry = tuple[str, int, int]  # name, offset and size in bytes


class Member(NamedTuple):
    shard: int
    offset: int  # bytes
    size: int  # bytes


class Shard(Protocol):
    """A tar archive, wherever it is."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str:
        """What messages call it."""
        ...

    @property
    def kept(self) -> Path | None:
        """Where its index is kept, if anywhere."""
        ...

    def stamp(self) -> list[object]:
        """What changes when it does."""
        ...

    def open(self) -> IO[bytes] | Blocks:
        """For tarfile."""
        ...

    def read(self, name: str, offset: int, size: int) -> bytes:
        """A member's content. Raises InputError for one that is cut off."""
        ...


@dataclass(frozen=True)
class LocalShard:
    """A tar archive on a disk. Its index lies beside it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def label(self) -> str:
        return str(self.path)

    @property
    def kept(self) -> Path:
        return self.path.with_name(self.path.name + INDEX)

    def stamp(self) -> list[object]:
        """Its size, and when it was written."""
        facts = self.path.stat()
        return [facts.st_size, facts.st_mtime_ns]

    def open(self) -> IO[bytes]:
        return self.path.open("rb")

    def read(self, name: str, offset: int, size: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise InputError(f"{name}: the shard ends in the middle of it")
        return data


class Shards:
    """The regular files in tar archives, by name: SHARD.tar/MEMBER."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        """Index the archives. Raises InputError for one that can't be read, StorageError where that
        is for its server, UsageError for two of the same name."""
        self.shards = shards
        counted = Counter(shard.name for shard in shards)
        name, times = counted.most_common(1)[0]
        if times > 1:
            raise UsageError(f"{times} shards are named {name}; give each a name of its own")
        self.members = {
            f"{shard.name}/{name}": Member(number, offset, size)
            for number, (shard, found) in enumerate(zip(shards, indexes(shards), strict=True))
            for name, offset, size in found
        }

    def read(self, name: str, limit: int) -> bytes:
        """A member's content. Raises InputError for one that is cut off or larger than `limit`,
        StorageError where a server fails."""
        number, offset, size = self.members[name]
        if size > limit:
            raise InputError(f"{name}: larger than {limit >> 20} MiB")
        shard = self.shards[number]
        return shard.read(name.removeprefix(f"{shard.name}/"), offset, size)


def indexes(shards: Sequence[Shard]) -> list[list[Entry]]:
    """Each shard's index, in order. They are made in any order: processes that begin together, and
    keep indexes in one folder, find most of them made by the others."""
    order = random.SystemRandom().sample(range(len(shards)), len(shards))
    with ThreadPoolExecutor(READERS) as pool:
        made = {number: pool.submit(index, shards[number]) for number in order}
        try:
            return [made[number].result() for number in range(len(shards))]
        finally:
            pool.shutdown(cancel_futures=True)  # after a failure, what hasn't begun


def index(shard: Shard) -> list[Entry]:
    """A shard's files, from its kept index where that was made of the shard as it is; else from its
    headers, and then kept if the folder lets us."""
    try:
        stamp = shard.stamp()
        found = _read_index(shard.kept, stamp)
        if found is None:
            with shard.open() as file:
                found = list(_headers(file, shard.label))
            _keep(shard.kept, {"shard": stamp, "members": found})
    except (OSError, ValueError, OverflowError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{shard.label}: can't be read as an uncompressed tar: {reason}"
        ) from error
    return found


def _headers(file: IO[bytes] | Blocks, label: str) -> Iterator[Entry]:
    room = MAX_INDEX
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # which it would collect
            room -= ENTRY + len(member.name)
            if room < 0:
                raise InputError(f"{label}: its index would be larger than {MAX_INDEX >> 20} MiB")
            if member.isreg() and not member.issparse():
                yield member.name, member.offset_data, member.size


def _read_index(kept: Path | None, stamp: list[object]) -> list[Entry] | None:
    """None for an index that isn't there, isn't one, or is of another state of the shard."""
    if kept is None:
        return None
    try:
        content = json.loads(kept.read_bytes())
        if content["shard"] != stamp:
            return None
        members = [(str(name), int(at), int(size)) for name, at, size in content["members"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    valid = all(at >= tarfile.BLOCKSIZE and size >= 0 for _, at, size in members)
    return members if valid else None


def _keep(kept: Path | None, content: object) -> None:
    if kept is None:
        return
    try:
        write_bytes(kept, json.dumps(content).encode())
    except (InputError, StorageError):
        return  # it saves time, no more


def find_shards(data: Path, cache: Path | None = None) -> list[Shard]:
    """The shards that a pattern of paths or URLs names: {000..009} counts, {a,b} chooses, * is any;
    none where it doesn't end in .tar, or nothing fits. Indexes of remote ones are kept in `cache`.

    Raises InputError for a file that isn't there, UsageError for a URL that can't be read here.
    """
    url = as_url(data)
    text = str(data) if url is None else url
    if not text.partition("?")[0].endswith(SUFFIX):
        return []
    if url is not None:
        return [RemoteShard(one, cache) for pattern in braces(text) for one in found_by(pattern)]
    paths = [one for pattern in braces(text) for one in _globbed(Path(pattern))]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such shard")
    return [LocalShard(path) for path in paths]


def _globbed(pattern: Path) -> list[Path]:
    if "*" not in str(pattern):
        return [pattern]
    root = Path(pattern.anchor)
    return sorted(root.glob(str(pattern.relative_to(root))))


def braces(pattern: str) -> list[str]:
    """All texts that {000..009} (with the first number's zeros) and {a,b} stand for."""
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [_choices(part) if n % 2 else [part] for n, part in enumerate(parts)]
    texts = itertools.islice(itertools.product(*choices), MOST + 1)
    found = ["".join(text) for text in texts]
    if len(found) > MOST:
        raise UsageError(f"{pattern} names more than {MOST} shards")
    return found


def _choices(inside: str) -> list[str]:
    span = re.fullmatch(r"([0-9]{1,9})\.\.([0-9]{1,9})", inside)
    if span is None:
        return inside.split(",")
    first, last = int(span[1]), int(span[2])
    if not 0 <= last - first <= MOST:
        raise UsageError(f"{{{inside}}} doesn't count up, or names more than {MOST} shards")
    return [f"{number:0{len(span[1])}d}" for number in range(first, last + 1)]
