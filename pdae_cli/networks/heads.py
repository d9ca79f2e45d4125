"""The two heads of a model in the field's units: noise and gradient, from one pass.

Networks output what trains well, F and F': eps_theta = a F + b x_t and G_psi = c F', with a, b, c
from alpha_bar_t and the model's prediction.

prediction "eps": the outputs are eps_theta and G_psi themselves (DDPM, PDAE).
prediction "v": eps_theta = sqrt(alpha_bar) F + sqrt(1 - alpha_bar) x_t (Salimans & Ho 2022) and
    G_psi = alpha_bar^(1/4) F'. At large t, where eps is x_t but for a hundredth, an error of F
    counts only by that hundredth; predicted directly, the ODE multiplies it by up to 157, which is
    sqrt((1 - alpha_bar) / alpha_bar) at t = 999 of the linear schedule. G_psi's factor
    c is the root of F's, between no error at large t and no learning there: PDAE's objective
    (eq. 10) squares shift_t c F', so that its curvature in F' is 2 lambda_t (shift_t c)^2, with
    `Schedule.shift` nearly 1 at large t.
prediction "x_0": eps_theta = (x_t - sqrt(alpha_bar) F) / sqrt(1 - alpha_bar); G_psi is F' itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import check_known
from .gradient import GradientEstimator
from .unet import Half, UNet, adagn

PREDICTIONS = ("eps", "v", "x_0")
MOST_PREPARED = 100  # timesteps: a thousand of a large model's would take gigabytes

Outputs = tuple[Tensor, list[Tensor]]  # F, and F' for each z; or eps_theta, and G_psi for each


@dataclass(frozen=True)
class Prepared:
    """What timesteps and zs make of the networks' blocks (`Half.by_time`, `.by_z`): of eps_theta's
    input half, of its output half, and of G_psi's for each z."""

    by_time: dict[int, list[Tensor]]
    by_z: list[Tensor | None]


def _joined(by_time: Sequence[Tensor], by_z: Sequence[Tensor | None]) -> list[Tensor]:
    """Modulations of eps_theta's two halves, and of G_psi's for each z."""
    into, out, *guiding = by_time
    return [adagn(t, z) for t, z in zip((into, out, *guiding * (len(by_z) - 2)), by_z, strict=True)]


class Heads(nn.Module):
    """eps_theta(x_t, t) and G_psi(x_t, z, t) over one pass through the shared input half."""

    def __init__(
        self, dpm: UNet, gradient: GradientEstimator | None, alpha_bar: Tensor, prediction: str
    ) -> None:
        """alpha_bar: (T,) float64, where the networks are."""
        super().__init__()
        check_known("prediction", prediction, PREDICTIONS)
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
        alpha_bar = self.alpha_bar[t.to(self.alpha_bar.device)].reshape(-1, 1, 1, 1)
        outputs = self.run(x_t, *_joined(self._by_time(t), self._by_z(zs)))
        return self._scaled(x_t, outputs, alpha_bar)

    def prepare(self, timesteps: Sequence[int], zs: Sequence[Tensor]) -> Prepared:
        """Bring timesteps and zs, each (N, D), or (1, D) for all pictures alike, to all blocks, for
        `at`: every other timestep is brought when it comes."""
        known = sorted(set(timesteps))[:MOST_PREPARED]
        times = torch.tensor(known, device=self.alpha_bar.device) if known else None
        by_time = [] if times is None else self._by_time(times)
        rows = {t: [part[row : row + 1] for part in by_time] for row, t in enumerate(known)}
        return Prepared(rows, self._by_z(zs))

    def at(self, x_t: Tensor, t: int, prepared: Prepared, guided: bool = True) -> Outputs:
        """`forward` at one timestep, for all pictures the same. Not `guided`: eps alone, without a
        pass through G_psi."""
        by_time = prepared.by_time.get(t)
        if by_time is None:
            by_time = self._by_time(torch.full((1,), t, device=x_t.device))
        by_z = prepared.by_z if guided else prepared.by_z[:2]
        outputs = (self.compiled or self.run)(x_t, *_joined(by_time, by_z))
        return self._scaled(x_t, outputs, self.levels[t])

    def _by_time(self, t: Tensor) -> list[Tensor]:
        """What t (T,) makes of the blocks of each half: eps_theta's two, and G_psi's."""
        time = self.dpm.time(t)
        halves: list[Half] = [self.dpm.input, self.dpm.output]
        halves += [] if self.gradient is None else [self.gradient.output]
        return [half.by_time(time) for half in halves]

    def _by_z(self, zs: Sequence[Tensor]) -> list[Tensor | None]:
        """What zs make of the blocks of eps_theta's halves, and of G_psi's for each."""
        if self.dpm.cfg.z_channels:
            (z,) = zs
            return [self.dpm.input.by_z(z), self.dpm.output.by_z(z)]
        if self.gradient is None:
            return [None, None]
        return [None, None, *(self.gradient.by_z(z) for z in zs)]

    def run(self, x_t: Tensor, into: Tensor, out: Tensor, *guiding: Tensor) -> Outputs:
        """Return the networks' outputs, F of x_t and an F' for each of `guiding`, given the
        modulation of the halves' blocks."""
        features = self.dpm.input(x_t, into)
        outputs = [self.dpm.output(features, out)[:, : x_t.shape[1]]]
        if self.gradient is not None:
            outputs += [self.gradient.output(features, modulation) for modulation in guiding]
        eps, *gradients = (part.float().contiguous() for part in outputs)
        return eps, gradients

    def compile(self) -> None:  # type: ignore[override]
        """Have `at` run compiled code, for each shape of x_t and unguided another; t is a tensor to
        it, and alpha_bar unseen, so no step compiles anew. On CUDA the next call overwrites what it
        returns; `_scaled` makes new tensors of that. On a CPU inference lays the weights out once,
        as oneDNN takes them: they must not change any more."""
        device = self.dpm.input.conv.weight.device.type
        mode = "reduce-overhead" if device == "cuda" else "default"
        compiled = torch.compile(self.run, mode=mode, dynamic=False)
        frozen = torch._inductor.config.patch(freezing=device == "cpu")
        self.compiled = frozen(compiled)  # not as an option of compile: dynamo doesn't see those

    def _scaled(self, x_t: Tensor, outputs: Outputs, alpha_bar: Any) -> Outputs:
        """eps_theta = a F + b x_t and G_psi = c F'. alpha_bar: a number, or (N, 1, 1, 1)."""
        scales: tuple[Any, Any, Any] = (1.0, 0.0, 1.0)
        if self.prediction == "v":
            scales = alpha_bar**0.5, (1 - alpha_bar) ** 0.5, alpha_bar**0.25
        elif self.prediction == "x_0":
            sigma = (1 - alpha_bar) ** 0.5
            scales = -(alpha_bar**0.5) / sigma, 1 / sigma, 1.0
        # Not alpha_bar itself: at small t a float32 leaves 1 - alpha_bar three or four digits.
        a, b, c = (one.to(x_t) if isinstance(one, Tensor) else one for one in scales)
        eps, gradients = outputs
        return a * eps + b * x_t, [c * gradient for gradient in gradients]
