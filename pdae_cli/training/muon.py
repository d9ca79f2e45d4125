"""Muon (Jordan et al. 2024): steps whose singular values are all alike.

With Adam's, z falls into a few directions early on, with these far less (docs/results.md, "By which
steps z is learnt").
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of a Newton-Schulz step: Jordan's, steepest at 0
STEPS = 5
MOMENTUM = 0.95
RMS = 0.2  # of a step at learning rate 1, as Adam's usually have (Liu et al. 2025, sec. 2.2)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return about U V^T of matrix = U S V^T, (M, N), M, N >= 1: a singular value s above 1/650 of
    |S|, the root of the sum of all squares, comes to .68 … 1.21, a smaller one to 485 s / |S| at
    most. Where many are alike, |S| is far above the largest. Zero stays zero.

    Newton-Schulz steps X ← (a + b XX^T + c (XX^T)^2) X. All X are polynomials of the first XX^T
    times the first X, so that the long side is met twice, not in every step.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalised(matrix.T).T
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm().clamp(min=1e-20)
    gram = x @ x.T
    product = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(STEPS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product, gram = factor @ product, factor @ gram @ factor
    return product @ x


class Muon(torch.optim.Optimizer):
    """Step along the orthogonalised momentum (Nesterov's) of weights of two and more dimensions,
    each as the matrix (C_out, rest), and as Adam with all others; one learning rate fits both."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        every = list(parameters)
        self.adam = torch.optim.Adam([p for p in every if p.ndim < 2], lr=lr, fused=True)
        super().__init__([p for p in every if p.ndim > 1], {"lr": lr})
        self.param_groups += self.adam.param_groups  # the same, for who sets the learning rate
        self.adam.state = self.state

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take a step along the gradients. A parameter without one stays."""
        self.adam.step()
        matrices = self.param_groups[0]
        for p in matrices["params"]:
            if p.grad is None:
                continue
            if p not in self.state:
                self.state[p] = {"exp_avg": torch.zeros_like(p)}
            average = self.state[p]["exp_avg"].lerp_(p.grad, 1 - MOMENTUM)
            direction = orthogonalised(p.grad.lerp(average, MOMENTUM).flatten(1))
            size = matrices["lr"] * RMS * max(direction.shape) ** 0.5
            p.sub_(direction.reshape(p.shape), alpha=size)


def optimizer_of(kind: str, parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Make Adam or Muon ("adam", "muon")."""
    if kind == "muon":
        return Muon(parameters, lr)
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def moments(muon: bool, parameter: Tensor) -> tuple[str, ...]:
    """Name the averages of gradients that are kept of a parameter, each of its shape."""
    return ("exp_avg",) if muon and parameter.ndim > 1 else ("exp_avg", "exp_avg_sq")
