"""Pictures in tar shards, as WebDataset writes them: read at random, by an index of offsets.

A stream of shards has an order of its own, which depends on buffers and workers; here any picture
can be read at any time, so that a step's batch stays a function of (seed, step). The shards may
lie on several disks: /disk{0..3}/{000..099}.tar.
"""

from __future__ import annotations

import itertools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, StorageError, UsageError
from ..files import write_bytes

SUFFIX = ".tar"
INDEX = ".index.json"  # appended to a shard's name
MOST = 100_000  # shards that a pattern may name


class Member(NamedTuple):
    shard: int
    offset: int  # bytes
    size: int  # bytes


class Shards:
    """The regular files in tar archives, by name: SHARD.tar/MEMBER."""

    def __init__(self, paths: list[Path]) -> None:
        """Index the archives. Raises InputError for one that can't be read, UsageError for two of
        the same name."""
        self.paths = paths
        counted = Counter(path.name for path in paths)
        name, times = counted.most_common(1)[0]
        if times > 1:
            raise UsageError(f"{times} shards are named {name}; give each a name of its own")
        self.members = {
            f"{path.name}/{name}": Member(number, offset, size)
            for number, path in enumerate(paths)
            for name, offset, size in index(path)
        }

    def read(self, name: str, limit: int) -> bytes:
        """A member's content. Raises InputError for one that is cut off or larger than `limit`."""
        shard, offset, size = self.members[name]
        if size > limit:
            raise InputError(f"{name}: larger than {limit >> 20} MiB")
        with self.paths[shard].open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise InputError(f"{name}: the shard ends in the middle of it")
        return data


def index(path: Path) -> list[tuple[str, int, int]]:
    """(name, offset, size) of a shard's files, from SHARD.tar.index.json where that was made of the
    shard as it is; else from its headers, and then written there if the folder lets us."""
    kept = path.with_name(path.name + INDEX)
    try:
        facts = path.stat()
        stamp = [facts.st_size, facts.st_mtime_ns]
        found = _read_index(kept, stamp)
        if found is None:
            found = list(_headers(path))
            _keep(kept, {"shard": stamp, "members": found})
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: can't be read as an uncompressed tar: {reason}") from error
    return found


def _headers(path: Path) -> Iterator[tuple[str, int, int]]:
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # which it would collect
            if member.isreg() and not member.issparse():
                yield member.name, member.offset_data, member.size


def _read_index(kept: Path, stamp: list[int]) -> list[tuple[str, int, int]] | None:
    """None for an index that isn't there, isn't one, or is of another state of the shard."""
    try:
        content = json.loads(kept.read_bytes())
        if content["shard"] != stamp:
            return None
        members = [(str(name), int(at), int(size)) for name, at, size in content["members"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return members if all(at >= 0 and size >= 0 for _, at, size in members) else None


def _keep(kept: Path, content: object) -> None:
    try:
        write_bytes(kept, json.dumps(content).encode())
    except (InputError, StorageError):
        return  # it saves time, no more


def shard_paths(data: Path) -> list[Path]:
    """The shards that a pattern names: {000..009} counts, {a,b} chooses, * is any; none where it
    doesn't end in .tar, or nothing fits. Raises InputError for one that isn't there, UsageError for
    a URL."""
    text = str(data)
    if not text.endswith(SUFFIX):
        return []
    if re.match(r"[a-z0-9+]+:/", text):
        raise UsageError(
            f"{text}: shards are read at random, which needs them on disks; fetch them first"
        )
    paths = [one for pattern in braces(text) for one in _globbed(Path(pattern))]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing}: no such shard")
    return paths


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
