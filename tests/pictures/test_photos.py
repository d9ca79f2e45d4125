"""Frames of photos: cut out without aliases, put back without a seam, aligned by landmarks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from conftest import picture
from PIL import Image

from pdae_cli.errors import InputError, UsageError
from pdae_cli.pictures import images
from pdae_cli.pictures.images import to_tensor
from pdae_cli.pictures.photos.frames import Frame, Matrix, Point, paste_back, take
from pdae_cli.pictures.photos.landmarks import CELEBA, Landmarks, named, read_landmarks

FACE = Landmarks((100.0, 120.0), (160.0, 130.0), (124.0, 190.0))


def turned(degrees: float, scale: float, shift: Point, size: int, outside: str = "black") -> Frame:
    a, b = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return Frame((a, -b, shift[0], b, a, shift[1]), size, outside)


def distances(one: Frame, other: Frame) -> list[float]:
    """How far the corners of one frame are from the other's, in its pixels."""
    pairs = zip(one.corners(), other.corners(), strict=True)
    return [math.dist(other.at(p), other.at(q)) for p, q in pairs]


# --- Geometry ------------------------------------------------------------------------------------


def test_a_frame_and_its_inverse_cancel() -> None:
    frame = turned(33, 0.17, (5, -3), 64)
    for point in [(0.0, 0.0), (400.0, 10.0), (-3.0, 77.7)]:
        assert frame.back(frame.at(point)) == pytest.approx(point)
    assert frame.scale == pytest.approx(0.17)


@pytest.mark.parametrize(
    ("matrix", "size", "outside"),
    [
        ((1, 2, 0, 2, 4, 0), 64, "black"),  # has no inverse
        ((math.nan,) * 6, 64, "black"),
        ((1, 0, 0, 0, 1, 0), 0, "black"),
        ((1, 0, 0, 0, 1, 0), 10**9, "black"),
        ((1, 0, 0, 0, 1, 0), 64, "mirror"),
    ],
)
def test_what_is_no_frame_is_refused(matrix: Matrix, size: int, outside: str) -> None:
    with pytest.raises(InputError) as caught:
        Frame(matrix, size, outside)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_points_give_the_best_similarity(count: int) -> None:
    """Against scikit-image's Umeyama, with targets that no similarity reaches exactly."""
    transform = pytest.importorskip("skimage.transform")
    torch.manual_seed(count)
    points, targets = torch.rand(count, 2) * 500, torch.rand(count, 2)
    theirs = transform.SimilarityTransform.from_estimate(points.numpy(), 64 * targets.numpy())
    frame = Frame.between([(x, y) for x, y in points.tolist()], targets.tolist(), 64)
    if theirs.params[0, 0] * theirs.params[1, 1] > 0:  # they may mirror, we never do
        expected = theirs.params[:2].flatten().tolist()
        assert frame.matrix == pytest.approx(expected, abs=1e-4)
    (a, b, _, d, e, _) = frame.matrix
    assert (a, b) == pytest.approx((e, -d)) and a * e - b * d > 0


def test_celebas_points_are_those_of_its_mean_face() -> None:
    """The rounded mean landmarks of the aligned 178x218 pictures, cropped as for CelebA64."""
    mean = [(69, 111), (108, 111), ((72 + 105) / 2, 152)]
    for (x, y), (column, row) in zip(CELEBA, mean, strict=True):
        crop = ((column + 0.5 - 25) / 128, (row + 0.5 - 57) / 128)
        assert (x, y) == pytest.approx(crop, abs=1.2 / 128)  # about a pixel


def test_a_face_lands_on_the_canonical_points() -> None:
    middle = turned(20, 0.4, (30, 10), 100)
    eyes_and_mouth = [middle.back((100 * x, 100 * y)) for x, y in CELEBA]
    for points in (eyes_and_mouth, eyes_and_mouth[:2]):
        frame = Landmarks(*points).frame(100)
        assert frame.matrix == pytest.approx(middle.matrix, abs=1e-2)
    assert max(distances(Landmarks(*eyes_and_mouth).frame(50), middle)) < 0.1


def test_points_that_cant_be_a_faces_are_refused() -> None:
    assert FACE.frame(64).size == 64
    with pytest.raises(InputError, match="one place"):
        Frame.between([(3.0, 3.0)] * 3, CELEBA, 64)
    for mouth in (FACE.mouth, None):
        with pytest.raises(InputError, match="picture's left"):
            Landmarks(FACE.right_eye, FACE.left_eye, mouth).frame(64)


# --- Cutting out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (40, 32), (64, 64), (33, 91), (300, 200)])
@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_fits_are_those_of_prepare(shape: tuple[int, int], fit: str) -> None:
    image = picture(3, shape)
    ours = to_tensor(take(image, Frame.fitted(*shape, 32, fit))).int()
    off = (ours - images.prepare(image, 32, fit=fit).int()).abs().max()
    assert off <= (0 if shape == (32, 32) else 2)


