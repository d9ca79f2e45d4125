"""Solvers: functions (predict, x, grid) → x, a row each in SOLVERS, and the grids that they visit.

`predict(x, t)` returns the (guided) noise eps^ of the state x at the integer timestep t. From noise
to picture a grid decodes, the other way it encodes; the picture is the state at t = 0, as in the
authors' code. The ODE is d(x / signal) = eps^ dsigma (DDIM), the SDE that of Song et al. (2021).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import check_known
from .schedule import Level, Schedule, posterior

Predict = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]  # a fresh draw of N(0, I), like x
VARIANCES = ("small", "large", "learned")  # of ancestral sampling; ours takes no learned one
CORRECTOR_SNR = 0.16  # of the Langevin step (Song et al. 2021, app. G)
TRUSTED_DEFECT = 0.2  # RMS on [-1, 1] beyond which a defect says nothing about its cure


class Node:
    """A state that a solver visits: x = signal x_0 + noise eps at the timestep t."""

    def __init__(self, t: int, alpha_bar: float) -> None:
        self.t, self.alpha_bar, self.level = t, alpha_bar, Level.of(alpha_bar)
        self.signal, self.noise = self.level
        self.sigma = self.noise / self.signal  # noise in units of the signal
        # log(signal / noise), half the log-SNR (DPM-Solver's time)
        self.lam = -math.log(self.sigma) if self.sigma else math.inf


PICTURE = Node(-1, 1.0)  # where stochastic solvers end, one step below timestep 0

# A spacing is the coordinate, monotonic in t, in which nodes are even.
SPACINGS: dict[str, Callable[[Schedule], Tensor]] = {
    "uniform": lambda schedule: torch.arange(schedule.timesteps, dtype=torch.float64),
    "quadratic": lambda schedule: torch.arange(schedule.timesteps, dtype=torch.float64).sqrt(),
    "logsnr": lambda schedule: schedule.snr.log(),
    # Shorter steps around SNR = 1, where the content is decided: on DDPM's schedule, those at the
    # ends are 1.4 and 2.2 times as long.
    "asinh": lambda schedule: (schedule.snr.log() / 10).asinh(),
    "asinh5": lambda schedule: (schedule.snr.log() / 5).asinh(),
}


def decode_grid(schedule: Schedule, steps: int, spacing: str = "uniform") -> list[Node]:
    """steps + 1 nodes (at most T) from t = T-1 down to 0, even in the spacing's coordinate. Where
    two would coincide they move to larger t. Reversed, it is the grid that encodes."""
    check_known("spacing", spacing, SPACINGS)
    coordinate, last = SPACINGS[spacing](schedule), schedule.timesteps - 1
    steps, ends = min(steps, last), (coordinate[0].item(), coordinate[-1].item())
    wanted = torch.linspace(*ends, steps + 1, dtype=torch.float64)
    nearest = torch.stack([(coordinate - one).abs().argmin() for one in wanted])
    place = torch.arange(steps + 1)
    distinct = ((nearest - place).cummax(0).values + place).minimum(last - steps + place)
    return [Node(t, schedule.alpha_bar[t].item()) for t in reversed(distinct.tolist())]


def ddim(predict: Predict, x: Tensor, grid: Sequence[Node]) -> Tensor:
    """DDIM (Song et al. 2020, eq. 12): Euler steps of the ODE. Order one; NFE = steps."""
    for here, there in itertools.pairwise(grid):
        # x / signal moves by eps (sigma_there - sigma_here).
        step = there.signal * (there.sigma - here.sigma) * predict(x, here.t)
        x = there.signal / here.signal * x + step
    return x


def dpmpp(predict: Predict, x: Tensor, grid: Sequence[Node]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): exact but for x_0, which is taken as linear in
    lambda over two steps. Order two; NFE = steps."""
    before, step_before = None, math.nan  # x_0 and the length of the step before
    for here, there in itertools.pairwise(grid):
        x_0 = here.level.x_0(x, predict(x, here.t))
        step = there.lam - here.lam
        middle = x_0 if before is None else x_0 + step / (2 * step_before) * (x_0 - before)
        x = there.noise / here.noise * x - there.signal * math.expm1(-step) * middle
        before, step_before = x_0, step
    return x


