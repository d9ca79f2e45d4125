"""The two heads of a model in the field's units: noise and gradient, from one pass.

Networks output what trains well; this is where their outputs F and F' become eps_theta and G_psi:
eps_theta = a F + b x_t and G_psi = c F', with a, b, c from alpha_bar_t and the model's prediction.

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
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..diffusion.schedule import Schedule, gather
from .blocks import Modulation
from .gradient import GradientEstimator
from .unet import UNet

PREDICTIONS = ("eps", "v", "x_0")

Outputs = tuple[Tensor, list[Tensor]]  # F, and F' for each z


class Modulations(NamedTuple):
    """What t and z do to each half of the networks in one evaluation."""

    input: Modulation
    output: Modulation
    gradients: list[Modulation]  # G_psi's, one for each z


@dataclass(frozen=True)
class Conditions:
    """All that evaluations need beside x_t: what t does to the networks, and what z does after."""

    time: list[Modulation]  # of the input half, the output half and G_psi's, a row each timestep
    own_z: list[Modulation | None]  # of the input and the output half, where eps_theta takes z
    gradient_z: list[Modulation]  # of G_psi's output half, for each z: (N, C)
    rows: dict[int, tuple[int, float]] = field(default_factory=dict)  # t → row of `time`, alpha_bar

    def modulations(self, row: int | None = None, guided: bool = True) -> Modulations:
        """For one timestep of all pictures, or (None) each picture's own."""
        time = self.time if row is None else [part.row(row) for part in self.time]
        gradients = [time[2].then(z) for z in self.gradient_z] if guided else []
        return Modulations(time[0].then(self.own_z[0]), time[1].then(self.own_z[1]), gradients)


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
        self.compiled: Callable[[Tensor, Modulations], Outputs] | None = None

    def forward(self, x_t: Tensor, t: Tensor, *zs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x_t: (N, C, H, W); t: (N,); each z: (N, D). Returns eps and a gradient for each z, all
        float32 like x_t. Where eps_theta itself takes z (Diff-AE), it takes the only one, and there
        are no gradients."""
        outputs = self.run(x_t, self._conditions(t, zs).modulations())
        return self._scaled(x_t, outputs, gather(self.schedule.alpha_bar, t, x_t))

    def prepare(self, timesteps: Sequence[int], *zs: Tensor) -> Conditions:
        """Compute once for a whole trajectory what its evaluations share; each z: (N, D)."""
        t = torch.tensor(timesteps, device=self.dpm.input.conv.weight.device)
        alpha_bar = self.schedule.alpha_bar.tolist()
        rows = {step: (row, alpha_bar[step]) for row, step in enumerate(timesteps)}
        return replace(self._conditions(t, zs), rows=rows)

    def at(
        self, x_t: Tensor, t: int, conditions: Conditions, guided: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """`forward` at one of the prepared timesteps, for all pictures the same. Not `guided`: eps
        alone, without a pass through G_psi."""
        row, alpha_bar = conditions.rows[t]
        outputs = (self.compiled or self.run)(x_t, conditions.modulations(row, guided))
        return self._scaled(x_t, outputs, alpha_bar)

    def run(self, x_t: Tensor, modulations: Modulations) -> Outputs:
        """What of an evaluation depends on x_t: the networks' outputs F, and F' for each z."""
        features = self.dpm.input.run(x_t, modulations.input)
        output = self.dpm.output.run(features, modulations.output)[:, : x_t.shape[1]]
        outputs = [output]
        if self.gradient is not None:
            half = self.gradient.output
            outputs += [half.run(features, part) for part in modulations.gradients]
        eps, *gradients = (part.float().contiguous() for part in outputs)
        return eps, gradients

    def compile(self) -> None:  # type: ignore[override]
        """Have `at` run compiled code: one compilation for each shape of x_t, and another unguided.

        t and alpha_bar aren't seen by the compiler, so no step compiles anew. On CUDA each shape is
        one CUDA graph. What that returns is overwritten by its next call; `_scaled` makes new
        tensors of it, so that whoever calls `at` needn't know.
        """
        on_cuda = self.dpm.input.conv.weight.device.type == "cuda"
        mode = "reduce-overhead" if on_cuda else "default"
        self.compiled = torch.compile(self.run, mode=mode, dynamic=False)

    def _conditions(self, t: Tensor, zs: Sequence[Tensor]) -> Conditions:
        dpm, gradient = self.dpm, self.gradient
        embedded = dpm.embedded(t)
        (z,) = zs if dpm.cfg.z_channels else (None,)
        halves = [dpm.input, dpm.output] + ([gradient.output] if gradient else [])
        return Conditions(
            [half.by_time(embedded) for half in halves],
            [half.by_z(z) for half in (dpm.input, dpm.output)],
            [gradient.by_z(z) for z in zs] if gradient else [],
        )

    def _scaled(self, x_t: Tensor, outputs: Outputs, alpha_bar: Any) -> tuple[Tensor, list[Tensor]]:
        """eps_theta = a F + b x_t and G_psi = c F'. alpha_bar: a number, or (N, 1, 1, 1)."""
        a, b, c = self._factors(alpha_bar)
        return a * outputs[0] + b * x_t, [c * output for output in outputs[1]]

    def _factors(self, alpha_bar: Any) -> tuple[Any, Any, Any]:
        if self.prediction == "v":
            return alpha_bar**0.5, (1 - alpha_bar) ** 0.5, alpha_bar**0.25
        if self.prediction == "x_0":
            sigma = (1 - alpha_bar) ** 0.5
            return -(alpha_bar**0.5) / sigma, 1 / sigma, 1.0
        return 1.0, 0.0, 1.0
