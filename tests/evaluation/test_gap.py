"""The posterior mean gap against closed forms and exact cases."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import tiny_model
from labelled import faces, zero

from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.schedule import posterior
from pdae_cli.diffusion.solvers import ancestral
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine.model import Model
from pdae_cli.errors import UsageError
from pdae_cli.evaluation.gap import TIMESTEPS, _words, gap, one_step


def test_without_a_shift_nothing_is_closed(model: Model) -> None:
    zero(model.gradient_estimator)
    for row in gap(model, faces(), timesteps=(100, 700)).rows:
        assert row["gap"] == row["pdae"] == row["shuffled"] > 0
        assert row["closed"] == row["closed_shuffled"] == row["closed_interval"] == 0


def test_it_is_the_posterior_means_distance(model: Model) -> None:
    """|mu~ - mu_theta|^2 and |mu~ - mu_theta - Sigma G|^2 of a value, in float64."""
    s, t = model.schedule, 400
    x_0, steps = faces(), torch.full((4,), t)
    x_t = s.add_noise(x_0, steps, torch.randn(x_0.shape, generator=generator(7, "gap")))
    eps, gradient = model.predict(x_t, steps, model.encode_z(x_0))
    assert gradient is not None
    levels = s.alpha_bar[t].item(), s.alpha_bar_prev[t].item()
    of_x_0, of_x_t, variance = posterior(*levels)
    mu_theta, _ = ancestral(x_t.double(), eps.double(), *levels, "small")
    away = of_x_0 * x_0.double() + of_x_t * x_t.double() - mu_theta
    left = away - variance * gradient
    row = gap(model, x_0, timesteps=(t,), seed=7).rows[0]
    assert row["gap"] == pytest.approx(away.square().mean().item(), rel=1e-3)
    assert row["pdae"] == pytest.approx(left.square().mean().item(), rel=1e-3)
    assert row["closed"] == pytest.approx(1 - row["pdae"] / row["gap"], rel=1e-6)


def test_pictures_that_are_alike_are_alike_with_each_others_z(model: Model) -> None:
    row = gap(model, faces(1).expand(3, -1, -1, -1), timesteps=(300,)).rows[0]
    assert row["shuffled"] == pytest.approx(row["pdae"], rel=1e-5)
    assert row["closed_shuffled"] == pytest.approx(row["closed"], abs=1e-5)


def test_batches_change_nothing(model: Model) -> None:
    whole = gap(model, faces(5), timesteps=(300,))
    model.batch_size = 2
    finding = gap(model, faces(5), timesteps=(300,))
    assert finding.rows == whole.rows
    assert finding.sheet is not None and finding.sheet.dtype == torch.uint8
    assert whole.sheet is not None and torch.equal(finding.sheet, whole.sheet)
    assert finding.sheet.shape[1] > 9 * 128 and finding.sheet.shape[2] > 6 * 128


def test_the_sheet_takes_no_more_at_once_than_a_batch(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that any network is asked for, decoding of its 54 cells included."""
    asked: dict[str, list[int]] = {"encode_z": [], "latents": [], "predict": [], "from_latents": []}

    def watched(name: str, x: Any, *rest: Any) -> Any:
        asked[name].append(len(x))
        return vars(Model)[name](model, x, *rest)

    for name in asked:
        monkeypatch.setattr(model, name, partial(watched, name))
    model.batch_size = 2
    gap(model, faces(5), timesteps=(300,))
    assert {name: max(counts) for name, counts in asked.items()} == dict.fromkeys(asked, 2)
    assert sum(asked["from_latents"]) == 54


def test_one_step_is_the_guided_noise(model: Model) -> None:
    """x^_0 of the eps^ that decoding follows (PDAE eq. 9)."""
    sampling = Sampling(inference_steps=4)
    t = model.trajectory(sampling).timesteps()[2]
    x, z = faces(), torch.randn(4, 6)
    for zs in ((), (z,)):
        eps = model.guided(sampling, *zs)(x, t)
        expected = model.schedule.level(torch.full((4,), t), x).x_0(x, eps)
        assert torch.allclose(one_step(model, x, t, *(zs or (None,))), expected, atol=1e-5)


def test_chance_is_not_taken_for_knowledge() -> None:
    """Of models whose z means nothing, at most one of 8 may seem to know its picture."""
    said = []
    for seed in range(8):
        finding = gap(tiny_model(seed), faces(6), timesteps=(300, 500), seed=seed)
        said.append("So z knows its picture" in finding.words)
        for row in finding.rows:
            assert row["known"] == pytest.approx(row["closed"] - row["closed_shuffled"])
    assert sum(said) <= 1


def test_what_it_says() -> None:
    def row(known: float, unsure: float) -> dict[str, float]:
        return {
            "t": 300, "pictures": 9, "closed": 0.5, "closed_shuffled": 0.5 - known,
            "known": known, "known_interval": unsure,
        }  # fmt: skip

    assert "So z knows its picture" in _words([row(0.3, 0.1), row(0.1, 0.2)])
    assert "can't be told from 9" in _words([row(0.3, 0.1), row(0.1, 0.4)])
    assert "can't be told from 9" in _words([row(-0.3, 0.1)])
    assert "So z is not used" in _words([row(0.0, 0.0)])
    worse = row(-0.1, 0.2) | {"closed": -0.1, "closed_shuffled": 0.0}
    assert "G_psi widens the posterior mean gap by 10.0% with" in _words([worse])


def test_timesteps_are_those_of_the_models_schedule(model: Model) -> None:
    assert [row["t"] for row in gap(model, faces(2)).rows] == list(TIMESTEPS)
    config = replace(model.config, schedule=replace(model.config.schedule, timesteps=100))
    short = replace(model, config=config)
    assert [row["t"] for row in gap(short, faces(2)).rows][-3:] == [79, 89, 98]


@pytest.mark.parametrize("t", [-1, 1000])
def test_timesteps_that_the_schedule_hasnt_got_are_refused(model: Model, t: int) -> None:
    with pytest.raises(UsageError, match=f"timesteps are 0 … 999, not {t}"):
        gap(model, faces(2), timesteps=(300, t))


def test_one_picture_has_no_other_ones_z(model: Model) -> None:
    with pytest.raises(UsageError, match="at least 2 pictures"):
        gap(model, faces(1))
