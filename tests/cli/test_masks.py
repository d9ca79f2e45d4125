"""Masks for many pictures: a folder or zip of them, matched by name."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from conftest import Command, picture
from drawn import pixels
from PIL import Image

EDIT = ("--attr", "smiling=2", "--inference-steps", 2)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures in a tree; of two of them masks, of the left and of the right half."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("in/a.png", "in/sub/a.png", "in/b.png")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, (32, 32)).save(name)
    half("masks/a.bmp", 0)
    half("masks/sub/a.png", 16)
    return tmp_path


def half(name: str, left: int) -> None:
    mask = Image.new("L", (32, 32))
    mask.paste(255, (left, 0, left + 16, 32))
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    mask.save(name)


@pytest.mark.parametrize("zipped", [False, True])
def test_each_picture_has_the_mask_of_its_name(pdae: Command, work: Path, zipped: bool) -> None:
    if zipped:
        with zipfile.ZipFile("masks.zip", "w") as archive:
            for path in ("a.bmp", "sub/a.png"):
                archive.write(f"masks/{path}", path)
    masks = "masks.zip" if zipped else "masks"
    run = pdae("manipulate", "in", "-r", "--mask", masks, *EDIT, "-o", "out")
    assert run.code == 3 and "in/b.png: " in run.err and "no mask of the name b" in run.err
    assert run.err.count("error:") == 1 and not Path("out/b.png").exists()
    assert pdae("reconstruct", "in", "-r", "-o", "back", *EDIT[2:]).code == 0
    for name, kept in (("a.png", slice(20, 32)), ("sub/a.png", slice(12))):
        made, back = pixels(f"out/{name}"), pixels(f"back/{name}")
        assert made[..., kept].equal(back[..., kept]) and not made.equal(back)


def test_another_mask_makes_other_pictures_and_recipes_find_them(pdae: Command, work: Path) -> None:
    Path("in/b.png").unlink()
    line = ("inpaint", "in", "-r", "--mask", "masks", "--inference-steps", 2, "-o", "out", "--json")

    def statuses() -> set[str]:
        return {json.loads(row)["status"] for row in pdae(*line).text.splitlines()}

    assert (statuses(), statuses()) == ({"done"}, {"unchanged"})
    for name in ("a.png", "sub/a.png"):
        assert pdae("redo", f"out/{name}", "-i", f"in/{name}").code == 0
    half("masks/a.bmp", 16)
    assert statuses() == {"done"}


def test_a_mask_with_the_name_alone_will_do_but_not_two(pdae: Command, work: Path) -> None:
    Path("masks/sub/a.png").unlink()
    assert pdae("manipulate", "in/sub/a.png", "--mask", "masks", *EDIT, "-o", "one.png").code == 0
    half("masks/a.png", 0)
    run = pdae("manipulate", "in/a.png", "--mask", "masks", *EDIT, "-o", "two.png")
    assert run.code == 3 and "could both be its mask" in run.err
    Path("empty").mkdir()
    assert pdae("manipulate", "in/a.png", "--mask", "empty", *EDIT, "-o", "two.png").code == 2


def test_a_damaged_mask_fails_its_picture_alone(pdae: Command, work: Path) -> None:
    Path("masks/b.png").write_bytes(b"no picture")
    run = pdae("manipulate", "in", "-r", "--mask", "masks", *EDIT, "-o", "out")
    assert run.code == 3 and run.err.count("error:") == 1 and "masks/b.png" in run.err
    assert Path("out/a.png").exists() and Path("out/sub/a.png").exists()
