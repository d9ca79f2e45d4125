"""What pictures say of themselves: how they were made, and nothing of anybody's camera."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from conftest import Command, picture
from PIL import ExifTags, Image, ImageCms

from pdae_cli.errors import InputError, UsageError
from pdae_cli.pictures import images, metadata
from pdae_cli.pictures.decoding import open_picture

SUFFIXES = (".png", ".jpg", ".webp", ".gif")
FAST = ("--inference-steps", 2)
PIXELS = images.prepare(picture(), 16)
RECIPE: dict[str, Any] = {
    "command": "manipulate",
    "version": "0.1.0",
    "options": {"attributes": [["smiling", 0.3]], "scale": -1e-9, "none": None},
    "seed": 3,
    "sources": [
        {"name": "<&>\"']]> -- \\ \n\t\x1b[31m\0 é \u202e 😀 \ud800.png", "sha256": "ab" * 32}
    ],
}
MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def written(recipe: dict[str, Any] | None, suffix: str, **options: Any) -> bytes:
    return images.encode_picture(PIXELS, suffix, recipe, **options)


def opened(data: bytes) -> Image.Image:
    return open_picture(data, "it")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_recipe_comes_back_as_it_was(suffix: str) -> None:
    back = metadata.read_recipe(opened(written(RECIPE, suffix)))
    assert back == {"software": "pdae", "digital_source_type": EDITED, **RECIPE}
    frames = [PIXELS, PIXELS.flip(2)]
    if suffix != ".jpg":
        animation = opened(images.encode_frames(frames, suffix, RECIPE))
        assert metadata.read_recipe(animation) == back


def test_pixels_dont_depend_on_the_recipe() -> None:
    for suffix in SUFFIXES:
        ours, bare = opened(written(RECIPE, suffix)), opened(written(None, suffix))
        assert ours.convert("RGB").tobytes() == bare.convert("RGB").tobytes()
    assert torch.equal(images.prepare(opened(written(RECIPE, ".png")), 16), PIXELS)


@pytest.mark.parametrize("suffix", (".png", ".jpg", ".webp"))
def test_xmp_is_what_any_parser_reads(suffix: str) -> None:
    packet = opened(written(RECIPE, suffix)).info["xmp"]
    root = ElementTree.fromstring(packet.decode().removeprefix("\ufeff"))
    found = {element.tag: element.text for element in root.iter() if element.text}
    assert found["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"] == EDITED
    assert found["{http://ns.adobe.com/xap/1.0/}CreatorTool"].startswith("pdae ")
    assert json.loads(found["{urn:pdae:recipe/}recipe"])["sources"] == RECIPE["sources"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_exiftool_reads_it(suffix: str, tmp_path: Path) -> None:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool isn't installed")
    path = tmp_path / f"it{suffix}"
    path.write_bytes(written(RECIPE, suffix, keep=None if suffix == ".gif" else camera_exif()))
    command = ["exiftool", "-json", "-G", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)[0]
    assert "ExifTool:Warning" not in found and "ExifTool:Error" not in found
    if suffix == ".gif":
        assert json.loads(found["File:Comment"])["digital_source_type"] == EDITED
        return
    assert found["XMP:DigitalSourceType"].endswith(EDITED.rsplit("/", 1)[1]) or (
        found["XMP:DigitalSourceType"] == "Composite with Trained Algorithmic Media"
    )
    assert found["XMP:CreatorTool"].startswith("pdae ")
    assert json.loads(found["XMP:Recipe"])["seed"] == 3
    assert found["EXIF:SerialNumber"] == SECRETS["serial"]


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("sample", MADE), ("train dpm", MADE), ("train latent", MADE),
        ("manipulate", EDITED), ("interpolate", EDITED), ("reconstruct", EDITED),
        ("decode", EDITED), ("train autoencoder", EDITED), ("a command to come", EDITED),
        ("align", None), ("train encoder", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pictures_say_that_a_model_made_or_edited_them(
    command: str, kind: str | None, suffix: str
) -> None:
    assert metadata.read_source_type(opened(written({"command": command}, suffix))) == kind


def test_source_types_of_other_programs_are_read() -> None:
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
        'xmlns:i="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'i:DigitalSourceType="{MADE}"/></rdf:RDF></x:xmpmeta>'
    )
    assert metadata.read_source_type(opened(saved("JPEG", xmp=packet.encode()))) == MADE


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_without_a_recipe_there_is_no_metadata(suffix: str) -> None:
    data = written(None, suffix)
    image = opened(data)
    assert b"pdae" not in data and b"xmp" not in data.lower() and b"exif" not in data.lower()
    assert not image.getexif() and metadata.read_recipe(image) is None
    layout = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "version", "background",
              "loop", "timestamp", "duration", "dpi"}  # fmt: skip
    assert set(image.info) <= layout


SECRETS = {"serial": "BODY-4711", "owner": "Jane Doe", "lens": "LENS-0815", "maker": "MAKER-NOTE",
           "title": "Holiday", "thumbnail": "THUMBNAIL", "profile": "PROFILE-9", "xmp": "XMP-1234",
           "comment": "COMMENT-77", "latitude": "48.858"}  # fmt: skip


def camera_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Camera Inc."
    exif[ExifTags.Base.ImageDescription] = SECRETS["title"]
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.BodySerialNumber: SECRETS["serial"],
        ExifTags.Base.CameraOwnerName: SECRETS["owner"],
        ExifTags.Base.LensSerialNumber: SECRETS["lens"],
        ExifTags.Base.MakerNote: SECRETS["maker"].encode(),
        ExifTags.Base.ColorSpace: 65535,
        ExifTags.Base.ExifImageWidth: 6000,
    }
    exif[ExifTags.IFD.GPSInfo] = {
        ExifTags.GPS.GPSLatitudeRef: "N",
        ExifTags.GPS.GPSLatitude: (48.0, 51.0, 30.5),
        ExifTags.GPS.GPSAreaInformation: SECRETS["latitude"].encode(),
    }
    return exif


def saved(format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture(size=(40, 32)).save(buffer, format, **options)
    return buffer.getvalue()


def photo(format: str) -> bytes:
    """A picture that holds SECRETS in every place that its format has."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile += SECRETS["profile"].encode()
    profile[:4] = len(profile).to_bytes(4)
    packet = f"<x>{SECRETS['xmp']}</x>".encode()
    options: dict[str, Any] = {
        "exif": camera_exif().tobytes(),
        "icc_profile": bytes(profile),
        "xmp": packet,
    }
    if format == "GIF":
        options = {"comment": SECRETS["comment"].encode()}
    elif format == "JPEG":
        options["comment"] = SECRETS["comment"].encode()
    elif format == "PNG":
        from PIL import PngImagePlugin

        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Comment", SECRETS["comment"])
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", packet.decode())
    return saved(format, **options)


