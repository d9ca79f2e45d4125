"""Faces in photos for every command that reads pictures: --align, --landmarks, --face."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, picture
from drawn import pixels
from PIL import Image

from pdae_cli.cli.run import inputs
from pdae_cli.cli.run.batches import Run
from pdae_cli.engine.codes import from_bytes
from pdae_cli.errors import InputError, UsageError
from pdae_cli.pictures.photos.faces import Found
from pdae_cli.pictures.photos.landmarks import Landmarks

LEFT = {"left_eye": [40, 50], "right_eye": [62, 54], "mouth": [46, 76]}
RIGHT = {"left_eye": [150, 80], "right_eye": [180, 76], "mouth": [167, 112]}  # the larger one
FAST = ("--inference-steps", 2)
EDIT = ("--attr", "smiling=2", *FAST)
ALL = ("--landmarks", "faces.json", "--face", "all")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo of two faces, one of another, and where they are."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    picture(1, (240, 160)).save("in/two.png")
    picture(2, (240, 160)).save("in/one.png")
    write({"two.png": [LEFT, RIGHT], "one.png": RIGHT})
    return tmp_path


def write(faces: dict[str, Any]) -> None:
    Path("faces.json").write_text(json.dumps(faces))


def done(run: Any) -> list[dict[str, Any]]:
    assert run.code == 0, run.err
    return [json.loads(line) for line in run.text.splitlines()]


def squares(pdae: Command) -> None:
    """The faces of both photos, cut out at the model's size."""
    line = ("align", "in", "-o", "cut", "--size", 32, "--landmarks", "faces.json", "--quiet")
    assert pdae(*line, "--face", "all").code == 0


@pytest.mark.parametrize(
    ("command", "suffix"), [("encode", ".safetensors"), ("reconstruct", ".png")]
)
def test_aligning_at_once_is_aligning_first(
    pdae: Command, work: Path, command: str, suffix: str
) -> None:
    squares(pdae)
    assert pdae(command, "cut/two-face2.png", "-o", f"first{suffix}", *FAST).code == 0
    line = (command, "in/two.png", "--landmarks", "faces.json", *FAST, "--json")
    record = done(pdae(*line, "-o", f"once{suffix}"))[0]
    assert record["frame"]["size"] == 32
    if suffix == ".png":
        assert pixels("first.png").equal(pixels("once.png"))
    else:
        one, other = (from_bytes(Path(f"{name}.safetensors").read_bytes(), name)
                      for name in ("first", "once"))  # fmt: skip
        assert one.z.equal(other.z) and one.x_T is not None and other.x_T is not None
        assert one.x_T.equal(other.x_T)


def test_the_ends_of_a_way_are_aligned(pdae: Command, work: Path) -> None:
    squares(pdae)
    line = ("interpolate", "cut/two-face2.png", "cut/one-face1.png", "--steps", 3, *FAST)
    assert pdae(*line, "-o", "first.png").code == 0
    line = ("interpolate", "in/two.png", "in/one.png", "--steps", 3, *FAST)
    run = pdae(*line, "--landmarks", "faces.json", "-o", "once.png")
    assert run.code == 0, run.err
    assert pixels("first.png").equal(pixels("once.png"))
    several = pdae(*line, *ALL, "-o", "never.png")
    assert several.code == 3 and "hold 3 pictures or codes, not one each" in several.err


def test_codes_of_all_faces_are_rows_or_files(pdae: Command, work: Path) -> None:
    assert pdae("encode", "in", *ALL, "--no-noise", "-o", "z.safetensors").code == 0
    codes = from_bytes(Path("z.safetensors").read_bytes(), "z")
    assert codes.sources == ("in/one.png-face1", "in/two.png-face1", "in/two.png-face2")
    line = ("encode", "in", *ALL, "--no-noise", "-o", "z", "--json")
    names = ["z/one-face1.safetensors", "z/two-face1.safetensors", "z/two-face2.safetensors"]
    assert [record["output"] for record in done(pdae(*line))] == names
    assert {record["status"] for record in done(pdae(*line))} == {"unchanged"}


