"""The ODE's log-likelihood against closed forms, in float64."""

from __future__ import annotations

import itertools
import math

import mixture
import pytest
import torch
from mixture import SCHEDULE, eps, marginal, pictures
from torch import Tensor

from pdae_cli.diffusion.likelihood import bits_per_dimension, divergence, log_density, trapezoid
from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.solvers import Node, decode_grid


def signs(like: Tensor, seed: int = 0):  # type: ignore[no-untyped-def]
    random = generator(seed)
    return lambda: torch.randn(like.shape, generator=random)


def truth(x: Tensor, node: Node) -> Tensor:
    return marginal(node.alpha_bar).log_prob(x).flatten(1).sum(1)


@pytest.mark.parametrize("spacing", ["logsnr", "asinh"])
def test_converges_to_the_mixtures_density_with_order_two(spacing: str) -> None:
    """Pixels are independent, so that the estimate of the divergence is exact."""
    errors = []
    for steps in (100, 200, 400):
        grid = decode_grid(SCHEDULE, steps, spacing)[::-1]
        log_p = log_density(eps, pictures(), grid, signs(pictures()))
        # The method takes x_T as N(0, I), which the mixture's marginal there isn't quite.
        x_T = mixture.flow(pictures(), grid[0], grid[-1])
        taken = torch.distributions.Normal(0.0, 1.0).log_prob(x_T).flatten(1).sum(1)
        exact = truth(pictures(), grid[0]) - truth(x_T, grid[-1]) + taken
        errors.append((log_p - exact).abs().max().item() / 192)
    assert errors[-1] < 1e-3
    for coarse, fine in itertools.pairwise(errors):
        assert 2.8 < coarse / fine < 5.6


def test_a_gaussians_bits() -> None:
    """For N(0, s^2) data the bits are its differential entropy at the picture, to four digits."""
    spread = 0.5

    def gaussian(x: Tensor, t: int) -> Tensor:
        alpha_bar = SCHEDULE.alpha_bar[t].item()
        return math.sqrt(1 - alpha_bar) * x / (alpha_bar * spread**2 + 1 - alpha_bar)

    grid = decode_grid(SCHEDULE, 300, "asinh")[::-1]
    x = spread * torch.randn(3, 3, 8, 8, generator=generator(1), dtype=torch.float64)
    level = math.sqrt(grid[0].alpha_bar * spread**2 + 1 - grid[0].alpha_bar)
    exact = torch.distributions.Normal(0.0, level).log_prob(x).flatten(1).sum(1)
    bits = bits_per_dimension(log_density(gaussian, x, grid, signs(x)), 192)
    assert torch.allclose(bits, bits_per_dimension(exact, 192), rtol=0, atol=1e-3)
    even = torch.tensor(-192 * math.log(256 * 2 / 255))  # 256 equally likely levels: eight bits
    assert bits_per_dimension(even, 192).item() == pytest.approx(8, abs=1e-5)


def test_hutchinson_is_right_on_average() -> None:
    """v J v over random signs has the trace as its mean, for a Jacobian that isn't diagonal."""
    mix = torch.randn(12, 12, generator=generator(2), dtype=torch.float64)
    x = torch.randn(5000, 3, 2, 2, dtype=torch.float64)
    _, estimate = divergence(lambda x, t: (x.flatten(1) @ mix.T).reshape(x.shape), x, 0, signs(x))
    assert estimate.mean().item() == pytest.approx(mix.trace().item(), abs=0.5)
    assert estimate.std() > 1  # so the mean says something


def test_trapezoid_is_exact_for_eps_linear_in_lambda() -> None:
    """∫ (a + b lambda) dsigma has an antiderivative: a sigma + b sigma (lambda + 1)."""
    grid = decode_grid(SCHEDULE, 5, "logsnr")

    def integral(node: Node) -> float:
        return 0.3 * node.sigma + 2 * node.sigma * (node.lam + 1)

    for here, there in itertools.pairwise(grid):
        of_here, of_there = trapezoid(here, there)
        value = of_here * (0.3 + 2 * here.lam) + of_there * (0.3 + 2 * there.lam)
        assert value == pytest.approx(integral(there) - integral(here), rel=1e-9)
