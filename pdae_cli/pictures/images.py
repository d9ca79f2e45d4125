"""Pictures in and out: untrusted files to tensors, tensors to files that say how they were made.

Tensors are float32 in [-1, 1] or uint8, (C, H, W); C = 1 or 3, or 2 or 4 with alpha. What a file
says of itself is `metadata`'s business.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image, ImageCms, ImageOps
from torch import Tensor

from ..errors import InputError
from ..files import read_limited, write_bytes
from .metadata import exif_tag, save_options

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # nothing else is decoded
READABLE = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}
WITH_ALPHA = {"PNG", "WEBP"}
LONGEST = {"JPEG": 65_500, "WEBP": 16_383, "GIF": 65_535}  # side that a format can say
MAX_PIXELS = 64_000_000  # of a picture, or of all frames of an animation
MAX_FRAMES = 10_000
MAX_BYTES = 1 << 30  # of a file
Pictures = Tensor | Sequence[Image.Image | str | Path] | Image.Image | str | Path
Recipe = dict[str, Any]
TURNS = {  # EXIF orientation → what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I", "F")  # 16-bit files open in one of these


def open_picture(source: Path | bytes, name: str) -> Image.Image:
    """Decode an untrusted file: only FORMATS, at most MAX_PIXELS, the first frame.

    Raises InputError with one line that names the file.
    """
    with _one_line(name):
        image = _opened(source, name)
        image.load()
    return image


def open_frames(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """Decode every frame of an animation or page of a TIFF, one by one, each as it is shown: laid
    over the frames before. A still picture is its own one frame.

    Raises InputError as `open_picture`, and for more than MAX_PIXELS or MAX_FRAMES in all.
    """
    with _one_line(name):
        image = _opened(source, name)
        still = not has_more_frames(image)
        # An APNG's default picture is for programs that don't know animations.
        first = 1 if getattr(image, "default_image", False) and not still else 0
    pixels = 0
    for number in count(first):
        with _one_line(name):
            if (still and number) or not _sought(image, number):
                return
            pixels += image.width * image.height
            if number >= MAX_FRAMES or pixels > MAX_PIXELS:
                raise InputError(
                    f"{name}: its frames are more than {MAX_FRAMES:,} or have more than "
                    f"{MAX_PIXELS // 10**6} million pixels in all; make it shorter or smaller"
                )
            frame = image.copy()
        yield frame


def has_more_frames(image: Image.Image) -> bool:
    """Whether `open_picture` left frames of an animation, or pages of a TIFF, behind.

    What cameras add to a JPEG (MPO: previews, the other eye's view) doesn't count.
    """
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def _opened(source: Path | bytes, name: str) -> Image.Image:
    """The header read and checked, nothing decoded."""
    data = read_limited(source, MAX_BYTES) if isinstance(source, Path) else source
    if not data:
        raise InputError(f"{name}: an empty file, not a picture")
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES >> 20} MiB")
    # An MPO opens as the JPEG that it begins with.
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise InputError(
            f"{name}: {image.width}x{image.height} pixels are more than the limit of "
            f"{MAX_PIXELS // 10**6} million; make the picture smaller first"
        )
    has_more_frames(image)  # GIFs look ahead for this and remember; later it would undo load()
    return image


def _sought(image: Image.Image, number: int) -> bool:
    """Go to a frame; whether there is one."""
    try:
        image.seek(number)
    except EOFError:
        if number < getattr(image, "n_frames", 1):
            raise
        return False
    return True


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what Pillow raises on a file into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{name}: claims more pixels than the limit of {MAX_PIXELS // 10**6} million; "
            "make the picture smaller first"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{name}: not a picture that can be read ({', '.join(FORMATS)})"
        ) from error
    except Exception as error:  # decoders raise nearly everything on broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: can't be read as a picture: {reason}") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a decoded picture when it is upright."""
    turned = exif_tag(image, ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def normalised(image: Image.Image) -> Image.Image:
    """A decoded picture upright, in 8 bits and sRGB: a new one of mode L, LA, RGB or RGBA.

    16-bit values are scaled, not clipped, 32-bit integers are taken as 16-bit ones and floats as
    0 … 1. Of its metadata nothing is left.
    """
    turn = TURNS.get(exif_tag(image, ExifTags.Base.Orientation))
    profile = image.info.get("icc_profile")
    plain = _to_eight_bits(image)
    if not (profile and plain.mode == "CMYK"):
        plain = _to_plain_mode(plain)
    plain = _to_srgb(plain, profile)
    if turn is not None:
        plain = plain.transpose(turn)
    elif plain is image:
        plain = image.copy()
    plain.info = {}
    return plain


def prepare(image: Image.Image, size: int, channels: int = 3, fit: str = "crop") -> Tensor:
    """Bring a decoded picture into a model's frame: uint8, (channels, size, size).

    It is `normalised`; alpha is composited on white. `fit`: `crop` the middle square, `pad` with
    black, or `stretch`.
    """
    image = _converted(on_white(normalised(image)), "L" if channels == 1 else "RGB")
    return to_tensor(_fitted(image, size, fit))


def alpha_of(image: Image.Image, size: int, fit: str = "crop") -> Tensor | None:
    """A decoded picture's alpha in a model's frame: uint8, (1, size, size); None for none.

    What `pad` adds is transparent.
    """
    if not image.has_transparency_data:
        return None
    image = normalised(image)
    return to_tensor(_fitted(image.getchannel("A"), size, fit)) if "A" in image.mode else None


def with_alpha(pixels: Tensor, alpha: Tensor) -> Tensor:
    """Re-attach alpha to a picture that was composited on white: uint8 (C, H, W) and (1, H, W) to
    (C + 1, H, W), which laid on white gives the same picture as far as 8 bits can say it."""
    share = (alpha.float() / 255).clamp(min=1 / 255)
    colours = 255 - (255 - pixels.float()) / share
    return torch.cat([colours.round().clamp(0, 255).to(torch.uint8), alpha])


def on_white(image: Image.Image) -> Image.Image:
    """Mode L, LA, RGB or RGBA without its alpha."""
    if "A" not in image.mode:
        return image
    ground = Image.new(image.mode.removesuffix("A"), image.size, "white")
    ground.paste(image, mask=image)
    return ground


def _fitted(image: Image.Image, size: int, fit: str) -> Image.Image:
    if fit == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    if fit == "pad":
        return ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit picture → uint8 (C, H, W)."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(image.height, image.width, -1).permute(2, 0, 1).contiguous()


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """DEEP_MODES → L, some rows at a time: a large picture's floats would take much memory."""
    if image.mode not in DEEP_MODES:
        return image
    result = Image.new("L", image.size)
    rows = max(1, (1 << 20) // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("F")
        values = torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.float32)
        values = values.nan_to_num() * 255 if image.mode == "F" else values / 257
        pixels = values.round().clamp(0, 255).to(torch.uint8).numpy().tobytes()
        result.paste(Image.frombytes("L", strip.size, pixels), (0, top))
    return result


def _to_plain_mode(image: Image.Image) -> Image.Image:
    """Any 8-bit mode → L, LA, RGB or RGBA."""
    if image.mode in ("LA", "RGBA"):
        return image
    if image.has_transparency_data:
        return image.convert("RGBA")
    return _converted(image, "L" if image.mode in ("1", "L") else "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Pillow's `convert`, which copies even what is in this mode."""
    return image if image.mode == mode else image.convert(mode)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Mode L, LA, RGB, RGBA or, with a profile, CMYK → one of the first four."""
    if not profile:
        return image
    alpha = image.getchannel("A") if "A" in image.mode else None
    colours = _converted(image, image.mode.removesuffix("A"))
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        result = ImageCms.profileToProfile(colours, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return _to_plain_mode(image)  # a broken profile, or one of other channels, is none
    assert result is not None  # it is when it isn't in place
    if alpha is not None:
        result.putalpha(alpha)
    return result


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
    """uint8 (C, H, W) → a Pillow picture; C = 2 and 4 have alpha."""
    channels, height, width = pixels.shape
    data = pixels.permute(1, 2, 0).contiguous().numpy().tobytes()
    return Image.frombytes(("L", "LA", "RGB", "RGBA")[channels - 1], (width, height), data)


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


def encode_picture(
    pixels: Tensor,
    suffix: str,
    recipe: Recipe | None,
    keep: Image.Exif | bytes | None = None,
) -> bytes:
    """A file's bytes for one uint8 picture (C, H, W); see `encode_frames`."""
    return encode_frames([pixels], suffix, recipe, keep=keep)


def encode_frames(
    frames: Sequence[Tensor],
    suffix: str,
    recipe: Recipe | None,
    duration: int = 100,
    keep: Image.Exif | bytes | None = None,
) -> bytes:
    """A file's bytes for one uint8 picture (C, H, W) or, with a GIF, WebP or PNG suffix, several.

    Alpha (C = 2, 4) is composited on white where the format has none. duration: milliseconds a
    frame. recipe, keep: metadata to write, see `metadata.save_options`. Raises InputError for
    what the format can't hold.
    """
    format = WRITABLE[suffix]
    images = [to_image(frame) for frame in frames]
    if format not in WITH_ALPHA:
        images = [on_white(image) for image in images]
    width, height = images[0].size
    if max(width, height) > LONGEST.get(format, width + height):
        raise InputError(
            f"{width}x{height} pixels are too many for {suffix}, which takes "
            f"{LONGEST[format]} a side; write png"
        )
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
