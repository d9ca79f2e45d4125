"""Pictures as tensors: in a model's frame, with alpha, and in files of each format."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from conftest import picture
from drawn import reopened
from PIL import Image

from pdae_cli.errors import InputError
from pdae_cli.pictures import images
from pdae_cli.pictures.decoding import has_more_frames, open_frames, open_picture


def test_alpha_is_composited_on_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (images.prepare(reopened(image), 8) == 255).all()
    palette = Image.new("P", (8, 8))
    assert (images.prepare(reopened(palette, transparency=0), 8) == 255).all()
    assert (images.prepare(reopened(palette, transparency=b"\0"), 8) == 255).all()


def test_alpha_can_be_had_in_the_models_frame() -> None:
    image = picture(size=(24, 16), mode="RGBA")
    image.putalpha(Image.linear_gradient("L").resize((24, 16)))
    alpha = images.alpha_of(reopened(image), 16)
    assert alpha is not None and alpha.shape == (1, 16, 16) and alpha.dtype == torch.uint8
    assert torch.equal(alpha, images.prepare(image.getchannel("A"), 16, channels=1))
    for still in (picture(), picture(mode="L"), picture(mode="P"), Image.new("I;16", (16, 16))):
        assert images.alpha_of(still, 16) is None
    for mode in ("LA", "PA"):
        assert images.alpha_of(image.convert(mode), 16) is not None
    padded = images.alpha_of(Image.new("RGBA", (24, 12), "red"), 24, fit="pad")
    assert padded is not None and padded[0, :, 0].tolist() == [0] * 6 + [255] * 12 + [0] * 6


def test_alpha_turns_with_its_picture() -> None:
    image = picture(size=(24, 16), mode="RGBA")
    image.putalpha(Image.linear_gradient("L").resize((24, 16)))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = images.alpha_of(reopened(image, exif=exif), 16)
    upright = images.alpha_of(image.transpose(Image.Transpose.ROTATE_270), 16)
    assert turned is not None and upright is not None and torch.equal(turned, upright)


def test_reattached_alpha_laid_on_white_is_the_picture_again() -> None:
    torch.manual_seed(0)
    alpha = torch.randint(1, 256, (1, 16, 16), dtype=torch.uint8)
    colours = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    flat = images.prepare(images.to_image(torch.cat([colours, alpha])), 16)
    again = images.prepare(images.to_image(images.with_alpha(flat, alpha)), 16)
    assert (again.int() - flat.int()).abs().max() <= 1
    opaque = torch.full_like(alpha, 255)
    assert torch.equal(images.with_alpha(flat, opaque)[:3], flat)
    clear = images.with_alpha(flat, torch.zeros_like(alpha))
    assert clear.shape == (4, 16, 16) and clear.dtype == torch.uint8


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


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_read_as_shown(suffix: str) -> None:
    frames = [images.prepare(picture(seed), 16) for seed in range(4)]
    data = images.encode_frames(frames, suffix, None)
    assert has_more_frames(open_picture(data, "it"))
    back = [images.prepare(frame, 16) for frame in open_frames(data, "it")]
    assert len(back) == 4
    for ours, theirs in zip(back, frames, strict=True):
        assert (ours.float() - theirs.float()).abs().mean() < (0.01 if suffix == ".png" else 12)
    first = images.prepare(open_picture(data, "it"), 16)
    assert torch.equal(first, back[0])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif"])
def test_pictures_are_written_with_what_alpha_the_format_has(channels: int, suffix: str) -> None:
    pixels = torch.full((channels, 16, 16), 60, dtype=torch.uint8)
    if channels % 2 == 0:
        pixels[-1] = 0
    image = open_picture(images.encode_picture(pixels, suffix, None), "it")
    kept = channels % 2 == 0 and suffix in (".png", ".webp")
    assert (images.alpha_of(image, 16) is not None) == kept
    value = 255 if channels % 2 == 0 else 60
    assert (images.prepare(image, 16).int() - value).abs().max() <= 2


def test_what_a_format_cant_hold_is_one_line() -> None:
    wide = torch.zeros(3, 1, 70_000, dtype=torch.uint8)
    for suffix in (".jpg", ".webp", ".gif"):
        with pytest.raises(InputError, match=f"70000x1 pixels are too many for {suffix}"):
            images.encode_picture(wide, suffix, None)
    long = {"command": "interpolate", "sources": ["x" * 70_000]}
    with pytest.raises(InputError, match=r"can't be written as .jpg: .*another format"):
        images.encode_picture(wide[..., :8], ".jpg", long)


def test_sheets_hold_every_picture_in_its_place() -> None:
    pictures = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2)
    sheet = images.tile(pictures, columns=3, gap=1)
    assert sheet.shape == (3, 5, 8)
    assert sheet[0, 0, [0, 3, 6]].tolist() == [0, 1, 2]
    assert sheet[0, 3, [0, 3, 6]].tolist() == [3, 4, 255]


def test_too_large_a_sheet_is_refused_before_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """For its format, or for whoever reads it again."""
    for count, columns, gap in ((5, 3, 1), (2, 8, 2), (3, 3, 0)):
        made = images.tile(torch.zeros(count, 1, 4, 6, dtype=torch.uint8), columns, gap)
        _, height, width = made.shape
        monkeypatch.setattr(images, "MAX_PIXELS", height * width)
        monkeypatch.setitem(images.LONGEST, "JPEG", max(height, width))
        images.check_tiled(count, columns, 4, 6, ".jpg", gap)
        monkeypatch.setattr(images, "MAX_PIXELS", height * width - 1)
        with pytest.raises(InputError, match=f"{width}x{height} .* into one file"):
            images.check_tiled(count, columns, 4, 6, ".png", gap)
        monkeypatch.setitem(images.LONGEST, "JPEG", max(height, width) - 1)
        with pytest.raises(InputError, match=f"{width}x{height} .* write png"):
            images.check_tiled(count, columns, 4, 6, ".jpg", gap)


def test_pictures_of_any_kind_are_one_batch(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    from_files = images.as_tensor([tmp_path / "a.png", str(tmp_path / "a.png"), picture()], 16)
    assert from_files.shape == (3, 3, 16, 16) and (from_files == from_files[0]).all()
    assert torch.equal(images.as_tensor(from_files, 16), from_files)
    with pytest.raises(InputError, match=r"takes \(N, 3, 32, 32\)"):
        images.as_tensor(from_files, 32)
    nothing: list[images.Images] = [[], from_files[:0]]
    for none in nothing:
        with pytest.raises(InputError, match="no pictures"):
            images.as_tensor(none, 16)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_arent_taken_as_values_from_minus_1_to_1(kind: torch.dtype) -> None:
    pixels = torch.ones(1, 3, 16, 16, dtype=kind)
    with pytest.raises(InputError, match=r"floats in \[-1, 1\], not .*to_float"):
        images.as_tensor(pixels, 16)
    assert images.as_tensor(images.to_float(pixels), 16).dtype == torch.float32


def test_heic_is_read_upright_as_a_jpeg_is() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    image = picture(size=(64, 48))
    turned = Image.Exif()
    turned[0x112] = 6  # to be turned by 90° clockwise
    heic = pillow_heif.from_pillow(image)
    heic.info["exif"] = turned.tobytes()
    buffer = io.BytesIO()
    heic.save(buffer, quality=95)
    seen = images.prepare(open_picture(buffer.getvalue(), "IMG_0001.HEIC"), 48)
    jpeg = images.prepare(reopened(image, "JPEG", exif=turned, quality=95), 48)
    assert (seen.float() - jpeg.float()).abs().mean() < 4
    sideways = images.prepare(reopened(image), 48)
    assert (sideways.float() - jpeg.float()).abs().mean() > 20