def test_padding_is_that_of_prepare() -> None:
    image = picture(3, (160, 80))
    ours = to_tensor(take(image, Frame.fitted(160, 80, 32, "pad"))).int()
    off = (ours - images.prepare(image, 32, fit="pad").int()).abs()
    assert off[:, 11:21].max() <= 4  # ours filters across the border
    assert not ours[:, [*range(5), *range(27, 32)]].any()
    with pytest.raises(UsageError, match="crop, pad, stretch"):
        Frame.fitted(4, 4, 4, "tile")


@pytest.mark.parametrize("degrees", [0, 5, 45])
def test_frequencies_that_a_small_square_cannot_hold_are_filtered_out(degrees: float) -> None:
    """A chessboard of 1-pixel squares is gray from afar; sampled bare it would be stripes."""
    rows, columns = torch.arange(1000)[:, None], torch.arange(1000)[None]
    board = ((rows + columns) % 2 * 255).to(torch.uint8)
    photo = images.to_image(board.expand(3, -1, -1).contiguous())
    alpha = turned(degrees, 64 / 700, (0, 0), 64)
    x, y = alpha.at((500, 500))
    frame = turned(degrees, 64 / 700, (32 - x, 32 - y), 64)
    seen = to_tensor(take(photo, frame)).float()
    assert (seen - 127.5).abs().max() < 3


def test_a_turned_square_agrees_with_its_points() -> None:
    """A bright dot is where the frame says."""
    photo = Image.new("RGB", (400, 300))
    photo.paste((255, 255, 255), (247, 97, 253, 103))
    frame = turned(30, 0.5, (10, -20), 128)
    x, y = frame.at((250, 100))
    seen = to_tensor(take(photo, frame)).float().mean(0)
    weight = seen / seen.sum()
    across, down = torch.arange(128) + 0.5, torch.arange(128) + 0.5
    assert (weight.sum(0) @ across).item() == pytest.approx(x, abs=0.1)
    assert (weight.sum(1) @ down).item() == pytest.approx(y, abs=0.1)


@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_beyond_the_border_is_black_or_the_nearest_pixel(scale: float) -> None:
    photo = Image.new("RGB", (200, 200), (200, 100, 50))
    for outside, expected in (("black", [0, 0, 0]), ("repeat", [200, 100, 50])):
        seen = to_tensor(take(photo, turned(10, scale, (40, 40), 64, outside)))
        assert seen[:, 0, 0].tolist() == expected
        assert seen[:, 48, 44].tolist() == pytest.approx([200, 100, 50], abs=2)


