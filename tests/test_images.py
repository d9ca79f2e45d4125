"""Pictures in and out: every mode has a defined outcome, hostile files are refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
import torch
from conftest import picture
from PIL import Image

from pdae_cli import images
from pdae_cli.errors import InputError


def opened(image: Image.Image, format: str = "PNG", **options: object) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return images.open_picture(io.BytesIO(buffer.getvalue()), "it")


def gray_ramp() -> Image.Image:
    return Image.linear_gradient("L").resize((16, 16))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_modes_become_three_channels(mode: str) -> None:
    image = gray_ramp() if mode == "I;16" else picture(mode=mode)
    if mode == "I;16":
        image = Image.frombytes("I;16", (16, 16), struct.pack("<256H", *range(0, 65536, 256)))
    pixels = images.prepare(opened(image), 16)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.uint8
    assert images.prepare(opened(image), 16, channels=1).shape == (1, 16, 16)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = list(range(0, 65536, 256))
    deep = Image.frombytes("I;16", (16, 16), struct.pack("<256H", *values))
    pixels = images.prepare(opened(deep), 16, channels=1).flatten().tolist()
    assert pixels == [round(value / 257) for value in values]


def test_cmyk_becomes_rgb() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    pixels = images.prepare(opened(cyan, "JPEG"), 8)
    assert pixels[0].max() < 60 and pixels[1].min() > 100


def test_alpha_is_composited_on_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (images.prepare(opened(image), 8) == 255).all()
    palette = Image.new("P", (8, 8))
    assert (images.prepare(opened(palette, transparency=0), 8) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = picture(size=(24, 16))
    turned = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = images.prepare(upright, 16)
    assert torch.equal(images.prepare(opened(turned, exif=exif), 16), expected)


def test_profiles_go_to_srgb() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_profile = images.prepare(opened(picture(), icc_profile=profile), 16).int()
    assert (with_profile - images.prepare(picture(), 16).int()).abs().max() <= 2
    broken = opened(picture(), icc_profile=b"no profile")
    assert torch.equal(images.prepare(broken, 16), images.prepare(picture(), 16))


def test_fits() -> None:
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (10, 0, 30, 20))
    blue, red = torch.tensor([0, 0, 255]), torch.tensor([255, 0, 0])
    assert (images.prepare(wide, 20)[:, 10, 3] == blue).all()
    assert (images.prepare(wide, 20, fit="stretch")[:, 10, 1] == red).all()
    padded = images.prepare(wide, 20, fit="pad")
    assert (padded[:, 0, 0] == 0).all() and (padded[:, 10, 1] == red).all()


def test_a_picture_of_the_right_size_is_untouched() -> None:
    image = picture(size=(32, 32))
    direct = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    assert torch.equal(images.prepare(image, 32), direct.view(32, 32, 3).permute(2, 0, 1))


def test_pixels_survive_the_way_through_floats() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(images.to_pixels(images.to_float(every)), every)
    assert images.to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif"])
def test_pictures_say_how_they_were_made(suffix: str) -> None:
    pixels = images.prepare(picture(), 16)
    data = images.encode_picture(pixels, suffix, {"command": "decode", "seed": 3})
    image = images.open_picture(io.BytesIO(data), "it")
    assert images.read_recipe(image) == {"software": "pdae", "command": "decode", "seed": 3}
    if suffix == ".png":
        assert torch.equal(images.prepare(image, 16), pixels)


def test_other_pictures_have_no_recipe() -> None:
    assert images.read_recipe(opened(picture())) is None
    assert images.read_recipe(opened(picture(), "JPEG", comment=b"[1, 2]")) is None


def test_animations_have_every_frame() -> None:
    frames = [images.prepare(picture(seed), 16) for seed in range(4)]
    for suffix in (".gif", ".webp"):
        data = images.encode_frames(frames, suffix, {}, duration=50)
        with Image.open(io.BytesIO(data)) as image:
            assert image.n_frames == 4  # type: ignore[attr-defined]


def test_sheets_hold_every_picture_in_its_place() -> None:
    pictures = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    sheet = images.tile(pictures, columns=3, gap=1)
    assert sheet.shape == (3, 5, 8)
    assert sheet[0, 0, [0, 3, 6]].tolist() == [0, 1, 2]
    assert sheet[0, 3, [0, 3, 6]].tolist() == [3, 4, 255]


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body
        data += struct.pack(">I", zlib.crc32(kind + body))
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a picture"),
        (b"just some text, named .png", "not a picture"),
        (png_claiming(0, 0), "can't be read|not a picture"),
        (png_claiming(50_000, 50_000), "limit of 64 million"),
        (png_claiming(9_000, 9_000), "limit of 64 million"),
        (png_claiming(64, 64), "can't be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
    ],
    ids=["empty", "text", "0x0", "50000x50000", "9000x9000", "no pixels", "eps"],
)
def test_hostile_files_are_one_line(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        images.open_picture(io.BytesIO(data), "it.png")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("it.png: ")


def test_truncated_pictures_are_refused(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "gif"):
        path = tmp_path / f"it.{suffix}"
        picture(size=(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match="can't be read"):
            images.open_picture(path, str(path))
