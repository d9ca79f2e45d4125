"""Pictures: a small valid file of every format and mode that is taken, how their containers are
damaged, and all that `encode` and `info` do to one."""

from __future__ import annotations

import io
import random
import re
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageCms

from .mutations import BYTES, EXTREMES, drop, flip, insert, number, put
from .using import LONGEST_LINE, Kind, Kinds, Unexpected

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 64  # pixels of the frame
FITS = ("crop", "pad", "stretch")

# Modes in which a format is written, each with what it is written with.
PLAIN: dict[str, dict[str, tuple[dict[str, Any], ...]]] = {
    "PNG": {mode: ({},) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")},
    "JPEG": {"L": ({},), "RGB": ({}, {"progressive": True}), "CMYK": ({},)},
    "WEBP": {"RGB": ({},), "RGBA": ({"lossless": True},)},
    "AVIF": {"L": ({},), "RGB": ({"subsampling": "4:4:4"},), "RGBA": ({},)},
    "GIF": {"L": ({},), "P": ({"interlace": 1},)},
    "BMP": {mode: ({},) for mode in ("1", "L", "P", "RGB", "RGBA")},
    "PPM": {mode: ({},) for mode in ("1", "L", "RGB", "I", "F")},
    "TIFF": {
        mode: ({},) for mode in ("LA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F", "RGBA")
    } | {
        "1": ({"compression": "group4"},), "P": ({"compression": "packbits"},),
        "L": ({"compression": "tiff_adobe_deflate"},),
        "RGB": ({"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"big_tiff": True}),
    },
}  # fmt: skip


def files() -> dict[str, bytes]:
    """A small valid file of each kind, by its name."""
    noise = random.Random(0).randbytes(12 * 9 * 3)
    picture = Image.frombytes("RGB", (12, 9), noise).resize((61, 47), Image.Resampling.BICUBIC)
    frames = [picture.rotate(angle) for angle in (0, 20, 40)]
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    about: dict[str, Any] = {"exif": exif, "icc_profile": profile}
    animated: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 50}
    found = {
        "png described": _saved(picture, "PNG", **about),
        "png palette, clear": _saved(picture.quantize(17), "PNG", transparency=bytes(range(17))),
        "png interlaced": _interlaced(picture),
        "png of 16 bits": _deep(),
        "png animated": _saved(frames[0], "PNG", **animated),
        "jpeg described": _saved(picture, "JPEG", **about, comment=b"a comment"),
        "jpeg of a camera": _saved(frames[0], "MPO", save_all=True, append_images=frames[1:]),
        "webp described": _saved(picture, "WEBP", **about),
        "webp animated": _saved(frames[0], "WEBP", **animated),
        "avif described": _saved(picture, "AVIF", **about),
        "avif animated": _saved(frames[0], "AVIF", **animated),
        "gif animated": _saved(frames[0], "GIF", **animated, transparency=0),
        "tiff described": _saved(picture, "TIFF", icc_profile=profile),
        "tiff of pages": _saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
    }
    for format, modes in PLAIN.items():
        for mode, ways in modes.items():
            for way in ways:
                name = " ".join([format.lower(), mode, *map(str, way.values())])
                found[name] = _saved(_of_mode(picture, mode), format, **way)
    return found


def _of_mode(picture: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        made = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")
        assert made is not None
        return made
    if mode.startswith("I;16"):
        return Image.frombytes(mode, (24, 18), random.Random(1).randbytes(24 * 18 * 2))
    if mode == "F":  # of 0 … 1: others are refused
        return picture.convert(mode).point(lambda value: value * (1 / 255))
    return picture.quantize(17) if mode == "P" else picture.convert(mode)


def _saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if more := options.get("append_images"):
        options["append_images"] = [one.copy() for one in more]
    picture.copy().save(buffer, format, **options)  # what JPEG notes down on it disturbs TIFF
    return buffer.getvalue()


def _interlaced(picture: Image.Image) -> bytes:
    """An Adam7 PNG, which Pillow reads and doesn't write."""
    width, height = picture.size
    rows = bytearray()
    for left, top, right, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):  # fmt: skip
        for y in range(top, height, down):
            row = b"".join(bytes(picture.getpixel((x, y))) for x in range(left, width, right))
            rows += b"\0" + row if row else b""
    return _png(struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1), rows)


def _deep() -> bytes:
    """A PNG of 16 bits a channel, with alpha, which Pillow doesn't write either."""
    rows = b"".join(b"\0" + random.Random(row).randbytes(9 * 8) for row in range(7))
    return _png(struct.pack(">IIBBBBB", 9, 7, 16, 6, 0, 0, 0), rows)


def _png(facts: bytes, rows: bytes) -> bytes:
    parts = (b"IHDR", facts), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_part(*one) for one in parts)


