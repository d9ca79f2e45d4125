"""Animations: order and pace of frames."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pdae_cli.errors import UsageError
from pdae_cli.pictures.animation import pace, shares, there_and_back


def test_shares_are_even_and_begin_and_end_exactly() -> None:
    assert shares(5) == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("steps", [2, 3, 10, 101])
def test_eased_shares_keep_ends_order_and_symmetry(steps: int) -> None:
    told = shares(steps, ease=True)
    assert told[0] == 0.0 and told[-1] == 1.0 and len(told) == steps
    assert all(a < b for a, b in itertools.pairwise(told))
    assert [1 - s for s in reversed(told)] == pytest.approx(told)


def test_eased_shares_are_at_rest_at_both_ends() -> None:
    told, step = shares(100_001, ease=True), 1e-5
    assert told[1] / step < 1e-4 and (1 - told[-2]) / step < 1e-4
    assert (told[50_001] - told[50_000]) / step == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_there_and_back_repeats_without_a_jump_or_a_pause(count: int) -> None:
    frames = [torch.tensor(n) for n in range(count)]
    looped = [int(one) for one in there_and_back(frames)]
    assert len(looped) == max(count, 2 * count - 2) and looped[:count] == list(range(count))
    again = zip(looped, looped[1:] + looped[:1], strict=True)
    assert count < 2 or all(abs(a - b) == 1 for a, b in again)


@pytest.mark.parametrize("fps", [0.1, 1, 10, 24, 25, 29.97, 50])
def test_a_frame_stands_as_long_as_the_format_can_say(fps: float) -> None:
    assert abs(pace(".webp", fps=fps) - 1000 / fps) <= 0.5
    told = pace(".gif", fps=fps)
    assert told % 10 == 0 and abs(told - 1000 / fps) <= 5


def test_either_way_of_telling_it() -> None:
    assert pace(".webp") == pace(".gif") == 100
    assert pace(".webp", duration=40) == pace(".webp", fps=25) == 40
    with pytest.raises(UsageError, match="give one"):
        pace(".webp", fps=25, duration=40)


def test_what_is_no_number_is_refused() -> None:
    """As a range of numbers lets it through."""
    for suffix in (".gif", ".webp"):
        with pytest.raises(UsageError, match="--fps nan is no number"):
            pace(suffix, fps=math.nan)


def test_what_viewers_of_gifs_would_slow_down_is_refused() -> None:
    assert pace(".webp", fps=60) == 17
    with pytest.raises(UsageError, match=r"50 frames.*\.webp"):
        pace(".gif", fps=60)
