"""Trajectories between noise and picture: their settings, which codes record, on a schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from numbers import Integral, Real
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from ..errors import InputError, Range, UsageError, check_known, check_ranges
from . import parity
from .noise import clone, normal
from .schedule import Schedule
from .solvers import SOLVERS, SPACINGS, Node, Predict, Solver, corrected, ddim, ddpm, decode_grid

# Measured in docs/solvers.md. They say all of it: codes, and inpainting, bring their own settings.
PRESETS: dict[str, dict[str, Any]] = {
    name: {
        "inference_steps": steps,
        "solver": solver,
        "spacing": spacing,
        "corrections": 0,
        "parity": None,
    }
    for name, solver, spacing, steps in (
        ("default", "dpmpp", "asinh5", 20),  # 40 NFE both ways
        ("fast", "dpmpp", "asinh5", 10),  # 20 NFE, nearer than the authors' 1,099
        # Both give every 8-bit value back, in codes of twice the size.
        ("exact", "leapfrog", "asinh", 18),  # 39 NFE, the nearest edits too
        ("archival", "leapfrog", "asinh5", 9),  # 21 NFE
    )
}
LATENT_SCHEDULE = Schedule("constant", 1000, beta_start=0.008)  # PDAE sec. 4.8
LATENT_STEPS = 50  # at least; they cost next to nothing
Timestep = Annotated[int, Range(-1, 100_000)]  # -1: before all of them
NOT_FINITE = "has numbers that aren't finite; use --dtype float32"


@dataclass(frozen=True)
class Sampling:
    """How trajectories are solved. Codes record it, and are decoded as they were encoded."""

    inference_steps: Annotated[int, Range(1, 1000)] = 20  # solver steps, each way
    solver: str = "dpmpp"  # see solvers.SOLVERS
    spacing: str = "asinh5"  # of the time grid: see solvers.SPACINGS
    corrections: Annotated[int, Range(0, 20)] = 0  # of encoding: see solvers.corrected
    guidance: Annotated[float, Range(-1_000_000, 1_000_000)] = 1.0  # w: how much of G_psi is added
    guide_from: Timestep | None = None  # guide only at timesteps t ≤ this; None: from the start
    guide_until: Timestep | None = None  # … and t ≥ this; None: to the end, of samples for 70 %
    parity: str | None = None  # follow another program's procedure: see parity.PROGRAMS

    def __post_init__(self) -> None:
        check_known("solver", self.solver, SOLVERS, UsageError)
        check_known("spacing", self.spacing, SPACINGS, UsageError)
        if self.parity is not None:
            check_known("parity", self.parity, parity.PROGRAMS, UsageError)
        own = (self.solver, self.spacing, self.corrections) != ("dpmpp", "asinh5", 0)
        if self.parity is not None and own:
            theirs = "parity is DDIM on the other program's own time grid"
            raise UsageError(f"{theirs}; leave solver, spacing and corrections out")
        for name in ("inference_steps", "corrections", "guide_from", "guide_until"):
            if not isinstance(value := vars(self)[name], Integral | None):
                raise UsageError(f"{name} must be a whole number, not {value!r}")
            if value is not None:
                object.__setattr__(self, name, int(value))  # NumPy's, say, which no record can hold
        guidance: Any = self.guidance
        if not isinstance(guidance, Real):
            raise UsageError(f"guidance must be a number, not {guidance!r}")
        object.__setattr__(self, "guidance", float(guidance))
        check_ranges(self, UsageError)
        first, last = self.guide_from, self.guide_until
        if first is not None and last is not None and first < last:
            why = f"no timestep is at most {first} and at least {last}, so G_psi would never guide"
            raise UsageError(f"{why}; change guide_from or guide_until")
        if self.corrections and SOLVERS[self.solver].kind != "ode":
            why = "is exact without" if SOLVERS[self.solver].kind == "pair" else "decodes by chance"
            raise UsageError(f"{self.solver} {why}; leave corrections out")

    def guides(self, t: int) -> bool:
        """Whether G_psi takes part at timestep t (PDAE fig. 3)."""
        before = self.guide_from is not None and t > self.guide_from
        return self.guidance != 0 and not before and t >= (self.guide_until or 0)

    def same_way(self, other: Sampling) -> bool:
        """Whether the other visits the same states: all but corrections, which only encode."""
        return (self.record() | {"corrections": 0}) == (other.record() | {"corrections": 0})

    @property
    def guides_plainly(self) -> bool:
        """Whether guidance is at its default: all of G_psi, all the way."""
        return (self.guidance, self.guide_from, self.guide_until or 0) == (1.0, None, 0)

    def record(self) -> dict[str, Any]:
        """The settings as codes record them: guided to the end is guided until 0."""
        return asdict(self) | {"guide_until": self.guide_until or 0}

    def changed(self, changes: dict[str, Any]) -> Sampling:
        """Change some fields. Raises UsageError for a field that doesn't exist."""
        if unknown := set(changes) - set(asdict(self)):
            raise UsageError(f"unknown sampling options: {', '.join(sorted(unknown))}")
        return replace(self, **changes)


