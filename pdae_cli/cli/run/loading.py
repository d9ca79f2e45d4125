"""From items to pictures and codes in memory, by threads that read ahead of the network."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
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
    from ...pictures.photos.frames import Frame

READERS = 2  # threads that read and decode pictures
LONGEST_NAME = 100  # bytes of a picture's own name, as part of a file's


@dataclass(frozen=True)
class Framed:
    """The square of a photo that a model sees."""

    photo: Callable[[], Image.Image]  # decodes it: many are read ahead, and large ones don't fit
    frame: Frame
    found: str  # how


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
    framed: Framed | None = None  # where in a photo the picture is
    faces: tuple[Loaded, ...] = ()  # where several pictures are of one photo: all of them

    def lean(self, picture: bool) -> Loaded:
        """Keep what is said of it in the end, and if wanted its picture: of thousands of photos
        memory has no room for the rest."""
        framed = self.framed and replace(self.framed, photo=_gone)
        small = replace(self, codes=None, alpha=None, exif=None, framed=framed, faces=())
        return small if picture else replace(small, picture=None)


def _gone() -> Image.Image:
    raise AssertionError("a photo is asked for that Loaded.lean let go")


Find = Callable[[Path, str], State]  # of the output for a place, made of this input
Load = Callable[[Item, Find], Iterator[Loaded]]


def anew(place: Path, input_sha: str) -> State:
    """A Find for what is to be read whether or not an output of it is there."""
    return State()


def numbered(made_of: str = "") -> Load:
    """Load pieces of work without a file of their own: samples, or frames `made_of` inputs."""

    def load(item: Item, find: Find) -> Iterator[Loaded]:
        input_sha = made_of or item.label
        yield Loaded(item, item.label, item.place, input_sha, state=find(item.place, input_sha))

    return load


def pictures_and_codes(model: Model, options: Any) -> Load:
    """Load an item as what the model takes: a picture, each of its frames, or each row of a codes
    file. Of the options those of ReadOptions and WriteOptions count."""
    from ...engine.codes import from_bytes
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
            codes = from_bytes(data, item.label)
            try:
                model.check(codes)
            except InputError as error:
                raise InputError(f"{item.label}: {error}") from error
            numbers = [f"{row:04d}" for row in range(len(codes))]
            for row, name in enumerate(own_names(codes.sources) or numbers):
                one, part = codes[row : row + 1], whole
                if len(codes) > 1:
                    part = part_of(whole, f"-{name}")
                state = find(part.place, input_sha)
                yield replace(part, state=state, picture_sha=one.picture_shas[0], codes=one)
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
            yield framed(whole, first)
        else:
            for number, image in enumerate(decoding.open_frames(data, whole.label)):
                part = part_of(whole, f"-{number:04d}")
                yield framed(replace(part, state=find(part.place, whole.input_sha)), image)

    def framed(one: Loaded, image: Image.Image) -> Loaded:
        size, fit = model.config.image_size, reading.fit
        pixels = images.prepare(image, size, model.config.channels, fit)
        return replace(
            one,
            picture_sha=images.picture_sha(pixels),
            picture=images.to_float(pixels)[None],
            size=decoding.upright_size(image),
            alpha=images.alpha_of(image, size, fit) if writing.keep_alpha else None,
            exif=exif_of(image) if writing.keep_exif else None,
        )

    return load


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