def told(data: bytes) -> set[str]:
    """Which SECRETS a file tells, in any of Pillow's fields or its bytes."""
    image = opened(data)
    exif = image.getexif()
    fields = [*image.info.values(), *exif.values(), *exif.get_ifd(ExifTags.IFD.Exif).values(),
              *exif.get_ifd(ExifTags.IFD.GPSInfo).values()]  # fmt: skip
    text = " ".join(map(str, fields)) + data.decode("latin-1")
    return {name for name, secret in SECRETS.items() if secret in text}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_photos_own_metadata_is_never_copied(suffix: str, pdae: Command, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "GIF"):
        data = photo(format)
        secrets = {"comment"} if format == "GIF" else {"serial", "owner", "title", "latitude"}
        assert told(data) >= secrets
        (source / f"{format}.{format}").write_bytes(data)
    result = pdae("reconstruct", source, "-o", target, "--format", suffix[1:], *FAST)
    assert result.code == 0, result.err
    made = list(target.glob(f"*{suffix}"))
    assert len(made) == 5
    for path in made:
        assert told(path.read_bytes()) == set()
        assert metadata.read_recipe(opened(path.read_bytes())) is not None


@pytest.mark.parametrize("recipe", [RECIPE, None], ids=["recipe", "no recipe"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_is_kept_when_asked(format: str, suffix: str, recipe: dict[str, Any] | None) -> None:
    keep = metadata.exif_of(opened(photo(format)))
    assert keep is not None
    data = written(recipe, suffix, keep=keep)
    assert told(data) == {"serial", "owner", "lens", "title", "latitude"}
    image = opened(data)
    exif = image.getexif()
    assert exif[ExifTags.Base.Orientation] == 1 and exif[ExifTags.Base.Make] == "Camera Inc."
    details = exif.get_ifd(ExifTags.IFD.Exif)
    assert not set(details) & set(metadata.OUTDATED)
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] == (48.0, 51.0, 30.5)
    assert not exif.get_ifd(ExifTags.IFD.IFD1)
    assert (metadata.read_recipe(image) or {}).get("command") == (recipe or {}).get("command")


def test_exif_can_be_kept_as_bytes_but_not_in_a_gif() -> None:
    keep = camera_exif().tobytes()
    assert "serial" in told(written(RECIPE, ".jpg", keep=keep))
    with pytest.raises(UsageError, match="a GIF can't hold EXIF"):
        written(RECIPE, ".gif", keep=keep)
    with pytest.raises(InputError, match="damaged"):
        written(RECIPE, ".png", keep=b"Exif\0\0II nothing that TIFF knows")


def test_recipes_have_a_limit() -> None:
    with pytest.raises(InputError, match="1172 KiB to say"):
        written({"command": "decode", "sources": ["x" * 1_200_000]}, ".png")
    with pytest.raises(ValueError, match="JSON"):
        written({"command": "decode", "mse": float("nan")}, ".png")


DEEP = "[" * 100_000
HOSTILE = [
    "", "[1, 2]", "null", "7", '{"software": "other"}', '{"software": ["pdae"]}', "{", "\0", DEEP,
    '{"software": "pdae", "n": ' + "9" * 5000 + "}",
    '{"software": "pdae", "x": "' + "x" * (1 << 20) + '"}',
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:24])
def test_hostile_texts_are_no_recipe(text: str) -> None:
    for info in ({"pdae": text}, {"comment": text.encode()}, {"xmp": text.encode()}):
        image = picture()
        image.info |= info
        assert metadata.read_recipe(image) is None and metadata.read_source_type(image) is None
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = text
    image.info = {"exif": exif.tobytes()}
    assert metadata.read_recipe(image) is None


