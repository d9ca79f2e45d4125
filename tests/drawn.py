"""Pictures as files, and what tests look for in pictures."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pdae_cli.pictures.decoding import open_picture
from pdae_cli.pictures.images import to_tensor


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """A picture file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def reopened(image: Image.Image, format: str = "PNG", **options: object) -> Image.Image:
    """A picture as it is read from its file."""
    return open_picture(saved(image, format, **options), "it")


def pixels(file: Path | str | bytes) -> Tensor:
    """A picture file's pixels as they lie in it, int32 (C, H, W): differences can be taken."""
    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return to_tensor(image).int()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def found(whole: Tensor, picture: Tensor) -> int:
    """How often a picture stands in a sheet, exactly."""
    height, width = picture.shape[1:]
    begins = whole[:, : whole.shape[1] - height + 1, : whole.shape[2] - width + 1]
    ends = whole[:, height - 1 :, width - 1 :]
    likely = (begins == picture[:, :1, :1]).all(0) & (ends == picture[:, -1:, -1:]).all(0)
    return sum(
        torch.equal(whole[:, y : y + height, x : x + width], picture)
        for y, x in likely.nonzero().tolist()
    )
