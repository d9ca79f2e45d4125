"""Which row of a table is of which picture: names as people write them, and as files have them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from ..errors import InputError
from .delimited import short

ROUNDABOUT = re.compile(r"\\|//|(^|/)\.?/|/$")
TAILS = 16  # folders of a path that its end may have


def plain(name: str) -> str:
    """A path with / alone, nothing before it, and composed letters."""
    if name.isascii() and not ROUNDABOUT.search(name):  # as nearly all are
        return name
    parts = unicodedata.normalize("NFC", name.replace("\\", "/")).split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def stem(name: str) -> str:
    """A plain path without its suffix."""
    above, slash, last = plain(name).rpartition("/")
    return above + slash + (last.rpartition(".")[0] or last)


# Each is tried for what those before it leave: as written, by path or its end, and so on.
LEVELS: tuple[tuple[Callable[[str], str], bool], ...] = (
    (str, False), (plain, False), (plain, True), (lambda name: plain(name).casefold(), True),
    (stem, True), (lambda name: stem(name).casefold(), True),
)  # fmt: skip


def matched(
    rows: Sequence[str], names: Sequence[str], source: str, numbered: bool = False
) -> tuple[dict[str, str], str]:
    """Find the rows of pictures, by names: picture → row, and a sentence where some have none, or
    nothing. One row and one picture go together where neither could go with another. Where names
    are `numbered`, rows of a data set, they match as written alone: 12 isn't 12.jpg.

    Raises InputError where no picture has a row, or one could have two."""
    found: dict[str, str] = {}
    near: dict[str, str] = {}  # pictures whose rows could be others', too
    left, free = list(names), list(rows)
    for simplify, by_end in LEVELS[: 1 if numbered else None]:
        pairs = _pairs(free, left, simplify, by_end)
        takers = Counter(row for some in pairs.values() for row in some)
        if simplify is plain and (twice := next((n for n in pairs if len(pairs[n]) > 1), None)):
            one, other, *_ = pairs[twice]
            raise InputError(f"{source}: {short(one)} and {short(other)} are both {short(twice)}")
        one_to_one = {n: some[0] for n, some in pairs.items() if takers[some[0]] == len(some) == 1}
        near |= {name: some[0] for name, some in pairs.items() if name not in one_to_one}
        found |= one_to_one
        if not (left := [name for name in left if name not in found]):
            return found, ""
        used = set(one_to_one.values())
        free = [row for row in free if row not in used]
    name = next((one for one in left if one in near), left[0])
    row = near.get(name) or next(iter(free), None)
    beside = "" if row is None else f" beside {short(row)}"
    told = f"{len(found)} of {len(names)} pictures match, e.g. {short(name)}{beside}"
    if not found:
        hint = "names match by path, by its end, or without suffix"
        if numbered:
            hint = "pictures of a data set are named by their row, from 0"
        raise InputError(f"{source}: {told}; {hint}")
    if row is None:
        told = f"{len(found)} of {len(names)} pictures have a row, {short(name)} has none"
    return found, f"{source}: {told}; the others have no labels"


def _pairs(
    rows: Sequence[str], names: Sequence[str], simplify: Callable[[str], str], by_end: bool
) -> dict[str, list[str]]:
    """Rows that each picture could have (two at most, which is one too many): those whose path is
    the picture's or, `by_end`, the end of it, or has it for its end."""
    whole: dict[str, list[str]] = {}
    ends: dict[str, list[str]] = {}
    for row in rows:
        path = simplify(row)
        _add(whole, path, row)
        for end in _ends(path) if by_end else ():
            _add(ends, end, row)
    found: dict[str, list[str]] = {}
    for name in names:
        path = simplify(name)
        some = [*whole.get(path, ()), *ends.get(path, ())]
        for end in _ends(path) if by_end else ():
            some += whole.get(end, ())
        if some:
            found[name] = some[:2]
    return found


def _add(index: dict[str, list[str]], path: str, row: str) -> None:
    kept = index.setdefault(path, [])
    if len(kept) < 2:
        kept.append(row)


def _ends(path: str) -> Iterator[str]:
    """Ends of a path, without its first folder, without its second, …"""
    for _ in range(TAILS):
        _, slash, path = path.partition("/")
        if not slash:
            return
        yield path