def test_one_file_of_many_photos_holds_none_of_them(
    pdae: Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept until all are encoded, beside their codes, is names and frames."""
    read, finish, held = inputs.read_limited, Run.write, []

    class Photo(bytes):
        alive = read = 0

        def __init__(self, data: bytes) -> None:
            Photo.alive += 1
            Photo.read += 1

        def __del__(self) -> None:
            Photo.alive -= 1

    def seen(run: Run, *args: Any) -> None:
        held.append((Photo.alive, [one.picture for one, _ in run.kept]))
        finish(run, *args)

    monkeypatch.setattr(inputs, "read_limited", lambda *args: Photo(read(*args)))
    monkeypatch.setattr(Run, "write", seen)
    for number in range(6):
        picture(number, (240, 160)).save(f"in/{number}.png")
    write({f"{name}.png": [LEFT, RIGHT] for name in ("one", "two", *range(6))})
    line = ("encode", "in/*.png", *ALL, "--no-noise", "--batch-size", 1, "--json")
    first = done(pdae(*line, "-o", "z.safetensors"))
    shown = done(pdae(*line, "-o", "shown.safetensors", "--report", "r.html"))
    assert [one["frame"] for one in first] == [one["frame"] for one in shown]
    (alive, pictures), (alive_when_shown, pictures_shown) = held
    assert Photo.read == 16 and alive <= 1 and alive_when_shown <= 1  # of the last batch
    assert pictures == [None] * 16 and None not in pictures_shown


def test_of_a_face_and_codes_of_its_name_the_second_fails(pdae: Command, work: Path) -> None:
    assert pdae("encode", "in/one.png", "--no-noise", "-o", "in/two-face1.safetensors").code == 0
    run = pdae("encode", "in", *ALL, "--no-noise", "-o", "z")
    assert run.code == 3 and "3 done, 1 failed" in run.err
    assert "its output two-face1.safetensors is that of in/two" in run.err


def test_faces_are_counted_from_the_left_and_the_largest_is_the_default(
    pdae: Command, work: Path
) -> None:
    squares(pdae)
    line = ("align", "in/two.png", "--size", 32, "--landmarks", "faces.json")
    for number, face in (("largest", 2), ("1", 1), ("2", 2)):
        assert pdae(*line, "--face", number, "-o", f"{number}.png").code == 0
        assert pixels(f"{number}.png").equal(pixels(f"cut/two-face{face}.png"))
    run = pdae("align", "in", "--landmarks", "faces.json", "--face", 2, "-o", "second")
    assert run.code == 3 and "in/one.png: has one face, not 2" in run.err
    assert [path.name for path in Path("second").glob("*.png")] == ["two.png"]


@pytest.mark.parametrize("batch_size", [1, 32])
def test_all_faces_go_back_into_one_photo(pdae: Command, work: Path, batch_size: int) -> None:
    """The edits of both are the edits of each, one after the other."""
    line = ("manipulate", "in/two.png", "--paste-back", *EDIT, "--batch-size", batch_size)
    record = done(pdae(*line, *ALL, "--json", "-o", "both.png"))[0]
    faces, before, both = record["faces"], pixels("in/two.png"), pixels("both.png")
    assert [face["attributes"]["Smiling"]["scale"] for face in faces] == [2, 2]
    assert faces[0]["frame"]["matrix"] != faces[1]["frame"]["matrix"]
    assert pdae(*line, "--landmarks", "faces.json", "--face", 1, "-o", "left.png").code == 0
    assert pdae(*line, "--landmarks", "faces.json", "-o", "right.png").code == 0
    left, right = (pixels(f"{name}.png") - before for name in ("left", "right"))
    assert left[..., :120].any() and right[..., 120:].any()
    assert (both - before - left - right).abs().max() <= (left * right != 0).any() * 2
    again = pdae("redo", "both.png")
    assert again.code == 0, again.err


def test_a_row_too_large_to_be_read_again_fails_alone(
    pdae: Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(3, (40, 32)).save("in/small.png")
    monkeypatch.setattr("pdae_cli.pictures.images.MAX_PIXELS", 100_000)
    line = ("manipulate", "in/small.png", "in/two.png", "--paste-back", *FAST, "-o", "rows/")
    run = pdae(*line, "--attr", "smiling", "--scale=-1,0,1")
    assert run.code == 3 and "in/two.png: 720x160 pixels are more than" in run.err
    assert [path.name for path in Path("rows").glob("*.png")] == ["small.png"]
    assert pdae(*line, "--attr", "smiling=1").code == 0


def test_all_faces_are_made_anew_within_masks(pdae: Command, work: Path) -> None:
    mask = Image.new("L", (240, 160))
    mask.paste(255, (0, 0, 90, 160))
    mask.save("mask.png")
    line = ("inpaint", "in/two.png", "--mask", "mask.png", "--paste-back", *ALL, *FAST)
    record = done(pdae(*line, "--json", "-o", "made.png"))[0]
    assert len(record["frames"]) == 2
    changed = pixels("made.png") != pixels("in/two.png")
    assert changed[..., :90].any() and not changed[..., 95:].any()


class Finder:
    """A finder that sees one face in every photo, unless it is told not to."""

    sees = True

    def __call__(self, photo: Image.Image, size: int) -> Iterator[Found]:
        if not self.sees:
            raise InputError("no face found of at least 6%; crop it")
        eyes = Landmarks((100.0, 60.0), (130.0, 62.0))
        yield Found(eyes.frame(size), "found by a test", "not sure")


def test_photos_that_the_file_doesnt_name_are_left_to_the_finder(
    pdae: Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdae_cli.pictures.photos.faces.FaceFinder", Finder)
    write({"two.png": RIGHT})
    line = ("align", "in", "--landmarks", "faces.json", "-o", "out", "--json")
    run = pdae(*line)
    one, two = done(run)
    assert (one["found"], two["found"]) == ("found by a test", "landmarks")
    assert "in/one.png: has no entry in faces.json: not sure" in run.err
    assert "two.png: has" not in run.err
    monkeypatch.setattr(Finder, "sees", False)
    run = pdae(*line, "--overwrite")
    assert run.code == 3 and "in/one.png: has no entry in faces.json, and no face" in run.err


def test_a_finder_that_isnt_there_fails_those_that_need_it(
    pdae: Command, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise UsageError("finding faces needs OpenCV")

    monkeypatch.setattr("pdae_cli.pictures.photos.faces.FaceFinder", missing)
    write({"two.png": RIGHT})
    run = pdae("align", "in", "--landmarks", "faces.json", "-o", "out")
    assert run.code == 3 and "has no entry in faces.json, and finding faces needs OpenCV" in run.err
    assert Path("out/two.png").exists()
    assert pdae("encode", "in", "--align", "-o", "z").code == 2


def test_lists_of_no_faces_are_refused(pdae: Command, work: Path) -> None:
    write({"two.png": []})
    run = pdae("align", "in", "--landmarks", "faces.json", "-o", "out")
    assert run.code == 3 and "faces.json: two.png: a list of no faces" in run.err
