"""Where in a photo a model looks: a square cut out of it, and put back edited.

Coordinates are pixels from the photo's top left corner, x to the right and y downwards, after its
EXIF orientation; the first pixel's centre is at (0.5, 0.5). Photos are Pillow pictures, upright and
of 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...errors import InputError, UsageError

Point = tuple[float, float]
Box = tuple[int, int, int, int]  # left, top, right, bottom

MAX_SIZE = 8192
OUTSIDE = ("black", "repeat")
FADE = 1 / 8  # of the frame's side: how far an edit fades where the frame ends inside the photo
OVERSAMPLED = 2  # a turned square is sampled this much finer, then reduced


@dataclass(frozen=True)
class Frame:
    """A photo's coordinates → those of a square of `size` pixels: (a x + b y + c, d x + e y + f).

    `outside` is what the square shows where it reaches over the photo's border: `black`, or
    `repeat`, the nearest pixel. Raises InputError for a map that can't be inverted.
    """

    matrix: tuple[float, float, float, float, float, float]  # a, b, c, d, e, f
    size: int
    outside: str = "black"

    def __post_init__(self) -> None:
        # Pixels are photos' sizes at most 10^5 apart: less than that of one is no frame of a photo.
        if not (all(map(math.isfinite, self.matrix)) and abs(self._determinant) > 1e-10):
            raise InputError(f"a frame of the matrix {list(self.matrix)} can't be inverted")
        if not 1 <= self.size <= MAX_SIZE or self.outside not in OUTSIDE:
            raise InputError(
                f"a frame of {self.size} pixels with {self.outside!r} outside; "
                f"1 to {MAX_SIZE} and {' or '.join(OUTSIDE)} can be"
            )

    @classmethod
    def fitted(cls, width: int, height: int, size: int, fit: str = "crop") -> Frame:
        """The whole of a photo: `crop` its middle square, `pad` it with black, or `stretch` it."""
        if fit not in ("crop", "pad", "stretch"):
            raise UsageError(f"unknown fit {fit!r}; known: crop, pad, stretch")
        side = min(width, height) if fit == "crop" else max(width, height)
        across, down = (width, height) if fit == "stretch" else (side, side)
        x, y = size / across, size / down
        left, top = (width - across) / 2, (height - down) / 2
        return cls((x, 0.0, -left * x, 0.0, y, -top * y), size)

    @classmethod
    def between(cls, points: Sequence[Point], targets: Sequence[Point], size: int) -> Frame:
        """The similarity (turn, scale, shift) that brings points of a photo nearest to their
        targets, which are shares of the square's side, in the sense of least squares.

        This is Umeyama's fit (1991) without reflection: on the complex plane z → alpha z + beta.
        Raises InputError where all points are one.
        """
        ps, qs = [complex(*p) for p in points], [size * complex(*q) for q in targets]
        p_mean, q_mean = sum(ps) / len(ps), sum(qs) / len(qs)
        spread = sum(abs(p - p_mean) ** 2 for p in ps)
        if not spread > 0:
            raise InputError("the landmarks are all at one place")
        pairs = zip(ps, qs, strict=True)
        alpha = sum((p - p_mean).conjugate() * (q - q_mean) for p, q in pairs) / spread
        beta = q_mean - alpha * p_mean
        matrix = (alpha.real, -alpha.imag, beta.real, alpha.imag, alpha.real, beta.imag)
        return cls(matrix, size, "repeat")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Frame:
        """The inverse of `to_json`. Raises InputError for anything else."""
        try:
            matrix, size, outside = data["matrix"], data["size"], data["outside"]
            a, b, c, d, e, f = (float(one) for one in matrix)
            return cls((a, b, c, d, e, f), int(size), str(outside))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"not a frame: {data!r:.80}") from error

    def to_json(self) -> dict[str, Any]:
        """What a recipe carries."""
        return {"matrix": list(self.matrix), "size": self.size, "outside": self.outside}

    @property
    def scale(self) -> float:
        """Pixels of the square for one of the photo."""
        return math.sqrt(abs(self._determinant))

    @property
    def _determinant(self) -> float:
        a, b, _, d, e, _ = self.matrix
        return a * e - b * d

    def at(self, point: Point) -> Point:
        """A point of the photo in the square."""
        (a, b, c, d, e, f), (x, y) = self.matrix, point
        return a * x + b * y + c, d * x + e * y + f

    def back(self, point: Point) -> Point:
        """A point of the square in the photo."""
        a, b, c, d, e, f = self.inverse()
        x, y = point
        return a * x + b * y + c, d * x + e * y + f

    def inverse(self) -> tuple[float, float, float, float, float, float]:
        """The matrix from the square to the photo."""
        (a, b, c, d, e, f), by = self.matrix, self._determinant
        return e / by, -b / by, (b * f - c * e) / by, -d / by, a / by, (c * d - a * f) / by

    def corners(self) -> list[Point]:
        """The square's corners in the photo, clockwise from its top left."""
        n = float(self.size)
        return [self.back(corner) for corner in ((0.0, 0.0), (n, 0.0), (n, n), (0.0, n))]

    def seen(self, x: float, y: float, left: float = 0, top: float = 0) -> Frame:
        """The frame on the photo resized by (x, y), then cut at (left, top)."""
        a, b, c, d, e, f = self.matrix
        a, b, d, e = a / x, b / y, d / x, e / y
        moved = (a, b, c + a * left + b * top, d, e, f + d * left + e * top)
        return Frame(moved, self.size, self.outside)

    def resized(self, size: int) -> Frame:
        """The same square of another number of pixels."""
        a, b, c, d, e, f = (one * size / self.size for one in self.matrix)
        return Frame((a, b, c, d, e, f), size, self.outside)


