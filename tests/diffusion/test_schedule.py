"""The schedule's identities, in float64. (That tables are the authors': test_golden_tables.)"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pdae_cli.diffusion.schedule import Level, Schedule, posterior
from pdae_cli.diffusion.solvers import ancestral
from pdae_cli.diffusion.trajectory import LATENT_SCHEDULE

KINDS = {"linear": Schedule("linear"), "cosine": Schedule("cosine"), "constant": LATENT_SCHEDULE}
schedules = pytest.mark.parametrize("schedule", KINDS.values(), ids=KINDS)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> bool:
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def mu_theta(schedule: Schedule, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """DDPM eq. 11, for (N, D) at timesteps (N,)."""
    beta, alpha, rest = (
        table[t, None] for table in (schedule.beta, schedule.alpha, 1 - schedule.alpha_bar)
    )
    return (x_t - beta / rest.sqrt() * eps) / alpha.sqrt()


@schedules
def test_alpha_bar_is_the_product_of_one_minus_beta(schedule: Schedule) -> None:
    assert close(schedule.alpha_bar, (1 - schedule.beta).log().cumsum(0).exp())
    assert (schedule.alpha_bar.diff() < 0).all()


@schedules
def test_x_0_and_eps_are_what_noising_took(schedule: Schedule) -> None:
    t = torch.arange(0, schedule.timesteps, 37)
    x_0, eps = torch.randn(2, len(t), 3, dtype=torch.float64)
    x_t = schedule.add_noise(x_0, t, eps)
    level = schedule.level(t, x_t)
    assert close(level.signal**2 + level.noise**2, torch.ones(len(t), 1).double())
    assert close(schedule.level(t, x_t).x_0(x_t, eps), x_0, 1e-9)
    assert close(level.eps(x_t, x_0), eps, 1e-9)
    alone = schedule.level(int(t[5]))
    assert close(alone.noised(x_0[5], eps[5]), x_t[5])


@schedules
def test_posterior_is_bayes_rule(schedule: Schedule) -> None:
    """q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    t = torch.arange(1, schedule.timesteps)
    tables = schedule.beta, schedule.alpha, schedule.alpha_bar_prev
    beta, alpha, before = (table[t] for table in tables)
    precision = alpha / beta + 1 / (1 - before)
    of_x_0, of_x_t, variance = posterior(schedule.alpha_bar[t], before)
    assert close(variance, 1 / precision, 1e-9)
    assert close(of_x_t, alpha.sqrt() / beta / precision, 1e-8)
    assert close(of_x_0, before.sqrt() / (1 - before) / precision, 1e-8)


@schedules
def test_ancestral_steps_have_the_papers_mean(schedule: Schedule) -> None:
    """mu_theta between neighbouring timesteps (DDPM eq. 11)."""
    t = torch.arange(0, schedule.timesteps, 11)
    x_t, eps = torch.randn(2, len(t), 2, dtype=torch.float64)
    pairs = zip(schedule.alpha_bar[t].tolist(), schedule.alpha_bar_prev[t].tolist(), strict=True)
    means = [ancestral(x_t[n], eps[n], *pair, "small")[0] for n, pair in enumerate(pairs)]
    assert close(torch.stack(means), mu_theta(schedule, x_t, t, eps), 1e-8)


@schedules
def test_shift_is_what_the_mean_shift_means_in_units_of_eps(schedule: Schedule) -> None:
    """PDAE eq. 10: (sqrt(alpha) sqrt(1 - alpha_bar)/beta) Sigma = sqrt(alpha)(1 - alpha_bar_prev)/
    sqrt(1 - alpha_bar), and mu_theta + Sigma G is the mean of eps_theta - shift G."""
    factor = schedule.alpha.sqrt() * (1 - schedule.alpha_bar).sqrt() / schedule.beta
    variance = posterior(schedule.alpha_bar, schedule.alpha_bar_prev)[2]
    assert close(schedule.shift, factor * variance)
    assert Schedule().shift[0] == 0  # the posterior has no variance there: no signal to G_psi
    t = torch.arange(0, schedule.timesteps, 13)
    x_t, eps, gradient = torch.randn(3, len(t), 2, dtype=torch.float64)
    shifted = mu_theta(schedule, x_t, t, eps) + variance[t, None] * gradient
    nothing = torch.zeros_like(eps)
    by_eps = mu_theta(schedule, x_t, t, -schedule.residual(nothing, eps, t, gradient))
    assert close(shifted, by_eps, 1e-9)


@schedules
def test_loss_weight_is_the_papers_product_form(schedule: Schedule) -> None:
    """lambda = (1/(1+SNR))^(1-gamma) (SNR/(1+SNR))^gamma."""
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    paper = (1 / (1 + snr)) ** 0.9 * (snr / (1 + snr)) ** 0.1
    assert close(schedule.loss_weight(), paper)


@schedules
def test_weighed_as_v_it_is_the_error_of_v(schedule: Schedule) -> None:
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans & Ho 2022)."""
    t = torch.arange(0, schedule.timesteps, 37)
    x_t, *noises = torch.randn(3, len(t), 3, dtype=torch.float64)
    level = schedule.level(t, x_t)
    v, other = (level.signal * eps - level.noise * level.x_0(x_t, eps) for eps in noises)
    weight = schedule.loss_weight("v")[t, None]
    counted = schedule.alpha_bar[t] > 1e-5  # where the weight isn't clamped
    by_eps = weight * (noises[0] - noises[1]).square()
    assert close((v - other).square()[counted], by_eps[counted], 1e-9)


def test_guided_noise_takes_w_of_the_gradient() -> None:
    """eps^ = eps_theta - sqrt(1 - alpha_bar_t) w G (PDAE eq. 9)."""
    eps, gradient = torch.randn(2, 4, dtype=torch.float64)
    guided = Level(0.8, 0.6).guided(eps, gradient, 2.0)
    assert close(guided, eps - 0.6 * 2 * gradient)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="linear, scaled_linear, cosine"):
        Schedule("square")
    with pytest.raises(ValueError, match="lambda, v"):
        Schedule().loss_weight("square")