def leapfrog(
    predict: Predict, x: Tensor, grid: Sequence[Node], eps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Asynchronous leapfrog (Zhuang et al. 2021) of the states x and eps, which the reversed grid
    undoes exactly. A step spans two intervals: the first half with eps as it is, the second with
    eps reflected at the network's answer between them. Without `eps` it begins with the network's
    own. Returns both states. Order two; NFE = steps, and one for the beginning."""
    eps = predict(x, grid[0].t) if eps is None else eps
    u = x / grid[0].signal
    for here, middle, there in zip(grid[:-2:2], grid[1::2], grid[2::2], strict=True):
        u = u + (middle.sigma - here.sigma) * eps
        eps = 2 * predict(middle.signal * u, middle.t) - eps
        u = u + (there.sigma - middle.sigma) * eps
    return grid[-1].signal * u, eps


def corrected(
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
    x_0: Tensor,
    corrections: int,
    tolerance: float = 1 / 255,
) -> tuple[Tensor, Tensor]:
    """x_T with decode(x_T) = x_0, by defect correction: w ← w + (x_0 - decode(encode(w))).

    Row by row: a picture within `tolerance` (half a step of 8 bits) is done; one that got worse
    goes back to its best x_T and stays there; one that is off by more than TRUSTED_DEFECT isn't
    tried. The last correction isn't measured. Returns x_T and whether each row went well, (N,).
    """

    def where(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.where(rows[:, None, None, None], a, b)

    w, x_T = x_0, encode(x_0)
    best, smallest = x_T, torch.full_like(x_0[:, 0, 0, 0], math.inf)
    going = done = torch.zeros_like(smallest, dtype=torch.bool)
    for _ in range(corrections):
        defect = x_0 - decode(x_T)
        size = defect.flatten(1).abs().amax(1)
        better = size < smallest
        best, smallest = where(better, x_T, best), torch.where(better, size, smallest)
        done = smallest < tolerance
        going = better & ~done & (defect.flatten(1).square().mean(1).sqrt() < TRUSTED_DEFECT)
        if not going.any():
            return best, done
        w = where(going, w + defect, w)
        x_T = where(going, encode(w), best)
    return x_T, going | done


def ddpm(
    predict: Predict, x: Tensor, grid: Sequence[Node], noise: Noise, variance: str = "small"
) -> Tensor:
    """Ancestral sampling (DDPM alg. 2) on the grid's nodes. The last step, from the first node to
    the picture, adds no noise. NFE = steps + 1."""
    for here, there in itertools.pairwise([*grid, PICTURE]):
        eps = predict(x, here.t)
        x, log_variance = ancestral(x, eps, here.alpha_bar, there.alpha_bar, variance)
        if there is not PICTURE:
            x = x + (log_variance / 2).exp() * noise()
    return x


def euler_maruyama(
    predict: Predict, x: Tensor, grid: Sequence[Node], noise: Noise, corrector: bool = False
) -> Tensor:
    """The reverse VP-SDE by Euler-Maruyama (Song et al. 2021, eq. 6): drift by x/2 + score over the
    integral of beta. With a `corrector` each step is followed by one of Langevin dynamics (alg. 3
    and 5), whose length r = CORRECTOR_SNR fixes row by row. NFE = steps + 1, or 2 steps + 1."""
    for here, there in itertools.pairwise([*grid, PICTURE]):
        beta = math.log(there.alpha_bar / here.alpha_bar)
        x = x + beta * (x / 2 - predict(x, here.t) / here.noise)
        if there is PICTURE:
            break
        x = x + math.sqrt(beta) * noise()
        if corrector:
            score, z = -predict(x, there.t) / there.noise, noise()
            of_z, of_score = (one.flatten(1).norm(dim=1)[:, None, None, None] for one in (z, score))
            ratio = (of_z / of_score.clamp(min=1e-12)) * CORRECTOR_SNR
            length = 2 * here.alpha_bar / there.alpha_bar * ratio**2
            x = x + length * score + (2 * length).sqrt() * z
    return x


def ancestral(
    x: Tensor, eps: Tensor, here: float, there: float, variance: str
) -> tuple[Tensor, Tensor]:
    """Mean and log variance, like x, of p(x_there | x_here) (DDPM eq. 11 on any two levels).

    here, there: alpha_bar of the two. `variance`: "small" (the posterior's) or "large" (beta).
    """
    of_x_0, of_x, small = posterior(here, there)
    log_variance = math.log(1 - here / there if variance == "large" else max(small, 1e-20))
    return of_x_0 * Level.of(here).x_0(x, eps) + of_x * x, torch.full_like(x, log_variance)


@dataclass(frozen=True)
class Solver:
    """How it is called: an "ode" by (predict, x, grid), both ways; a "pair" likewise with a second
    state; an "sde" by (predict, x, grid, noise), from noise to picture only."""

    solve: Callable[..., Any]
    kind: str
    intervals: int = 1  # of the grid to a step


SOLVERS = {
    "ddim": Solver(ddim, "ode"),
    "dpmpp": Solver(dpmpp, "ode"),
    "leapfrog": Solver(leapfrog, "pair", intervals=2),
    "ddpm": Solver(ddpm, "sde"),
    "sde": Solver(euler_maruyama, "sde"),
    "pc": Solver(partial(euler_maruyama, corrector=True), "sde"),
}
