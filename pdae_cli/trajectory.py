"""Trajectories between noise and picture: the settings of `Sampling` on a model's schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from . import parity, solvers
from .sampling import Sampling
from .schedule import Schedule

LATENT_SCHEDULE = Schedule("constant", 1000, beta_start=0.008)  # PDAE sec. 4.8
LATENT_STEPS = 50  # at least; they cost next to nothing


@dataclass(frozen=True)
class Trajectory:
    """How states go from noise to picture and back, whatever predicts their noise."""

    schedule: Schedule
    sampling: Sampling
    variance: str  # of ancestral sampling
    clip_sample: bool  # of the source's own sampler, where its procedure is followed

    def to_noise(self, predict: solvers.Predict, x_0: Tensor) -> Tensor:
        """x_T of pictures."""
        if self.sampling.parity is not None:
            return self._follow(predict, x_0, encode=True)
        return solvers.ddim_inverse(predict, x_0, self.grid()[::-1], self.sampling.iterations)

    def to_picture(
        self, predict: solvers.Predict, x_T: Tensor, generators: Sequence[Generator]
    ) -> Tensor:
        """Pictures of x_T; the generators, one a row, are for ancestral noise."""
        if self.sampling.parity is not None:
            return self._follow(predict, x_T, encode=False)
        if self.sampling.solver == "ddpm":
            # A learned variance comes with the network's second half of channels, which a shifted
            # mean has no use for: the posterior's then.
            variance = "large" if self.variance == "large" else "small"
            return solvers.ddpm(predict, x_T, self.grid(), generators, variance)
        return solvers.ddim(predict, x_T, self.grid())

    def grid(self) -> list[solvers.Node]:
        """The nodes that decoding visits, from noise to picture."""
        sampling = self.sampling
        return solvers.decode_grid(self.schedule, sampling.inference_steps, sampling.spacing)

    def evaluations(self) -> tuple[int, int]:
        """Network evaluations (NFE) of encoding and of decoding one picture."""
        if self.sampling.parity is not None:
            return len(self._steps(encode=True)), len(self._steps(encode=False))
        steps, iterations = len(self.grid()) - 1, self.sampling.iterations
        to_noise = iterations * steps + 1 if iterations else steps
        return to_noise, steps + (self.sampling.solver == "ddpm")

    def unguided_below(self) -> int:
        """The timestep below which samples are left to eps_theta alone."""
        if self.sampling.parity is None:
            return math.ceil(parity.UNGUIDED_SHARE * self.schedule.timesteps)
        return parity.guide_until(self._steps(encode=False))

    def _follow(self, predict: solvers.Predict, x: Tensor, encode: bool) -> Tensor:
        """DDIM as another program does it."""
        theirs = self.sampling.parity == "diffusers"
        clip = self.clip_sample if theirs else True
        return parity.ddim(predict, x, self._steps(encode), clip, recompute=not theirs)

    def _steps(self, encode: bool) -> list[parity.Step]:
        sampling = self.sampling
        program, count = str(sampling.parity), sampling.inference_steps
        return parity.steps(program, self.schedule, count, encode)


def solve_latent(predict: solvers.Predict, z_T: Tensor, sampling: Sampling) -> Tensor:
    """Normalised z (N, D) that a latent DPM makes of noise z_T."""
    count = sampling.inference_steps
    if sampling.parity is None:
        grid = solvers.decode_grid(LATENT_SCHEDULE, max(count, LATENT_STEPS), "uniform")
        return solvers.ddim(predict, z_T, grid)
    clamped = sampling.parity == "pdae"
    steps = parity.steps(sampling.parity, LATENT_SCHEDULE, count, encode=False)
    start = z_T.clamp(-1, 1) if clamped else z_T
    return parity.ddim(predict, start, steps, clip=clamped, recompute=True)
