"""From items to pictures and codes in memory, by threads that read ahead of the network."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...pictures.listing import CODES, SUFFIXES
from ..options import ReadOptions, WriteOptions
from .inputs import SEALED, Item
from .manifest import State

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ...engine.codes import Codes
    from ...engine.model import Model
    from ...pictures.photos.faces import Found

READERS = 2  # threads that read and decode pictures
LONGEST_NAME = 100  # bytes of a picture's own name, as part of a file's


@dataclass(frozen=True)
class Loaded:
    """One picture, float32 (1, C, H, W), or the codes of one, or neither where it is done."""

    item: Item
    label: str
    place: Path
    input_sha: str  # of the input's bytes: names what its output was made of
    picture_sha: str = ""  # of the 8-bit picture: names its own random numbers
    state: State = field(default_factory=State)  # of its output
    picture: Tensor | None = None
    size: tuple[int, int] | None = None  # width and height of the upright picture as it came
    codes: Codes | None = None
    alpha: Tensor | None = None  # uint8 (1, H, W), of the output
    exif: Image.Exif | None = None  # to be carried over
    note: str = ""  # something that the user should know
    framed: Found | None = None  # where in a photo the picture is
    # Decodes the photo: many are read ahead, and large ones don't fit.
    photo: Callable[[], Image.Image] | None = None
    faces: tuple[Loaded, ...] = ()  # where several pictures are of one photo: all of them

    def of(self, pixels: Tensor, alpha: Tensor | None, **more: Any) -> Loaded:
        """The same with a picture, uint8 (C, H, W), and its alpha."""
        from ...pictures.images import picture_sha, to_float

        picture = to_float(pixels)[None]
        return replace(self, picture_sha=picture_sha(pixels), picture=picture, alpha=alpha, **more)

    def lean(self, picture: bool) -> Loaded:
        """Keep what is said of it in the end, and if wanted its picture: of thousands of photos
        memory has no room for the rest."""
        small = replace(self, codes=None, alpha=None, exif=None, photo=None, faces=())
        return small if picture else replace(small, picture=None)


Find = Callable[[Path, str], State]  # of the output for a place, made of this input
Load = Callable[[Item, Find], Iterator[Loaded]]
Squares = Callable[[Loaded, "Image.Image", Find], Iterator[Loaded]]  # of a decoded photo


def anew(place: Path, input_sha: str) -> State:
    """A Find for what is to be read whether or not an output of it is there."""
    return State()


def numbered(made_of: str = "") -> Load:
    """Load pieces of work without a file of their own: samples, or frames `made_of` inputs."""

    def load(item: Item, find: Find) -> Iterator[Loaded]:
        input_sha = made_of or item.label
        yield Loaded(item, item.label, item.place, input_sha, state=find(item.place, input_sha))

    return load


def pictures_and_codes(model: Model, options: Any, squares: Squares | None = None) -> Load:
    """Load an item as what the model takes: a picture, or its `squares`, those of each of its
    frames, or each row of a codes file. Of the options those of ReadOptions and WriteOptions
    count."""
    from ...pictures import decoding, images
    from ...pictures.metadata import exif_of

    reading = options if isinstance(options, ReadOptions) else ReadOptions()
    writing = options if isinstance(options, WriteOptions) else WriteOptions()
    large = Lock()

    def load(item: Item, find: Find) -> Iterator[Loaded]:
        data = item.read()
        input_sha = hashlib.sha256(data).hexdigest()
        whole = Loaded(item, item.label, item.place, input_sha)
        if data[4:9] == SEALED or item.is_codes:
            yield from _rows(model, whole, data, find)
            return
        whole = replace(whole, state=find(item.place, input_sha))
        if whole.state.done:
            yield whole
            return
        with decoding.turn(large, data):
            yield from pictures(whole, data, find)

    def pictures(whole: Loaded, data: bytes, find: Find) -> Iterator[Loaded]:
        first = decoding.open_picture(data, whole.label)
        whole = replace(whole, note=_left_behind(whole, data, first, reading.frames))
        if reading.frames == "first" or not decoding.has_more_frames(first):
            again = partial(decoding.open_picture, data, whole.label)
            yield from taken(whole, first, again, find)
            return
        for number, image in enumerate(decoding.open_frames(data, whole.label)):
            part = part_of(whole, f"-{number:04d}")
            part = replace(part, state=find(part.place, whole.input_sha))
            yield from taken(part, image, partial(_frame, data, part.label, number), find)

    def taken(
        one: Loaded, image: Image.Image, again: Callable[[], Image.Image], find: Find
    ) -> Iterator[Loaded]:
        exif = exif_of(image) if writing.keep_exif else None
        one = replace(one, size=decoding.upright_size(image), exif=exif)
        if squares is not None:
            yield from squares(replace(one, photo=again), image, find)
            return
        size, fit = model.config.image_size, reading.fit
        alpha = images.alpha_of(image, size, fit) if writing.keep_alpha else None
        yield one.of(images.prepare(image, size, model.config.channels, fit), alpha)

    return load


def _rows(model: Model, whole: Loaded, data: bytes, find: Find) -> Iterator[Loaded]:
    """Each row of a codes file. Raises InputError for one of another model."""
    from ...engine.codes import from_bytes

    codes = from_bytes(data, whole.label)
    try:
        model.check(codes)
    except InputError as error:
        raise InputError(f"{whole.label}: {error}") from error
    numbers = [f"{row:04d}" for row in range(len(codes))]
    for row, name in enumerate(own_names(codes.sources) or numbers):
        one = codes[row : row + 1]
        part = part_of(whole, f"-{name}") if len(codes) > 1 else whole
        state = find(part.place, whole.input_sha)
        yield replace(part, state=state, picture_sha=one.picture_shas[0], codes=one)


def _frame(data: bytes, name: str, number: int) -> Image.Image:
    """One frame of an animation."""
    from ...pictures.decoding import open_frames

    return next(islice(open_frames(data, name), number, None))


def _left_behind(whole: Loaded, data: bytes, first: Image.Image, frames: str) -> str:
    """What is to be said of frames, or of pictures piped behind the first, that aren't taken."""
    from ...pictures.decoding import has_more_frames, is_followed

    notes = []
    if whole.item.name == "-" and is_followed(data, first):
        png = "--stream png takes each, where they are PNGs"
        notes.append(f"{whole.label}: the first of its pictures alone; {png}")
    if frames == "first" and has_more_frames(first):
        notes.append(f"{whole.label}: the first of its frames alone; --frames all takes each")
    return "; ".join(notes)


