"""Pictures in and out: every mode has a defined outcome, hostile files are refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
import torch
from conftest import picture
from PIL import Image, ImageCms

from pdae_cli.errors import InputError
from pdae_cli.pictures import images


def opened(image: Image.Image, format: str = "PNG", **options: object) -> Image.Image:
    return images.open_picture(saved(image, format, **options), "it")


def saved(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


STORED = {  # the modes that Pillow stores in each format without changing what is seen
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "GIF": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB",
             "I;16", "I;16B", "I", "F"),
    "PPM": ("1", "L", "RGB", "RGBA", "I;16", "I", "F"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("format", "mode"), [(format, mode) for format in STORED for mode in STORED[format]]
)
def test_every_mode_is_the_same_picture(format: str, mode: str) -> None:
    original = deep("I;16") if mode in images.DEEP_MODES else picture(size=(16, 16))
    image = deep(mode) if mode in images.DEEP_MODES else original.convert(mode)
    for one in (image, opened(image, format)):
        pixels = images.prepare(one, 16)
        assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.uint8
        gray = images.prepare(one, 16, channels=1)
        assert gray.shape == (1, 16, 16)
        # Palettes, dithering, lossy formats and other colour spaces keep the picture on the whole.
        expected = images.prepare(original, 16, channels=1)
        blurred = torch.nn.functional.avg_pool2d(gray.float() - expected.float(), 8)
        assert blurred.abs().max() < 20
        if mode not in ("1", "L", "LA", *images.DEEP_MODES):
            colours = pixels.float() - images.prepare(original, 16).float()
            assert torch.nn.functional.avg_pool2d(colours, 8).abs().max() < 40


def deep(mode: str) -> Image.Image:
    """A ramp of 256 values over all of a mode's range."""
    if mode == "F":
        return Image.frombytes("F", (16, 16), struct.pack("<256f", *(v / 255 for v in range(256))))
    if mode == "I":
        return Image.frombytes("I", (16, 16), struct.pack("<256i", *(v * 257 for v in range(256))))
    order = ">" if mode.endswith("B") else "<"
    values = struct.pack(f"{order}256H", *(v * 257 for v in range(256)))
    return Image.frombytes(mode, (16, 16), values)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_deep_values_are_scaled(mode: str) -> None:
    assert images.prepare(deep(mode), 16, channels=1).flatten().tolist() == list(range(256))


def test_deep_values_out_of_range_are_clipped_and_nan_is_black() -> None:
    floats = Image.frombytes("F", (2, 2), struct.pack("<4f", -1, 2, float("nan"), float("inf")))
    assert images.prepare(floats, 2, channels=1).flatten().tolist() == [0, 255, 0, 255]
    ints = Image.frombytes("I", (2, 2), struct.pack("<4i", -5, 1 << 30, 65535, 0))
    assert images.prepare(ints, 2, channels=1).flatten().tolist() == [0, 255, 255, 0]


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
    assert (images.prepare(opened(palette, transparency=b"\0"), 8) == 255).all()


def test_alpha_can_be_had_in_the_models_frame() -> None:
    image = picture(size=(24, 16), mode="RGBA")
    image.putalpha(Image.linear_gradient("L").resize((24, 16)))
    alpha = images.alpha_of(opened(image), 16)
    assert alpha is not None and alpha.shape == (1, 16, 16) and alpha.dtype == torch.uint8
    assert torch.equal(alpha, images.prepare(image.getchannel("A"), 16, channels=1))
    for still in (picture(), picture(mode="L"), picture(mode="P"), deep("I;16")):
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
    turned = images.alpha_of(opened(image, exif=exif), 16)
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
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
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    image = opened(turned, format, exif=exif, **options.get(format, {}))
    off = images.prepare(image, 16).int() - images.prepare(upright, 16).int()
    assert off.abs().max() <= (3 if format == "JPEG" else 0)


def test_a_normalised_picture_is_a_new_one_that_isnt_turned_again() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = opened(picture(size=(24, 16)), exif=exif)
    upright = images.normalised(image)
    assert image.size == (24, 16) and upright.size == (16, 24) and upright.info == {}
    assert images.normalised(upright).tobytes() == upright.tobytes()


