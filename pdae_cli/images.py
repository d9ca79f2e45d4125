"""Pictures in and out: untrusted files to tensors, tensors to files that say how they were made.

Tensors are float32 in [-1, 1] or uint8, (C, H, W); C = 1 or 3.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin
from torch import Tensor

from .errors import InputError
from .files import write_bytes

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # nothing else is decoded
READABLE = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}
MAX_PIXELS = 64_000_000
Pictures = Tensor | Sequence[Image.Image | str | Path] | Image.Image | str | Path
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # 16-bit files open in one of these


def open_picture(source: Path | BinaryIO, name: str) -> Image.Image:
    """Decode an untrusted file: only FORMATS, at most MAX_PIXELS, the first frame.

    Raises InputError with one line that names the file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of oddities in files that still decode
            data = io.BytesIO(source.read_bytes()) if isinstance(source, Path) else source
            image = Image.open(data, formats=FORMATS)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise InputError(
                    f"{name}: {width}x{height} pixels are more than the limit of "
                    f"{MAX_PIXELS // 10**6} million; make the picture smaller first"
                )
            image.load()
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name}: claims more pixels than the limit of {MAX_PIXELS // 10**6} million; "
            "make the picture smaller first"
        ) from error
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{name}: not a picture that can be read ({', '.join(FORMATS)})"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{name}: can't be read as a picture: {reason}") from error
    return image


def prepare(image: Image.Image, size: int, channels: int = 3, fit: str = "crop") -> Tensor:
    """Bring a decoded picture into a model's frame: uint8, (channels, size, size).

    EXIF orientation is applied; 16-bit values are scaled, not clipped; colours with a profile go
    to sRGB; alpha is composited on white. `fit`: `crop` the middle square, `pad` with black, or
    `stretch`.
    """
    image = _to_srgb(_to_eight_bits(ImageOps.exif_transpose(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    if fit == "crop":
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    elif fit == "pad":
        image = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS)
    else:
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(size, size, channels).permute(2, 0, 1).contiguous()


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit pictures (and floats, taken as 0 … 1) to 8 bits."""
    if image.mode not in DEEP_MODES:
        return image
    values = torch.frombuffer(bytearray(image.convert("F").tobytes()), dtype=torch.float32)
    values = values.nan_to_num() * 255 if image.mode == "F" else values / 257
    pixels = values.round().clamp(0, 255).to(torch.uint8)
    return Image.frombytes("L", image.size, pixels.numpy().tobytes())


def _to_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError):
        return image  # a broken profile is no profile


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0 … 255 → float32 [-1, 1]."""
    return pixels.float() / 127.5 - 1


def as_tensor(images: Pictures, size: int, channels: int = 3, fit: str = "crop") -> Tensor:
    """Tensors, Pillow pictures or paths in a model's frame: (N, channels, size, size) float32.

    Raises InputError for a tensor of another shape or a file that can't be read.
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1:] != (channels, size, size):
            raise InputError(
                f"pictures of shape {tuple(images.shape)} don't fit the model, "
                f"which takes (N, {channels}, {size}, {size})"
            )
        return images.float()
    if isinstance(images, str | Path | Image.Image):
        images = [images]
    opened = (
        one if isinstance(one, Image.Image) else open_picture(Path(one), str(one)) for one in images
    )
    return torch.stack([to_float(prepare(one, size, channels, fit)) for one in opened])


def to_pixels(x: Tensor) -> Tensor:
    """float [-1, 1] → uint8 0 … 255, rounded, on the CPU."""
    return (x.detach().float().cpu() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def digest(pixels: Tensor) -> str:
    """SHA-256 of an 8-bit picture (C, H, W): of its pixels, whatever file they came in."""
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 (C, H, W) → a Pillow picture."""
    channels, height, width = pixels.shape
    data = pixels.permute(1, 2, 0).contiguous().numpy().tobytes()
    return Image.frombytes("L" if channels == 1 else "RGB", (width, height), data)


def tile(pictures: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Lay uint8 pictures (N, C, H, W) out as one (C, H', W') sheet, row by row, on white."""
    n, c, height, width = pictures.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    sheet = torch.full(
        (c, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8
    )
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = picture
    return sheet


def encode_picture(pixels: Tensor, suffix: str, recipe: dict[str, object]) -> bytes:
    """A file's bytes for one uint8 picture; `recipe` travels inside it as JSON."""
    return encode_frames([pixels], suffix, recipe)


def encode_frames(
    frames: list[Tensor], suffix: str, recipe: dict[str, object], duration: int = 100
) -> bytes:
    """A file's bytes for one picture or, with a GIF or WebP suffix, an animation.

    duration: milliseconds a frame.
    """
    images = [to_image(frame) for frame in frames]
    format = WRITABLE[suffix]
    text = json.dumps({"software": "pdae", **recipe}, sort_keys=True)
    options: dict[str, object] = {}
    if format == "PNG":
        chunk = PngImagePlugin.PngInfo()
        chunk.add_itxt("pdae", text)
        options = {"pnginfo": chunk}
    elif format == "GIF":
        options = {"comment": text.encode()}
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.Software] = "pdae"
        exif[ExifTags.Base.ImageDescription] = text
        options = {"exif": exif, "quality": 95}
    if len(images) > 1:
        options |= {
            "save_all": True,
            "append_images": images[1:],
            "duration": duration,
            "loop": 0,
        }
    buffer = io.BytesIO()
    images[0].save(buffer, format, **options)
    return buffer.getvalue()


def read_recipe(image: Image.Image) -> dict[str, object] | None:
    """The recipe that `encode_picture` put into a file, or None."""
    comment = image.info.get("comment")
    text = image.info.get("pdae") or image.getexif().get(ExifTags.Base.ImageDescription) or comment
    try:
        recipe = json.loads(text) if text else None
    except (ValueError, TypeError):
        return None
    return recipe if isinstance(recipe, dict) and recipe.get("software") == "pdae" else None


def write_sheet(path: Path, pictures: Tensor, columns: int, recipe: dict[str, object]) -> None:
    """Write float pictures (N, C, H, W) as one contact sheet."""
    sheet = tile(to_pixels(pictures), columns)
    write_bytes(path, encode_picture(sheet, path.suffix.lower(), recipe))
