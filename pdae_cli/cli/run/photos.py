"""Full-size photos of faces: which square of one a model sees, and an edit of it put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ...errors import InputError
from ..options import BatchOptions, PhotoOptions
from .batch import Runner
from .inputs import Item
from .loading import Find, Load, Loaded, pictures_and_codes

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ...engine.codes import Codes
    from ...engine.model import Model
    from ...evaluation.likeness import Likeness
    from ...pictures.photos.frames import Frame

WHOLE = "whole photo"
Framing = Callable[["Image.Image", str], tuple["Frame", str]]  # photo, label → frame, how found


@dataclass(frozen=True)
class Framed:
    """The square of a photo that a model sees."""

    photo: Callable[[], Image.Image]  # decodes it: many are read ahead, and large ones don't fit
    frame: Frame
    found: str  # how


def wanted_squares(runner: Runner) -> Load | None:
    """What reads squares of photos where the options ask for that; None for pictures as they are.
    Raises UsageError, and InputError for the file of landmarks."""
    options = runner.options
    if not isinstance(options, PhotoOptions):
        return None
    if not (options.align or options.landmarks or options.paste_back):
        return None
    return squares_of_photos(runner, options.align, options.landmarks)


def squares_of_photos(runner: Runner, align: bool, landmarks: str | None) -> Load:
    """Like `pictures_and_codes`, but a picture is a square of its photo: by landmarks from a file,
    by detectors, or by --fit. Raises UsageError, and InputError for the file of landmarks."""
    model, options = runner.model, runner.options
    size = model.config.image_size
    if landmarks is not None:
        framing = _by_file(runner, size, Path(landmarks))
    else:
        framing = _by_detectors(size) if align else _by_fit(options, size)
    plain = pictures_and_codes(model, options)

    def load(item: Item, find: Find) -> Iterator[Loaded]:
        data = item.read()
        for number, one in enumerate(plain(replace(item, read=lambda: data), find)):
            if one.picture is None:
                yield one
                continue
            photo = _photo(data, one.label, number if options.frames == "all" else None)
            yield _in_frame(model, options, one, photo, framing)

    return load


def _by_file(runner: Runner, size: int, path: Path) -> Framing:
    from ...files import sha256
    from ...pictures.photos.landmarks import named, read_landmarks

    known = read_landmarks(path)
    runner.job.options["landmarks_sha256"] = sha256(path)  # other landmarks make other pictures

    def frame(photo: Image.Image, label: str) -> tuple[Frame, str]:
        return named(known, label).frame(size), "landmarks"

    return frame


def _by_detectors(size: int) -> Framing:
    from ...pictures.photos.faces import FaceFinder

    finder, one_at_a_time = FaceFinder(), Lock()

    def frame(photo: Image.Image, label: str) -> tuple[Frame, str]:
        with one_at_a_time:
            landmarks = finder(photo)
        return landmarks.frame(size), landmarks.source

    return frame


def _by_fit(options: BatchOptions, size: int) -> Framing:
    from ...pictures.photos.frames import Frame

    def frame(photo: Image.Image, label: str) -> tuple[Frame, str]:
        return Frame.fitted(*photo.size, size, options.fit), WHOLE

    return frame


def _photo(data: bytes, name: str, number: int | None) -> Callable[[], Image.Image]:
    """What decodes a photo, or one of its frames, upright and in 8 bits of RGB or RGBA."""

    def photo() -> Image.Image:
        from ...pictures.images import normalised, open_frames, open_picture

        if number is None:
            image = normalised(open_picture(data, name))
        else:
            image = normalised(next(islice(open_frames(data, name), number, None)))
        return image.convert("RGBA" if "A" in image.mode else "RGB")

    return photo


def _in_frame(
    model: Model,
    options: BatchOptions,
    one: Loaded,
    photo: Callable[[], Image.Image],
    framing: Framing,
) -> Loaded:
    from ...pictures.images import digest, on_white, prepare, to_float
    from ...pictures.photos.frames import take

    config, whole = model.config, photo()
    frame, found = framing(on_white(whole), one.label)
    pixels = prepare(take(on_white(whole), frame), config.image_size, config.channels)
    alpha = None
    if options.keep_alpha and whole.mode == "RGBA":
        alpha = prepare(take(whole.getchannel("A"), frame), config.image_size, channels=1)
    return replace(
        one,
        digest=digest(pixels),
        picture=to_float(pixels)[None],
        alpha=alpha,
        framed=Framed(photo, frame, found),
        note=one.note or (f"{one.label}: {found}" if found.endswith("no eyes seen") else ""),
    )


def pasted(one: Loaded, edited: Tensor) -> Tensor:
    """The photo with its edited square (C, H, W), float in [-1, 1]: uint8 (3 or 4, height, width).

    Raises InputError where there is no photo.
    """
    from ...pictures.images import to_tensor
    from ...pictures.photos.frames import paste_back

    if one.framed is None or one.picture is None:
        raise InputError(f"{one.label}: --paste-back needs the photo, not its codes")
    photo = one.framed.photo()
    return to_tensor(paste_back(photo, one.picture[0], edited, one.framed.frame))


class Watch:
    """Warns of pictures that don't look as if they lay in the model's frame."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @cached_property
    def _likeness(self) -> Likeness | None:
        from ...evaluation.likeness import Likeness

        return Likeness.of(self._runner.model)

    def distances(self, batch: list[Loaded], codes: Codes) -> list[float] | None:
        """How far each picture's code is from those of training, in standard deviations; None for
        a batch of codes, or where the model can't tell."""
        from ...evaluation.likeness import LIMIT

        if batch[0].picture is None or self._likeness is None:
            return None
        distances = self._likeness.distances(codes.z)
        for one, distance in zip(batch, distances, strict=True):
            if distance > LIMIT:
                aligned = one.framed is not None and one.framed.found != WHOLE
                hint = "" if aligned else "; --align brings a photo's face into the frame"
                self._runner.out.warn(
                    f"{one.label}: doesn't look as if it lay in the model's frame (its code is "
                    f"{distance:.1f} standard deviations off){hint}"
                )
        return distances
