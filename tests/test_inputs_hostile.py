"""Inputs that are broken, huge, of other formats or no files at all: each has a defined outcome."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import unicodedata
import warnings
import zlib
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Result, picture
from PIL import Image
from test_images import png_claiming, saved

from pdae_cli.errors import InputError
from pdae_cli.pictures import images

Image.init()
FOREIGN = sorted(set(Image.ID) - set(images.FORMATS))
FAST = ("--inference-steps", 2)

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
        images.open_picture(data, "it")
    with pytest.raises(InputError, match=r"^it: not a picture that can be read"):
        list(images.open_frames(data, "it"))


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
    assert whole >= {"EPS", "ICO", "ICNS", "JPEG2000", "TGA", "PCX", "SGI", "DDS", "AVIF"}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_the_allowed_formats_are_those_of_the_readme(format: str) -> None:
    assert format in images.FORMATS and len(images.FORMATS) == 7
    assert images.open_picture(saved(picture(), format), "it").size == (40, 32)


MEASURE = """
import resource, sys
from pathlib import Path
from pdae_cli import images
from pdae_cli.errors import InputError
small, *large = map(Path, sys.argv[1:])
images.open_picture(small, "small")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in large:
    try:
        images.open_picture(path, path.name)
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
        images.open_picture(data, "it")


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
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    for source in (data, tmp_path / "it.png"):
        with pytest.raises(InputError, match=r"it.*: larger than"):
            images.open_picture(source, "it")


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


ODDITIES = {
    "a truncated MPO's index": saved(picture(), "MPO", save_all=True, append_images=[picture(1)])
    .replace(b"MPF\0", b"MPF\0\xff\xff"),
    "an APNG without frames": saved(picture(), "PNG", save_all=True, append_images=[picture(1)])
    .replace(chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), chunk(b"acTL", bytes(8))),
    "EXIF that ends early": saved(picture(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\7\1\x12\0\3"),
}  # fmt: skip


@pytest.mark.parametrize("data", ODDITIES.values(), ids=ODDITIES)
def test_pillows_warnings_are_no_noise(pdae: Command, tmp_path: Path, data: bytes) -> None:
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(data)).getexif()
    assert raised  # else this would prove nothing
    (tmp_path / "in.png").write_bytes(data)
    result = reconstruct(pdae, tmp_path / "in.png")
    assert result.code in (0, 3) and "Warning" not in result.err
    assert len(result.err.splitlines()) <= 2


def reconstruct(pdae: Command, *inputs: object, **options: Any) -> Result:
    return pdae("reconstruct", *inputs, "-o", "-", *FAST, **options)


def refused(result: Result, *parts: str) -> None:
    """One line for the input, no traceback, nothing on stdout, exit code 3."""
    assert result.code == 3, result.err
    assert not result.out and "Traceback" not in result.err and "\x1b" not in result.err
    line = result.err.splitlines()[0]
    for part in parts:
        assert part in line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\0" * 100, "not a picture"),
        (b"GIF89a", "not a picture"),
        (png_claiming(50_000, 50_000), "limit of 64 million"),
        (saved(picture())[:200], "can't be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"<?xml version='1.0'?>", "not a picture"),
    ],
    ids=["zero bytes", "NULs", "a header", "bomb", "truncated", "svg", "xml"],
)
def test_contents_that_are_no_picture(
    pdae: Command, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    refused(reconstruct(pdae, path), str(path), message)
    if content:
        refused(reconstruct(pdae, "-", stdin=content), "-: ", message)


def test_a_folder_named_like_a_picture_is_a_folder(pdae: Command, tmp_path: Path) -> None:
    folder = tmp_path / "x.png"
    folder.mkdir()
    result = reconstruct(pdae, folder)
    assert result.code == 2 and "holds no pictures" in result.err
    picture().save(folder / "a.png")
    assert reconstruct(pdae, folder).out.startswith(b"\x89PNG")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_fifo_is_refused_without_waiting(pdae: Command, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    os.mkfifo(path)
    refused(reconstruct(pdae, path), str(path), "not a regular file")
    picture().save(tmp_path / "a.png")
    target = tmp_path / "out"
    result = pdae("reconstruct", tmp_path, "-o", target, *FAST)
    assert result.code == 3 and [path.name for path in target.glob("*.png")] == ["a.png"]


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/null"])
def test_a_device_is_refused_unread(pdae: Command, device: str, tmp_path: Path) -> None:
    refused(reconstruct(pdae, device), device, "not a regular file")
    (tmp_path / "x.png").symlink_to(device)
    refused(reconstruct(pdae, tmp_path / "x.png"), "not a regular file")


def test_files_that_cant_be_had(pdae: Command, tmp_path: Path) -> None:
    refused(reconstruct(pdae, tmp_path / "none.png"), "no such file")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refused(reconstruct(pdae, tmp_path / "loop.png"), "loop.png")
    (tmp_path / "a.png").write_bytes(b"")
    refused(reconstruct(pdae, tmp_path / "a.png" / "b.png"), "b.png")
    refused(reconstruct(pdae, tmp_path / ("n" * 300 + ".png")), "too long")
    unknown = pdae("info", "n" * 300 + ".png")
    assert unknown.code == 4 and "no model" in unknown.err


NAMES = {
    "newline": "a\nb.png", "escape": "a\x1b[2J\x1b]0;title\x07.png", "rtl": "a\u202egnp.exe.png",
    "emoji": "👩\u200d🚀 é.png", "return": "ok\rerror.png", "tab": "a\tb.png", "dash": "-n.png",
    "glob": "a[0]*?.png", "quotes": "'\"$(x)`.png", "255 bytes": "n" * 251 + ".png",
    "no UTF-8": os.fsdecode(b"\xff\xfe.png"), "space": " .png", "percent": "%s%n{0}.png",
    "markup": "[red]x.png",
}  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow fewer names")
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_are_taken_and_shown_harmlessly(pdae: Command, tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    picture().save(source / "good.png")
    (source / "good.png").rename(source / name)
    (source / "bad.png").write_bytes(b"bad")
    result = pdae("reconstruct", source, "-o", target, *FAST)
    assert result.code == 3 and "Traceback" not in result.err
    assert [path.name for path in target.glob("*.png")] == [name]
    shown = result.out.decode() + result.err
    unsafe = {one for one in shown if unicodedata.category(one)[0] == "C" and one != "\n"}
    assert not unsafe and len(result.text.splitlines()) == 1
    named = pdae("info", source / name)
    assert named.code == 0 and "\x1b" not in named.text
