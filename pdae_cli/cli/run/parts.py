"""Codes of many pictures in Parquet: one file, or a folder of parts, each of so many inputs that
follow one another. A part is there when it is whole, and says what it was made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UsageError, counted
from ...pictures.listing import natural
from .batches import Made, Run
from .inputs import Item
from .loading import Load, Loaded
from .making import codes_of, recipe
from .manifest import digest_of
from .stacked import of_pictures
from .tables import PART_NAME, CodesWriter

PART = 10_000  # inputs of a part, at most


def write_parts(run: Run, items: Iterable[Item], load: Load, record: Any, noise: bool) -> None:
    """Write the codes of this share's parts as far as they aren't done; inputs that fail are left
    out. Raises UsageError where there are parts of another cut, StorageError."""
    from ...engine.codes import require_joinable

    target, run.whole, run.resumable = run.destination, True, run.destination.folder
    parts = _cut(run, items) if target.folder else [(Path(target.target), items)]
    run.bar.expect(sum(len(some) for _, some in parts if isinstance(some, Sequence)))
    for path, some in parts:
        run.destination = replace(target, target=str(path), folder=False)
        if not run.file_wanted(some, load):
            continue
        run.failures.clear()
        run.shas.clear()
        expected = of_pictures(run, some, noise)
        with CodesWriter(Path(run.destination.target)) as file:
            for batch in run.through(some, load):
                with batch:
                    codes = codes_of(run, batch, noise)
                    require_joinable([*expected, codes])
                    file.add(codes)
            if not file.count:
                continue
            whole = _whole(some, run.shas)
            made = recipe(run, [whole], {"failed": run.failures})
            file.finish({"recipe": json.dumps(made, sort_keys=True, default=str)})
        said = f": {counted(file.count, 'picture')}"
        run.report(whole, Made(None, record | {"pictures": file.count}, said))


def _whole(items: Iterable[Item], shas: Mapping[str, str]) -> Loaded:
    """All items of a part as one input, of the SHA-256 by label of those that were read."""
    if not isinstance(items, Sequence):
        return Loaded(Item("-", Path(), name="-"), "-", Path(), "")
    first, last = items[0].label, items[-1].label
    label = first if first == last else f"{first} … {last}"
    named = replace(items[0], name=items[0].label)
    return Loaded(named, label, Path(), digest_of(shas[item.label] for item in items))


def _cut(run: Run, items: Iterable[Item]) -> list[tuple[Path, Iterable[Item]]]:
    """Cut the inputs into parts of PART, or so few that each share has one, and return this share's
    with their files. Whoever cuts alike, in however many shares, finds the same parts."""
    folder = Path(run.destination.target)
    if not isinstance(items, Sequence):
        raise UsageError(f"a stream can't be cut into parts: -o {folder.name}.parquet")
    if isinstance(items, list):  # of names, which another share may have in another order
        items.sort(key=lambda item: (natural(item.label), item.label))
    size = max(1, min(PART, -(-len(items) // run.shares)))
    count = -(-len(items) // size)
    for path in folder.glob("part-*.parquet"):
        if (found := PART_NAME.fullmatch(path.name)) and int(found[1]) != count:
            raise UsageError(
                f"{path} is one of {int(found[1])} parts, where these inputs and shares make "
                f"{count}: take as many shares as then, or another -o"
            )
    return [
        (folder / f"part-{part:05d}-of-{count:05d}.parquet", items[part * size : (part + 1) * size])
        for part in range(count)[run.share :: run.shares]
    ]