def settings(given: object, changes: dict[str, Any]) -> Sampling:
    """Return the Sampling given, or the default, with changes. Raises UsageError for others."""
    if not isinstance(given, Sampling | None):
        raise UsageError(f"settings are given by name, or as a pdae_cli.Sampling, not {given!r}")
    return (given or Sampling()).changed(changes)


def to_decode(
    recorded: dict[str, Any], changes: dict[str, Any], instead: Sampling | None = None
) -> Sampling:
    """Return how codes are decoded that record such settings, or are decoded by others `instead`,
    with changes. Corrections only encode; another program's procedure has its own solver and
    spacing, so that what codes record of either doesn't stand against the other."""
    if instead is not None:
        return settings(instead, changes)
    left = {"corrections"}
    if changes.get("parity"):
        left |= {"solver", "spacing"}
    elif {"solver", "spacing"} & set(changes):
        left |= {"parity"}
    kept = {name: value for name, value in recorded.items() if name not in left}
    return Sampling().changed(kept | changes | {"corrections": 0})


@dataclass(frozen=True)
class Inverted:
    """What encoding finds for N pictures."""

    x_T: Tensor | None = None
    residual_T: Tensor | None = None  # like x_T, of a solver with a second state: see to_noise
    converged: Tensor | None = None  # (N,) bool: whether corrections, where asked for, went well