def swapped_profile() -> bytes:
    """sRGB with red and green swapped: a picture in it looks wrong unless the profile is used."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_profiles_go_to_srgb(mode: str, format: str) -> None:
    red = Image.new("RGB", (16, 16), (200, 20, 20))
    red = red.convert(mode, palette=Image.Palette.ADAPTIVE)
    options = {"lossless": True} if format == "WEBP" else {}
    image = opened(red, format, icc_profile=swapped_profile(), **options)
    r, g, b = images.prepare(image, 16)[:, 8, 8].tolist()
    assert g > 180 and r < 60 and b < 60
    if mode == "RGBA":
        image = red.copy()
        image.putalpha(7)
        image = opened(image, format, icc_profile=swapped_profile(), **options)
        assert (images.alpha_of(image, 16) == torch.tensor(7)).all()


def test_srgb_is_left_as_it_is() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_profile = images.prepare(opened(picture(), icc_profile=profile), 16).int()
    assert (with_profile - images.prepare(picture(), 16).int()).abs().max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_profiles_that_are_broken_or_of_other_channels_are_none(mode: str) -> None:
    image = picture(mode=mode)
    expected = images.prepare(image, 16)
    others = [b"no profile", b"\0" * 128, swapped_profile()[:200]]
    if mode in ("1", "L", "LA", "CMYK"):
        others.append(swapped_profile())
    for profile in others:
        image.info["icc_profile"] = profile
        assert torch.equal(images.prepare(image, 16), expected)


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


def test_animations_have_every_frame() -> None:
    frames = [images.prepare(picture(seed), 16) for seed in range(4)]
    for suffix in (".gif", ".webp"):
        data = images.encode_frames(frames, suffix, {}, duration=50)
        with Image.open(io.BytesIO(data)) as image:
            assert image.n_frames == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_read_as_shown(suffix: str) -> None:
    frames = [images.prepare(picture(seed), 16) for seed in range(4)]
    data = images.encode_frames(frames, suffix, None)
    assert images.has_more_frames(images.open_picture(data, "it"))
    back = [images.prepare(frame, 16) for frame in images.open_frames(data, "it")]
    assert len(back) == 4
    for ours, theirs in zip(back, frames, strict=True):
        assert (ours.float() - theirs.float()).abs().mean() < (0.01 if suffix == ".png" else 12)
    first = images.prepare(images.open_picture(data, "it"), 16)
    assert torch.equal(first, back[0])


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_frames_that_hold_only_what_changes_are_laid_over_those_before(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), "blue") for _ in range(3)]
    for number, frame in enumerate(frames):
        frame.paste("white", (4 * number, 4, 4 * number + 4, 8))
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
    back = [frame.convert("RGB").tobytes() for frame in images.open_frames(data, "it")]
    assert back == [frame.tobytes() for frame in frames]


def test_pages_of_a_tiff_are_frames_of_their_own_size() -> None:
    pages = [picture(0), picture(1, (20, 30))]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert images.has_more_frames(images.open_picture(data, "it"))
    assert [page.size for page in images.open_frames(data, "it")] == [(40, 32), (20, 30)]


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_a_still_picture_is_its_one_frame(format: str) -> None:
    data = saved(picture(), format)
    image = images.open_picture(data, "it")
    frames = list(images.open_frames(data, "it"))
    assert not images.has_more_frames(image) and len(frames) == 1
    assert frames[0].tobytes() == image.tobytes()


def test_an_apngs_default_picture_is_no_frame() -> None:
    pages = [picture(seed) for seed in range(3)]
    data = saved(pages[0], save_all=True, append_images=pages[1:], default_image=True)
    back = [frame.convert("RGB").tobytes() for frame in images.open_frames(data, "it")]
    assert back == [page.tobytes() for page in pages[1:]]


def test_a_cameras_jpeg_with_more_pictures_in_it_is_its_first() -> None:
    data = saved(picture(0), "MPO", save_all=True, append_images=[picture(1)])
    image = images.open_picture(data, "it")
    assert image.format == "MPO" and not images.has_more_frames(image)
    expected = images.prepare(opened(picture(0), "JPEG"), 16)
    assert torch.equal(images.prepare(image, 16), expected)
    assert len(list(images.open_frames(data, "it"))) == 1


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_have_limits(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [picture(seed) for seed in range(5)]
    data = saved(pages[0], format, save_all=True, append_images=pages[1:])
    monkeypatch.setattr(images, "MAX_PIXELS", 4 * 40 * 32)
    with pytest.raises(InputError, match=r"it: its frames .* make it shorter"):
        list(images.open_frames(data, "it"))
    monkeypatch.undo()
    monkeypatch.setattr(images, "MAX_FRAMES", 4)
    with pytest.raises(InputError, match="its frames are more than 4"):
        list(images.open_frames(data, "it"))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF"])
def test_animations_that_end_early_are_refused(format: str) -> None:
    pages = [picture(seed) for seed in range(5)]
    data = saved(pages[0], format, save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match="it: "):
        list(images.open_frames(data[: len(data) - len(data) // 8], "it"))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif"])
def test_pictures_are_written_with_what_alpha_the_format_has(channels: int, suffix: str) -> None:
    pixels = torch.full((channels, 16, 16), 60, dtype=torch.uint8)
    if channels % 2 == 0:
        pixels[-1] = 0
    image = images.open_picture(images.encode_picture(pixels, suffix, None), "it")
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
        images.open_picture(data, "it.png")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("it.png: ")


def test_truncated_pictures_are_refused(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "gif"):
        path = tmp_path / f"it.{suffix}"
        picture(size=(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match="can't be read"):
            images.open_picture(path, str(path))
