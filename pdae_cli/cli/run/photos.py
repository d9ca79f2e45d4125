"""Full-size photos of faces: which square of one a model sees, which part of it an edit may change,
and the edit put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ...errors import InputError
from .batches import Run
from .inputs import Item
from .loading import Find, Framed, Load, Loaded, pictures_and_codes

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ...pictures.photos.frames import Frame

WHOLE = "whole photo"


def wanted_squares(run: Run) -> Load | None:
    """Return what reads squares of photos where the options ask for that; None for pictures as they
    are. Raises UsageError, and InputError for the file of landmarks."""
    options = run.options
    if not (options.align or options.landmarks or options.paste_back):
        return None
    return squares_of_photos(run, options.align, options.landmarks)


def squares_of_photos(run: Run, align: bool, landmarks: str | None) -> Load:
    """Like `pictures_and_codes`, but a picture is a square of its photo: by landmarks from a file,
    by detectors, or by --fit. Raises UsageError, and InputError for the file of landmarks."""
    model, options = run.model, run.options
    config, framing = model.config, _framing(run, align, landmarks)
    plain = pictures_and_codes(model, options)

    def load(item: Item, find: Find) -> Iterator[Loaded]:
        from ...pictures.decoding import on_white
        from ...pictures.images import picture_sha, prepare, to_float
        from ...pictures.photos.frames import take

        data = item.read()
        for number, one in enumerate(plain(replace(item, read=lambda: data), find)):
            if one.picture is None:
                yield one
                continue
            photo = _photo(data, one.label, number if options.frames == "all" else None)
            whole = photo()
            frame, found = framing(on_white(whole), one.label)
            pixels = prepare(take(on_white(whole), frame), config.image_size, config.channels)
            alpha = None
            if options.keep_alpha and whole.mode == "RGBA":
                alpha = prepare(take(whole.getchannel("A"), frame), config.image_size, channels=1)
            yield replace(
                one,
                picture_sha=picture_sha(pixels),
                picture=to_float(pixels)[None],
                alpha=alpha,
                framed=Framed(photo, frame, found),
                note=one.note
                or (f"{one.label}: {found}" if found.endswith("no eyes seen") else ""),
            )

    return load


def _framing(
    run: Run, align: bool, landmarks: str | None
) -> Callable[[Image.Image, str], tuple[Frame, str]]:
    """What finds the frame in a photo with a label, and says how."""
    from ...files import sha256
    from ...pictures.photos.faces import FaceFinder
    from ...pictures.photos.frames import Frame
    from ...pictures.photos.landmarks import named, read_landmarks

    size, options = run.model.config.image_size, run.options
    if landmarks is not None:
        known = read_landmarks(Path(landmarks))
        run.job.options["landmarks_sha256"] = sha256(Path(landmarks))  # others, other pictures
        return lambda photo, label: (named(known, label).frame(size), "landmarks")
    if not align:
        return lambda photo, label: (Frame.fitted(*photo.size, size, options.fit), WHOLE)
    finder, one_at_a_time = FaceFinder(), Lock()

    def by_detectors(photo: Image.Image, label: str) -> tuple[Frame, str]:
        with one_at_a_time:
            found = finder(photo)
        return found.frame(size), found.source

    return by_detectors


def _photo(data: bytes, name: str, number: int | None) -> Callable[[], Image.Image]:
    """What decodes a photo, or one of its frames, upright and in 8 bits of RGB or RGBA."""

    def photo() -> Image.Image:
        from ...pictures.decoding import normalised, open_frames, open_picture

        if number is None:
            image = normalised(open_picture(data, name))
        else:
            image = normalised(next(islice(open_frames(data, name), number, None)))
        return image.convert("RGBA" if "A" in image.mode else "RGB")

    return photo


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


@dataclass(frozen=True)
class Mask:
    """A grey picture, upright and in 8 bits: white is what may change."""

    image: Image.Image
    name: str
    size: int  # of the model's pictures
    fit: str

    @classmethod
    def read(cls, run: Run, name: str) -> Mask:
        """A picture file of any kind; what is transparent counts as white. Raises InputError."""
        from ...files import sha256
        from ...pictures.images import normalised, on_white, open_picture

        image = on_white(normalised(open_picture(Path(name), name))).convert("L")
        run.job.options["mask_sha256"] = sha256(Path(name))  # another mask makes other pictures
        size = run.model.config.image_size
        return cls(image, name, size, run.options.fit)

    def of(self, batch: Sequence[Loaded]) -> Tensor:
        """Of each picture, in the model's frame as the picture is: (N, 1, H, W), 0 … 1.

        Raises InputError for a mask that isn't as large as a picture; codes take one of any size.
        """
        import torch

        from ...pictures.images import prepare
        from ...pictures.photos.frames import take

        masks = []
        for one in batch:
            if one.size is not None and one.size != self.image.size:
                width, height = one.size
                raise InputError(
                    f"{one.label} has {width}x{height} pixels and the mask {self.name} "
                    f"{self.image.width}x{self.image.height}; draw one over the picture itself"
                )
            if one.framed is not None:
                masks.append(prepare(take(self.image, one.framed.frame), self.size, channels=1))
            else:
                masks.append(prepare(self.image, self.size, 1, self.fit))
        return torch.stack(masks).float() / 255

    def over(self, batch: Sequence[Loaded], edited: Tensor) -> Tensor:
        """Edits (N, C, H, W) where they show, and the pictures as they came elsewhere: what goes
        back into a photo, so that it keeps its own pixels. Codes have none and keep the edits'."""
        import torch

        from ...engine.editing import by_mask

        rows = zip(batch, edited, strict=True)
        came = [two if one.picture is None else one.picture[0] for one, two in rows]
        return by_mask(self.of(batch))(torch.stack(came), edited)
