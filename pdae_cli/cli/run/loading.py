"""From items to pictures and codes in memory, by threads that read ahead of the network."""

from __future__ import annotations

import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import InputError
from .inputs import Item
from .manifest import State

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ...engine.codes import Codes
    from ...engine.model import Model
    from ..options import BatchOptions
    from .photos import Framed

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
    size: tuple[int, int] | None = None  # width and height of the upright picture as it came
    codes: Codes | None = None
    alpha: Tensor | None = None  # uint8 (1, H, W), of the output
    exif: Image.Exif | None = None  # to be carried over
    note: str = ""  # something that the user should know
    framed: Framed | None = None  # where in a photo the picture is


Find = Callable[[Path, str], State]  # of the output for a place, made of this source
Load = Callable[[Item, Find], Iterator[Loaded]]


def numbered(source: str = "") -> Load:
    """For pieces of work without a file of their own: samples, or frames made of a `source`."""

    def load(item: Item, find: Find) -> Iterator[Loaded]:
        made_of = source or item.label
        yield Loaded(item, item.label, item.place, made_of, state=find(item.place, made_of))

    return load


def pictures_and_codes(model: Model, options: BatchOptions) -> Load:
    """How to read an item as what the model takes: a picture, each of its frames, or each row of a
    codes file."""

    def load(item: Item, find: Find) -> Iterator[Loaded]:
        data = item.read()
        source = hashlib.sha256(data).hexdigest()
        if data[8:9] == b"{" or item.is_codes:
            return _codes(item, data, source, model, find)
        return _pictures(item, data, source, model, options, find)

    return load


def _pictures(
    item: Item, data: bytes, source: str, model: Model, options: BatchOptions, find: Find
) -> Iterator[Loaded]:
    from ...pictures.images import has_more_frames, open_frames, open_picture

    state = find(item.place, source)
    if state.done:
        yield Loaded(item, item.label, item.place, source, state=state)
        return
    first = open_picture(data, item.label)
    if not has_more_frames(first):
        yield _picture(item, "", first, source, model, options, state)
    elif options.frames == "first":
        note = f"{item.label}: the first of its frames alone; --frames all takes each"
        yield replace(_picture(item, "", first, source, model, options, state), note=note)
    else:
        for number, frame in enumerate(open_frames(data, item.label)):
            suffix = f"-{number:04d}"
            state = find(item.place.with_name(item.place.name + suffix), source)
            yield _picture(item, suffix, frame, source, model, options, state)


def _picture(
    item: Item,
    suffix: str,
    image: Image.Image,
    source: str,
    model: Model,
    options: BatchOptions,
    state: State,
) -> Loaded:
    """A decoded picture in the model's frame; `suffix` tells its frames apart."""
    from ...pictures.images import alpha_of, digest, prepare, to_float, upright_size
    from ...pictures.metadata import exif_of

    config = model.config
    pixels = prepare(image, config.image_size, config.channels, options.fit)
    return Loaded(
        item,
        item.label + suffix,
        item.place.with_name(item.place.name + suffix),
        source,
        digest(pixels),
        state,
        to_float(pixels)[None],
        upright_size(image),
        alpha=alpha_of(image, config.image_size, options.fit) if options.keep_alpha else None,
        exif=exif_of(image) if options.keep_exif else None,
    )


def _codes(item: Item, data: bytes, source: str, model: Model, find: Find) -> Iterator[Loaded]:
    from ...engine.codes import read_codes

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
        broken = None
        try:
            for item in items:
                waiting.append((item, pool.submit(loaded, item)))
                if len(waiting) > ahead:
                    first, future = waiting.popleft()
                    yield first, future.result()
        except InputError as error:  # a stream breaks off; what came before is good
            broken = error
        for first, future in waiting:
            yield first, future.result()
        if broken is not None:
            raise broken
    finally:
        pool.shutdown(cancel_futures=True)
