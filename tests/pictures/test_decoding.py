"""Picture files: every mode has a defined outcome, every hostile file is one line."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from conftest import picture
from drawn import png_claiming, reopened, saved
from PIL import Image, ImageCms, TiffImagePlugin

from pdae_cli.errors import InputError
from pdae_cli.pictures import decoding, images

Numbers = tuple[int, ...]
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


def pages(count: int) -> list[Image.Image]:
    return [picture(seed) for seed in range(count)]


def animated(shown: list[Image.Image], format: str, **options: object) -> bytes:
    return saved(shown[0], format, save_all=True, append_images=shown[1:], **options)


@pytest.mark.parametrize(
    ("format", "mode"), [(format, mode) for format in STORED for mode in STORED[format]]
)
def test_every_stored_mode_is_the_same_picture(format: str, mode: str) -> None:
    original = deep("I;16") if mode in decoding.DEEP_MODES else picture(size=(16, 16))
    image = deep(mode) if mode in decoding.DEEP_MODES else original.convert(mode)
    for one in (image, reopened(image, format)):
        pixels = images.prepare(one, 16)
        assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.uint8
        gray = images.prepare(one, 16, channels=1)
        assert gray.shape == (1, 16, 16)
        # Palettes, dithering, lossy formats and other colour spaces keep the picture on the whole.
        expected = images.prepare(original, 16, channels=1)
        blurred = torch.nn.functional.avg_pool2d(gray.float() - expected.float(), 8)
        assert blurred.abs().max() < 20
        if mode not in ("1", "L", "LA", *decoding.DEEP_MODES):
            colours = pixels.float() - images.prepare(original, 16).float()
            assert torch.nn.functional.avg_pool2d(colours, 8).abs().max() < 40


@pytest.mark.parametrize("mode", Image.MODES)
def test_every_mode_of_pillow_can_be_normalised(mode: str) -> None:
    image = Image.new(mode, (8, 8))
    assert decoding.normalised(image).mode in ("L", "LA", "RGB", "RGBA")
    assert images.prepare(image, 8).shape == (3, 8, 8)
    alpha = images.alpha_of(image, 8)
    assert (alpha is not None) == (mode in ("LA", "La", "PA", "RGBA", "RGBa"))


# Key: byte order, photometric, sample formats, order of bits, bits, extra samples.
TIFFS = [
    (key[1], key[2], key[4], key[5], mode)
    for key, (mode, _) in TiffImagePlugin.OPEN_INFO.items()
    if key[0] == b"II" and key[3] == 1
]


def tiff(photometric: int, formats: Numbers, bits: Numbers, extra: Numbers) -> bytes:
    """A TIFF of 4 x 4 zeros in any of the layouts that Pillow knows."""
    tags = {256: 4, 257: 4, 258: bits, 259: 1, 262: photometric, 273: 0, 277: len(bits), 278: 4,
            279: 16 * max(1, sum(bits) // 8), 339: formats}  # fmt: skip
    if extra:
        tags[338] = extra
    if photometric == 3:
        tags[320] = (0,) * 3 * 2 ** bits[0]
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    header = b"II*\0" + struct.pack("<I", 8)
    directory[273] = 8 + len(directory.tobytes(8))
    return header + directory.tobytes(8) + bytes(16 * 40)


@pytest.mark.parametrize(("photometric", "formats", "bits", "extra", "mode"), TIFFS)
def test_every_layout_of_tiffs_is_a_picture_or_refused(
    photometric: int, formats: Numbers, bits: Numbers, extra: Numbers, mode: str
) -> None:
    try:
        image = decoding.open_picture(tiff(photometric, formats, bits, extra), "it")
    except InputError as error:
        assert str(error).startswith("it: ")
    else:
        assert image.mode == mode and images.prepare(image, 4).shape == (3, 4, 4)


@pytest.mark.parametrize("maxval", [0, 1, 2, 3, 100, 254, 255, 256, 1000, 65534, 65535, 65536])
@pytest.mark.parametrize("magic", [b"P2", b"P3", b"P5", b"P6", b"PyCMYK", b"PyRGBA", b"PyP"])
def test_ppms_of_any_depth_are_scaled_or_refused(magic: bytes, maxval: int) -> None:
    count = 16 * {b"P3": 3, b"P6": 3, b"PyCMYK": 4, b"PyRGBA": 4}.get(magic, 1)
    body = min(maxval, 65535).to_bytes(2 if maxval > 255 else 1) * count
    if magic in (b"P2", b"P3"):
        body = b"%d " % maxval * count
    data = b"%s\n4 4\n%d\n" % (magic, maxval) + body
    if magic == b"PyP" or not 0 < maxval < 65536:  # indices without a palette; no depth
        with pytest.raises(InputError, match=r"^it: "):
            decoding.open_picture(data, "it")
    else:
        pixels = images.prepare(decoding.open_picture(data, "it"), 4)
        assert (pixels == (0 if magic == b"PyCMYK" else 255)).all()


def deep(mode: str) -> Image.Image:
    """A ramp of 256 values over all of a mode's range."""
    if mode == "F":
        return Image.frombytes("F", (16, 16), struct.pack("<256f", *(v / 255 for v in range(256))))
    if mode == "I":
        return Image.frombytes("I", (16, 16), struct.pack("<256i", *(v * 257 for v in range(256))))
    order = ">" if mode.endswith("B") else "<"
    values = struct.pack(f"{order}256H", *(v * 257 for v in range(256)))
    return Image.frombytes(mode, (16, 16), values)


