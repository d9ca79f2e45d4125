"""Inputs that are broken, huge, of other formats or no files at all: each has a defined outcome."""

from __future__ import annotations

import io
import os
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, Result, picture
from drawn import chunk, png_claiming, saved
from PIL import Image

FAST = ("--inference-steps", 2)

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


@pytest.mark.parametrize("height", [123, 379])
def test_a_gif_whose_height_looks_like_a_header_is_a_picture(
    pdae: Command, tmp_path: Path, height: int
) -> None:
    """The byte where the header of safetensors begins is the low one of a GIF's height."""
    path = tmp_path / "x.gif"
    picture(0, (100, height)).save(path)
    assert path.read_bytes()[8:9] == b"{"
    assert reconstruct(pdae, path).out.startswith(b"\x89PNG")


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
    refused(reconstruct(pdae, path), str(path), "not a regular file; write what it gives")
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
    refused(pdae("info", "n" * 300 + ".png"), "too long")
    unknown = pdae("info", "n" * 300)
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