def take(photo: Image.Image, frame: Frame) -> Image.Image:
    """The frame's square of an RGB photo, with frequencies above its pixels' filtered out."""
    corners = frame.corners()
    left, top, right, bottom = _bounds(corners)
    inside = left >= 0 and top >= 0 and right <= photo.width and bottom <= photo.height
    if inside and frame.matrix[1] == 0 == frame.matrix[3]:
        box = (*corners[0], *corners[2])
        return photo.resize((frame.size, frame.size), Image.Resampling.LANCZOS, box)
    photo, frame = _reduced(*_near(photo, frame))
    left, top, right, bottom = _bounds(frame.corners(), margin=2)
    part = _cut(photo, (left, top, right, bottom), frame.outside)
    fine = frame.seen(1, 1, left, top).resized(OVERSAMPLED * frame.size)
    square = _warped(part, fine.inverse(), (fine.size, fine.size))
    return square.resize((frame.size, frame.size), Image.Resampling.LANCZOS)


def paste_back(photo: Image.Image, before: Tensor, after: Tensor, frame: Frame) -> Image.Image:
    """The photo (RGB or RGBA, alpha stays) with an edit of the frame's square.

    before, after: (C, size, size) float in [-1, 1], the square as the model saw it and edited. What
    is added is their difference, enlarged, so that the photo keeps its detail; it fades out where
    the frame ends inside the photo. Pixels outside the frame and unedited ones are as they were.
    """
    difference = (after - before).float().cpu() * 127.5 * _fading(photo, frame)
    box = _within(_bounds(frame.corners()), photo)
    if box[0] >= box[2] or box[1] >= box[3]:
        return photo.copy()
    shape = (box[2] - box[0], box[3] - box[1])
    placed = frame.seen(1, 1, *box[:2])
    bands = list(photo.split())
    for number, band in enumerate(bands[:3]):
        channel = difference[number % len(difference)]
        change = _spread(_float_image(channel), placed, shape)
        old = torch.frombuffer(bytearray(band.crop(box).tobytes()), dtype=torch.uint8)
        new = (old + torch.frombuffer(bytearray(change.tobytes()), dtype=torch.float32)).round()
        pixels = new.clamp(0, 255).to(torch.uint8).numpy().tobytes()
        band.paste(Image.frombytes("L", shape, pixels), box)
    return Image.merge(photo.mode, bands)