def check_finite(**tensors: Tensor | None) -> None:
    """Raise InputError that names a tensor with NaN or infinities."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            raise InputError(f"{name} {NOT_FINITE}")


class Watched:
    """A `predict` that knows whether its answers were finite; only `check` waits for the device."""

    def __init__(self, predict: Predict) -> None:
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
            where = f"eps at evaluation {first + 1}, timestep {self.asked[first]},"
            raise InputError(f"{where} {NOT_FINITE}")
        check_finite(**results)


Latents = Callable[[Tensor], Tensor]  # pictures (N, C, H, W) → what states are of


def unchanged(x_0: Tensor) -> Tensor:
    """Between pictures and what eps_theta is of, where that is pictures."""
    return x_0


@dataclass(frozen=True)
class Trajectory:
    """How states go from noise to picture and back, whatever predicts their noise."""

    schedule: Schedule
    sampling: Sampling
    variance: str  # of ancestral sampling
    clip_sample: bool  # of the source's own sampler, where its procedure is followed
    scheduler: parity.SchedulerConfig = parity.DDIM  # the same
    prediction: str = "eps"  # the same
    latents: Latents = unchanged
    from_latents: Latents = unchanged  # the way back

    def __post_init__(self) -> None:
        if self.sampling.parity in parity.OF_PICTURES and self.latents is not unchanged:
            clamps = f"parity {self.sampling.parity} clamps x_0 as pictures are"
            latents = "these states are latents; take diffusers, or leave parity out"
            raise UsageError(f"{clamps}, and {latents}")

    @property
    def solver(self) -> Solver:
        return SOLVERS[self.sampling.solver]

    def to_noise(self, predict: Predict, x_0: Tensor) -> Inverted:
        """x_T of pictures, and residual_T: how far a second state, eps_T, is from the network's own
        eps at x_T. An edit keeps it and takes the network's eps at its own z and x_T; so an edit of
        nothing is exact. Where the solver only goes the other way, the default one finds x_T.
        Raises InputError where numbers stop being finite."""
        watched, x = Watched(predict), self.latents(x_0)
        grid, count = self.grid(), self.sampling.corrections
        if self.sampling.parity is not None:
            found = Inverted(self._follow(watched, x, encode=True))
        elif self.solver.kind == "pair":
            x_T, eps_T = self.solver.solve(watched, x, grid[::-1])
            found = Inverted(x_T, eps_T - watched(x_T, grid[0].t))
        else:
            solver = self.solver if self.solver.kind == "ode" else SOLVERS["dpmpp"]
            encode = partial(solver.solve, watched, grid=grid[::-1])
            decode = partial(solver.solve, watched, grid=grid)
            x_T, good = corrected(encode, decode, x, count) if count else (encode(x), None)
            found = Inverted(x_T, None, good)
        watched.check(x_T=found.x_T, residual_T=found.residual_T)
        return found

    def to_picture(
        self,
        predict: Predict,
        x_T: Tensor,
        generators: Sequence[Generator],
        residual_T: Tensor | None = None,
    ) -> Tensor:
        """Pictures of x_T, and of residual_T where the solver has a second state; the generators,
        one a row, are for a stochastic solver's noise. Raises InputError where numbers stop being
        finite."""
        watched, solver = Watched(predict), self.solver
        if self.sampling.parity is not None:
            x_0 = self._follow(watched, x_T, encode=False)
        elif solver.kind == "pair":
            grid = self.grid()
            eps_T = None if residual_T is None else watched(x_T, grid[0].t) + residual_T
            x_0, _ = solver.solve(watched, x_T, grid, eps_T)
        elif solver.kind == "ode":
            x_0 = solver.solve(watched, x_T, self.grid())
        else:
            # A shifted mean has no use for a learned variance: the posterior's then.
            large = solver.solve is ddpm and self.variance == "large"
            solve = partial(ddpm, variance="large") if large else solver.solve
            own = [clone(one) for one in generators]  # so that a batch can be tried again
            x_0 = solve(watched, x_T, self.grid(), lambda: normal(own, x_T.shape[1:]).to(x_T))
        x_0 = self.from_latents(x_0)
        watched.check(x_0=x_0)
        return x_0

    def grid(self) -> list[Node]:
        """The nodes that decoding visits, from noise to picture."""
        sampling, most = self.sampling, (self.schedule.timesteps - 1) // self.solver.intervals
        steps = min(sampling.inference_steps, most)
        return decode_grid(self.schedule, steps * self.solver.intervals, sampling.spacing)

    def timesteps(self) -> list[int]:
        """Every timestep at which a network may be asked, in rising order."""
        if self.sampling.parity is None:
            return [node.t for node in reversed(self.grid())]
        ways = (False,) if self.sampling.parity == "diffusers" else (True, False)
        return sorted({step.t for encode in ways for step in self._steps(encode)})

    def evaluations(self) -> tuple[int, int]:
        """Network evaluations (NFE) of encoding one picture, at most, and of decoding it."""
        if self.sampling.parity is not None:
            return (count := len(self._steps(encode=False))), count
        once_each = replace(self.sampling, corrections=0)
        plain = Trajectory(self.schedule, once_each, self.variance, self.clip_sample)
        counting, x = Watched(lambda x, t: x), torch.zeros(1, 1, 1, 1)
        residual_T = plain.to_noise(counting, x).residual_T
        there = len(counting.asked)
        plain.to_picture(counting, x, [Generator()], residual_T)
        back = len(counting.asked) - there
        return there + self.sampling.corrections * (there + back), back

    def unguided_below(self) -> int:
        """The timestep below which samples are left to eps_theta alone (PDAE sec. 4.8); under
        parity, that of the last step before them."""
        if self.sampling.parity is None:
            return math.ceil(parity.UNGUIDED_SHARE * self.schedule.timesteps)
        steps = self._steps(encode=False)
        return steps[-1 - int(parity.UNGUIDED_SHARE * len(steps))].t

    def _follow(self, predict: Predict, x: Tensor, encode: bool) -> Tensor:
        """DDIM as another program does it."""
        steps = self._steps(encode)
        if self.sampling.parity != "diffusers":
            return parity.ddim(predict, x, steps, clip=1, recompute=True)
        if encode and self.prediction == "x_0":
            none = "diffusers' DDIMInverseScheduler divides by zero where networks predict x_0"
            raise UsageError(f"{none}; leave parity out")
        clip = self.scheduler.clip_sample_range if self.clip_sample else 0
        v = self.prediction == "v"
        return parity.ddim(predict, x, steps, clip, recompute=False, predicts_v=v)

    def _steps(self, encode: bool) -> list[parity.Step]:
        program, count = str(self.sampling.parity), self.sampling.inference_steps
        return parity.steps(program, self.schedule, count, encode, self.scheduler)


def solve_latent(predict: Predict, z_T: Tensor, sampling: Sampling) -> Tensor:
    """Solve for the normalised z (N, D) that a latent DPM makes of z_T. Raises InputError where
    numbers aren't finite."""
    watched, count = Watched(predict), sampling.inference_steps
    if sampling.parity is None:
        z = ddim(watched, z_T, decode_grid(LATENT_SCHEDULE, max(count, LATENT_STEPS)))
    else:
        clamped = sampling.parity == "pdae"
        steps = parity.steps(sampling.parity, LATENT_SCHEDULE, count, encode=False)
        z = parity.ddim(watched, z_T.clamp(-1, 1) if clamped else z_T, steps, clamped, True)
    watched.check(z=z)
    return z
