"""Where in a photo a model looks: a square cut out of it, and put back edited.

Coordinates are pixels from the photo's top left corner, x to the right and y downwards, after its
EXIF orientation; the first pixel's centre is at (0.5, 0.5). Photos are Pillow pictures, upright and
of 8 bits.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...errors import InputError, UsageError, check_known
from ..images import to_image, to_tensor

Point = tuple[float, float]
Matrix = tuple[float, float, float, float, float, float]  # a, b, c, d, e, f
Box = tuple[int, int, int, int]  # left, top, right, bottom

TURNED = Image.Transform.AFFINE
MAX_SIZE = 8192
OUTSIDE = ("black", "repeat")
FADE = 1 / 8  # of the frame's side: how far an edit fades where the frame ends inside the photo
OVERSAMPLED = 2  # a turned square is sampled this much finer, if that fits, then reduced


@dataclass(frozen=True)
class Frame:
    """A photo's coordinates → those of a square of `size` pixels: (a x + b y + c, d x + e y + f).

    `outside` is what the square shows where it reaches over the photo's border: `black`, or
    `repeat`, the nearest pixel. Raises InputError for a map that can't be inverted.
    """

    matrix: Matrix
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
        check_known("fit", fit, ("crop", "pad", "stretch"), UsageError)
        side = min(width, height) if fit == "crop" else max(width, height)
        across, down = (width, height) if fit == "stretch" else (side, side)
        x, y = size / across, size / down
        left, top = (width - across) / 2, (height - down) / 2
        return cls((x, 0.0, -left * x, 0.0, y, -top * y), size)

    @classmethod
    def similarity(cls, alpha: complex, beta: complex, size: int, outside: str = "black") -> Frame:
        """The map z → alpha z + beta on the complex plane: a turn, a scale and a shift."""
        matrix = (alpha.real, -alpha.imag, beta.real, alpha.imag, alpha.real, beta.imag)
        return cls(matrix, size, outside)

    @classmethod
    def between(cls, points: Sequence[Point], targets: Sequence[Point], size: int) -> Frame:
        """The similarity that brings points of a photo nearest to their targets, which are shares
        of the square's side, in the sense of least squares: Umeyama's fit (1991) without
        reflection. Raises InputError where all points are one.
        """
        ps, qs = [complex(*p) for p in points], [size * complex(*q) for q in targets]
        p_mean, q_mean = sum(ps) / len(ps), sum(qs) / len(qs)
        spread = sum(abs(p - p_mean) ** 2 for p in ps)
        if not spread > 0:
            raise InputError("the landmarks are all at one place")
        pairs = zip(ps, qs, strict=True)
        alpha = sum((p - p_mean).conjugate() * (q - q_mean) for p, q in pairs) / spread
        return cls.similarity(alpha, q_mean - alpha * p_mean, size, "repeat")

    @property
    def complex(self) -> tuple[complex, complex]:
        """alpha and beta of a `similarity`."""
        a, _, c, d, _, f = self.matrix
        return complex(a, d), complex(c, f)

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
        return _mapped(self.matrix, point)

    def back(self, point: Point) -> Point:
        """A point of the square in the photo."""
        return _mapped(self.inverse(), point)

    def inverse(self) -> Matrix:
        """The matrix from the square to the photo."""
        (a, b, c, d, e, f), by = self.matrix, self._determinant
        return e / by, -b / by, (b * f - c * e) / by, -d / by, a / by, (c * d - a * f) / by

    @property
    def middle(self) -> Point:
        """The square's middle in the photo."""
        return self.back((self.size / 2, self.size / 2))

    def turned(self, degrees: float, scale: float = 1.0) -> Frame:
        """A `similarity`'s square turned clockwise and scaled about its middle."""
        alpha, beta = self.complex
        by, middle = cmath.rect(1 / scale, -math.radians(degrees)), self.size / 2 * (1 + 1j)
        return Frame.similarity(by * alpha, by * (beta - middle) + middle, self.size, self.outside)

    def off(self, other: Frame) -> float:
        """How far the corners of another square are from this one's on average, in its sides."""
        pairs = zip(self.corners(), other.corners(), strict=True)
        return sum(math.dist(self.at(one), self.at(two)) for one, two in pairs) / 4 / self.size

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
    """The frame's square of an L or RGB photo, with frequencies above its pixels' filtered out.

    Raises InputError where the photo is less than a pixel of a square that repeats its border.
    """
    if frame.outside == "repeat" and min(photo.size) * frame.scale < 1:
        raise InputError(
            f"the photo, {photo.width} x {photo.height}, is less than a pixel of the square that "
            "the landmarks ask for; give them in the photo's pixels"
        )
    size, corners = (frame.size, frame.size), frame.corners()
    left, top, right, bottom = _bounds(corners)
    inside = left >= 0 and top >= 0 and right <= photo.width and bottom <= photo.height
    if inside and frame.matrix[1] == 0 == frame.matrix[3]:
        return photo.resize(size, Image.Resampling.LANCZOS, (*corners[0], *corners[2]))
    finer = min(OVERSAMPLED * frame.size, MAX_SIZE)
    photo, frame = _reduced(photo, frame, finer / frame.size)
    box = _bounds(frame.corners(), margin=2)
    fine = frame.seen(1, 1, *box[:2]).resized(finer)
    shape, cubic = (fine.size, fine.size), Image.Resampling.BICUBIC
    part = _cut(photo, box, frame.outside)
    square = part.transform(shape, TURNED, fine.inverse(), cubic, fillcolor=0)
    return square.resize(size, Image.Resampling.LANCZOS)


