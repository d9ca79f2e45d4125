"""Untrusted picture files to Pillow pictures, and those upright, in 8 bits and sRGB.

Without torch, but for pictures of more than 8 bits: what a file says of itself is read at once.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from PIL import ExifTags, Image, ImageCms

from ..errors import InputError
from ..files import read_limited
from .listing import HEAD, MAX_PICTURE, kind_of, reads_heic
from .metadata import exif_tag

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # and HEIC; nothing else
MAX_PIXELS = 64_000_000  # of a picture, or of all frames of an animation
MAX_FRAMES = 10_000
LARGE = 16_000_000  # pixels: several such pictures at once would take much memory
LIMIT = f"the limit of {MAX_PIXELS // 10**6} million; make the picture smaller first"
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # 16-bit files open in one of these
# Black and white of those of 32 bits. Beyond, they mean another range, and clipping would lose it;
# but for a little, as resampling overshoots.
RANGES, OVERSHOOT = {"F": (0.0, 1.0), "I": (0.0, 65535.0)}, 0.25
# Where one file ends and another begins: a PNG, JPEG or GIF, and whatever may follow.
SEAM = re.compile(
    rb"(?:IEND\xaeB`\x82|\xff\xd9|;)(?:\x89PNG\r\n|\xff\xd8\xff|GIF8|RIFF....WEBP)", re.S
)
NEGATIVE = "negative"  # of a picture's info: True where 0 is its white
ZIP, GZIP = b"PK\3\4", b"\x1f\x8b"  # what people pipe in place of a picture
T = Image.Transpose
TURNS = {  # EXIF orientation → what makes it upright
    2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE,
    6: T.ROTATE_270, 7: T.TRANSVERSE, 8: T.ROTATE_90,
}  # fmt: skip


def open_picture(source: Path | bytes, name: str) -> Image.Image:
    """Decode an untrusted file: only FORMATS, at most MAX_PIXELS, the first frame.

    Raises InputError with one line that names the file, also for what `normalised` can't convert.
    """
    with _naming(name):
        image = _opened(source, name)
        image.load()
        _note_negative(image)
        _try_mode(image, name)
        if image.format in ("WEBP", "AVIF") and _is_large(image) and not has_more_frames(image):
            # Their decoders keep the pixels twice for as long as the picture lives.
            format, image = image.format, image.copy()
            image.format = format
    return image


@contextmanager
def turn(lock: Lock, data: bytes) -> Iterator[None]:
    """Hold the lock while a file is decoded and brought into a frame, where the picture is so large
    that several at once would take much memory: WebP's decoder takes it from the header on."""
    with ExitStack() as held:
        held.enter_context(lock)
        try:
            with _naming(""):
                large = _is_large(_opened(data, ""))
        except InputError:
            large = False
        if not large:
            held.close()
        yield


def open_frames(source: Path | bytes, name: str) -> Iterator[Image.Image]:
    """Decode every frame of an animation or page of a TIFF, one by one, each as it is shown: laid
    over the frames before. A still picture is its own one frame.

    Raises InputError as `open_picture`, and for more than MAX_PIXELS or MAX_FRAMES in all.
    """
    with _naming(name):
        image = _opened(source, name)
        # An APNG's default picture is for programs that don't know animations.
        default = int(getattr(image, "default_image", False))
        numbers = count(default) if has_more_frames(image) else range(1)
    pixels = 0
    for number in numbers:
        with _naming(name):
            try:
                image.seek(number)
            except EOFError:
                if number < getattr(image, "n_frames", 1):
                    raise
                return
            pixels += image.width * image.height
            if number >= MAX_FRAMES or pixels > MAX_PIXELS:
                raise InputError(
                    f"{name}: its frames are more than {MAX_FRAMES:,} or have more than "
                    f"{MAX_PIXELS // 10**6} million pixels in all; make it shorter or smaller"
                )
            _note_negative(image)
            frame = image.copy()
            _try_mode(frame, name)
        yield frame


