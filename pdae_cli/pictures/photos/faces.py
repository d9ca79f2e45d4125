"""Faces found in photos by OpenCV's cascades of Haar features, which its wheels before 5 bring.

The cascades see upright faces, tilted by up to about 20 degrees. So a photo is searched in three
turns, and what is found looked at again in finer ones: the middle of the turns in which a face is
seen is its tilt, and one that is seen in few of them is none.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

from PIL import Image, ImageOps

from ...errors import InputError, UsageError
from .frames import Frame, Point, take
from .landmarks import Landmarks

FACES = "frontalface_alt2"
EYES = ("eye", "eye_tree_eyeglasses", "lefteye_2splits", "righteye_2splits")
TURNS = (0, -30, 30)  # degrees, of the whole photo
FINER_TURNS = range(-64, 65, 8)  # of what was found
SEEN = 4  # of the finer turns, at least
# In pixels: the photo's copy that is searched, a face in it at least, a face in closer looks.
SEARCHED, SMALLEST, FINER, CLOSE = 640, 36, 100, 256
# Where a box that the cascade draws around a face has the eyes, as shares of its side: the mean
# over aligned faces put into photos at known places. Found eyes are at most REACH off.
EYES_IN_BOX = ((0.317, 0.38), (0.683, 0.38))
REACH = 0.12
WITH_EYES, WITHOUT_EYES = "found by face and eyes", "found by face alone: no eyes seen"


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

    def view(self, pixels: int, room: float = 1.0) -> Frame:
        """The box, grown by `room`, turned upright, as a square of `pixels`."""
        scale = pixels / (room * self.side)
        alpha = scale * cmath.exp(-1j * math.radians(self.tilt))
        beta = pixels / 2 * (1 + 1j) - alpha * complex(*self.middle)
        return Frame.similarity(alpha, beta, pixels)


class FaceFinder:
    """Finds the largest face in a photo. Not for several threads at once.

    Raises UsageError where OpenCV is missing or brings no cascades.
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
        self._cascades = {
            name: detector(str(Path(haarcascades) / f"haarcascade_{name}.xml"))
            for name in (FACES, *EYES)
        }

    def __call__(self, photo: Image.Image) -> Landmarks:
        """The eyes of the largest face in an RGB photo whose eyes are seen, or of the largest face
        if no eyes are; `source` says which.

        Raises InputError where no face is found.
        """
        whole = Face((photo.width / 2, photo.height / 2), math.hypot(*photo.size), 0.0)
        seen: list[Face] = []
        for turn in TURNS:
            view = replace(whole, tilt=turn).view(SEARCHED)
            seen += self._faces(photo, view, turn, 1.1, 4, SMALLEST)
        blind = None
        for face in sorted(seen, key=lambda face: -face.side):
            if confirmed := self._looked_at(photo, face):
                landmarks = self._landmarks(photo, confirmed)
                if landmarks.source == WITH_EYES:
                    return landmarks
                blind = blind or landmarks
        if blind is None:
            raise InputError("no face found; give its landmarks with --landmarks")
        return blind

    def _faces(
        self, photo: Image.Image, view: Frame, tilt: float, step: float, votes: int, least: int
    ) -> Iterator[Face]:
        """The faces in a view of the photo."""
        for x, y, side in self._detect(FACES, take(photo, view), step, votes, least, view.size):
            yield Face(view.back((x + side / 2, y + side / 2)), side / view.scale, tilt)

    def _looked_at(self, photo: Image.Image, face: Face) -> Face | None:
        """The face as the finer turns see it, or None where too few do."""
        seen = []
        for turn in FINER_TURNS:
            view = replace(face, tilt=turn).view(round(1.7 * FINER), room=1.7)
            here = self._faces(photo, view, turn, 1.05, 2, round(0.7 * FINER))
            seen += [one for one in here if face.is_like(one)][:1]
        if len(seen) < SEEN:
            return None
        x, y = (mean(values) for values in zip(*(one.middle for one in seen), strict=True))
        side, tilt = mean(one.side for one in seen), mean(one.tilt for one in seen)
        return Face((x, y), side, tilt)

    def _landmarks(self, photo: Image.Image, face: Face) -> Landmarks:
        """A face's eyes: the mean of where its box and the eyes' cascades have them."""
        view = face.view(CLOSE)
        boxed = [(x * CLOSE, y * CLOSE) for x, y in EYES_IN_BOX]
        seen = self._eyes(take(photo, view), boxed)
        pairs = zip(boxed, seen or boxed, strict=True)
        left, right = (view.back(((x1 + x2) / 2, (y1 + y2) / 2)) for (x1, y1), (x2, y2) in pairs)
        return Landmarks(left, right, source=WITH_EYES if seen else WITHOUT_EYES)

    def _eyes(self, face: Image.Image, expected: list[Point]) -> list[Point] | None:
        """Both eyes in a face's square, if cascades see both: the median of what they see."""
        top = face.crop((0, 0, CLOSE, round(0.62 * CLOSE)))
        centres = [
            (x + side / 2, y + side / 2)
            for name in EYES
            for x, y, side in self._detect(name, top, 1.05, 3, CLOSE // 10, round(0.44 * CLOSE))
        ]
        near = [[one for one in centres if math.dist(one, eye) < REACH * CLOSE] for eye in expected]
        if not all(near):
            return None
        return [(median(x for x, _ in one), median(y for _, y in one)) for one in near]

    def _detect(
        self, name: str, picture: Image.Image, step: float, votes: int, least: int, most: int
    ) -> list[tuple[int, int, int]]:
        """Left, top and side of what a cascade finds."""
        import numpy

        pixels = numpy.asarray(ImageOps.equalize(picture.convert("L")))
        found = self._cascades[name].detectMultiScale(
            pixels, step, votes, minSize=(least, least), maxSize=(most, most)
        )
        return [(int(x), int(y), int(side)) for x, y, side, _ in found]
