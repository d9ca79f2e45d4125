"""The two heads of a model in the field's units: noise and gradient, from one pass.

Networks output what trains well, F and F': eps_theta = a F + b x_t and G_psi = c F', with a, b, c
from alpha_bar_t and the model's prediction.

prediction "eps": the outputs are eps_theta and G_psi themselves (DDPM, PDAE).
prediction "v": eps_theta = sqrt(alpha_bar) F + sqrt(1 - alpha_bar) x_t (Salimans & Ho 2022) and
    G_psi = alpha_bar^(1/4) F'. At large t, where eps is x_t but for a hundredth, an error of F
    counts only by that hundredth; predicted directly, the ODE multiplies it by up to 158. G_psi
    takes the root of that factor, between no error at large t and no learning there: the
    objective's curvature in F' is lambda_t times the factor squared.
prediction "x_0": eps_theta = (x_t - sqrt(alpha_bar) F) / sqrt(1 - alpha_bar); G_psi is F' itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .gradient import GradientEstimator
from .unet import UNet

PREDICTIONS = ("eps", "v", "x_0")

Outputs = tuple[Tensor, list[Tensor]]  # F, and F' for each z; or eps_theta, and G_psi for each


class Heads(nn.Module):
    """eps_theta(x_t, t) and G_psi(x_t, z, t) over one pass through the shared input half."""

    def __init__(
        self, dpm: UNet, gradient: GradientEstimator | None, alpha_bar: Tensor, prediction: str
    ) -> None:
        """alpha_bar: (T,) float64, where the networks are."""
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {prediction!r}; known: {', '.join(PREDICTIONS)}")
        self.dpm, self.gradient, self.prediction = dpm, gradient, prediction
        self.alpha_bar = alpha_bar
        self.compiled: Callable[..., Outputs] | None = None

    @cached_property
    def levels(self) -> list[float]:
        """alpha_bar as numbers; when they are first asked for, since a meta device has none."""
        return self.alpha_bar.tolist()

    def forward(self, x_t: Tensor, t: Tensor, *zs: Tensor) -> Outputs:
        """x_t: (N, C, H, W); t: (N,); each z: (N, D). Returns eps and a gradient for each z, all
        float32 like x_t; none where eps_theta itself takes the only z (Diff-AE)."""
        alpha_bar = self.alpha_bar[t.to(self.alpha_bar.device)].to(x_t).reshape(-1, 1, 1, 1)
        return self._scaled(x_t, self.run(x_t, t, *zs), alpha_bar)

    def at(self, x_t: Tensor, t: int, zs: Sequence[Tensor], guided: bool = True) -> Outputs:
        """`forward` at one timestep, for all pictures the same; each z: (N, D), or (1, D) likewise.
        Not `guided`: eps alone, without a pass through G_psi."""
        times = torch.full((1,), t, device=x_t.device)
        taken = zs if guided or self.dpm.cfg.z_channels else ()
        return self._scaled(x_t, (self.compiled or self.run)(x_t, times, *taken), self.levels[t])

    def run(self, x_t: Tensor, t: Tensor, *zs: Tensor) -> Outputs:
        """Return the networks' outputs: F of x_t at t, (N,) or (1,), and F' for each z."""
        (own,) = zs if self.dpm.cfg.z_channels else (None,)
        features, time = self.dpm.features(x_t, t, own)
        outputs = [self.dpm.output(features, time, own)[:, : x_t.shape[1]]]
        if self.gradient is not None:
            outputs += [self.gradient(features, time, z) for z in zs]
        eps, *gradients = (part.float().contiguous() for part in outputs)
        return eps, gradients

    def compile(self) -> None:  # type: ignore[override]
        """Have `at` run compiled code, for each shape of x_t and unguided another; t is a tensor to
        it, and alpha_bar unseen, so no step compiles anew. On CUDA the next call overwrites what it
        returns; `_scaled` makes new tensors of that."""
        on_cuda = self.dpm.input.conv.weight.device.type == "cuda"
        mode = "reduce-overhead" if on_cuda else "default"
        self.compiled = torch.compile(self.run, mode=mode, dynamic=False)

    def _scaled(self, x_t: Tensor, outputs: Outputs, alpha_bar: Any) -> Outputs:
        """eps_theta = a F + b x_t and G_psi = c F'. alpha_bar: a number, or (N, 1, 1, 1)."""
        a, b, c = 1.0, 0.0, 1.0
        if self.prediction == "v":
            a, b, c = alpha_bar**0.5, (1 - alpha_bar) ** 0.5, alpha_bar**0.25
        elif self.prediction == "x_0":
            sigma = (1 - alpha_bar) ** 0.5
            a, b = -(alpha_bar**0.5) / sigma, 1 / sigma
        eps, gradients = outputs
        return a * eps + b * x_t, [c * gradient for gradient in gradients]
