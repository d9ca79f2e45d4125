"""Solvers: functions (predict, x, grid) → x. They know no network, and no network knows them.

`predict(x, t)` returns the (guided) noise eps^ of the state x at the integer timestep t. A `grid`
is the list of (t, alpha_bar) that the solver visits; from noise to picture it decodes, from
picture to noise it encodes. As in the authors' code, the picture is the state at timestep 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .noise import normal
from .schedule import Schedule

Predict = Callable[[Tensor, int], Tensor]
SPACINGS = ("uniform", "logsnr")
VARIANCES = ("small", "large", "learned")  # of ancestral sampling: see `ancestral`


@dataclass(frozen=True)
class Node:
    """A state that a solver visits."""

    t: int
    alpha_bar: float


def decode_grid(schedule: Schedule, steps: int, spacing: str = "uniform") -> list[Node]:
    """steps + 1 nodes from t = T-1 down to 0, fewer where they would coincide.

    `uniform` in t: int(linspace(0, T-1, steps + 1)), the authors' grid. `logsnr`: even in
    log(SNR), so that small t, where the picture's detail is decided, gets its share.
    Reversed, it is the grid that encodes.
    """
    if spacing == "uniform":
        timesteps = torch.linspace(0, schedule.timesteps - 1, steps + 1, dtype=torch.float64).long()
    elif spacing == "logsnr":
        log_snr = schedule.snr.log()
        wanted = torch.linspace(
            log_snr[0].item(), log_snr[-1].item(), steps + 1, dtype=torch.float64
        )
        timesteps = (log_snr[None] - wanted[:, None]).abs().argmin(dim=1)
    else:
        raise ValueError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}")
    distinct = sorted(set(timesteps.tolist()), reverse=True)
    return [Node(t, schedule.alpha_bar[t].item()) for t in distinct]


def ddim(predict: Predict, x: Tensor, grid: Sequence[Node]) -> Tensor:
    """Deterministic DDIM along the grid: Euler steps of d(x/sqrt(alpha_bar)) = eps^ dsigma.

    Decoding evaluates eps^ where each step begins (DDIM eq. 12).
    """
    for here, there in itertools.pairwise(grid):
        x = ddim_step(x, predict(x, here.t), here, there)
    return x


def ddim_step(x: Tensor, eps: Tensor, here: Node, there: Node) -> Tensor:
    """x/sqrt(alpha_bar) moves by eps^ times the change of sigma = sqrt(1/alpha_bar - 1)."""
    scale = math.sqrt(there.alpha_bar / here.alpha_bar)
    sigma_here = math.sqrt(1 / here.alpha_bar - 1)
    sigma_there = math.sqrt(1 / there.alpha_bar - 1)
    return scale * x + math.sqrt(there.alpha_bar) * (sigma_there - sigma_here) * eps


def ddim_inverse(predict: Predict, x: Tensor, grid: Sequence[Node], iterations: int) -> Tensor:
    """Encode as the inverse of `ddim` on the same nodes: solve each decode step for where it began.

    A decode step there → here evaluates eps^ at its noisier end, which is what is looked for: a
    fixed point x = step(here, eps^(x, there)), begun with the eps^ of the step before and iterated
    `iterations` times; with none it is the explicit inversion. With n = len(grid) - 1 steps the
    NFE are iterations * n + 1, or n for the explicit one.
    """
    if iterations == 0:
        return ddim(predict, x, grid)
    eps = predict(x, grid[0].t)
    for here, there in itertools.pairwise(grid):
        start = x
        for _ in range(iterations):
            x = ddim_step(start, eps, here, there)
            eps = predict(x, there.t)
        x = ddim_step(start, eps, here, there)
    return x


def ddpm(
    predict: Predict,
    x: Tensor,
    grid: Sequence[Node],
    generators: Sequence[Generator],
    variance: str = "small",
) -> Tensor:
    """Ancestral sampling from noise to picture (DDPM alg. 2) on the grid's nodes, with row i's
    noise from generator i. The last step, from the first node to the picture, adds none."""
    for here, there in zip(grid, [*grid[1:], Node(-1, 1.0)], strict=True):
        eps = predict(x, here.t)
        x, log_variance = ancestral(x, eps, here.alpha_bar, there.alpha_bar, variance)
        if there.t >= 0:
            x = x + (log_variance / 2).exp() * normal(generators, x.shape[1:]).to(x)
    return x


def ancestral(
    x: Tensor,
    eps: Tensor,
    here: float,
    there: float,
    variance: str,
    clip: bool = False,
    interpolation: Tensor | None = None,
    floor: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Mean and log variance, like x, of p(x_there | x_here) (DDPM eq. 7 on any two levels).

    here, there: alpha_bar of the two. `variance`: "small" (the posterior's), "large" (beta), or
    "learned" between the two by the network's `interpolation` in [-1, 1] (improved DDPM eq. 15).
    `floor`: smallest posterior variance, where `there` is the picture and the posterior has none.
    """
    alpha = here / there
    x_0 = (x - math.sqrt(1 - here) * eps) / math.sqrt(here)
    if clip:
        x_0 = x_0.clamp(-1, 1)
    of_x_0 = math.sqrt(there) * (1 - alpha) / (1 - here)
    of_x = math.sqrt(alpha) * (1 - there) / (1 - here)
    small = math.log(max((1 - alpha) * (1 - there) / (1 - here), floor, 1e-20))
    large = math.log(1 - alpha) if variance == "learned" or there < 1 else small
    log_variance = torch.full_like(x, small if variance == "small" else large)
    if variance == "learned":
        assert interpolation is not None
        share = (interpolation + 1) / 2
        log_variance = share * large + (1 - share) * small
    return of_x_0 * x_0 + of_x * x, log_variance


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of noise, each row (N, …) as one vector; 0 gives a, 1 gives b.

    Where the two are parallel or opposite the arc isn't defined by them: parallel vectors go along
    the chord, opposite ones around through a fixed orthogonal direction. Always finite.
    """
    shape, u, v = a.shape, a.flatten(1).double(), b.flatten(1).double()
    length_u, length_v = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    unit_u, unit_v = u / length_u.clamp(min=1e-12), v / length_v.clamp(min=1e-12)
    # Angle by atan2 of difference and sum: exact where arccos loses half of its digits.
    angle = 2 * torch.atan2((unit_u - unit_v).norm(dim=1), (unit_u + unit_v).norm(dim=1))[:, None]
    arc = ((1 - share) * angle).sin() * u + (share * angle).sin() * v
    arc = arc / angle.sin().clamp(min=1e-12)
    # Opposite vectors: any orthogonal direction leads around.
    side = torch.roll(unit_u, 1, dims=1) * _alternating(u)
    side = side - (side * unit_u).sum(1, keepdim=True) * unit_u
    side = side / side.norm(dim=1, keepdim=True).clamp(min=1e-12)
    around = (share * angle).cos() * unit_u + (share * angle).sin() * side
    around = around * (length_u * (1 - share) + length_v * share)
    result = torch.where(angle > math.pi - 1e-6, around, arc)
    result = torch.where(angle < 1e-6, u + share * (v - u), result)
    return result.reshape(shape).to(a.dtype)


def _alternating(x: Tensor) -> Tensor:
    """+1, -1, +1 …: turns a rolled vector into one that isn't parallel to the original."""
    return 1.0 - 2.0 * (torch.arange(x.shape[1], device=x.device) % 2)