def paste_back(photo: Image.Image, before: Tensor, after: Tensor, frame: Frame) -> Image.Image:
    """The photo (RGB or RGBA, alpha stays) with an edit of the frame's square.

    before, after: (C, size, size) float in [-1, 1], the square as the model saw it and edited. What
    is added is their difference, enlarged, so that the photo keeps its detail; it fades out where
    the frame ends inside the photo. Pixels outside the frame and unedited ones are as they were.
    """
    difference = (after - before).float().cpu() * 127.5 * _fading(photo, frame)
    box, result = _within(_bounds(frame.corners()), photo), photo.copy()
    if box is not None:
        part = to_tensor(photo.crop(box))
        for number, band in enumerate(part[:3]):
            change = _spread(difference[number % len(difference)], frame.seen(1, 1, *box[:2]), band)
            band.copy_((band + change).round().clamp(0, 255))
        result.paste(to_image(part), box)
    return result


def _mapped(matrix: Matrix, point: Point) -> Point:
    (a, b, c, d, e, f), (x, y) = matrix, point
    return a * x + b * y + c, d * x + e * y + f


def _bounds(points: list[Point], margin: int = 0) -> Box:
    """The whole pixels that points span; rounding errors of a millionth don't count."""
    xs, ys = zip(*points, strict=True)
    left, top = (math.floor(min(one) + 1e-6) - margin for one in (xs, ys))
    right, bottom = (math.ceil(max(one) - 1e-6) + margin for one in (xs, ys))
    return left, top, right, bottom


def _within(box: Box, photo: Image.Image) -> Box | None:
    """The part of a box that lies in the photo; None for none."""
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[2], photo.width), min(box[3], photo.height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _reduced(photo: Image.Image, frame: Frame, finer: float) -> tuple[Image.Image, Frame]:
    """The part of a photo that counts for a frame, about as fine as its square is sampled, `finer`
    than its pixels, so that warping it needs no filter."""
    share = min(1.0, finer * frame.scale)
    box = _within(_bounds(frame.corners(), math.ceil(4 / share)), photo)  # 4: of the reduction
    if box is not None:
        photo, frame = photo.crop(box), frame.seen(1, 1, *box[:2])
    if share == 1:
        return photo, frame
    wide, high = (max(1, round(length * share)) for length in photo.size)
    small = photo.resize((wide, high), Image.Resampling.LANCZOS, reducing_gap=3)
    return small, frame.seen(wide / photo.width, high / photo.height)


def _cut(photo: Image.Image, box: Box, outside: str) -> Image.Image:
    """Crop also beyond the border."""
    if outside == "black":
        return photo.crop(box)  # Pillow's own filling
    rows = torch.arange(box[1], box[3]).clamp(0, photo.height - 1)
    columns = torch.arange(box[0], box[2]).clamp(0, photo.width - 1)
    return to_image(to_tensor(photo)[:, rows[:, None], columns])


def _spread(values: Tensor, frame: Frame, onto: Tensor) -> Tensor:
    """A square of floats (size, size) laid back onto a part of a photo (H, W); 0 elsewhere."""
    fine = frame.resized(min(MAX_SIZE, max(1, round(frame.size / frame.scale))))
    square = Image.frombytes("F", (frame.size, frame.size), values.contiguous().numpy().tobytes())
    square = square.resize((fine.size, fine.size), Image.Resampling.BICUBIC)
    (height, width), linear = onto.shape, Image.Resampling.BILINEAR
    laid = square.transform((width, height), TURNED, fine.matrix, linear, fillcolor=0)
    return torch.frombuffer(bytearray(laid.tobytes()), dtype=torch.float32).view(onto.shape)


def _fading(photo: Image.Image, frame: Frame) -> Tensor:
    """(size, size) weights: 1, falling to 0 at the sides that don't lie on the photo's border."""
    depth = (torch.arange(frame.size) / max(1.0, FADE * frame.size)).clamp(max=1)
    rise, full = depth.square() * (3 - 2 * depth), torch.ones(frame.size)  # smoothstep
    corners = frame.corners()
    top, right, bottom, left = (
        rise if _inner(photo, one, other) else full
        for one, other in zip(corners, corners[1:] + corners[:1], strict=True)
    )
    return (top * bottom.flip(0))[:, None] * (left * right.flip(0))[None, :]


def _inner(photo: Image.Image, one: Point, other: Point) -> bool:
    """Whether a side of a frame runs inside the photo: not on one of its borders, nor beyond."""
    near = 0.5  # pixels of the photo
    return not any(
        max(x, y) <= near or min(x, y) >= length - near
        for x, y, length in zip(one, other, photo.size, strict=True)
    )
