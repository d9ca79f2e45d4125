"""Pictures as tensors: from decoded files, and to files that say how they were made.

Tensors are float32 in [-1, 1] or uint8, (C, H, W); C = 1 or 3, or 2 or 4 with alpha.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import InputError
from ..files import write_bytes
from .decoding import MAX_PIXELS, normalised, on_white, open_picture
from .metadata import Keep, Recipe, save_options

WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}
LONGEST = {"JPEG": 65_500, "WEBP": 16_383, "GIF": 65_535}  # side that a format can say
NAMED = (str, Path, Image.Image)
OUT_OF_RANGE = 8  # of what is meant to be in [-1, 1]; 0 … 255 is, overshoot and noise aren't
ARRAYS = "torch.from_numpy takes floats (N, C, H, W), Image.fromarray uint8 (H, W, C)"
TO_FLOAT = "pdae_cli.pictures.images.to_float makes them of 0 to 255"
Images = Tensor | Sequence[Image.Image | str | Path] | Image.Image | str | Path


def prepare(image: Image.Image, size: int, channels: int = 3, fit: str = "crop") -> Tensor:
    """Bring a decoded picture into a model's frame: uint8, (channels, size, size).

    It is `normalised`; alpha is composited on white. `fit`: `crop` the middle square, `pad` with
    black, or `stretch`.
    """
    image = on_white(normalised(image))
    if channels == 1:
        image = image.convert("L")
    return to_tensor(_fitted(image, size, fit).convert("L" if channels == 1 else "RGB"))


def alpha_of(image: Image.Image, size: int, fit: str = "crop") -> Tensor | None:
    """A decoded picture's alpha in a model's frame: uint8, (1, size, size); None for none.

    What `pad` adds is transparent.
    """
    if not image.has_transparency_data:
        return None
    image = normalised(image)
    return to_tensor(_fitted(image.getchannel("A"), size, fit)) if "A" in image.mode else None


def _fitted(image: Image.Image, size: int, fit: str) -> Image.Image:
    if fit == "stretch":
        return image.resize((size, size), Image.Resampling.LANCZOS)
    square = ImageOps.pad if fit == "pad" else ImageOps.fit
    return square(image, (size, size), Image.Resampling.LANCZOS)


def with_alpha(pixels: Tensor, alpha: Tensor) -> Tensor:
    """Re-attach alpha to a picture that was composited on white: uint8 (C, H, W) and (1, H, W) to
    (C + 1, H, W), which laid on white gives the same picture as far as 8 bits can say it."""
    share = (alpha.float() / 255).clamp(min=1 / 255)
    colours = 255 - (255 - pixels.float()) / share
    return torch.cat([colours.round().clamp(0, 255).to(torch.uint8), alpha])


def as_tensor(images: Images, size: int, channels: int = 3, fit: str = "crop") -> Tensor:
    """Tensors, Pillow pictures or paths in a model's frame: (N, channels, size, size) float32.

    Raises InputError for a tensor of another shape or of whole numbers, a file that can't be read,
    what is none of the three, and for no pictures.
    """
    if isinstance(images, Tensor):
        check_pictures(images, size, channels)
        several: Sequence[object] | Tensor = images
    else:
        alone = isinstance(images, str | bytes | Path | Image.Image)
        several = images if isinstance(images, Sequence) and not alone else [images]
        kinds = [type(one).__name__ for one in several if not isinstance(one, NAMED)]
        if kinds:
            told = "pictures are one tensor (torch.stack joins several), Pillow pictures or paths"
            raise InputError(f"{told}, not {kinds[0]}; of arrays {ARRAYS}")
    if not len(several):
        raise InputError("no pictures; give at least one")
    if isinstance(several, Tensor):
        return several.float()
    opened = (
        one if isinstance(one, Image.Image) else open_picture(Path(str(one)), str(one))
        for one in several
    )
    return torch.stack([to_float(prepare(one, size, channels, fit)) for one in opened])


def check_pictures(x: object, size: int, channels: int) -> None:
    """Raise InputError unless it is a tensor of floats (N, channels, size, size)."""
    kind = str(x.dtype).removeprefix("torch.") if isinstance(x, Tensor) else type(x).__name__
    if isinstance(x, Tensor) and (x.ndim != 4 or x.shape[1:] != (channels, size, size)):
        raise InputError(
            f"pictures of shape {tuple(x.shape)} don't fit the model, "
            f"which takes (N, {channels}, {size}, {size})"
        )
    if not isinstance(x, Tensor):
        raise InputError(f"pictures are a tensor here, not {kind}; of arrays {ARRAYS}")
    if not x.is_floating_point():
        raise InputError(f"pictures are floats in [-1, 1], not {kind}; {TO_FLOAT}")


def in_range(x: Tensor) -> Tensor:
    """Return pictures that are meant to be in [-1, 1]. Raises InputError where they can't be."""
    if not (furthest := x.abs().max().item()) <= OUT_OF_RANGE:  # of NaN neither
        raise InputError(f"pictures are in [-1, 1], not of {furthest:g}; {TO_FLOAT}")
    return x


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0 … 255 → float32 [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(x: Tensor) -> Tensor:
    """float [-1, 1] → uint8 0 … 255, rounded, on the CPU."""
    return (x.detach().float().cpu() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit picture → uint8 (C, H, W)."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(image.height, image.width, -1).permute(2, 0, 1).contiguous()


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W) → a Pillow picture; C = 2 and 4 have alpha."""
    channels, height, width = pixels.shape
    data = pixels.permute(1, 2, 0).contiguous().numpy().tobytes()
    return Image.frombytes(("L", "LA", "RGB", "RGBA")[channels - 1], (width, height), data)


def picture_sha(pixels: Tensor) -> str:
    """SHA-256 of an 8-bit picture (C, H, W): of its pixels, whatever file they came in."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def tile(pictures: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Lay uint8 pictures (N, C, H, W) out as one (C, H', W') sheet, row by row, on white."""
    n, c, height, width = pictures.shape
    columns = min(columns, n)
    shape = _tiled(n, columns, height, width, gap)
    sheet = torch.full((c, *shape), 255, dtype=torch.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def _tiled(n: int, columns: int, height: int, width: int, gap: int) -> tuple[int, int]:
    return -(-n // columns) * (height + gap) - gap, columns * (width + gap) - gap


def check_tiled(n: int, columns: int, height: int, width: int, suffix: str, gap: int = 2) -> None:
    """Raise InputError where `tile` would lay pictures out as one that its format can't hold, or
    that we couldn't read again: before they are made."""
    down, across = _tiled(n, min(columns, n), height, width, gap)
    _check_sides(across, down, suffix)
    if down * across > MAX_PIXELS:
        raise InputError(
            f"{across}x{down} pixels are more than the {MAX_PIXELS // 10**6} million that can be "
            "read again; put fewer pictures into one file"
        )


def _check_sides(width: int, height: int, suffix: str) -> None:
    longest = LONGEST.get(WRITABLE[suffix], width + height)
    if max(width, height) > longest:
        raise InputError(
            f"{width}x{height} pixels are too many for {suffix}, which takes {longest} a side; "
            "write png"
        )


def encode_picture(pixels: Tensor, suffix: str, recipe: Recipe | None, keep: Keep = None) -> bytes:
    """A file's bytes for one uint8 picture (C, H, W); see `encode_frames`."""
    return encode_frames([pixels], suffix, recipe, keep=keep)


def encode_frames(
    frames: Sequence[Tensor],
    suffix: str,
    recipe: Recipe | None,
    duration: int = 100,
    keep: Keep = None,
) -> bytes:
    """A file's bytes for one uint8 picture (C, H, W) or, with a GIF, WebP or PNG suffix, several.

    Alpha (C = 2, 4) is composited on white where the format has none. duration: milliseconds a
    frame. recipe, keep: metadata to write, see `metadata.save_options`. Raises InputError for
    what the format can't hold.
    """
    format = WRITABLE[suffix]
    images = [to_image(frame) for frame in frames]
    if format not in ("PNG", "WEBP"):
        images = [on_white(image) for image in images]
    _check_sides(*images[0].size, suffix)
    options = save_options(format, recipe, keep)
    if format in ("JPEG", "WEBP"):
        options["quality"] = 95
    if len(images) > 1:
        options |= {"save_all": True, "append_images": images[1:], "duration": duration, "loop": 0}
    buffer = io.BytesIO()
    try:
        images[0].save(buffer, format, **options)
    except (OSError, ValueError) as error:  # too much metadata, say
        raise InputError(f"can't be written as {suffix}: {error}; choose another format") from error
    return buffer.getvalue()


def write_sheet(path: Path, pictures: Tensor, columns: int, recipe: Recipe) -> None:
    """Write float pictures (N, C, H, W) as one contact sheet."""
    sheet = tile(to_pixels(pictures), columns)
    write_bytes(path, encode_picture(sheet, path.suffix.lower(), recipe))
