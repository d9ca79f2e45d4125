"""Contact sheets: every pixel of every picture, captions within their cells, nothing else."""

from __future__ import annotations

import pytest
import torch
from drawn import found
from PIL import ImageFont
from torch import Tensor

from pdae_cli.pictures.sheets import GAP, LINE, SIZE, cut, difference, enlarged, sheet

FONT = ImageFont.load_default(SIZE)


def dark(value: int = 0, size: tuple[int, int] = (128, 128), channels: int = 3) -> Tensor:
    """A picture of one colour, which letters and ground don't have."""
    return torch.full((channels, *size), value, dtype=torch.uint8)


def test_every_picture_is_there_once_to_the_last_pixel() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = [
        torch.randint(0, 256, (3, 20, 16), dtype=torch.uint8, generator=generator) for _ in range(5)
    ]
    whole = sheet(pictures, ["a", "b", "c", "d", "e"], columns=2, width=16)
    assert whole.dtype == torch.uint8
    assert [found(whole, picture) for picture in pictures] == [1] * 5


def test_size_is_cells_captions_and_gaps() -> None:
    whole = sheet([dark()] * 5, ["caption"] * 5, columns=3)
    assert whole.shape == (3, GAP + 2 * (128 + LINE + GAP), GAP + 3 * (128 + GAP))
    assert sheet([dark()] * 5, columns=3).shape[1] == GAP + 2 * (128 + GAP)
    assert sheet([dark()] * 2, columns=8).shape[2] == GAP + 2 * (128 + GAP)


def test_ground_is_white_and_captions_stay_below_their_own_picture() -> None:
    whole = sheet([dark(7), dark(7)], ["", "W" * 200], columns=2)
    letters = (whole != 255).any(0) & (whole != 7).any(0)
    rows, columns = letters.nonzero().unbind(1)
    second = GAP + 128 + GAP
    assert len(rows) and rows.min() >= GAP + 128 and rows.max() < GAP + 128 + LINE
    assert columns.min() >= second and columns.max() < second + 128


def test_grey_stays_grey_and_beside_colour_becomes_colour() -> None:
    assert sheet([dark(channels=1)] * 2, ["a", "b"], columns=2).shape[0] == 1
    mixed = sheet([dark(9, channels=1), dark(5)], columns=2)
    assert mixed.shape[0] == 3 and found(mixed, dark(9)) == 1 and found(mixed, dark(5)) == 1


def test_pictures_of_many_sizes_keep_their_own() -> None:
    sizes = [(130, 140), (200, 128), (128, 150)]
    pictures = [dark(40 * n, size) for n, size in enumerate(sizes, start=1)]
    whole = sheet(pictures, columns=3)
    assert [found(whole, picture) for picture in pictures] == [1] * 3


def test_narrow_pictures_stand_in_the_middle_of_their_cell_on_one_line() -> None:
    whole = sheet([dark(1, (200, 150)), dark(2, (128, 128))], columns=2)
    rows, columns = (whole == 2).all(0).nonzero().unbind(1)
    left = GAP + 150 + GAP
    assert columns.min() - left == (left + 150) - (columns.max() + 1)
    assert rows.max() + 1 == GAP + 200


def test_small_pictures_are_enlarged_by_whole_factors_without_new_values() -> None:
    small = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)
    large = enlarged(small, 11)
    assert large.shape == (1, 6, 8) and torch.equal(large[:, ::2, ::2], small)
    assert torch.equal(large[:, 1::2, 1::2], small)
    assert torch.equal(enlarged(small, 2), small)


def test_titles_stand_above_columns_and_left_of_rows() -> None:
    plain = sheet([dark()] * 4, columns=2)
    titled = sheet([dark()] * 4, columns=2, titles=["a", "b"], row_titles=["source", "result"])
    assert titled.shape[1] == plain.shape[1] + LINE and titled.shape[2] > plain.shape[2]
    left = titled.shape[2] - plain.shape[2]
    margin = titled[:, GAP + LINE :, : left + GAP]
    assert (margin != 255).any() and (titled[:, : GAP + LINE, left + GAP :] != 255).any()
    assert found(titled, dark()) == 4


@pytest.mark.parametrize("text", ["W" * 300, "a/long/path/of/a/picture.png", "i" * 90])
@pytest.mark.parametrize("room", [20, 64, 128])
def test_what_is_too_wide_ends_in_an_ellipsis_within_its_room(text: str, room: int) -> None:
    told = cut(text, room, FONT)
    assert FONT.getlength(told) <= room
    assert told == text or (told.endswith("…") and text.startswith(told[:-1]))


def test_what_fits_is_told_in_full() -> None:
    assert cut("holiday 1.png", 128, FONT) == "holiday 1.png"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\u202eb", "a\\u202eb"),
        ("a\tb", "a\\tb"),
        ("\udcff", "\\udcff"),
        ("日", "\\u65e5"),
        ("Müller é", "Muller e"),
    ],
)
def test_what_the_font_lacks_is_spelled_out(text: str, told: str) -> None:
    """Accents are left away: a letter is easier to know again than its number."""
    assert cut(text, 1000, FONT) == told


def test_lines_of_a_caption_stand_one_below_the_other() -> None:
    one, two = sheet([dark()], ["name"], columns=1), sheet([dark()], ["name\n31 dB"], columns=1)
    assert two.shape[1] == one.shape[1] + LINE
    assert (two[:, -GAP - LINE : -GAP] != 255).any()


def test_difference_is_absolute_and_never_wraps() -> None:
    a = torch.tensor([[[0, 10, 255, 100]]], dtype=torch.uint8)
    b = torch.tensor([[[0, 13, 0, 99]]], dtype=torch.uint8)
    assert difference(a, b).tolist() == [[[0, 12, 255, 4]]]
    assert torch.equal(difference(a, b), difference(b, a))


@pytest.mark.parametrize(("pictures", "captions"), [(0, 0), (2, 1), (1, 2)])
def test_nothing_to_show_and_captions_that_dont_match_are_refused(
    pictures: int, captions: int
) -> None:
    with pytest.raises(ValueError, match=f"{pictures} pictures with {captions}"):
        sheet([dark()] * pictures, ["x"] * captions, columns=2)
