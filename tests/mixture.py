"""An exactly known diffusion: every pixel drawn from a mixture of two Gaussians, in float64.

Pixels are independent, so that the denoiser, the density and the ODE's flow have closed forms: in
one dimension the flow keeps order, and so keeps every quantile.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.diffusion.solvers import Node

# Timesteps so fine that a grid's nodes lie where its spacing wants them.
SCHEDULE = Schedule(timesteps=100_000, beta_start=1e-6, beta_end=2e-4)
WEIGHTS, MEANS, SPREAD = (0.3, 0.7), (-0.6, 0.5), 0.25


def marginal(alpha_bar: float) -> torch.distributions.MixtureSameFamily:
    """q(x_t) of one pixel: the data's mixture, scaled and widened."""
    means = math.sqrt(alpha_bar) * torch.tensor(MEANS, dtype=torch.float64)
    spread = math.sqrt(alpha_bar * SPREAD**2 + 1 - alpha_bar)
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor(WEIGHTS, dtype=torch.float64)),
        torch.distributions.Normal(means, spread),
    )


def eps(x: Tensor, t: int) -> Tensor:
    """E[eps | x_t] = -sqrt(1 - alpha_bar) d log q(x_t) / dx_t."""
    alpha_bar = SCHEDULE.alpha_bar[t].item()
    means = math.sqrt(alpha_bar) * torch.tensor(MEANS, dtype=torch.float64)
    variance = alpha_bar * SPREAD**2 + 1 - alpha_bar
    logits = torch.tensor(WEIGHTS, dtype=torch.float64).log() - (x[..., None] - means) ** 2 / (
        2 * variance
    )
    score = (logits.softmax(-1) * (means - x[..., None])).sum(-1) / variance
    return -math.sqrt(1 - alpha_bar) * score


def flow(x: Tensor, here: Node, there: Node) -> Tensor:
    """The ODE's solution: the point with the same quantile, found by bisection."""
    quantile = marginal(here.alpha_bar).cdf(x)
    there_marginal = marginal(there.alpha_bar)
    low, high = torch.full_like(x, -8), torch.full_like(x, 8)
    for _ in range(60):
        middle = (low + high) / 2
        below = there_marginal.cdf(middle) < quantile
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def pictures(n: int = 4, size: int = 8) -> Tensor:
    """Draws of the data, (N, 3, size, size) float64, within three spreads of a mean."""
    random = torch.Generator().manual_seed(1)
    kind = (torch.rand(n, 3, size, size, generator=random) < WEIGHTS[1]).long()
    noise = torch.randn(n, 3, size, size, generator=random, dtype=torch.float64).clamp(-3, 3)
    return torch.tensor(MEANS, dtype=torch.float64)[kind] + SPREAD * noise
