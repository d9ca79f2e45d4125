"""`pdae align`, and edits of aligned faces that go back into their photos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, picture
from drawn import pixels
from PIL import ExifTags, Image

from pdae_cli.engine.codes import from_bytes
from pdae_cli.pictures import decoding
from pdae_cli.pictures.images import to_tensor
from pdae_cli.pictures.photos.frames import Frame, take

FACE = {"left_eye": [100, 80], "right_eye": [130, 86], "mouth": [110, 115]}
EDIT = ("--attr", "smiling=2", "--inference-steps", "3")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos in a tree, and a file that says where in the first is a face."""
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    picture(1, (240, 160)).save(tmp_path / "photos" / "a.png")
    picture(2, (200, 200), "RGBA").save(tmp_path / "photos" / "sub" / "b.png")
    write(tmp_path, {"a.png": FACE, "sub/b.png": FACE})
    return tmp_path


def write(folder: Path, faces: dict[str, Any]) -> None:
    (folder / "faces.json").write_text(json.dumps(faces))


def frame_of(record: dict[str, Any]) -> Frame:
    told = record["frame"]
    return Frame(tuple(told["matrix"]), told["size"], told["outside"])


def changed(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(x + 0.5, y + 0.5) of the pixels that differ."""
    rows, columns = (one != other).any(0).nonzero().unbind(1)
    return torch.stack([columns, rows], 1) + 0.5


def test_faces_are_cut_out_of_a_tree_of_photos(pdae: Command, photos: Path) -> None:
    where = photos / "aligned"
    run = pdae("align", photos / "photos", "-r", "-o", f"{where}/", "--size", 48,
               "--landmarks", photos / "faces.json", "--json")  # fmt: skip
    assert run.code == 0, run.err
    first, second = (json.loads(line) for line in run.text.splitlines())
    assert Path(second["output"]) == where / "sub" / "b.png" and second["found"] == "landmarks"
    frame = frame_of(first)
    photo = Image.open(photos / "photos" / "a.png")
    assert pixels(where / "a.png").equal(to_tensor(take(photo, frame)).int())
    x, y = frame.at((100, 80))
    assert (x / 48, y / 48) == pytest.approx((0.35, 0.43), abs=0.03)
    info = pdae("info", where / "a.png", "--json")
    recipe = json.loads(info.text)["recipe"]
    assert recipe["frame"] == first["frame"] and recipe["digital_source_type"] is None


def test_a_photo_is_decoded_once_before_it_is_encoded(
    pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A still one, and each frame of an animation, whose pictures are those of its frames."""
    frames = [picture(number, (240, 160)) for number in range(4)]
    frames[0].save(photos / "film.png", save_all=True, append_images=frames[1:])
    for number, frame in enumerate(frames):
        frame.save(photos / f"still-{number:04d}.png")
    write(photos, {"a.png": FACE} | {f"film.png-{n:04d}": FACE for n in range(4)}
          | {f"still-{n:04d}.png": FACE for n in range(4)})  # fmt: skip
    decoded, open_picture, open_frames = list[str](), decoding.open_picture, decoding.open_frames

    def opened(source: Path | bytes, name: str) -> Image.Image:
        decoded.append(name)
        return open_picture(source, name)

    def each(source: Path | bytes, name: str) -> Iterator[Image.Image]:
        for frame in open_frames(source, name):
            decoded.append(name)
            yield frame

    how = ("--landmarks", photos / "faces.json", *EDIT[2:], "-o")
    monkeypatch.setattr(decoding, "open_picture", opened)
    monkeypatch.setattr(decoding, "open_frames", each)
    assert pdae("encode", photos / "photos" / "a.png", *how, photos / "z.safetensors").code == 0
    assert len(decoded) == 1
    assert pdae("encode", photos / "film.png", "--frames", "all", *how, photos / "film/").code == 0
    assert len(decoded) == 1 + 1 + 4  # whether it is an animation, and each frame
    stills = sorted(photos.glob("still-*.png"))
    assert pdae("encode", *stills, *how, photos / "stills/").code == 0
    pairs = [sorted((photos / name).glob("*.safetensors")) for name in ("film", "stills")]
    for one, other in zip(*pairs, strict=True):
        z = [from_bytes(path.read_bytes(), "").z for path in (one, other)]
        assert z[0].equal(z[1])


def test_a_photo_without_landmarks_fails_alone(pdae: Command, photos: Path) -> None:
    write(photos, {"a.png": FACE})
    run = pdae("align", photos / "photos", "-r", "-o", photos / "out",
               "--landmarks", photos / "faces.json")  # fmt: skip
    assert run.code == 3 and "b.png: has no entry in " in run.err and "no face found" in run.err
    assert (photos / "out" / "a.png").exists()


def test_codes_are_no_photos(pdae: Command, photos: Path) -> None:
    pdae("encode", photos / "photos" / "a.png", "-o", photos / "z.safetensors", *EDIT[2:])
    for command in (("align",), ("manipulate", "--paste-back", *EDIT)):
        run = pdae(*command, photos / "z.safetensors", "-o", photos / "out.png",
                   "--landmarks", photos / "faces.json")  # fmt: skip
        assert run.code == 3 and "codes" in run.err


def test_other_landmarks_make_other_pictures(pdae: Command, photos: Path) -> None:
    line = ("align", photos / "photos", "-r", "-o", photos / "out",
            "--landmarks", photos / "faces.json", "--json")  # fmt: skip
    statuses = []
    for mouth in ([110, 115], [110, 115], [110, 130]):
        write(photos, {"a.png": FACE | {"mouth": mouth}, "b.png": FACE})
        run = pdae(*line)
        statuses += [json.loads(run.text.splitlines()[0])["status"]]
    assert statuses == ["done", "unchanged", "done"]


def test_an_edit_goes_back_into_the_photo(pdae: Command, photos: Path) -> None:
    run = pdae("manipulate", photos / "photos", "-r", "--paste-back", *EDIT, "--json",
               "--landmarks", photos / "faces.json", "-o", photos / "out")  # fmt: skip
    assert run.code == 0, run.err
    for line, name in zip(run.text.splitlines(), ("a.png", "sub/b.png"), strict=True):
        before, after = pixels(photos / "photos" / name), pixels(photos / "out" / name)
        assert before.shape == after.shape
        frame = frame_of(json.loads(line))
        seen = [frame.at((x, y)) for x, y in changed(before, after).tolist()]
        assert len(seen) > 100
        assert all(0 <= value <= frame.size for point in seen for value in point)
        assert after[3:].equal(before[3:])
    recipe = json.loads(pdae("info", photos / "out" / "a.png", "--json").text)["recipe"]
    assert frame_of(recipe) == frame_of(json.loads(run.text.splitlines()[0]))


def test_without_alignment_the_middle_square_is_edited(pdae: Command, photos: Path) -> None:
    run = pdae("manipulate", photos / "photos" / "a.png", "--paste-back", *EDIT,
               "-o", photos / "out.png")  # fmt: skip
    assert run.code == 0, run.err
    where = changed(pixels(photos / "photos" / "a.png"), pixels(photos / "out.png"))
    assert where[:, 0].min() > 40 and where[:, 0].max() < 200 and where[:, 1].min() < 1


def test_a_row_of_scales_is_a_row_of_photos(pdae: Command, photos: Path) -> None:
    run = pdae("manipulate", photos / "photos" / "a.png", "--paste-back", "--attr", "smiling",
               "--scale", "-1,1", *EDIT[2:], "-o", photos / "row.png")  # fmt: skip
    assert run.code == 0, run.err
    assert pixels(photos / "row.png").shape == (3, 160, 480)


def test_photos_are_upright_and_landmarks_are_of_the_upright_photo(
    pdae: Command, photos: Path
) -> None:
    upright = Image.open(photos / "photos" / "a.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save(photos / "lying.png", exif=exif)
    write(photos, {"lying.png": FACE, "a.png": FACE})
    for name in ("lying.png", "photos/a.png"):
        run = pdae("manipulate", photos / name, "--paste-back", *EDIT, "-o", photos / "out",
                   "--landmarks", photos / "faces.json")  # fmt: skip
        assert run.code == 0, run.err
    assert pixels(photos / "out" / "lying.png").equal(pixels(photos / "out" / "a.png"))


def test_landmarks_choose_what_is_encoded(pdae: Command, photos: Path) -> None:
    """Aligning first, then editing the square, gives the same as both at once."""
    pdae("align", photos / "photos" / "a.png", "-o", photos / "square.png", "--size", 32,
         "--landmarks", photos / "faces.json")  # fmt: skip
    pdae("manipulate", photos / "square.png", *EDIT, "-o", photos / "one.png")
    pdae("manipulate", photos / "photos" / "a.png", *EDIT, "-o", photos / "two.png",
         "--landmarks", photos / "faces.json")  # fmt: skip
    assert pixels(photos / "one.png").equal(pixels(photos / "two.png"))


def test_a_pasted_picture_is_made_again_by_its_recipe(pdae: Command, photos: Path) -> None:
    run = pdae("manipulate", photos / "photos" / "a.png", "--paste-back", *EDIT,
               "--landmarks", photos / "faces.json", "-o", photos / "out.png")  # fmt: skip
    assert run.code == 0, run.err
    again = pdae("redo", photos / "out.png", "-i", photos / "photos", "-o", photos / "again.png")
    assert again.code == 0, again.err
    assert pixels(photos / "again.png").equal(pixels(photos / "out.png"))


def test_pictures_out_of_the_frame_are_warned_of(
    pdae: Command, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("manipulate", photos / "photos" / "a.png", *EDIT, "--json", "-o", photos / "out.png")
    distance = json.loads(pdae(*line).text)["distance"]
    for limit, warned in ((distance - 0.1, True), (distance + 0.1, False)):
        monkeypatch.setattr("pdae_cli.evaluation.likeness.LIMIT", limit)
        run = pdae(*line, "--overwrite")
        assert run.code == 0 and ("doesn't look as if it lay" in run.err) == warned


def test_a_broken_landmarks_file_stops_before_any_work(pdae: Command, photos: Path) -> None:
    (photos / "faces.json").write_text("{")
    run = pdae("align", photos / "photos", "-r", "-o", photos / "out",
               "--landmarks", photos / "faces.json")  # fmt: skip
    assert run.code == 3 and run.err.count("\n") == 1 and "faces.json: not JSON" in run.err


def test_landmarks_far_outside_cost_their_photo_alone(pdae: Command, photos: Path) -> None:
    far = {"left_eye": [-3e4, 0], "right_eye": [3e4, 0], "mouth": [0, 3e4]}
    write(photos, {"a.png": far, "sub/b.png": FACE})
    run = pdae("align", photos / "photos", "-r", "-o", photos / "out",
               "--landmarks", photos / "faces.json")  # fmt: skip
    assert run.code == 3 and "a.png: the photo, 240 x 160, is less than a pixel" in run.err
    assert (photos / "out" / "sub" / "b.png").exists()