def has_more_frames(image: Image.Image) -> bool:
    """Tell whether `open_picture` left frames of an animation, or pages of a TIFF, behind.

    What cameras add to a JPEG (MPO: previews, the other eye's view) doesn't count.
    """
    return image.format != "MPO" and bool(getattr(image, "is_animated", False))


def is_followed(data: bytes, image: Image.Image) -> bool:
    """Tell whether another picture follows the one that these bytes begin with, as where files are
    piped one after the other. What cameras add to a JPEG is none."""
    if end := _told_end(data, image):
        return kind_of(data[end : end + HEAD]) in FORMATS
    return image.format != "MPO" and SEAM.search(data) is not None


def _told_end(data: bytes, image: Image.Image) -> int:
    """Where a picture's file ends, of formats that begin with what tells it; 0 for others."""
    if image.format == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8
    if image.format == "BMP":
        return int.from_bytes(data[2:6], "little")
    kind = data[:2]  # of PBM, PGM and PPM: width and height, of the latter two the largest value
    numbers = 2 if kind == b"P4" else 3
    begin = re.match(rb"P[456](?:(?:\s|#.*\n)+([0-9]+)){%d}\s" % numbers, data)
    if begin is None:
        return 0
    bits = 1 if kind == b"P4" else 8 if int(begin[1]) < 256 else 16
    row = image.width * (3 if kind == b"P6" else 1) * bits
    return begin.end() + image.height * -(row // -8)


def _is_large(image: Image.Image) -> bool:
    return image.width * image.height > LARGE


def _opened(source: Path | bytes, name: str) -> Image.Image:
    """Read and check the header, decode nothing."""
    data = read_limited(source, MAX_PICTURE) if isinstance(source, Path) else source
    if not data:
        raise InputError(f"{name}: an empty file, not a picture")
    if len(data) > MAX_PICTURE:
        raise InputError(f"{name}: larger than {MAX_PICTURE >> 20} MiB")
    if data.startswith((ZIP, GZIP)):
        what = "zip" if data.startswith(ZIP) else "gzip"
        raise InputError(f"{name}: a {what} file, not a picture; unpack it first")
    formats: tuple[str, ...] = FORMATS  # an MPO is opened as the JPEG it begins with
    if kind_of(data[:HEAD]) == "HEIC":
        if not reads_heic():
            raise InputError(f"{name}: a HEIC picture; pip install 'pdae-cli[heic]' reads it")
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
        formats = ("HEIF",)
    image = Image.open(io.BytesIO(data), formats=formats)
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"{name}: {image.width}x{image.height} pixels are more than {LIMIT}")
    has_more_frames(image)  # GIFs look ahead for this and remember; later it would undo load()
    return image


def _note_negative(image: Image.Image) -> None:
    """Remember a TIFF whose white is 0, which Pillow turns over where it has 8 bits or fewer."""
    tags = vars(image).get("tag_v2", {})
    if image.mode in DEEP_MODES and tags.get(ExifTags.Base.PhotometricInterpretation) == 0:
        image.info[NEGATIVE] = True