def _bounds(points: list[Point], margin: int = 0) -> Box:
    """The whole pixels that points span; rounding errors of a millionth don't count."""
    xs, ys = zip(*points, strict=True)
    near = 1e-6
    return (
        math.floor(min(xs) + near) - margin,
        math.floor(min(ys) + near) - margin,
        math.ceil(max(xs) - near) + margin,
        math.ceil(max(ys) - near) + margin,
    )


def _within(box: Box, photo: Image.Image) -> Box:
    left, top, right, bottom = box
    return max(left, 0), max(top, 0), min(right, photo.width), min(bottom, photo.height)


def _near(photo: Image.Image, frame: Frame) -> tuple[Image.Image, Frame]:
    """The part of a photo that counts for a frame: with what a reduction filters it with."""
    margin = math.ceil(4 / min(1.0, OVERSAMPLED * frame.scale))
    box = _within(_bounds(frame.corners(), margin), photo)
    if box[0] >= box[2] or box[1] >= box[3]:
        return photo, frame  # beside the photo
    return photo.crop(box), frame.seen(1, 1, *box[:2])


def _reduced(photo: Image.Image, frame: Frame) -> tuple[Image.Image, Frame]:
    """The photo about as fine as its square is sampled, so that warping it needs no filter."""
    share = OVERSAMPLED * frame.scale
    if share >= 1:
        return photo, frame
    wide, high = (max(1, round(length * share)) for length in photo.size)
    small = photo.resize((wide, high), Image.Resampling.LANCZOS, reducing_gap=3)
    return small, frame.seen(wide / photo.width, high / photo.height)


def _cut(photo: Image.Image, box: Box, outside: str) -> Image.Image:
    """Crop also beyond the border."""
    if outside == "black":
        return photo.crop(box)  # Pillow's own filling
    left, top, right, bottom = box
    rows = torch.arange(top, bottom).clamp(0, photo.height - 1)
    columns = torch.arange(left, right).clamp(0, photo.width - 1)
    pixels = torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8)
    part = pixels.reshape(photo.height, photo.width, -1)[rows[:, None], columns]
    return Image.frombytes(photo.mode, (len(columns), len(rows)), part.numpy().tobytes())


def _warped(
    image: Image.Image,
    coefficients: tuple[float, ...],
    shape: tuple[int, int],
    sampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """A picture of `shape`; the coefficients lead from its coordinates to the given one's."""
    return image.transform(shape, Image.Transform.AFFINE, coefficients, sampling, fillcolor=0)


def _spread(square: Image.Image, frame: Frame, shape: tuple[int, int]) -> Image.Image:
    """A square laid back onto a photo of `shape`; 0 elsewhere."""
    fine = frame.resized(min(MAX_SIZE, max(1, round(frame.size / frame.scale))))
    square = square.resize((fine.size, fine.size), Image.Resampling.BICUBIC)
    return _warped(square, fine.matrix, shape, Image.Resampling.BILINEAR)


def _float_image(values: Tensor) -> Image.Image:
    height, width = values.shape
    return Image.frombytes("F", (width, height), values.contiguous().numpy().tobytes())


def _fading(photo: Image.Image, frame: Frame) -> Tensor:
    """(size, size) weights: 1, falling to 0 at the sides that don't lie on the photo's border."""
    depth = (torch.arange(frame.size) / max(1.0, FADE * frame.size)).clamp(max=1)
    rise = depth.square() * (3 - 2 * depth)  # smoothstep
    full = torch.ones(frame.size)
    corners = frame.corners()
    sides = [_inner(photo, corners[k], corners[(k + 1) % 4]) for k in range(4)]
    top, right, bottom, left = (rise if inner else full for inner in sides)
    return (top * bottom.flip(0))[:, None] * (left * right.flip(0))[None, :]


def _inner(photo: Image.Image, one: Point, other: Point) -> bool:
    """Whether a side of a frame runs inside the photo: not on one of its borders, nor beyond."""
    (x1, y1), (x2, y2) = one, other
    near = 0.5  # pixels of the photo
    beyond = max(x1, x2) <= near or min(x1, x2) >= photo.width - near
    return not (beyond or max(y1, y2) <= near or min(y1, y2) >= photo.height - near)