# --- Pictures' containers ------------------------------------------------------------------------


def png_chunk(data: bytearray, chance: random.Random) -> None:
    """A PNG's chunk changed under a true checksum, which would else hide the rest of the reader."""
    places, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        places.append((place, length))
        place += 12 + length
    begin, length = chance.choice(places) if places else (0, 0)
    name, content = bytes(data[begin + 4 : begin + 8]), data[begin + 8 : begin + 8 + length]
    if not content:
        return flip(data, chance)
    packed = name == b"IDAT" and chance.random() < 0.8
    try:
        inner = bytearray(zlib.decompress(content)) if packed else content
    except zlib.error:  # of an earlier mutation
        return flip(data, chance)
    if inner:
        chance.choice((flip, number, drop, insert))(inner, chance)
    content = zlib.compress(inner) if packed else inner
    data[begin : begin + 12 + length] = png_part(name, content)


def png_part(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def tiff_entry(data: bytearray, chance: random.Random) -> None:
    """A field of a TIFF's directory: another tag, type, count or value."""
    order = "<" if data[:2] == b"II" else ">"
    begin = int.from_bytes(data[4:8], "little" if order == "<" else "big")
    count = int.from_bytes(data[begin : begin + 2], "little" if order == "<" else "big")
    if not 0 < count < 100:  # of an earlier mutation
        return number(data, chance)
    entry = begin + 2 + 12 * chance.randrange(count)
    part, kind = chance.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "I"), (8, "H")))
    small = (1, 2, 3, 4, 5, 6, 8, 16, 32, 257, 258, 262, 277, 284, 320, 322, 339, 32773, 32946)
    put(data, entry + part, order + kind, chance.choice((*EXTREMES, *small)))


def segment(data: bytearray, chance: random.Random) -> None:
    """A JPEG's segment: another length, or one of its first bytes."""
    places = [one.start() for one in re.finditer(rb"\xff[\xc0-\xfe]", data)]
    if not places:
        return flip(data, chance)
    place = chance.choice(places[:12]) + chance.choice((1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
    data[place : place + 1] = bytes([chance.choice((0, 1, 2, 4, 0x11, 0x7F, 0xC4, 0xDA, 0xFF))])


PICTURES = {b"\x89P": png_chunk, b"II": tiff_entry, b"MM": tiff_entry, b"\xff\xd8": segment}


def mutate(data: bytearray, chance: random.Random) -> None:
    """What its container is made of, where it is known; else bytes."""
    structure = PICTURES.get(bytes(data[:2]))
    deep = structure is not None and chance.random() < 0.7
    (structure if structure and deep else chance.choice(BYTES))(data, chance)


# --- What is done to one -------------------------------------------------------------------------


def read(data: bytes, fit: str, size: int = SIDE) -> list[Tensor]:
    """What `pdae encode --frames all --keep-alpha --keep-exif` makes of a file, and `info`."""
    from pdae_cli.pictures import decoding, images, metadata

    first = decoding.open_picture(data, "it")
    frames = decoding.open_frames(data, "it") if decoding.has_more_frames(first) else [first]
    pictures = []
    for frame in frames:
        pixels = images.prepare(frame, size, 3, fit)
        images.picture_sha(pixels)
        images.alpha_of(frame, size, fit)
        metadata.read_recipe(frame)
        metadata.exif_of(frame)
        pictures.append(images.to_float(pixels))
    return pictures


def kinds(root: Path) -> Kinds:
    """Every format and mode: read as `encode` and `info` read it, and z found of what decodes."""
    import torch
    from conftest import tiny_model

    from pdae_cli.errors import InputError

    model = tiny_model()
    waiting: list[torch.Tensor] = []

    def use(data: bytes, chance: random.Random) -> str:
        try:
            waiting.extend(read(data, chance.choice(FITS), 32))
        except InputError as error:
            text = str(error)
            if not text.isprintable() or "it: " not in text or len(text) > LONGEST_LINE:
                raise Unexpected(f"refused, not in one line: {text[:300]!r}") from error
            return f"refused: {type(error.__cause__).__name__ if error.__cause__ else 'own limit'}"
        while len(waiting) >= 32:
            model.encode(torch.stack(waiting[:32]), noise=False)
            del waiting[:32]
        return "taken"

    return {name: Kind(data, mutate, use) for name, data in files().items()}