def own_names(sources: Sequence[str]) -> list[str] | None:
    """A file's name, without suffix, for each picture: its own. None where two would be the same on
    some system, or one can't be a name."""
    names = []
    for source in sources:
        name = re.split(r"[/\\]", source)[-1]
        if Path(name).suffix.lower() in SUFFIXES | {CODES}:
            name = Path(name).stem
        name = re.sub(r"[^\w .()+=@,-]", "_", name).strip(" .-")
        names.append(name.encode()[:LONGEST_NAME].decode(errors="ignore"))
    distinct = len({name.casefold() for name in names}) == len(names)
    return names if all(names) and distinct else None


def part_of(whole: Loaded, suffix: str) -> Loaded:
    """A frame, row or face of an input, its number or name behind the input's."""
    place = whole.place.with_name(whole.place.name + suffix)
    return replace(whole, label=whole.label + suffix, place=place)


def loaded_ahead(
    items: Iterable[Item], load: Load, find: Callable[[Item, Path, str], State], ahead: int
) -> Iterator[tuple[Item, list[Loaded] | InputError]]:
    """Yield what `load` makes of each item, or its InputError, in order. Up to `ahead` items are
    read and decoded by other threads while the network computes."""

    def loaded(item: Item) -> list[Loaded] | InputError:
        try:
            return list(load(item, partial(find, item)))
        except InputError as error:
            return error

    waiting: deque[tuple[Item, Future[list[Loaded] | InputError]]] = deque()
    pool, broken = ThreadPoolExecutor(READERS), None
    try:
        try:
            for item in items:
                if item.label == "-":  # which may wait: no signal ends a thread's reading
                    here = Future[list[Loaded] | InputError]()
                    here.set_result(loaded(item))
                else:
                    here = pool.submit(loaded, item)
                waiting.append((item, here))
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
