"""`pdae inpaint`, `pdae colourise` and `pdae manipulate --mask`, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, picture
from drawn import pixels
from PIL import ExifTags, Image

from pdae_cli.pictures.images import prepare
from pdae_cli.pictures.metadata import read_recipe

FAST = ("--inference-steps", "3", "--quiet")
EDIT = ("--attr", "smiling=2", *FAST)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture, its grey version, one that lies on its side, and a mask of its right half."""
    monkeypatch.chdir(tmp_path)
    picture(1, (48, 32)).save("face.png")
    Image.open("face.png").convert("L").save("grey.png")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    picture(1, (48, 32)).transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=turned)
    save_mask("mask.png", left=24)
    return tmp_path


def save_mask(name: str, left: int, size: tuple[int, int] = (48, 32), value: int = 255) -> None:
    mask = Image.new("L", size)
    mask.paste(value, (left, 0, *size))
    mask.save(name)


def framed(name: str) -> torch.Tensor:
    with Image.open(name) as image:
        return prepare(image, 32).int()


def assert_only_the_right_half_changed(name: str) -> None:
    changed = (pixels(name) != pixels("face.png")).any(0).any(0).nonzero()
    assert changed.min() >= 20 and changed.max() >= 30


class TestManipulate:
    def test_only_what_is_white_changes(self, pdae: Command, work: Path) -> None:
        assert pdae("manipulate", "face.png", "--mask", "mask.png", *EDIT, "-o", "a.png").code == 0
        assert pdae("reconstruct", "face.png", "-o", "back.png", *FAST).code == 0
        edited, back = pixels("a.png"), pixels("back.png")
        assert edited[..., :13].equal(back[..., :13])  # a resized edge reaches three pixels far
        assert not edited[..., 16:].equal(back[..., 16:])

    def test_a_row_has_the_mask_in_each(self, pdae: Command, work: Path) -> None:
        line = ("manipulate", "face.png", "--mask", "mask.png", "--attr", "smiling")
        assert pdae(*line, "--scale=-2,0,2", *FAST, "-o", "row.png").code == 0
        one, two, three = pixels("row.png").chunk(3, dim=2)
        assert one[..., :13].equal(two[..., :13]) and three[..., :13].equal(two[..., :13])
        assert not one.equal(two) and not three.equal(two)

    def test_codes_and_photos_too(self, pdae: Command, work: Path) -> None:
        assert pdae("encode", "face.png", "-o", "z.safetensors", *FAST).code == 0
        line = ("manipulate", "--mask", "mask.png", "--attr", "smiling=2", "--quiet")
        assert pdae(*line, "z.safetensors", "-o", "codes.png").code == 0
        assert pdae(*line, "face.png", "-o", "plain.png", *FAST).code == 0
        assert pixels("codes.png").equal(pixels("plain.png"))
        assert pdae(*line, "face.png", "--paste-back", "-o", "photo.png", *FAST).code == 0
        assert_only_the_right_half_changed("photo.png")