@pytest.mark.parametrize("size", [160, 161, 320])
def test_a_large_square_is_sampled_as_finely_as_fits(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as finely up to half of the largest size, here 320."""
    monkeypatch.setattr("pdae_cli.pictures.photos.frames.MAX_SIZE", 320)
    photo = picture(3, (60, 40)).convert("L")
    small = take(photo, turned(20, 0.5, (4, 2), 16, "repeat"))
    large = take(photo, turned(20, 0.5, (4, 2), 16, "repeat").resized(size))
    assert large.size == (size, size)
    reduced = to_tensor(large.resize((16, 16), Image.Resampling.BOX)).int()
    assert (reduced - to_tensor(small).int()).abs().max() < 30


@pytest.mark.parametrize("far", [1e4, 1e6])
def test_landmarks_of_another_photo_take_no_memory(far: float) -> None:
    """The photo would be less than a pixel of the square, whose border it would fill."""
    face = Landmarks((-far, 0.0), (far, 0.0), (0.0, far))
    with pytest.raises(InputError, match="40 x 30, is less than a pixel of the square") as caught:
        take(picture(1, (40, 30)), face.frame(64))
    assert "\n" not in str(caught.value)


# --- Putting back --------------------------------------------------------------------------------


def photo_of(mode: str, shape: tuple[int, int] = (300, 200)) -> Image.Image:
    """Noise, so that any change shows."""
    generator = torch.Generator().manual_seed(0)
    bands = torch.randint(0, 256, (len(mode), *shape[::-1]), dtype=torch.uint8, generator=generator)
    return Image.merge(mode, [images.to_image(band[None]) for band in bands])


FRAMES = [
    turned(25, 0.4, (0, 10), 64, "repeat"),  # inside
    turned(-8, 0.1, (20, 20), 64, "repeat"),  # larger than the photo
    turned(0, 3.0, (-300, -200), 64),  # finer than the photo
    turned(70, 0.4, (-10, -200), 64, "repeat"),  # partly outside
    turned(0, 0.5, (900, 900), 64, "repeat"),  # beside it
    Frame.fitted(300, 200, 64, "pad"),
]


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_edit_of_nothing_gives_the_photo_back(mode: str, frame: Frame) -> None:
    photo = photo_of(mode)
    before = images.to_float(to_tensor(take(photo.convert("RGB"), frame)))
    back = paste_back(photo, before, before.clone(), frame)
    assert back.mode == mode and back.tobytes() == photo.tobytes()


@pytest.mark.parametrize("frame", FRAMES)
def test_pixels_outside_the_frame_and_alpha_stay(frame: Frame) -> None:
    photo = photo_of("RGBA")
    before, after = -torch.ones(3, 64, 64), torch.ones(3, 64, 64)
    back = paste_back(photo, before, after, frame)
    changed = (to_tensor(back) != to_tensor(photo)).any(0)
    assert to_tensor(back)[3].equal(to_tensor(photo)[3])
    rows, columns = changed.nonzero().unbind(1)
    for x, y in zip((columns + 0.5).tolist(), (rows + 0.5).tolist(), strict=True):
        u, v = frame.at((x, y))
        assert 0 <= u <= 64 and 0 <= v <= 64


def test_the_seam_does_not_show() -> None:
    """Even the largest edit begins with a step of at most 2 of 255 where the frame ends."""
    photo = Image.new("RGB", (600, 600))
    frame = turned(20, 0.2, (-20, -60), 64, "repeat")
    back = to_tensor(paste_back(photo, -torch.ones(3, 64, 64), torch.ones(3, 64, 64), frame))[
        0
    ].int()
    steps = torch.cat([back.diff(dim=0).flatten(), back.diff(dim=1).flatten()]).abs()
    assert back.max() == 255
    assert steps.max() <= 16  # a fade of 40 photo pixels rises by 1.5 * 255/40 at most
    border = (back > 0) & (back <= 2)
    assert border.any()


def test_an_edit_reaches_the_photos_own_border() -> None:
    """Where the frame is the whole photo there is no seam, so nothing fades."""
    photo = Image.new("RGB", (256, 256), "gray")
    frame = Frame.fitted(256, 256, 64)
    edit = torch.full((3, 64, 64), 0.5)
    back = to_tensor(paste_back(photo, torch.zeros_like(edit), edit, frame)).int()
    assert (back - 128 - 64).abs().max() <= 1


def test_an_edit_lands_where_it_was_made_and_keeps_detail() -> None:
    photo = photo_of("RGB").point(lambda value: 64 + value // 4)
    frame = turned(25, 0.4, (0, 10), 64, "repeat")
    before, after = torch.zeros(1, 64, 64), torch.zeros(1, 64, 64)
    after[:, 30:34, 30:34] = 0.4
    back = to_tensor(paste_back(photo, before, after, frame)).int() - to_tensor(photo).int()
    weight = back.float().clamp(min=0).mean(0)
    weight /= weight.sum()
    across, down = torch.arange(300) + 0.5, torch.arange(200) + 0.5
    centre = ((weight.sum(0) @ across).item(), (weight.sum(1) @ down).item())
    assert centre == pytest.approx(frame.back((32, 32)), abs=0.3)
    assert 45 < back.max() < 62  # 51, and what a smooth curve through the pixels overshoots


# --- Landmarks -----------------------------------------------------------------------------------

GOOD = {"left_eye": [10, 20], "right_eye": [30, 20.5], "mouth": [20, 45]}
CORNERS = {"left_eye": [10, 20], "right_eye": [30, 20.5], "left_mouth": [14, 44],
           "right_mouth": [26, 46], "nose": [20, 33]}  # fmt: skip


def landmarks_file(folder: Path, data: object) -> Path:
    path = folder / "landmarks.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_three_points_and_five_are_the_same_face(tmp_path: Path) -> None:
    read = read_landmarks(landmarks_file(tmp_path, {"a.png": GOOD, "b.png": CORNERS}))
    assert read["a.png"] == read["b.png"] == [Landmarks((10, 20), (30, 20.5), (20, 45))]
    eyes = {name: GOOD[name] for name in ("left_eye", "right_eye")}
    assert read_landmarks(landmarks_file(tmp_path, {"a.png": eyes}))["a.png"][0].mouth is None
    assert len(read_landmarks(landmarks_file(tmp_path, {"a.png": [GOOD, eyes]}))["a.png"]) == 2


@pytest.mark.parametrize(
    "data",
    [
        "no JSON",
        "[" * 100_000,
        [GOOD],
        {"a.png": []},
        {"a.png": [GOOD, []]},
        {"a.png": {"left_eye": [1, 2]}},
        {"a.png": GOOD | {"chin": [1, 2]}},
        {"a.png": GOOD | {"mouth": [1, 2, 3]}},
        {"a.png": GOOD | {"mouth": ["1", 2]}},
        {"a.png": GOOD | {"mouth": [True, 2]}},
        {"a.png": GOOD | {"mouth": [1e300, 2]}},
        '{"a.png": {"left_eye": [NaN, 2], "right_eye": [30, 20]}}',
        {"a.png": GOOD | {"left_mouth": [1, 2]}},
        {"a.png": CORNERS | {"mouth": [1, 2]}},
    ],
)
def test_other_files_are_refused_with_a_line_that_names_them(tmp_path: Path, data: object) -> None:
    path = landmarks_file(tmp_path, data)
    with pytest.raises(InputError) as caught:
        read_landmarks(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_entries_are_found_by_as_much_of_the_path_as_is_listed() -> None:
    one, other = [Landmarks((0, 0), (1, 0))], [Landmarks((0, 0), (2, 0))]
    listed = {"1.png": one, "b/1.png": other}
    assert named(listed, "photos/a/1.png") is one
    assert named(listed, "photos/b/1.png") is other
    assert named(listed, "photos\\b\\1.png") is other
    assert named(listed, "11.png") == []
