"""Full-size photos of faces: which squares of one a model sees, and their edits put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import InputError, UsageError
from ..options import PhotoOptions
from .batches import Run
from .loading import Find, Load, Loaded, part_of, pictures_and_codes
from .making import picture_file

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ...pictures.photos.faces import Found
    from ...pictures.photos.landmarks import Landmarks

T = TypeVar("T")
WHOLE = "whole photo"


def wanted_squares(run: Run) -> Load:
    """Return what reads squares of photos where the options ask for that, else pictures as they
    are. Raises UsageError, and InputError for the file of landmarks."""
    options = run.options
    aligned = bool(options.align or options.landmarks)
    if options.face != "largest" and not aligned:
        raise UsageError(f"--face {options.face} is of those that --align finds; give that too")
    if aligned or getattr(options, "paste_back", False):
        return squares_of_photos(run, aligned)
    return pictures_and_codes(run.model, options)


def squares_of_photos(run: Run, aligned: bool = True) -> Load:
    """Like `pictures_and_codes`, but a picture is a square of its photo: `aligned` to a face, or
    what --fit takes of it. With --face all each face is a picture, or where all are pasted back
    into one photo, one of its `faces`. Raises UsageError, and InputError for landmarks."""
    options, config = run.options, run.model.config
    finding = _finding(run, aligned)
    together = isinstance(options, PhotoOptions) and options.paste_back

    def squares(one: Loaded, image: Image.Image, find: Find) -> Iterator[Loaded]:
        from ...pictures.decoding import on_white

        whole = in_colour(image)
        white = on_white(whole)
        faces = [square(one, white, whole, found) for found in finding(white, one.label)]
        if options.face != "all":
            yield faces[0]
        elif together:
            yield replace(faces[0], faces=tuple(faces))
        else:
            for from_left, face in enumerate(faces, 1):
                part = part_of(face, f"-face{from_left}")
                yield replace(part, state=find(part.place, part.input_sha))

    def square(one: Loaded, white: Image.Image, whole: Image.Image, found: Found) -> Loaded:
        from ...pictures.images import prepare
        from ...pictures.photos.frames import take

        pixels = prepare(take(white, found.frame), config.image_size, config.channels)
        alpha = None
        if getattr(options, "keep_alpha", False) and whole.mode == "RGBA":
            transparency = take(whole.getchannel("A"), found.frame)
            alpha = prepare(transparency, config.image_size, channels=1)
        note = "; ".join(filter(None, [one.note, found.note and f"{one.label}: {found.note}"]))
        return one.of(pixels, alpha, framed=found, note=note)

    return pictures_and_codes(run.model, options, squares)


def _finding(run: Run, aligned: bool) -> Callable[[Image.Image, str], Sequence[Found]]:
    """What finds the wanted squares, at least one, of a photo with a label: of faces by landmarks
    where a file has them, else by detectors."""
    from ...files import sha256
    from ...pictures.photos.faces import FaceFinder, Found, chosen, number_of
    from ...pictures.photos.frames import Frame
    from ...pictures.photos.landmarks import named, read_landmarks

    size, options = run.model.config.image_size, run.options
    if not aligned:
        return lambda photo, _: [Found(Frame.fitted(*photo.size, size, options.fit), WHOLE)]
    face, one_at_a_time = number_of(options.face), Lock()
    known: dict[str, list[Landmarks]] = {}
    if options.landmarks is not None:
        file = Path(options.landmarks)
        known, run.job.options["landmarks_sha256"] = read_landmarks(file), sha256(file)
    # Whoever relies on detectors hears at once that there are none.
    finders = [FaceFinder()] if options.align or not known else []

    def finding(photo: Image.Image, label: str) -> list[Found]:
        if listed := named(known, label):
            given = [Found(one.frame(size), "landmarks") for one in listed]
            return chosen(sorted(given, key=lambda one: one.frame.scale), face)
        with one_at_a_time:
            try:
                finders[:] = finders or [FaceFinder()]
                found = chosen(finders[0](photo, size), face)
            except (UsageError, InputError) as error:
                where = f"has no entry in {options.landmarks}, and " if known else ""
                raise InputError(f"{label}: {where}{error}") from error
        if not known:
            return found
        unlisted = f"has no entry in {options.landmarks}: "
        return [replace(one, note=f"{unlisted}{one.note or one.how}") for one in found]

    return finding


def in_colour(image: Image.Image) -> Image.Image:
    """A decoded photo upright and in 8 bits of RGB or RGBA."""
    from ...pictures.decoding import normalised

    image = normalised(image)
    return image.convert("RGBA" if "A" in image.mode else "RGB")


def faces_of(batch: Iterable[Loaded]) -> list[Loaded]:
    """Every picture of a batch, also where several are faces of one photo."""
    return [face for one in batch for face in one.faces or (one,)]


def by_photo(batch: Iterable[Loaded], made: Iterable[T]) -> Iterator[tuple[Loaded, list[T]]]:
    """Each of a batch with what was made of its faces, in the order of `faces_of`."""
    left = iter(made)
    for one in batch:
        yield one, list(islice(left, len(faces_of([one]))))


def framed(one: Loaded) -> dict[str, Any]:
    """Where in its photo a picture is and how that was found, as records and recipes have it."""
    if len(one.faces) > 1:
        return {"frames": [framed(face)["frame"] for face in one.faces]}
    if one.framed is None:
        return {}
    return {"frame": one.framed.frame.to_json(), "found": one.framed.how}


def row_file(
    run: Run, one: Loaded, rows: Sequence[Sequence[Tensor]], facts: dict[str, Any]
) -> bytes:
    """A picture's edits side by side as a file, each in its photo where that is wanted: of each
    face the edits (C, H, W), as many of each. Raises InputError where they are too many for one."""
    import torch

    from ...pictures.images import check_tiled

    columns = list(zip(*rows, strict=True))
    pasting = run.options.paste_back
    pictures = [_pasted(one, column) if pasting else column[0] for column in columns]
    count, (height, width) = len(pictures), pictures[0].shape[1:]
    check_tiled(count, count, height, width, run.destination.suffix, gap=0)
    return picture_file(run, one, torch.cat(pictures, dim=2), facts)


def _pasted(one: Loaded, edits: Sequence[Tensor]) -> Tensor:
    """The photo with an edited square (C, H, W), float in [-1, 1], of each face: uint8 (3 or 4,
    height, width). Raises InputError where there is no photo."""
    from ...pictures.images import to_tensor
    from ...pictures.photos.frames import paste_back

    if one.photo is None:
        raise InputError(f"{one.label}: --paste-back needs the photo, not its codes")
    photo = in_colour(one.photo())
    for face, edited in zip(faces_of([one]), edits, strict=True):
        assert face.picture is not None and face.framed is not None
        photo = paste_back(photo, face.picture[0], edited, face.framed.frame)
    return to_tensor(photo)