class TestInpaint:
    def test_what_is_black_is_the_picture(self, pdae: Command, work: Path) -> None:
        run = pdae("inpaint", "face.png", "--mask", "mask.png", "-o", "a.png", "--json", *FAST[:2])
        assert run.code == 0 and json.loads(run.text)["status"] == "done"
        made, before = pixels("a.png"), framed("face.png")
        assert made[..., :16].equal(before[..., :16])
        assert not made[..., 16:].equal(before[..., 16:])

    def test_a_picture_on_its_side_is_set_upright_first(self, pdae: Command, work: Path) -> None:
        for name in ("face", "turned"):
            run = pdae("inpaint", f"{name}.png", "--mask", "mask.png", "-o", f"{name}-a.png", *FAST)
            assert run.code == 0, run.err
        assert pixels("face-a.png").equal(pixels("turned-a.png"))

    def test_the_seed_and_z_make_others(self, pdae: Command, work: Path) -> None:
        picture(5, (32, 32)).save("other.png")
        assert pdae("encode", "other.png", "-o", "other.safetensors", *FAST).code == 0
        made = {}
        for name, more in {
            "plain": (), "again": (), "seed": ("--seed", 3), "alone": ("--guidance", 0),
            "like": ("--like", "other.png"), "codes": ("--like", "other.safetensors"),
        }.items():  # fmt: skip
            line = ("inpaint", "face.png", "--mask", "mask.png", *FAST, *more)
            assert pdae(*line, "-o", f"{name}.png").code == 0
            made[name] = pixels(f"{name}.png")
        assert made["plain"].equal(made["again"]) and made["like"].equal(made["codes"])
        for name in ("seed", "alone", "like"):
            assert not made["plain"].equal(made[name]), name

    def test_photos(self, pdae: Command, work: Path) -> None:
        line = ("inpaint", "face.png", "--mask", "mask.png", "--paste-back", *FAST)
        assert pdae(*line, "-o", "photo.png").code == 0
        assert pixels("photo.png").shape == pixels("face.png").shape
        assert_only_the_right_half_changed("photo.png")

    def test_it_can_be_redone(self, pdae: Command, work: Path) -> None:
        assert pdae("inpaint", "face.png", "--mask", "mask.png", *FAST, "-o", "a.png").code == 0
        with Image.open("a.png") as image:
            recipe: Any = read_recipe(image)
        assert recipe["command"] == "inpaint" and len(recipe["options"]["mask_sha256"]) == 64
        assert pdae("redo", "a.png").code == 0

    def test_another_mask_under_the_same_name_is_another_job(
        self, pdae: Command, work: Path
    ) -> None:
        statuses = []
        for left in (24, 24, 30):
            save_mask("mask.png", left)
            run = pdae("inpaint", "face.png", "--mask", "mask.png", "-o", "out/", "--json",
                       *FAST[:2])  # fmt: skip
            statuses.append(json.loads(run.text)["status"])
        assert statuses == ["done", "unchanged", "done"]

    def test_a_mask_of_another_size_fails_its_picture_alone(
        self, pdae: Command, work: Path
    ) -> None:
        picture(2, (32, 32)).save("small.png")
        run = pdae("inpaint", "small.png", "face.png", "--mask", "mask.png", "-o", "out/", *FAST)
        assert run.code == 3 and Path("out/face.png").exists()
        assert run.err.count("\n") == 1 and not Path("out/small.png").exists()
        assert "small.png has 32x32 pixels and the mask mask.png 48x32; draw one over" in run.err

    @pytest.mark.parametrize(
        ("line", "code", "text"),
        [
            (("--mask", "missing.png"), 3, "missing.png"),
            ((), 2, "--mask"),
            (("--mask", "mask.png", "--like", "missing.png"), 3, "missing.png"),
            (("--mask", "mask.png", "--like", "."), 2, "--like takes one picture"),
        ],
    )
    def test_failures(
        self, pdae: Command, work: Path, line: tuple[str, ...], code: int, text: str
    ) -> None:
        run = pdae("inpaint", "face.png", "-o", "a.png", *FAST, *line)
        assert (run.code, text in run.err) == (code, True), run.err


class TestColourise:
    def test_grey_pictures_get_colours(self, pdae: Command, work: Path) -> None:
        assert pdae("colourise", "grey.png", "-o", "a.png", *FAST).code == 0
        made, before = pixels("a.png"), framed("grey.png")
        assert before.amax(0).equal(before.amin(0))
        assert (made.amax(0) - made.amin(0)).float().mean() > 3

    def test_by_another_picture(self, pdae: Command, work: Path) -> None:
        for name, more in {"a": (), "b": ("--like", "face.png")}.items():
            assert pdae("colourise", "grey.png", "-o", f"{name}.png", *FAST, *more).code == 0
        assert not pixels("a.png").equal(pixels("b.png"))
        assert pdae("redo", "b.png").code == 0
