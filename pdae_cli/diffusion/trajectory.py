"""Trajectories between noise and picture: the settings of `Sampling` on a model's schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Generator, Tensor

from ..errors import InputError, UsageError
from . import parity, solvers
from .grids import Node, decode_grid
from .noise import clone, normal
from .sampling import Sampling
from .schedule import Schedule

LATENT_SCHEDULE = Schedule("constant", 1000, beta_start=0.008)  # PDAE sec. 4.8
LATENT_STEPS = 50  # at least; they cost next to nothing


@dataclass(frozen=True)
class Inverted:
    """What encoding finds for N pictures."""

    x_T: Tensor | None = None
    eps_T: Tensor | None = None  # the second state, of a solver that has one
    converged: Tensor | None = None  # (N,) bool: whether corrections, where asked for, went well


Latents = Callable[[Tensor], Tensor]  # pictures (N, C, H, W) → what states are of


def unchanged(x_0: Tensor) -> Tensor:
    """Between pictures and what eps_theta is of, where that is pictures."""
    return x_0


class Watched:
    """A `predict` that knows whether its answers were finite. Asking it costs a small kernel; only
    `check`, at the end, waits for the device."""

    def __init__(self, predict: solvers.Predict) -> None:
        self.predict = predict
        self.asked: list[int] = []  # the timestep of each evaluation
        self.finite: list[Tensor] = []  # () bool

    def __call__(self, x: Tensor, t: int) -> Tensor:
        eps = self.predict(x, t)
        self.asked.append(t)
        self.finite.append(eps.isfinite().all())
        return eps

    def check(self, **results: Tensor | None) -> None:
        """Raise InputError that names where NaN or infinities first came up, if they did."""
        finite = torch.stack(self.finite).tolist()
        if not all(finite):
            first = finite.index(False)
            raise _not_finite(f"eps at evaluation {first + 1}, timestep {self.asked[first]},")
        check_finite(**results)


def check_finite(**tensors: Tensor | None) -> None:
    """Raise InputError that names a tensor with NaN or infinities."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            raise _not_finite(name)


def _not_finite(what: str) -> InputError:
    return InputError(f"{what} has numbers that aren't finite; use --dtype float32")


@dataclass(frozen=True)
class Trajectory:
    """How states go from noise to picture and back, whatever predicts their noise."""

    schedule: Schedule
    sampling: Sampling
    variance: str  # of ancestral sampling
    clip_sample: bool  # of the source's own sampler, where its procedure is followed
    latents: Latents = unchanged
    from_latents: Latents = unchanged  # the way back

    def __post_init__(self) -> None:
        if self.sampling.parity in parity.OF_PICTURES and self.latents is not unchanged:
            raise UsageError(
                f"parity {self.sampling.parity} clamps x_0 as pictures are, and these states are "
                "latents; take diffusers, or leave parity out"
            )

    @property
    def solver(self) -> solvers.Solver:
        return solvers.SOLVERS[self.sampling.solver]

    def to_noise(self, predict: solvers.Predict, x_0: Tensor) -> Inverted:
        """x_T of pictures. Where the solver only goes the other way, the default one finds it.

        Raises InputError where numbers stop being finite.
        """
        watched = Watched(predict)
        found = self._to_noise(watched, self.latents(x_0))
        watched.check(x_T=found.x_T, eps_T=found.eps_T)
        return found

    def _to_noise(self, predict: solvers.Predict, x_0: Tensor) -> Inverted:
        if self.sampling.parity is not None:
            return Inverted(self._follow(predict, x_0, encode=True))
        grid = self.grid()
        if self.solver.kind == "pair":
            return Inverted(*self.solver.solve(predict, x_0, grid[::-1]))
        solve = self.solver.solve if self.solver.kind == "ode" else solvers.dpmpp
        x_T, converged = solvers.corrected(
            lambda x: solve(predict, x, grid[::-1]),
            lambda x: solve(predict, x, grid),
            x_0,
            self.sampling.corrections,
        )
        return Inverted(x_T, None, converged if self.sampling.corrections else None)

    def to_picture(
        self,
        predict: solvers.Predict,
        x_T: Tensor,
        generators: Sequence[Generator],
        eps_T: Tensor | None = None,
    ) -> Tensor:
        """Pictures of x_T, and of eps_T where the solver has it; the generators, one a row, are
        for a stochastic solver's noise. Raises InputError where numbers stop being finite."""
        watched = Watched(predict)
        x_0 = self.from_latents(self._to_picture(watched, x_T, generators, eps_T))
        watched.check(x_0=x_0)
        return x_0

    def _to_picture(
        self,
        predict: solvers.Predict,
        x_T: Tensor,
        generators: Sequence[Generator],
        eps_T: Tensor | None,
    ) -> Tensor:
        if self.sampling.parity is not None:
            return self._follow(predict, x_T, encode=False)
        if self.solver.kind == "pair":
            return self.solver.solve(predict, x_T, self.grid(), eps_T)[0]
        if self.solver.kind == "ode":
            return self.solver.solve(predict, x_T, self.grid())
        solve = self.solver.solve
        if solve is solvers.ddpm:
            # A learned variance comes with the network's second half of channels, which a shifted
            # mean has no use for: the posterior's then.
            solve = partial(solve, variance="large" if self.variance == "large" else "small")
        own = [clone(one) for one in generators]  # so that a batch can be tried again
        return solve(predict, x_T, self.grid(), lambda: normal(own, x_T.shape[1:]).to(x_T))

    def grid(self) -> list[Node]:
        """The nodes that decoding visits, from noise to picture."""
        sampling, most = self.sampling, (self.schedule.timesteps - 1) // self.solver.intervals
        steps = min(sampling.inference_steps, most)
        return decode_grid(self.schedule, steps * self.solver.intervals, sampling.spacing)

    def timesteps(self) -> list[int]:
        """Every timestep at which a network may be asked, in rising order."""
        if self.sampling.parity is None:
            return [node.t for node in reversed(self.grid())]
        both = [*self._steps(encode=True), *self._steps(encode=False)]
        return sorted({step.t for step in both})

    def evaluations(self) -> tuple[int, int]:
        """Network evaluations (NFE) of encoding one picture, at most, and of decoding it."""
        asked: list[int] = []

        def predict(x: Tensor, t: int) -> Tensor:
            asked.append(t)
            return x

        once_each = replace(self.sampling, corrections=0)
        plain = Trajectory(self.schedule, once_each, self.variance, self.clip_sample)
        x = torch.zeros(1, 1, 1, 1)
        found = plain.to_noise(predict, x)
        once = len(asked)
        plain.to_picture(predict, x, [Generator()], found.eps_T)
        back = len(asked) - once
        return once + self.sampling.corrections * (once + back), back

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
    """Normalised z (N, D) that a latent DPM makes of noise z_T.

    Raises InputError where numbers stop being finite.
    """
    watched = Watched(predict)
    z = _solve_latent(watched, z_T, sampling)
    watched.check(z=z)
    return z


def _solve_latent(predict: solvers.Predict, z_T: Tensor, sampling: Sampling) -> Tensor:
    count = sampling.inference_steps
    if sampling.parity is None:
        grid = decode_grid(LATENT_SCHEDULE, max(count, LATENT_STEPS), "uniform")
        return solvers.ddim(predict, z_T, grid)
    clamped = sampling.parity == "pdae"
    steps = parity.steps(sampling.parity, LATENT_SCHEDULE, count, encode=False)
    start = z_T.clamp(-1, 1) if clamped else z_T
    return parity.ddim(predict, start, steps, clip=clamped, recompute=True)
