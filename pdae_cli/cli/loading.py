"""From items to pictures and codes in memory, by threads that read ahead of the network."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .inputs import Item
from .manifest import State

if TYPE_CHECKING:
    from torch import Tensor

    from ..codes import Codes
    from ..engine import Model

READERS = 2  # threads that read and decode pictures


@dataclass(frozen=True)
class Loaded:
    """One picture, float32 (1, C, H, W), or the codes of one, or neither where it is done."""

    item: Item
    label: str
    place: Path
    source: str  # SHA-256 of the input's bytes: names what its output was made of
    digest: str = ""  # of the 8-bit picture: names its own random numbers
    state: State = field(default_factory=State)  # of its output
    picture: Tensor | None = None
    codes: Codes | None = None


Find = Callable[[Path, str], State]  # of the output for a place, made of this source
Load = Callable[[Item, Find], Iterator[Loaded]]


def numbered(source: str = "") -> Load:
    """For pieces of work without a file of their own: samples, or frames made of a `source`."""

    def load(item: Item, find: Find) -> Iterator[Loaded]:
        made_of = source or item.label
        yield Loaded(item, item.label, item.place, made_of, state=find(item.place, made_of))

    return load


def pictures_and_codes(model: Model, fit: str) -> Load:
    """How to read an item as what the model takes: a picture, or each row of a codes file."""

    def load(item: Item, find: Find) -> Iterator[Loaded]:
        data = item.read()
        source = hashlib.sha256(data).hexdigest()
        if data[8:9] == b"{" or item.is_codes:
            return _codes(item, data, source, model, find)
        return _picture(item, data, source, model, fit, find)

    return load


def _picture(
    item: Item, data: bytes, source: str, model: Model, fit: str, find: Find
) -> Iterator[Loaded]:
    from ..images import digest, open_picture, prepare, to_float

    state = find(item.place, source)
    if state.done:
        yield Loaded(item, item.label, item.place, source, state=state)
        return
    unet = model.config.unet
    image = open_picture(data, item.label)
    pixels = prepare(image, unet.image_size, unet.channels, fit)
    picture = to_float(pixels)[None]
    yield Loaded(item, item.label, item.place, source, digest(pixels), state, picture)


def _codes(item: Item, data: bytes, source: str, model: Model, find: Find) -> Iterator[Loaded]:
    from ..codes import read_codes

    codes = read_codes(io.BytesIO(data), item.label)
    try:
        model.check(codes)
    except InputError as error:
        raise InputError(f"{item.label}: {error}") from error
    for row in range(len(codes)):
        one = codes[row : row + 1]
        suffix = f"-{row:04d}" if len(codes) > 1 else ""
        place = item.place.with_name(item.place.name + suffix)
        state = find(place, source)
        yield Loaded(item, item.label + suffix, place, source, one.digests[0], state, codes=one)


def loaded_ahead(
    items: Iterable[Item], load: Load, find: Find, ahead: int
) -> Iterator[tuple[Item, list[Loaded] | InputError]]:
    """What `load` makes of each item, or its InputError, in order. Up to `ahead` items are read and
    decoded by other threads while the network computes."""

    def loaded(item: Item) -> list[Loaded] | InputError:
        try:
            return list(load(item, find))
        except InputError as error:
            return error

    pool = ThreadPoolExecutor(READERS)
    try:
        waiting: deque[tuple[Item, Future[list[Loaded] | InputError]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(loaded, item)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
