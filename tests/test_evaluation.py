"""The experiments against closed forms and exact cases."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import tiny_model
from torch import Tensor

from pdae_cli.diffusion.noise import generator
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError, UsageError
from pdae_cli.evaluation.finding import half_interval, student_95
from pdae_cli.evaluation.gap import TIMESTEPS, _words, gap, one_step
from pdae_cli.evaluation.reconstruction import compared, reconstruction


def faces(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=generator(0, "faces")).tanh()


class TestIntervals:
    @pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 15, 30, 101, 1999])
    def test_students_quantile(self, freedom: int) -> None:
        from scipy.stats import t

        assert student_95(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=1e-10)

    def test_an_intervals_half_is_that_many_standard_errors(self) -> None:
        """Of 1 and 3: the mean's standard error is 1, with one degree of freedom."""
        assert half_interval(torch.tensor([1.0, 3.0])) == pytest.approx(12.706, abs=1e-3)
        assert math.isnan(half_interval(torch.tensor([1.0])))

    @pytest.mark.parametrize("count", [3, 8])
    def test_of_few_values_they_hold_the_truth_95_times_of_100(self, count: int) -> None:
        draws = torch.randn(4000, count, generator=generator(0, "coverage"), dtype=torch.float64)
        held = sum(abs(one.mean().item()) <= half_interval(one) for one in draws) / len(draws)
        assert abs(held - 0.95) < 0.015  # 4 standard deviations


class TestGap:
    def test_without_a_shift_nothing_is_closed(self, model: Model) -> None:
        assert model.gradient_estimator is not None
        for parameter in model.gradient_estimator.parameters():
            parameter.zero_()
        for row in gap(model, faces(), timesteps=(100, 700)).rows:
            assert row["gap"] == row["pdae"] == row["shuffled"] > 0
            assert row["closed"] == row["closed_shuffled"] == row["closed_interval"] == 0

    def test_it_is_the_posterior_means_distance(self, model: Model) -> None:
        """|mu~ - mu_theta|^2 and |mu~ - mu_theta - Sigma G|^2 of a value, in float64."""
        s, t = model.schedule, 400
        x_0, steps = faces(), torch.full((4,), t)
        x_t = s.add_noise(x_0, steps, torch.randn(x_0.shape, generator=generator(7, "gap")))
        eps, gradient = model.predict(x_t, steps, model.encoder(x_0))
        assert gradient is not None
        away = s.posterior_mean(x_0.double(), x_t.double(), steps) - s.model_mean(
            x_t.double(), steps, eps.double()
        )
        left = away - s.posterior_variance[t].item() * gradient
        row = gap(model, x_0, timesteps=(t,), seed=7).rows[0]
        assert row["gap"] == pytest.approx(away.square().mean().item(), rel=1e-3)
        assert row["pdae"] == pytest.approx(left.square().mean().item(), rel=1e-3)
        assert row["closed"] == pytest.approx(1 - row["pdae"] / row["gap"], rel=1e-6)

    def test_pictures_that_are_alike_are_alike_with_each_others_z(self, model: Model) -> None:
        row = gap(model, faces(1).expand(3, -1, -1, -1), timesteps=(300,)).rows[0]
        assert row["shuffled"] == pytest.approx(row["pdae"], rel=1e-5)
        assert row["closed_shuffled"] == pytest.approx(row["closed"], abs=1e-5)

    def test_batches_change_nothing(self, model: Model) -> None:
        whole = gap(model, faces(5), timesteps=(300,)).rows
        model.batch_size = 2
        assert gap(model, faces(5), timesteps=(300,)).rows == whole

    def test_its_sheet_has_three_rows_a_picture(self, model: Model) -> None:
        sheet = gap(model, faces(2), timesteps=(300,)).sheet
        assert sheet is not None and sheet.dtype == torch.uint8
        assert sheet.shape[1] > 6 * 128 and sheet.shape[2] > 6 * 128

    def test_one_step_is_the_guided_noise(self, model: Model) -> None:
        """x^_0 of the eps^ that decoding follows (PDAE eq. 9)."""
        from pdae_cli.diffusion.sampling import Sampling

        sampling = Sampling(inference_steps=4)
        t = model.trajectory(sampling).timesteps()[2]
        x, z = faces(), torch.randn(4, 6)
        for zs in ((), (z,)):
            eps = model.guided(sampling, *zs)(x, t)
            expected = model.schedule.predict_x_0(x, torch.full((4,), t), eps)
            assert torch.allclose(one_step(model, x, t, *(zs or (None,))), expected, atol=1e-5)

    def test_chance_is_not_taken_for_knowledge(self) -> None:
        """Of models whose z means nothing, at most one of 8 may seem to know its picture."""
        said = []
        for seed in range(8):
            finding = gap(tiny_model(seed), faces(6), timesteps=(300, 500), seed=seed)
            said.append("So z knows its picture" in finding.words)
            for row in finding.rows:
                assert row["known"] == pytest.approx(row["closed"] - row["closed_shuffled"])
        assert sum(said) <= 1

    def test_what_it_says(self) -> None:
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

    def test_timesteps_are_those_of_the_models_schedule(self, model: Model) -> None:
        assert [row["t"] for row in gap(model, faces(2)).rows] == list(TIMESTEPS)
        config = replace(model.config, schedule=replace(model.config.schedule, timesteps=100))
        short = replace(model, config=config)
        assert [row["t"] for row in gap(short, faces(2)).rows][-3:] == [79, 89, 98]

    def test_what_it_needs(self, model: Model) -> None:
        with pytest.raises(UsageError, match="at least 2 pictures"):
            gap(model, faces(1))
        model.gradient_estimator = None
        with pytest.raises(ModelError, match="no G_psi"):
            gap(model, faces())


