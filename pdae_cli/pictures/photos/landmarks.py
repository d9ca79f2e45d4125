"""Where a face is in a photo: eyes and mouth, the frame they ask for, and files of them.

Left and right are the photo's, not the person's. Coordinates are those of `frames`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import read_limited
from .frames import Frame, Point

MAX_BYTES = 256 << 20  # of a landmarks file
KNOWN = {"left_eye", "right_eye", "mouth", "left_mouth", "right_mouth", "nose"}
# Shares of the side of CelebA's 128-pixel crop (top 57, left 25 of the aligned 178x218 pictures)
# at which its authors' alignment puts the eyes' centres and the middle of the mouth's corners:
# (70.745, 112), (108.237, 112) and (89.432, 153.514) in Matlab's pixels (align_face_celeba.m).
CELEBA = ((0.3535, 0.4258), (0.6464, 0.4258), (0.4995, 0.7501))


@dataclass(frozen=True)
class Landmarks:
    """A face's points in a photo; the mouth's is the middle of its corners."""

    left_eye: Point
    right_eye: Point
    mouth: Point | None = None

    def frame(self, size: int) -> Frame:
        """The square of `size` pixels in which the face lies as in CelebA's aligned pictures.

        Raises InputError where the points can't be a face's.
        """
        (x1, y1), (x2, y2) = self.left_eye, self.right_eye
        x, y = self.mouth or ((x1 + x2) / 2, (y1 + y2) / 2 + 1)
        if (x2 - x1) * (y - (y1 + y2) / 2) - (y2 - y1) * (x - (x1 + x2) / 2) <= 0:
            raise InputError(
                "the eyes and mouth don't lie as a face's do; left_eye is the eye on the "
                "picture's left, y grows downwards"
            )
        points = [self.left_eye, self.right_eye, *([self.mouth] if self.mouth else [])]
        return Frame.between(points, CELEBA[: len(points)], size)


def read_landmarks(path: Path) -> dict[str, list[Landmarks]]:
    """Read {"FILE": {"left_eye": [x, y], "right_eye": [x, y], "mouth": [x, y]}, …}, or lists of
    such faces: the mouth, or its corners `left_mouth` and `right_mouth`, may be there; a `nose`
    isn't used, as in CelebA's own alignment. Raises InputError with one line."""
    try:
        data = json.loads(read_limited(path, MAX_BYTES), parse_constant=float)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f'{path}: not an object {{"FILE": {{"left_eye": [x, y], …}}, …}}')
    return {name: _faces(faces, f"{path}: {name}") for name, faces in data.items()}


def _faces(data: Any, where: str) -> list[Landmarks]:
    faces = data if isinstance(data, list) else [data]
    if not faces:
        raise InputError(f"{where}: a list of no faces")
    return [_landmarks(points, where) for points in faces]


def _landmarks(data: Any, where: str) -> Landmarks:
    if not isinstance(data, dict) or not {"left_eye", "right_eye"} <= data.keys():
        raise InputError(f"{where}: needs left_eye and right_eye, each [x, y]")
    if strange := data.keys() - KNOWN:
        raise InputError(f"{where}: unknown {min(strange)!r}; known: {', '.join(sorted(KNOWN))}")
    points = {name: _point(value, f"{where}: {name}") for name, value in data.items()}
    corners = [points[name] for name in ("left_mouth", "right_mouth") if name in points]
    if len(corners) == 1 or (corners and "mouth" in points):
        raise InputError(f"{where}: give mouth, or both left_mouth and right_mouth")
    if corners:
        (x1, y1), (x2, y2) = corners
        points["mouth"] = ((x1 + x2) / 2, (y1 + y2) / 2)
    return Landmarks(points["left_eye"], points["right_eye"], points.get("mouth"))


def _point(value: Any, where: str) -> Point:
    numbers: list[Any] = value if isinstance(value, list) and len(value) == 2 else [None, None]
    if not all(type(one) in (int, float) and abs(one) <= 1e6 for one in numbers):  # NaN isn't
        raise InputError(f"{where} isn't a point [x, y] in pixels")
    return float(numbers[0]), float(numbers[1])


def named(landmarks: Mapping[str, list[Landmarks]], label: str) -> list[Landmarks]:
    """The faces that the file has of this label: its path as given, or as much of its end as is
    listed; none where it isn't."""
    parts = label.replace("\\", "/").split("/")
    for end in [label, *("/".join(parts[first:]) for first in range(len(parts)))]:
        if end in landmarks:
            return landmarks[end]
    return []
