"""Solvers: functions (predict, x, grid) → x. They know no network, and no network knows them.

`predict(x, t)` returns the (guided) noise eps^ of the state x at the integer timestep t. A grid is
the list of nodes that the solver visits; from noise to picture it decodes, from picture to noise
it encodes. As in the authors' code, the picture is the state at timestep 0.

The ODE is d(x / signal) = eps^ dsigma (DDIM), the reverse SDE that of Song et al. (2021).
A new solver is one function here and one row in SOLVERS.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .grids import Node

Predict = Callable[[Tensor, int], Tensor]
Noise = Callable[[], Tensor]  # a fresh draw of N(0, I), like x
VARIANCES = ("small", "large", "learned")  # of ancestral sampling: see `ancestral`
PICTURE = Node(-1, 1.0)  # where stochastic solvers end, one step below timestep 0
CORRECTOR_SNR = 0.16  # of the Langevin step (Song et al. 2021, app. G)
TRUSTED_DEFECT = 0.2  # RMS on [-1, 1] beyond which a defect says nothing about its cure

# --- Deterministic: the ODE, both ways -----------------------------------------------------------


def ddim(predict: Predict, x: Tensor, grid: Sequence[Node]) -> Tensor:
    """DDIM (Song et al. 2020, eq. 12): Euler steps of the ODE. Order one; NFE = steps."""
    for here, there in itertools.pairwise(grid):
        eps = predict(x, here.t)
        # x / signal moves by eps (sigma_there - sigma_here).
        scale = there.signal / here.signal
        x = scale * x + there.signal * (there.sigma - here.sigma) * eps
    return x


def dpmpp(predict: Predict, x: Tensor, grid: Sequence[Node]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): exact but for x_0, which is taken as linear in
    lambda over two steps. Order two; NFE = steps."""
    before = None  # x_0 one step ago
    step_before = math.nan
    for here, there in itertools.pairwise(grid):
        x_0 = (x - here.noise * predict(x, here.t)) / here.signal
        step = there.lam - here.lam
        middle = x_0 if before is None else x_0 + step / (2 * step_before) * (x_0 - before)
        x = there.noise / here.noise * x - there.signal * math.expm1(-step) * middle
        before, step_before = x_0, step
    return x


def leapfrog(
    predict: Predict, x: Tensor, grid: Sequence[Node], eps: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Asynchronous leapfrog (Zhuang et al. 2021) of the state pair (x, eps): algebraically
    reversible, so that going back along the reversed grid with both states undoes it exactly.

    A step spans two intervals of the grid and evaluates at the node between them: half of it with
    eps as it is, half with eps reflected at the network's. Without `eps` it begins with the
    network's own. Returns both states. Order two; NFE = steps, and one for the beginning.
    """
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
    """x_T with decode(x_T) = x_0, by defect correction through the decode map.

    encode is an approximate inverse of decode; what it misses is added to what it is given:
    w ← w + (x_0 - decode(encode(w))), from w = x_0 on. Row by row: a picture within `tolerance`
    (half a step of 8 bits) is done; one that got worse goes back to its best x_T and stays there;
    one that is off by more than TRUSTED_DEFECT isn't tried. The last correction isn't measured.

    Returns x_T and whether each row's corrections went well, (N,) bool.
    """
    w, x_T = x_0, encode(x_0)
    best, smallest = x_T, torch.full_like(x_0[:, 0, 0, 0], math.inf)
    going = done = torch.zeros_like(smallest, dtype=torch.bool)
    for _ in range(corrections):
        defect = x_0 - decode(x_T)
        size = defect.flatten(1).abs().amax(1)
        better = size < smallest
        best, smallest = _where(better, x_T, best), torch.where(better, size, smallest)
        done = smallest < tolerance
        going = better & ~done & (defect.flatten(1).square().mean(1).sqrt() < TRUSTED_DEFECT)
        if not going.any():
            return best, done
        w = _where(going, w + defect, w)
        x_T = _where(going, encode(w), best)
    return x_T, going | done


def _where(rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Row by row, a or b. rows: (N,) bool."""
    return torch.where(rows.reshape(-1, *[1] * (a.ndim - 1)), a, b)


# --- Stochastic: from noise to picture -----------------------------------------------------------


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


def euler_maruyama(predict: Predict, x: Tensor, grid: Sequence[Node], noise: Noise) -> Tensor:
    """The reverse VP-SDE by Euler-Maruyama (Song et al. 2021, eq. 6). NFE = steps + 1."""
    for here, there in itertools.pairwise([*grid, PICTURE]):
        x, spread = _sde_step(x, predict(x, here.t), here, there)
        if there is not PICTURE:
            x = x + spread * noise()
    return x


def predictor_corrector(predict: Predict, x: Tensor, grid: Sequence[Node], noise: Noise) -> Tensor:
    """Each step of `euler_maruyama` followed by one of Langevin dynamics (Song et al. 2021, alg. 3
    and 5), whose length r = CORRECTOR_SNR fixes row by row. NFE = 2 steps + 1."""
    for here, there in itertools.pairwise([*grid, PICTURE]):
        x, spread = _sde_step(x, predict(x, here.t), here, there)
        if there is PICTURE:
            return x
        x = x + spread * noise()
        score, z = -predict(x, there.t) / there.noise, noise()
        ratio = (_norm(z) / _norm(score).clamp(min=1e-12)) * CORRECTOR_SNR
        length = 2 * here.alpha_bar / there.alpha_bar * ratio**2
        x = x + length * score + (2 * length).sqrt() * z
    return x


def _sde_step(x: Tensor, eps: Tensor, here: Node, there: Node) -> tuple[Tensor, float]:
    """Drift by x/2 + score over the integral of beta, and the root of that integral."""
    beta = math.log(there.alpha_bar / here.alpha_bar)
    return x + beta * (x / 2 - eps / here.noise), math.sqrt(beta)


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.ndim - 1))


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


# --- The table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Solver:
    """A row: how it is called, and what its grid needs."""

    solve: Callable[..., Any]
    kind: str  # "ode": (predict, x, grid) both ways; "pair": likewise with a second state; "sde":
    # (predict, x, grid, noise), from noise to picture only
    intervals: int = 1  # of the grid to a step
    title: str = ""


SOLVERS = {
    "ddim": Solver(ddim, "ode"),
    "dpmpp": Solver(dpmpp, "ode"),
    "leapfrog": Solver(leapfrog, "pair", intervals=2),
    "ddpm": Solver(ddpm, "sde"),
    "sde": Solver(euler_maruyama, "sde"),
    "pc": Solver(predictor_corrector, "sde"),
}