class TestReconstruction:
    def test_an_exact_solver_gives_back_all_and_z_alone_does_not(self, model: Model) -> None:
        rows = reconstruction(model, faces(2), solvers=("leapfrog",), steps=(4,)).rows
        both, z, neither = rows
        assert [row["from"] for row in rows] == ["z and x_T", "z", "neither"]
        assert both["equal"] > 0.99 and both["mse"] < 1e-6 < z["mse"]
        assert (both["nfe"], z["nfe"], neither["nfe"]) == (5 + 4, 4, 4)

    def test_neither_knows_nothing_of_the_picture(self, model: Model) -> None:
        """eps_theta alone decodes the same noise to the same picture, whatever z is."""
        x_0 = faces(1).expand(2, -1, -1, -1)
        rows = reconstruction(model, x_0, solvers=("ddim",), steps=(3,)).rows
        other = tiny_model()
        assert other.encoder_network is not None
        for parameter in other.encoder_network.parameters():
            parameter.zero_()
        changed = reconstruction(other, x_0, solvers=("ddim",), steps=(3,)).rows
        assert rows[2] == changed[2] and rows[1] != changed[1]

    def test_all_ways_start_from_the_same_noise(self, model: Model) -> None:
        """A way that comes twice gives the same twice; without a shift z changes nothing."""
        for solver in ("ddim", "ddpm"):
            rows = reconstruction(model, faces(2), solvers=(solver, solver), steps=(3,)).rows
            assert rows[:3] == rows[3:]
        assert model.gradient_estimator is not None
        for parameter in model.gradient_estimator.parameters():
            parameter.zero_()
        _, z, neither = reconstruction(model, faces(2), solvers=("ddim",), steps=(3,)).rows
        assert z["mse"] == pytest.approx(neither["mse"], rel=1e-6)

    def test_measures(self) -> None:
        a = torch.zeros(2, 3, 16, 16)
        found = compared(a, a + 0.2)  # 0.1 on [0, 1]
        assert found["mse"] == pytest.approx(0.01) and found["psnr"] == pytest.approx(20, abs=1e-4)
        assert found["equal"] == 0 and compared(a, a)["ssim"] == pytest.approx(1)

    def test_every_solver_and_number_of_steps(self, model: Model) -> None:
        finding = reconstruction(model, faces(2), solvers=("dpmpp", "ddpm"), steps=(2, 3))
        assert len(finding.rows) == 2 * 2 * 3 and "LPIPS is left out" in finding.words
