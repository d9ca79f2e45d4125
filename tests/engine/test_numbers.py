"""Attributes that are numbers: a ridge regression beside numpy's least squares, and units."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_model
from torch import Tensor

from pdae_cli.checkpoints import read_attributes, write_attributes
from pdae_cli.diffusion.noise import generator
from pdae_cli.engine.attributes import Attributes, Scale, fit_numbers, ridge
from pdae_cli.errors import UsageError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def ages(z: Tensor, noise: float = 3.0) -> Tensor:
    """40 years and ten a step along a direction, float64 (N, 1)."""
    direction = normal(z.shape[1], seed=9)
    return 40 + 10 * (z.double() @ direction)[:, None] + noise * normal(len(z), 1, seed=8)


@pytest.fixture
def fitted() -> Attributes:
    z = normal(400, 6).float()
    return fit_numbers(["age"], z[:300], ages(z)[:300], z[300:], ages(z)[300:])


@pytest.mark.parametrize("penalty", [0.0, 0.08, 5.0])
def test_it_is_least_squares_with_rows_for_the_penalty(penalty: float) -> None:
    """numpy's lstsq over x beside a column of ones, sqrt(N penalty) I below for all but that."""
    x, y = normal(50, 4, seed=1) + 2, normal(50, seed=2) * 7 - 3
    weight, bias = ridge(x, y, torch.zeros(50), penalty)
    above = np.hstack([x.numpy(), np.ones((50, 1))])
    below = np.hstack([math.sqrt(50 * penalty) * np.eye(4), np.zeros((4, 1))])
    target = np.concatenate([y.numpy(), np.zeros(4)])
    expected = np.linalg.lstsq(np.vstack([above, below]), target, rcond=None)[0]
    assert np.allclose(weight.numpy(), expected[:4], atol=1e-12)
    assert bias == pytest.approx(expected[4], abs=1e-12)


def test_more_dimensions_than_pictures_have_the_shortest_weight() -> None:
    x, y = normal(5, 20, seed=1), normal(5, seed=2)
    weight, bias = ridge(x, y, torch.zeros(5), 0.0)
    assert torch.allclose(x @ weight + bias, y, atol=1e-9)
    centred = (x - x.mean(0)).numpy()
    expected = np.linalg.pinv(centred) @ (y - y.mean()).numpy()
    assert np.allclose(weight.numpy(), expected, atol=1e-9)


def test_what_sets_groups_apart_isnt_learnt() -> None:
    """A group is older and lies elsewhere in z, without one having to do with the other in it."""
    x, group = normal(400, 3, seed=3), torch.arange(400) % 2
    y = 5 * x[:, 0] + 30.0 * group
    x[:, 1] += 4 * group
    kept = ridge(x, y, group, 1e-6)[0]
    mixed = ridge(x, y, torch.zeros(400), 1e-6)[0]
    assert torch.allclose(kept, torch.tensor([5.0, 0, 0]).double(), atol=1e-4) and mixed[1] > 1


def test_facts_are_of_the_pictures_held_out(fitted: Attributes, tmp_path: Path) -> None:
    z = normal(400, 6).float()
    facts, truth = fitted.facts["age"], ages(z)[300:, 0].numpy()
    scores = fitted.scores(z[300:])[:, 0].double().numpy()
    assert facts["correlation"] == pytest.approx(np.corrcoef(scores, truth)[0, 1], abs=1e-6)
    assert facts["mean_error"] == pytest.approx(np.abs(scores - truth).mean(), abs=1e-4)
    assert 0.95 < facts["correlation"] < 1 and (facts["train"], facts["held_out"]) == (300, 100)
    assert facts["value_mean"] == pytest.approx(ages(z)[:300].mean().item())
    facts["unit"] = "years"
    write_attributes(tmp_path, fitted)
    read = read_attributes(tmp_path / "attributes.safetensors")
    assert read.facts == fitted.facts and read.unit("AGE") == "years"


def test_unknown_numbers_are_left_out() -> None:
    z = normal(60, 6).float()
    values = ages(z)
    values[::2] = math.nan
    some = fit_numbers(["age"], z, values, z, values)
    few = fit_numbers(["age"], z[1::2], values[1::2], z[1::2], values[1::2])
    assert torch.allclose(some.weight, few.weight) and some.facts == few.facts
    assert some.facts["age"]["train"] == 30


def test_what_cant_be_known_is_none_and_what_doesnt_vary_refused(tmp_path: Path) -> None:
    z = normal(20, 6).float()
    found = fit_numbers(["age"], z, ages(z), z[:1], ages(z)[:1])
    assert found.facts["age"]["correlation"] is None and found.facts["age"]["mean_error"] > 0
    nothing = fit_numbers(["age"], z, ages(z), z[:1], torch.full((1, 1), math.nan).double())
    assert nothing.facts["age"]["mean_error"] is None and nothing.facts["age"]["held_out"] == 0
    write_attributes(tmp_path, nothing)  # JSON has no NaN
    for values in (torch.full((20, 1), 3.0), torch.full((20, 1), math.nan)):
        with pytest.raises(UsageError, match="age: its numbers don't vary"):
            fit_numbers(["age"], z, values.double(), z, values.double())


@pytest.mark.parametrize("keep", [[], ["Smiling"]])
@pytest.mark.parametrize("count", [10.0, -2.5])
def test_units_move_the_score_by_as_many(fitted: Attributes, count: float, keep: list[str]) -> None:
    other = tiny_model().attributes
    assert other is not None
    known, z = other.merged(fitted), normal(5, 6).float()
    column = known.index("age")
    moved = known.move(z, "age", Scale(count, "u"), 512, keep)
    change = (known.scores(moved) - known.scores(z)).T
    assert change[column].tolist() == pytest.approx([count] * 5, abs=1e-3)
    if keep:
        assert change[known.index("Smiling")].abs().max() < 1e-4
    sd = known.facts["age"]["score_sd"]
    change = (
        known.scores(known.move(z, "age", Scale(1, "sd")))[:, column] - known.scores(z)[:, column]
    )
    assert change.tolist() == pytest.approx([sd] * 5, abs=1e-3)
    with pytest.raises(UsageError, match="smiling is no number, so it has no units"):
        known.move(z, "smiling", Scale(1, "u"))
