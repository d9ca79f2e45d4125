"""Faces found in photos by OpenCV's cascades of Haar features, which its wheels before 5 bring, and
brought into the frame by a network that has seen aligned faces (`refining`).

The cascade sees upright faces, tilted by up to about 20 degrees. So a photo is searched in three
turns, and what is found looked at again in finer ones: the middle of the turns in which a face is
seen is its tilt, from where the network begins.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from PIL import Image, ImageOps

from ...errors import InputError, UsageError
from .frames import Frame, Point, take
from .landmarks import Landmarks
from .refining import Refiner

CASCADE = "haarcascade_frontalface_alt2.xml"
TURNS = (0, -30, 30)  # degrees, of the whole photo
FINER_TURNS = range(-64, 65, 8)  # of what was found
SEEN = 4  # of the finer turns, at least
SEARCHES = ((1.1, 4), (1.05, 2))  # steps of size and votes: the second where the first is in vain
# How far apart the network's answers may be, in sides: on faces they rarely are, elsewhere mostly.
DOUBT = 0.035
# In pixels: the photo's copy that is searched, a face in it at least, a face in closer looks.
SEARCHED, SMALLEST, FINER = 640, 36, 100
# Where a box that the cascade draws around a face has the eyes, as shares of its side: the mean
# over aligned faces put into photos at known places.
EYES_IN_BOX = ((0.317, 0.38), (0.683, 0.38))
BY_NETWORK, BY_BOX = "found by cascade and network", "found by cascade alone"
NOT_SURE = f"{BY_BOX}, the network isn't sure of it; --landmarks says where a face is"


@dataclass(frozen=True)
class Found:
    """A frame in a photo, how it was found, and what the user should know of that."""

    frame: Frame
    how: str
    note: str = ""


def number_of(text: str) -> str | int:
    """Read which of a photo's faces is meant: "largest", "all", or a number from the left, from 1
    on. Raises UsageError."""
    if text in ("largest", "all"):
        return text
    if not (text.isdecimal() and int(text[:9]) >= 1):
        raise UsageError(f"--face {text!r} isn't largest, all, or a number from 1 on")
    return int(text)


def chosen(found: Iterable[Found], face: str | int) -> list[Found]:
    """Those that are meant, of at least one, the largest first, from the left. Raises InputError
    for a number that there isn't."""
    if face == "largest":
        return [next(iter(found))]
    across = sorted(found, key=lambda one: one.frame.middle)
    if isinstance(face, int) and face > len(across):
        count = "one face" if len(across) == 1 else f"{len(across)} faces"
        raise InputError(f"has {count}, not {face}")
    return across if isinstance(face, str) else across[face - 1 : face]


@dataclass(frozen=True)
class Face:
    """A face's square box in a photo: its middle, side (pixels) and tilt (degrees clockwise)."""

    middle: Point
    side: float
    tilt: float

    def is_like(self, other: Face) -> bool:
        """Whether another box is around the same face, whatever its tilt."""
        near = math.dist(self.middle, other.middle) < 0.2 * self.side
        return near and 0.75 < other.side / self.side < 1.33

    def frame(self, size: int) -> Frame:
        """CelebA's frame, a square of `size` pixels, as such a box lies in it on average."""
        view = self.view(size)
        left, right = (view.back((x * size, y * size)) for x, y in EYES_IN_BOX)
        return Landmarks(left, right).frame(size)

    def view(self, pixels: int, room: float = 1.0) -> Frame:
        """The box, grown by `room`, turned upright, as a square of `pixels`."""
        scale = pixels / (room * self.side)
        alpha = scale * cmath.exp(-1j * math.radians(self.tilt))
        beta = pixels / 2 * (1 + 1j) - alpha * complex(*self.middle)
        return Frame.similarity(alpha, beta, pixels)


def _is_in(point: Point, frames: Iterable[Frame]) -> bool:
    """Whether a point of the photo lies about in the middle of one of the squares."""
    return any(math.dist(one.middle, point) * one.scale < one.size / 4 for one in frames)


class FaceFinder:
    """Finds faces in photos. Not for several threads at once.

    Raises UsageError where OpenCV is missing or brings no cascades, ModelError for the network.
    """

    def __init__(self) -> None:
        try:
            import cv2
            from cv2.data import haarcascades

            detector = cv2.CascadeClassifier
        except (ImportError, AttributeError) as error:
            raise UsageError(
                "finding faces needs OpenCV and the cascades that it brings before version 5: "
                "pip install 'pdae-cli[align]', or give --landmarks"
            ) from error
        self._cascade, self._refined = detector(str(Path(haarcascades) / CASCADE)), Refiner()

    def __call__(self, photo: Image.Image, size: int) -> Iterator[Found]:
        """The frames, squares of `size` pixels, of the faces in an RGB photo, the largest first:
        those that the network is sure of, or the largest alone where it is of none.

        Raises InputError where no face is found.
        """
        sure, unsure = list[Frame](), list[Frame]()
        for step, votes in SEARCHES:
            for face in self._searched(photo, step, votes):
                if _is_in(face.middle, sure):
                    continue
                box = face.frame(size)
                frame, doubt = self._refined(photo, box)
                if doubt > DOUBT:
                    unsure.append(box)
                elif not _is_in(frame.middle, sure):
                    sure.append(frame)
                    yield Found(frame, BY_NETWORK)
            if sure:
                return
        if not unsure:
            least = f"at least {SMALLEST / SEARCHED:.0%} of the photo's diagonal"
            raise InputError(f"no face found, {least}; crop to a smaller one, or give --landmarks")
        yield Found(unsure[0], BY_BOX, NOT_SURE)

    def _searched(self, photo: Image.Image, step: float, votes: int) -> Iterator[Face]:
        """Faces as the finer turns see them, the largest first."""
        whole = Face((photo.width / 2, photo.height / 2), math.hypot(*photo.size), 0.0)
        seen: list[Face] = []
        for turn in TURNS:
            view = replace(whole, tilt=turn).view(SEARCHED)
            seen += self._faces(photo, view, turn, step, votes, SMALLEST)
        for face in sorted(seen, key=lambda face: -face.side):
            if confirmed := self._looked_at(photo, face):
                yield confirmed

    def _looked_at(self, photo: Image.Image, face: Face) -> Face | None:
        """The face as the finer turns see it, or None where too few do. Where upright is one of
        them, nothing says that it is tilted."""
        seen = []
        for turn in FINER_TURNS:
            view = replace(face, tilt=turn).view(round(1.7 * FINER), room=1.7)
            here = self._faces(photo, view, turn, 1.05, 2, round(0.7 * FINER))
            seen += [one for one in here if face.is_like(one)][:1]
        if len(seen) < SEEN:
            return None
        x, y = (mean(values) for values in zip(*(one.middle for one in seen), strict=True))
        upright = any(one.tilt == 0 for one in seen)
        tilt = 0.0 if upright else mean(one.tilt for one in seen)
        return Face((x, y), mean(one.side for one in seen), tilt)

    def _faces(
        self, photo: Image.Image, view: Frame, tilt: float, step: float, votes: int, least: int
    ) -> Iterator[Face]:
        """The faces in a view of the photo."""
        import numpy

        pixels = numpy.asarray(ImageOps.equalize(take(photo, view).convert("L")))
        size = (view.size, view.size)
        boxes = self._cascade.detectMultiScale(pixels, step, votes, 0, (least, least), size)
        for x, y, side, _ in boxes:
            middle = (float(x + side / 2), float(y + side / 2))
            yield Face(view.back(middle), float(side) / view.scale, tilt)