@pytest.mark.parametrize("mode", decoding.DEEP_MODES)
def test_deep_values_are_scaled(mode: str) -> None:
    assert images.prepare(deep(mode), 16, channels=1).flatten().tolist() == list(range(256))


def test_deep_values_out_of_range_are_clipped_and_nan_is_black() -> None:
    floats = Image.frombytes("F", (2, 2), struct.pack("<4f", -1, 2, float("nan"), float("inf")))
    assert images.prepare(floats, 2, channels=1).flatten().tolist() == [0, 255, 0, 255]
    ints = Image.frombytes("I", (2, 2), struct.pack("<4i", -5, 1 << 30, 65535, 0))
    assert images.prepare(ints, 2, channels=1).flatten().tolist() == [0, 255, 255, 0]


@pytest.mark.parametrize(
    ("mode", "values", "said"),
    [("F", (0, 255), "from 0 to 255, where 0 is black and 1 is white"), ("F", (-1, 1), "from -1"),
     ("F", (0, float("inf")), "e+38"), ("I", (0, 1 << 20), "to 1.04858e+06, where 0 is black and "),
     ("F", (-0.2, 1.2), ""), ("F", (float("nan"), 1), ""), ("I", (0, 65535), "")],
)  # fmt: skip
def test_numbers_of_another_range_are_refused(
    mode: str, values: tuple[float, float], said: str
) -> None:
    """Clipped, they would be a white picture, and nobody would know."""
    sign = {"F": "f", "I": "i"}[mode]
    data = struct.pack(f"<4{sign}", *values, *values)
    film = [Image.frombytes(mode, (2, 2), data) for _ in range(2)]
    content = animated(film, "TIFF")
    if not said:
        decoding.open_picture(content, "a.tif")
        return
    for opened in (decoding.open_picture, lambda *how: list(decoding.open_frames(*how))):
        with pytest.raises(InputError, match=r"^a\.tif: its values go from ") as error:
            opened(content, "a.tif")
        assert said in str(error.value) and "scale them" in str(error.value)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = list(range(0, 65536, 256))
    deep = Image.frombytes("I;16", (16, 16), struct.pack("<256H", *values))
    pixels = images.prepare(reopened(deep), 16, channels=1).flatten().tolist()
    assert pixels == [round(value / 257) for value in values]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_white_is_zero_is_no_negative(bits: int) -> None:
    data = tiff(0, (1,), (bits,), ())
    for image in (decoding.open_picture(data, "it"), *decoding.open_frames(data, "it")):
        assert set(decoding.normalised(image).tobytes()) == {255}


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_a_grey_that_means_none_is_white(mode: str) -> None:
    values, scale = [0, 80, 160, 240], 257 if mode == "I;16" else 1
    data = struct.pack("<4H" if mode == "I;16" else "4B", *(scale * value for value in values))
    image = reopened(Image.frombytes(mode, (4, 1), data), transparency=80 * scale)
    flat = decoding.on_white(decoding.normalised(image))
    assert list(flat.convert("L").tobytes()) == [0, 255, 160, 240]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    upright, turns = picture(size=(24, 16)), Image.Transpose
    turn = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM,
            5: turns.TRANSPOSE, 6: turns.ROTATE_90, 7: turns.TRANSVERSE,
            8: turns.ROTATE_270}  # fmt: skip
    turned = upright.transpose(turn[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    image = reopened(turned, format, exif=exif, **options.get(format, {}))
    assert decoding.upright_size(image) == (24, 16)
    off = images.prepare(image, 16).int() - images.prepare(upright, 16).int()
    assert off.abs().max() <= (3 if format == "JPEG" else 0)


def test_a_normalised_picture_is_a_new_one_that_isnt_turned_again() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = reopened(picture(size=(24, 16)), exif=exif)
    upright = decoding.normalised(image)
    assert image.size == (24, 16) and upright.size == (16, 24) and upright.info == {}
    assert decoding.normalised(upright).tobytes() == upright.tobytes()
    assert decoding.normalised(upright) is not upright


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
    image = reopened(red, format, icc_profile=swapped_profile(), **options)
    r, g, b = images.prepare(image, 16)[:, 8, 8].tolist()
    assert g > 180 and r < 60 and b < 60
    if mode == "RGBA":
        image = red.copy()
        image.putalpha(7)
        image = reopened(image, format, icc_profile=swapped_profile(), **options)
        assert (images.alpha_of(image, 16) == torch.tensor(7)).all()


def test_srgb_is_left_as_it_is() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_profile = images.prepare(reopened(picture(), icc_profile=profile), 16).int()
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


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_frames_that_hold_only_what_changes_are_laid_over_those_before(format: str) -> None:
    frames = [Image.new("RGB", (16, 16), "blue") for _ in range(3)]
    for number, frame in enumerate(frames):
        frame.paste("white", (4 * number, 4, 4 * number + 4, 8))
    data = animated(frames, format, **({"lossless": True} if format == "WEBP" else {}))
    back = [frame.convert("RGB").tobytes() for frame in decoding.open_frames(data, "it")]
    assert back == [frame.tobytes() for frame in frames]


def test_pages_of_a_tiff_are_frames_of_their_own_size() -> None:
    data = animated([picture(0), picture(1, (20, 30))], "TIFF")
    assert decoding.has_more_frames(decoding.open_picture(data, "it"))
    assert [page.size for page in decoding.open_frames(data, "it")] == [(40, 32), (20, 30)]


@pytest.mark.parametrize("format", decoding.FORMATS)
def test_a_still_picture_is_its_one_frame(format: str) -> None:
    data = saved(picture(), format)
    image = decoding.open_picture(data, "it")
    (frame,) = decoding.open_frames(data, "it")
    assert not decoding.has_more_frames(image) and frame.tobytes() == image.tobytes()


def test_an_apngs_default_picture_is_no_frame() -> None:
    data = animated(pages(3), "PNG", default_image=True)
    back = [frame.convert("RGB").tobytes() for frame in decoding.open_frames(data, "it")]
    assert back == [page.tobytes() for page in pages(3)[1:]]


@pytest.mark.parametrize(
    ("format", "mode"),
    [("PPM", "1"), ("PPM", "L"), ("PPM", "I;16"), ("PPM", "RGB"), ("BMP", "1"), ("BMP", "RGB")],
)
def test_what_follows_a_picture_is_seen(format: str, mode: str) -> None:
    """Behind rows of 9 pixels, also where there is a comment; nothing and noise are no picture."""
    data = saved(picture(0, (9, 7)).convert("L").convert(mode), format)
    for one in (data, data.replace(b"9 7\n", b"9 # is 7\n\t7\n", 1)):
        image = decoding.open_picture(one, "it")
        assert decoding.is_followed(one + data, image)
        assert not decoding.is_followed(one, image)
        assert not decoding.is_followed(one + bytes(99), image)


def test_a_cameras_jpeg_with_more_pictures_in_it_is_its_first() -> None:
    data = animated(pages(2), "MPO")
    image = decoding.open_picture(data, "it")
    assert image.format == "MPO" and not decoding.has_more_frames(image)
    expected = images.prepare(reopened(picture(0), "JPEG"), 16)
    assert torch.equal(images.prepare(image, 16), expected)
    assert len(list(decoding.open_frames(data, "it"))) == 1


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_have_limits(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = animated(pages(5), format)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 4 * 40 * 32)
    with pytest.raises(InputError, match=r"it: its frames .* make it shorter"):
        list(decoding.open_frames(data, "it"))
    monkeypatch.undo()
    monkeypatch.setattr(decoding, "MAX_FRAMES", 4)
    with pytest.raises(InputError, match="its frames are more than 4"):
        list(decoding.open_frames(data, "it"))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF"])
def test_animations_that_end_early_are_refused(format: str) -> None:
    data = animated(pages(5), format)
    with pytest.raises(InputError, match="it: "):
        list(decoding.open_frames(data[: len(data) - len(data) // 8], "it"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a picture"),
        (b"just some text, named .png", "not a picture"),
        (png_claiming(0, 0), "can't be read|not a picture"),
        (png_claiming(64, 64), "can't be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        (b"PK\3\4" + bytes(60), "a zip file, not a picture; unpack it first"),
        (b"\x1f\x8b\x08" + bytes(60), "a gzip file, not a picture"),
    ],
    ids=["empty", "text", "0x0", "no pixels", "eps", "zip", "gzip"],
)
def test_hostile_files_are_one_line(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        decoding.open_picture(data, "it.png")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("it.png: ")


def test_truncated_pictures_are_refused(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "gif"):
        path = tmp_path / f"it.{suffix}"
        picture(size=(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match="can't be read"):
            decoding.open_picture(path, str(path))
