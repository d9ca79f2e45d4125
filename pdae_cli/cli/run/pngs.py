"""Concatenated PNGs, as `ffmpeg -f image2pipe -c:v png` writes them, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from ...errors import InputError

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def split_pngs(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """Each PNG's bytes, found by its chunks (PNG specification, sec. 5.3).

    Raises InputError where the stream isn't one of whole PNGs, or one exceeds `limit` bytes; the
    pictures before are good.
    """
    number = 0
    while signature := stream.read(len(SIGNATURE)):
        if signature != SIGNATURE:
            raise InputError(f"standard input: what follows picture {number} is no PNG")
        parts, size, kind = [signature], 0, b""
        while kind != b"IEND":
            header = stream.read(8)
            length, kind = int.from_bytes(header[:4]), header[4:]
            size += length + 12
            if size > limit:
                raise InputError(f"standard input: picture {number} exceeds {limit >> 20} MiB")
            body = stream.read(length + 4)  # and its checksum
            if len(header) < 8 or len(body) < length + 4:
                raise InputError(f"standard input ends within picture {number}")
            parts += [header, body]
        yield b"".join(parts)
        number += 1