def _try_mode(image: Image.Image, name: str) -> None:
    """Raise whatever Pillow does where it can't convert what it decoded, by one pixel of it, and
    InputError for numbers of another range than `normalised` takes them to have."""
    if image.mode in RANGES:
        black, white = RANGES[image.mode]
        room, (low, high) = OVERSHOOT * (white - black), _extrema(image)
        if low < black - room or high > white + room:
            raise InputError(
                f"{name}: its values go from {low:.6g} to {high:.6g}, where {black:g} is black and "
                f"{white:g} is white; scale them, or save it with 8 or 16 bits"
            )
    elif image.mode not in DEEP_MODES:
        pixel = image.crop((0, 0, 1, 1))
        pixel.palette = image.palette  # there may be none, where `crop` makes one up
        _to_plain_mode(pixel)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn what Pillow raises on a file into an InputError that names it."""
    try:
        yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name}: claims more pixels than {LIMIT}") from error
    except Image.UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise InputError(f"{name}: not a picture that can be read ({known})") from error
    except Exception as error:  # decoders raise nearly everything on broken files
        reason = " ".join(str(error).split()) or f"it is damaged ({type(error).__name__})"
        raise InputError(f"{name}: can't be read as a picture: {reason}") from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a decoded picture when it is upright."""
    turned = exif_tag(image, ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def normalised(image: Image.Image) -> Image.Image:
    """Make a decoded picture upright, of 8 bits and sRGB: a new one of mode L, LA, RGB or RGBA.

    16-bit values are scaled, not clipped, 32-bit integers are taken as 16-bit ones and floats as
    0 … 1: `open_picture` refuses others. Of its metadata nothing is left.
    """
    turn = TURNS.get(exif_tag(image, ExifTags.Base.Orientation))
    profile = image.info.get("icc_profile")
    plain = _to_eight_bits(image) if image.mode in DEEP_MODES else image
    plain = _to_srgb(plain, profile) if profile else _to_plain_mode(plain)
    if turn is not None:
        plain = plain.transpose(turn)
    plain.info = {}
    return plain


def on_white(image: Image.Image) -> Image.Image:
    """Mode L, LA, RGB or RGBA without its alpha."""
    if "A" not in image.mode:
        return image
    ground = Image.new(image.mode.removesuffix("A"), image.size, "white")
    ground.paste(image, mask=image)
    return ground


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """DEEP_MODES → L, or LA where a grey means none (PNG's tRNS)."""
    import torch

    grey, alpha = Image.new("L", image.size), Image.new("L", image.size)
    clear = image.info.get("transparency")
    clear = clear if isinstance(clear, int) else -1  # and a text chunk may be called so
    for top, strip in _strips(image):
        values = strip * 255 if image.mode == "F" else strip / 257
        values = 255 - values if image.info.get(NEGATIVE) is True else values
        parts = [(grey, values)]
        if clear >= 0:
            parts.append((alpha, strip.ne(clear) * 255.0))
        for whole, part in parts:
            pixels = part.round().clamp(0, 255).to(torch.uint8).numpy().tobytes()
            size = image.width, len(pixels) // image.width
            whole.paste(Image.frombytes("L", size, pixels), (0, top))
    return grey if clear < 0 else Image.merge("LA", (grey, alpha))


def _extrema(image: Image.Image) -> tuple[float, float]:
    """The least and the largest value of DEEP_MODES; infinite ones are very large."""
    ends = [(strip.min().item(), strip.max().item()) for _, strip in _strips(image)]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _strips(image: Image.Image) -> Iterator[tuple[int, Tensor]]:
    """The first row and the float32 values of some rows at a time: all of a large picture's floats
    would take much memory. What is no number is 0."""
    import torch

    rows = max(1, (1 << 20) // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("F")
        yield top, torch.frombuffer(bytearray(strip.tobytes()), dtype=torch.float32).nan_to_num()


def _to_plain_mode(image: Image.Image) -> Image.Image:
    """Any 8-bit mode → L, LA, RGB or RGBA, as a new picture."""
    if image.mode in ("LA", "La"):
        return image.convert("LA")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Any 8-bit mode in the colours of a profile → L, LA, RGB or RGBA, as a new picture."""
    plain = _to_plain_mode(image)
    alpha = plain.getchannel("A") if "A" in plain.mode else None
    colours = image if image.mode == "CMYK" else plain.convert(plain.mode.removesuffix("A"))
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        result = ImageCms.profileToProfile(colours, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return plain  # a broken profile, or one of other channels, is none
    assert result is not None  # it is when it isn't in place
    if alpha is not None:
        result.putalpha(alpha)
    return result
