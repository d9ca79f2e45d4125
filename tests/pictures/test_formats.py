"""Formats that aren't decoded, and files that claim to be large, are refused from their headers."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from drawn import png_claiming, saved
from PIL import Image

from pdae_cli.errors import InputError
from pdae_cli.pictures import decoding

Image.init()
FOREIGN = sorted(set(Image.ID) - set(decoding.FORMATS))

# What a file of each format begins with, for those that Pillow reads but doesn't write.
BEGINNINGS = {
    "BLP": b"BLP2", "BUFR": b"BUFR", "CUR": b"\0\0\2\0", "DCX": b"\xb1\x68\xde\x3a",
    "FITS": b"SIMPLE  =                    T", "FLI": b"\0\0\0\0\x11\xaf",
    "FPX": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "FTEX": b"FTEX", "GBR": b"\0\0\0\x1c\0\0\0\1",
    "GRIB": b"GRIB\0\0\0\1", "HDF5": b"\x89HDF\r\n\x1a\n", "IMT": b"\n\0", "IPTC": b"\x1c\2",
    "MCIDAS": b"\0\0\0\0\0\0\0\4", "MIC": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "MPEG": b"\0\0\1\xb3", "PCD": b"\0" * 2048 + b"PCD_IPI", "PIXAR": b"\x80\xe8\0\0",
    "PSD": b"8BPS", "QOI": b"qoif", "SUN": b"\x59\xa6\x6a\x95", "VTF": b"VTF\0",
    "WAL": b"", "WMF": b"\xd7\xcd\xc6\x9a\0\0", "XPM": b"/* XPM */", "XVTHUMB": b"P7 332\n",
}  # fmt: skip


@pytest.fixture
def no_other_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every plugin that isn't allowed fail the test as soon as it is asked to read."""

    def called(format: str) -> Any:
        def factory(*arguments: object) -> Image.Image:
            raise KeyboardInterrupt(f"{format} was decoded")  # nothing turns this into an outcome

        return factory

    for format in FOREIGN:
        monkeypatch.setitem(Image.OPEN, format, (called(format), None))


def example(format: str) -> bytes:
    """A file of this format as Pillow writes it, or the beginning of one."""
    if format in Image.SAVE:
        for mode in ("RGB", "RGBA", "L", "P", "1", "F"):
            buffer = io.BytesIO()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # some formats are deprecated
                    picture(size=(32, 32)).convert(mode).save(buffer, format)
            except (OSError, KeyError, ValueError, AttributeError):
                continue
            return buffer.getvalue()
    return BEGINNINGS.get(format, format.encode()) + b"\0" * 4096


@pytest.mark.parametrize("format", FOREIGN)
def test_other_formats_are_refused_before_decoding(format: str, no_other_decoder: None) -> None:
    data = example(format)
    with pytest.raises(InputError, match=r"^it: not a picture that can be read"):
        decoding.open_picture(data, "it")
    with pytest.raises(InputError, match=r"^it: not a picture that can be read"):
        list(decoding.open_frames(data, "it"))


def test_every_format_that_pillow_writes_was_tried() -> None:
    """The test above isn't one of headers only: these were whole pictures of their formats."""
    whole = set()
    warnings.simplefilter("ignore")  # some formats are deprecated
    for format in FOREIGN:
        try:
            with Image.open(io.BytesIO(example(format)), formats=[format]) as image:
                whole.add(image.format)
        except (OSError, ValueError, SyntaxError, AttributeError):
            continue
    assert whole >= {"EPS", "ICO", "ICNS", "JPEG2000", "TGA", "PCX", "SGI", "DDS"}


def test_the_allowed_formats_are_those_of_the_readme() -> None:
    assert decoding.FORMATS == ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")


MEASURE = """
import resource, sys
from pathlib import Path
from pdae_cli.pictures import decoding
from pdae_cli.errors import InputError
small, *large = map(Path, sys.argv[1:])
decoding.open_picture(small, "small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in large:
    try:
        decoding.open_picture(path, path.name)
    except InputError as error:
        assert "limit of 64 million" in str(error)
    else:
        raise AssertionError(path)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def claiming(format: str, side: int) -> bytes:
    """A file of a few bytes whose header claims side x side pixels."""
    if format == "PNG":
        return png_claiming(side, side)
    if format == "PPM":
        return f"P6 {side} {side} 255\n".encode()
    if format == "GIF":  # whose frame is to be cleared
        screen, frame = struct.pack("<HH", side, side), struct.pack("<HHHH", 0, 0, side, side)
        control = b"\x21\xf9\4\x08\0\0\0\0"
        return b"GIF89a" + screen + b"\xf0\0\0" + bytes(6) + control + b"," + frame + b"\0\2\1D\0;"
    data = bytearray(saved(picture(), format, **({"lossless": True} if format == "WEBP" else {})))
    if format == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    elif format == "JPEG":
        start = data.index(b"\xff\xc0")
        data[start + 5 : start + 9] = struct.pack(">HH", side, side)
    elif format == "WEBP":
        data[21:25] = struct.pack("<I", (side - 1) | (side - 1) << 14)
    elif format == "TIFF":
        ifd = struct.unpack("<I", data[4:8])[0]
        for entry in range(struct.unpack("<H", data[ifd : ifd + 2])[0]):
            at = ifd + 2 + 12 * entry
            if struct.unpack("<H", data[at : at + 2])[0] in (256, 257):
                data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(data)


@pytest.mark.parametrize("side", [9_000, 16_383, 50_000])
@pytest.mark.parametrize("format", ["PNG", "PPM", "BMP", "GIF", "JPEG", "WEBP", "TIFF"])
def test_claims_of_many_pixels_are_refused_from_the_header(
    format: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format == "WEBP" and side > 16_383:
        pytest.skip("a WebP can't claim that many")
    data = claiming(format, side)
    assert len(data) < 6000
    monkeypatch.setattr(Image.Image, "load", None)  # the only way to pixels
    with pytest.raises(InputError, match=r"^it: .*limit of 64 million"):
        decoding.open_picture(data, "it")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_claims_of_many_pixels_take_no_memory(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(saved(picture()))
    paths = [tmp_path / "small"]
    for format, side in (("PNG", 50_000), ("WEBP", 10_000), ("TIFF", 50_000), ("GIF", 9_000)):
        paths.append(tmp_path / format)
        paths[-1].write_bytes(claiming(format, side))
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, *paths]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(result.stdout) * unit < 100e6


def test_a_files_size_has_a_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = saved(picture())
    (tmp_path / "it.png").write_bytes(data)
    monkeypatch.setattr(decoding, "MAX_PICTURE", len(data) - 1)
    for source in (data, tmp_path / "it.png"):
        with pytest.raises(InputError, match=r"it.*: larger than"):
            decoding.open_picture(source, "it")
