"""The schedule's identities, in float64, and its agreement with the authors' tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pdae_cli.diffusion.schedule import Schedule

SCHEDULES = [Schedule("linear"), Schedule("cosine"), Schedule("constant", beta_start=0.008)]
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=["linear", "cosine", "constant"])


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


@schedules
def test_alpha_bar_is_the_product_of_one_minus_beta(schedule: Schedule) -> None:
    assert close(schedule.alpha_bar, (1 - schedule.beta).log().cumsum(0).exp())
    assert (schedule.alpha_bar.diff() < 0).all()


@schedules
def test_noised_variance_is_preserved(schedule: Schedule) -> None:
    """sqrt(alpha_bar)^2 + sqrt(1 - alpha_bar)^2 = 1, seen through add_noise."""
    t = torch.arange(schedule.timesteps)
    one, zero = torch.ones(len(t), 1).double(), torch.zeros(len(t), 1).double()
    signal, noise = schedule.add_noise(one, t, zero), schedule.add_noise(zero, t, one)
    assert close(signal.square() + noise.square(), one)


@schedules
def test_predict_x_0_inverts_add_noise(schedule: Schedule) -> None:
    t = torch.arange(0, schedule.timesteps, 37)
    x_0, eps = torch.randn(2, len(t), 3, dtype=torch.float64)
    x_t = schedule.add_noise(x_0, t, eps)
    assert close(schedule.predict_x_0(x_t, t, eps), x_0, 1e-9)


@schedules
def test_posterior_is_bayes_rule(schedule: Schedule) -> None:
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    t = torch.arange(1, schedule.timesteps)
    beta, alpha, before = (
        table[t] for table in (schedule.beta, schedule.alpha, schedule.alpha_bar_prev)
    )
    precision = alpha / beta + 1 / (1 - before)
    assert close(schedule.posterior_variance[t], 1 / precision, 1e-9)
    x_0, x_t = torch.randn(2, len(t), 1, dtype=torch.float64)
    by_bayes = (
        (alpha.sqrt() / beta)[:, None] * x_t + (before.sqrt() / (1 - before))[:, None] * x_0
    ) / precision[:, None]
    assert close(schedule.posterior_mean(x_0, x_t, t), by_bayes, 1e-8)


@schedules
def test_model_mean_is_the_posterior_mean_of_the_predicted_x_0(schedule: Schedule) -> None:
    t = torch.arange(0, schedule.timesteps, 11)
    x_t, eps = torch.randn(2, len(t), 2, dtype=torch.float64)
    x_0 = schedule.predict_x_0(x_t, t, eps)
    assert close(schedule.model_mean(x_t, t, eps), schedule.posterior_mean(x_0, x_t, t), 1e-8)


@schedules
def test_shift_is_what_the_mean_shift_means_in_units_of_eps(schedule: Schedule) -> None:
    """PDAE eq. 10: (sqrt(alpha) sqrt(1 - alpha_bar)/beta) Sigma = sqrt(alpha)(1 - alpha_bar_prev)/
    sqrt(1 - alpha_bar), and mu_theta + Sigma G is the mean of eps_theta - shift G."""
    direct = (
        schedule.alpha.sqrt()
        * (1 - schedule.alpha_bar).sqrt()
        / schedule.beta
        * schedule.posterior_variance
    )
    assert close(schedule.shift, direct)
    t = torch.arange(0, schedule.timesteps, 13)
    x_t, eps, gradient = torch.randn(3, len(t), 2, dtype=torch.float64)
    shifted = schedule.model_mean(x_t, t, eps) + schedule.posterior_variance[t, None] * gradient
    by_eps = schedule.model_mean(x_t, t, eps - schedule.shift[t, None] * gradient)
    assert close(shifted, by_eps, 1e-9)


@schedules
def test_loss_weight_is_the_papers_product_form(schedule: Schedule) -> None:
    """lambda = (1/(1+SNR))^(1-gamma) (SNR/(1+SNR))^gamma."""
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    paper = (1 / (1 + snr)) ** 0.9 * (snr / (1 + snr)) ** 0.1
    assert close(schedule.loss_weight(0.1), paper)


def test_first_step_trains_no_shift() -> None:
    """At t = 0 the posterior has no variance, so G_psi gets no signal there."""
    assert Schedule().shift[0] == 0


def test_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="linear, cosine"):
        Schedule("square")


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_tables_agree_with_the_authors(shared: Path, kind: str) -> None:
    golden = load_file(shared / "golden" / "pdae_schedules" / f"{kind}_T1000.safetensors")
    schedule = Schedule(kind)
    ours = {
        "betas": schedule.beta,
        "alphas": schedule.alpha,
        "alphas_cumprod": schedule.alpha_bar,
        "alphas_cumprod_prev": schedule.alpha_bar_prev,
        "sqrt_alphas_cumprod": schedule.alpha_bar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - schedule.alpha_bar).sqrt(),
        "posterior_variance": schedule.posterior_variance,
        "x_0_posterior_mean_x_0_coef": schedule.posterior_x_0,
        "x_0_posterior_mean_x_t_coef": schedule.posterior_x_t,
        "shift_coef": -schedule.shift,
        "weight": schedule.loss_weight(),
    }
    for name, table in ours.items():
        assert torch.allclose(table.float(), golden[name], rtol=1e-6, atol=1e-12), name


def test_latent_schedule_agrees_with_the_authors(shared: Path) -> None:
    path = shared / "golden" / "pdae_schedules" / "latent_const0.008_T1000.safetensors"
    golden = load_file(path)
    schedule = Schedule("constant", beta_start=0.008)
    assert close(schedule.beta, golden["betas_float64"])
    assert torch.allclose(schedule.alpha_bar.float(), golden["alphas_cumprod"], rtol=1e-6)
