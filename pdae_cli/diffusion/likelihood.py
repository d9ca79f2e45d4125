"""The density that a diffusion model gives a picture: along the ODE its logarithm changes by the
divergence of the drift (Song et al. 2021, sec. 4.3; Chen et al. 2018). With d(x / signal) = eps
dsigma, from the picture's lambda = log(signal / noise) to x_T's, for D values in a picture:

    log p(x_0) = log N(x_T; 0, I) + D log(signal_T / signal_0) - ∫ noise div_x(eps) dlambda
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .solvers import Node, Noise, Predict

LEVEL = 2 / 255  # between neighbouring 8-bit values, on [-1, 1]


def log_density(predict: Predict, x: Tensor, grid: Sequence[Node], probe: Noise) -> Tensor:
    """log p of states x (N, …) at grid[0], the picture's end, in nats; (N,). `predict` must be
    differentiable in x; `probe` draws the random signs of `divergence`.

    The state goes by the trapezoid rule for eps linear in lambda, begun by an Euler step, the
    divergence by that in lambda. Order two; NFE = 2 steps + 1, of which steps + 1 with a gradient.
    """
    change = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    eps, spread = divergence(predict, x, grid[0].t, probe)
    for here, there in itertools.pairwise(grid):
        of_here, of_there = trapezoid(here, there)
        u = x / here.signal
        guess = there.signal * (u + (there.sigma - here.sigma) * eps)
        with torch.no_grad():
            ahead = predict(guess, there.t)
        x = there.signal * (u + of_here * eps + of_there * ahead)
        eps, spread_there = divergence(predict, x, there.t, probe)
        area = (here.noise * spread + there.noise * spread_there) / 2
        change, spread = change + (here.lam - there.lam) * area, spread_there
    size = x[0].numel()
    prior = -(x.flatten(1).square().sum(1) + size * math.log(2 * math.pi)) / 2
    return prior + size * math.log(grid[-1].signal / grid[0].signal) + change


def divergence(predict: Predict, x: Tensor, t: int, probe: Noise) -> tuple[Tensor, Tensor]:
    """eps(x, t), and its divergence (N,) as v · ∂(v · eps)/∂x for random signs v: right on average
    over v (Hutchinson 1989)."""
    v = torch.where(probe() < 0, -1.0, 1.0).to(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        eps = predict(x, t)
        (gradient,) = torch.autograd.grad((eps * v).sum(), x)
    return eps.detach(), (gradient * v).flatten(1).sum(1)


def trapezoid(here: Node, there: Node) -> tuple[float, float]:
    """∫ eps dsigma as weights of eps at both ends, exact where eps is linear in lambda."""
    change = there.sigma - here.sigma
    of_there = there.sigma + change / (there.lam - here.lam)
    return change - of_there, of_there


def bits_per_dimension(log_p: Tensor, size: int) -> Tensor:
    """Bits for each of a picture's `size` 8-bit values, from its density on [-1, 1] in nats."""
    return -(log_p / size + math.log(LEVEL)) / math.log(2)
