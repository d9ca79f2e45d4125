"""Faces in photos: found by cascades, brought into the frame by the network that comes along."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, picture
from PIL import Image
from safetensors.torch import load_file

from pdae_cli.errors import InputError, ModelError, UsageError
from pdae_cli.files import bundled, bundled_models
from pdae_cli.pictures.images import to_float, to_tensor
from pdae_cli.pictures.photos import faces, refining
from pdae_cli.pictures.photos.faces import DOUBT, Face, FaceFinder, Found, chosen, number_of
from pdae_cli.pictures.photos.frames import Frame, paste_back, take
from pdae_cli.pictures.photos.refining import WEIGHTS, FrameNet, Refiner

CASCADES = "finding faces needs opencv-python-headless<5"


def square(middle: complex, side: float, degrees: float) -> Frame:
    """A square of 64 pixels in a photo, turned clockwise."""
    alpha = 64 / side * complex(math.cos(math.radians(degrees)), -math.sin(math.radians(degrees)))
    return Frame.similarity(alpha, 32 * (1 + 1j) - alpha * middle, 64, "repeat")


def with_faces(seed: int, *where: tuple[int, Frame]) -> Image.Image:
    """A photo without detail, and generated faces in it, each in its frame."""
    photo = picture(seed, (640, 480)).point(lambda value: 100 + value // 4)
    for number, frame in where:
        path = ROOT / "examples" / "faces" / f"{number:05d}.png"
        face = to_float(to_tensor(Image.open(path).convert("RGB")))
        edit = face - to_float(to_tensor(take(photo, frame)))
        photo = paste_back(photo, torch.zeros_like(edit), edit, frame)
    return photo


# --- The network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 33])
def test_the_network_brings_a_frame_onto_the_face(degrees: float) -> None:
    """From a third of the side beside it, turned and too small, or from where it is."""
    true = square(300 + 220j, 200, degrees)
    photo, refined = with_faces(1, (3, true)), Refiner()
    for begin in (true, square(330 + 190j, 170, degrees - 12)):
        frame, doubt = refined(photo, begin)
        assert true.off(frame) < 0.1 and doubt < DOUBT
    haze = picture(4, (640, 480))
    assert refined(haze, true)[1] > DOUBT


def test_the_network_is_small_and_no_model() -> None:
    path = next(bundled(WEIGHTS))
    assert path.stat().st_size < 2_000_000
    assert sum(one.numel() for one in FrameNet().parameters()) <= 500_000
    assert {one.shape for one in load_file(path).values()} == {
        one.shape for one in FrameNet().state_dict().values()
    }
    assert "frame" not in bundled_models()


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_weights_that_cant_be_read_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "network.safetensors"
    if content is not None:
        path.write_bytes(content)
    there = [] if content is None else [path]
    monkeypatch.setattr(refining, "bundled", lambda pattern: iter(there))
    with pytest.raises(ModelError, match="install anew") as caught:
        Refiner()
    assert "\n" not in str(caught.value)


def test_turning_and_scaling_a_frame_leave_its_middle() -> None:
    frame = square(300 + 220j, 200, 10)
    assert frame.middle == pytest.approx((300, 220))
    other = frame.turned(30, 1.5)
    assert other.middle == pytest.approx((300, 220))
    assert other.matrix == pytest.approx(square(300 + 220j, 300, 40).matrix)
    # Corners lie sqrt(1/2) of the side from the middle, and turned by 60 degrees as far from
    # where they were.
    assert frame.off(frame.turned(60)) == pytest.approx(math.sqrt(0.5))
    assert frame.off(frame) == pytest.approx(0, abs=1e-9)


# --- Finding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "side", "degrees"), [(1, 240, 0), (3, 200, 18), (3, 300, -35)])
def test_faces_are_found_and_aligned(number: int, side: float, degrees: float) -> None:
    pytest.importorskip("cv2", reason=CASCADES)
    frame = square(330 + 230j, side, degrees)
    found = next(FaceFinder()(with_faces(number, (number, frame)), 64))
    assert found.how == faces.BY_NETWORK and found.note == ""
    assert frame.off(found.frame) < 0.1


def test_all_faces_of_a_photo_are_found_once_the_largest_first() -> None:
    pytest.importorskip("cv2", reason=CASCADES)
    small, large = square(160 + 240j, 170, 5), square(440 + 240j, 260, -8)
    found = list(FaceFinder()(with_faces(2, (1, small), (3, large)), 64))
    assert [large.off(found[0].frame) < 0.1, small.off(found[1].frame) < 0.1] == [True, True]
    assert len(found) == 2 and chosen(iter(found), "all") == found[::-1]


def test_without_evidence_there_is_no_tilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turns in which cascades see a face lie around its tilt only by and large."""
    pytest.importorskip("cv2", reason=CASCADES)
    turns: list[int] = []

    def seen(self: FaceFinder, photo: Image.Image, view: Frame, tilt: float, *how: object,
             ) -> Iterator[Face]:  # fmt: skip
        if tilt in turns:
            yield Face((100.0, 100.0), 80.0, tilt)

    monkeypatch.setattr(FaceFinder, "_faces", seen)
    finder = FaceFinder()
    monkeypatch.setattr(finder, "_refined", lambda photo, frame: (frame, 2 * DOUBT))
    for turns[:], tilt in (([0, 8, 16, 24, 32], 0), ([-30, -48, -40, -32, -24, -16], -32)):
        (found,) = finder(picture(0, (200, 200)), 64)
        alpha, _ = found.frame.complex
        assert math.degrees(math.atan2(-alpha.imag, alpha.real)) == pytest.approx(tilt, abs=1e-6)
        assert found.how == faces.BY_BOX and "--landmarks" in found.note


def test_where_there_is_no_face_the_error_says_what_to_do() -> None:
    """Also that a face may be too small, and that cropping helps."""
    pytest.importorskip("cv2", reason=CASCADES)
    finder, why = FaceFinder(), "no face found, at least 6% of the photo's diagonal; crop"
    with pytest.raises(InputError, match=why):
        next(finder(picture(0, (320, 240)), 64))
    photo = Image.new("RGB", (4000, 3000), "grey")
    with Image.open(ROOT / "examples" / "astronaut.jpg") as face:
        photo.paste(face, (1000, 1000))
    with pytest.raises(InputError, match=why):
        next(finder(photo, 64))
    assert next(finder(photo.crop((900, 900, 1700, 1500)), 64)).how == faces.BY_NETWORK


def test_without_opencv_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UsageError, match=r"pip install 'pdae-cli\[align\]'"):
        FaceFinder()


def test_faces_are_chosen_from_the_left() -> None:
    found = [Found(square(x + 100j, 50, 0), str(x)) for x in (200, 100, 300)]
    names = {face: [one.how for one in chosen(found, number_of(face))]
             for face in ("largest", "all", "1", "3")}  # fmt: skip
    assert names == {
        "largest": ["200"], "all": ["100", "200", "300"], "1": ["100"], "3": ["300"]
    }  # fmt: skip
    with pytest.raises(InputError, match="3 faces, not 4"):
        chosen(found, 4)
    for text in ("0", "-1", "1.5", "left", "", "٣x"):
        with pytest.raises(UsageError):
            number_of(text)
