"""Implicit solvers that were measured and not taken: see docs/solvers.md.

Both solve each encode step for where the decode step began, by a fixed point over its eps that is
begun by extrapolation in lambda and accelerated by Anderson mixing. With
u = x / signal, a step is u_there = u_here + a eps_here + b eps_there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from torch import Tensor

from pdae_cli.diffusion.solvers import Node, Predict

Weights = Callable[[Node, Node], tuple[float, float]]


def backward_ddim(here: Node, there: Node) -> tuple[float, float]:
    """The inverse of a DDIM step, whose eps is that of its noisier end."""
    return 0.0, there.sigma - here.sigma


def implicit(
    predict: Predict, x: Tensor, grid: Sequence[Node], weights: Weights, iterations: int
) -> Tensor:
    """Along the grid with `weights` (`trapezoid`: its own adjoint, so it decodes as well).
    NFE = iterations * steps + 1."""
    eps = predict(x, grid[0].t)
    history = [(grid[0].lam, eps)]
    for here, there in itertools.pairwise(grid):
        a, b = weights(here, there)
        known = there.signal * (x / here.signal + a * history[-1][1])
        eps = fixed_point(
            lambda e, known=known, b=b, there=there: predict(known + there.signal * b * e, there.t),
            extrapolated(history[-2:], there.lam),
            iterations,
        )
        x = known + there.signal * b * eps
        history.append((there.lam, eps))
    return x


def extrapolated(history: list[tuple[float, Tensor]], lam: float) -> Tensor:
    """eps at lam, linear through the last two."""
    if len(history) == 1:
        return history[0][1]
    (before, eps_before), (now, eps_now) = history
    return eps_now + (lam - now) / (now - before) * (eps_now - eps_before)


def fixed_point(f: Callable[[Tensor], Tensor], e: Tensor, iterations: int) -> Tensor:
    """e = f(e) with Anderson mixing of depth one: the secant of the last two residuals, row by row
    (Walker & Ni 2011)."""
    before = None
    for _ in range(iterations):
        g = f(e)
        residual = g - e
        mixed = g
        if before is not None:
            g_before, residual_before = before
            change = residual - residual_before
            share = _dot(residual, change) / _dot(change, change).clamp(min=1e-30)
            mixed = g - share * (g - g_before)
        before, e = (g, residual), mixed
    return e


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1).reshape(-1, *[1] * (a.ndim - 1))