LAUGHS = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9))
PACKETS = [
    b"\xff\xfe<\0x\0/\0>\0", b"<x>", b"\0" * 99, b"<a>" * 100_000, b"<a>" * 9999 + b"</a>" * 9999,
    f'<!DOCTYPE x [<!ENTITY a0 "ha">{LAUGHS}]><x>&a9;</x>'.encode(),
    b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
    b"<x>" + b"x" * (1 << 20) + b"</x>", "no bytes", 7,
]  # fmt: skip


@pytest.mark.parametrize(
    "packet", PACKETS, ids=lambda packet: str(packet[:16])[2:] if isinstance(packet, bytes) else ""
)
def test_hostile_xmp_says_nothing(packet: Any) -> None:
    image = picture()
    image.info["xmp"] = packet
    assert metadata.read_recipe(image) is None and metadata.read_source_type(image) is None


def test_damaged_exif_never_raises() -> None:
    """Every byte of a camera's EXIF set to 255, 0 and another value, one by one."""
    raw = camera_exif().tobytes()
    upright = images.prepare(picture(), 16)
    damaged = [
        raw[:n] + bytes([value]) + raw[n + 1 :] for n in range(len(raw)) for value in (0, 255)
    ]
    for data in [*damaged, *(raw[:n] for n in range(len(raw))), b"Exif\0\0", b"\xff" * (1 << 21)]:
        image = picture()
        image.info["exif"] = data
        assert metadata.read_recipe(image) is None
        pixels = images.prepare(image, 16)  # its turn is read from the same
        assert pixels.shape == upright.shape
        try:
            written(RECIPE, ".jpg", keep=metadata.exif_of(image))
        except InputError as error:
            assert "EXIF" in str(error) and "\n" not in str(error)
