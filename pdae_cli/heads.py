"""The two heads of a model in the field's units: noise and gradient, from one pass.

Networks output what trains well; this is where their output becomes eps_theta and G_psi.

prediction "eps": the outputs are eps_theta and G_psi themselves (DDPM, PDAE).
prediction "v": eps_theta = sqrt(alpha_bar) F + sqrt(1 - alpha_bar) x_t (Salimans & Ho 2022) and
    G_psi = alpha_bar^(1/4) F'. At large t, where eps is x_t but for a hundredth, an error of F
    counts only by that hundredth; predicted directly, the ODE multiplies it by up to 158. G_psi
    takes the root of that factor, between no error at large t and no learning there: the
    objective's curvature in F' is lambda_t times the factor squared.
prediction "x_0": eps_theta = (x_t - sqrt(alpha_bar) F) / sqrt(1 - alpha_bar); G_psi is F' itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .networks.gradient import GradientEstimator
from .networks.unet import UNet
from .schedule import Schedule, gather

PREDICTIONS = ("eps", "v", "x_0")


class Heads(nn.Module):
    """eps_theta(x_t, t) and G_psi(x_t, z, t) over one pass through the shared input half."""

    def __init__(
        self,
        dpm: UNet,
        gradient: GradientEstimator | None,
        schedule: Schedule,
        prediction: str,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction {prediction!r}; known: {', '.join(PREDICTIONS)}")
        self.dpm, self.gradient, self.schedule = dpm, gradient, schedule
        self.prediction = prediction

    def forward(self, x_t: Tensor, t: Tensor, *zs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x_t: (N, C, H, W); t: (N,); each z: (N, D). Returns eps and a gradient for each z, all
        float32 like x_t. A frozen eps_theta isn't differentiated. Where eps_theta itself takes z
        (Diff-AE), it takes the only one, and there are no gradients."""
        frozen = not any(parameter.requires_grad for parameter in self.dpm.parameters())
        (z_theta,) = zs if self.dpm.cfg.z_channels else (None,)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features, time = self.dpm.features(x_t, t, z_theta)
            output = self.dpm.output(features, time, z_theta)[:, : x_t.shape[1]].float()
            eps = self._eps(output, x_t, t)
        if self.gradient is None:
            return eps, []
        return eps, [self._gradient(features, time, t, z) for z in zs]

    def _eps(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.prediction == "eps":
            return output
        alpha_bar = gather(self.schedule.alpha_bar, t, x_t)
        if self.prediction == "x_0":
            return (x_t - alpha_bar.sqrt() * output) / (1 - alpha_bar).sqrt()
        return alpha_bar.sqrt() * output + (1 - alpha_bar).sqrt() * x_t

    def _gradient(self, features: list[Tensor], time: Tensor, t: Tensor, z: Tensor) -> Tensor:
        assert self.gradient is not None
        output = self.gradient(features, time, z).float()
        if self.prediction != "v":
            return output
        return gather(self.schedule.alpha_bar, t, output) ** 0.25 * output
