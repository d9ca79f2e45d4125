"""The procedures of the programs that converted models come from, exactly as they are; ours differ
on purpose (docs/checkpoints.md). A trajectory is a list of steps of DDIM, with x_0 clamped to
[-1, 1] and eps recomputed from it:

`pdae`: n + 1 states at int(linspace(0, T-1, n + 1)), the picture is the state at t = 0 both ways;
    so too in the latent DPM, which starts from a clamped z_T.
`diffae` (and guided-diffusion): n states evenly strided from t = 0; decoding ends at alpha_bar = 1,
    encoding at alpha_bar = 0, so that x_T is the last eps.
`diffusers`: as its DDIMScheduler and DDIMInverseScheduler of the model's SchedulerConfig: a step
    goes down by T // n timesteps whatever the spacing; encoding asks the network at the timestep
    that it goes to; clamped only where clip_sample says so, and eps isn't recomputed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from ..errors import Range, UsageError, check_ranges
from .schedule import Level, Schedule
from .solvers import Predict

PROGRAMS = ("pdae", "diffae", "diffusers")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
OF_PICTURES = ("pdae", "diffae")  # know no latent diffusion models
ATTRIBUTE_LENGTH = 512  # manipulation moves by s sqrt(512) whatever dim(z) is (PDAE, Diff-AE)
UNGUIDED_SHARE = 0.3  # samples leave the last part of the way to eps_theta (PDAE sec. 4.8)


@dataclass(frozen=True)
class SchedulerConfig:
    """What a scheduler_config.json of diffusers says of DDIM, by its names, but for clip_sample."""

    timestep_spacing: str = "leading"  # see TIMESTEP_SPACINGS
    steps_offset: Annotated[int, Range(0, 100_000)] = 0
    set_alpha_to_one: bool = True  # alpha_bar of the picture; else that of t = 0
    clip_sample_range: Annotated[float, Range(1e-6, 1e6)] = 1.0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.timestep_spacing not in TIMESTEP_SPACINGS:
            raise ValueError(f"timestep_spacing {self.timestep_spacing!r} isn't supported")


DDIM = SchedulerConfig()  # by its own defaults


@dataclass(frozen=True)
class Step:
    """A step between states of alpha_bar `here` and `there`, with the network asked at t."""

    t: int
    here: float
    there: float
    at: float | None = None  # alpha_bar of t, where that isn't `here`


def steps(
    program: str,
    schedule: Schedule,
    count: int,
    encode: bool,
    scheduler: SchedulerConfig = DDIM,
) -> list[Step]:
    """A program's `count` steps from noise to picture, or with `encode` the other way. Raises
    UsageError where the program itself has none so many, or none that way."""
    levels = schedule.alpha_bar.tolist()
    if program == "diffusers":
        return _of_diffusers(levels, count, encode, scheduler)
    if program == "pdae":
        last = schedule.timesteps - 1  # NumPy's linspace, whose last digits torch's hasn't got
        times = [int(n * (last / count)) for n in range(count)] + [last]
        states = sorted(set(times), reverse=not encode)
        return [Step(t, levels[t], levels[to]) for t, to in itertools.pairwise(states)]
    states = list(range(0, schedule.timesteps, max(1, schedule.timesteps // count)))
    if len(states) != count:
        uneven = f"{program} can't divide {schedule.timesteps} timesteps into {count} equal strides"
        raise UsageError(f"{uneven}; choose a divisor as --inference-steps")
    below = [1.0, *(levels[t] for t in states[:-1])]
    above = [*(levels[t] for t in states[1:]), 0.0]
    if not encode:
        return [Step(t, levels[t], low) for t, low in zip(states, below, strict=True)][::-1]
    return [Step(t, levels[t], high) for t, high in zip(states, above, strict=True)]


def _of_diffusers(
    levels: list[float], count: int, encode: bool, scheduler: SchedulerConfig
) -> list[Step]:
    total, spacing = len(levels), scheduler.timestep_spacing
    stride, length = total // count, total / count
    if spacing == "linspace":
        states = [round(n * ((total - 1) / max(1, count - 1))) for n in range(count)]
    elif spacing == "trailing":
        down = (total - length) - total  # as NumPy's arange adds it up
        states = [round(total + n * down) - 1 for n in range(math.ceil(total / length))][::-1]
    else:
        states = [n * stride + scheduler.steps_offset for n in range(count)]
    if stride == 0 or states[0] < 0 or states[-1] >= total:
        said = f"timestep_spacing {spacing}, steps_offset {scheduler.steps_offset}"
        raise UsageError(
            f"diffusers has no {count} steps of {total} timesteps with {said}: they leave "
            f"0 … {total - 1}; choose other --inference-steps, or leave parity out"
        )
    if encode and spacing == "linspace":
        none = "diffusers' DDIMInverseScheduler has no timestep_spacing linspace"
        raise UsageError(f"{none}; leave parity out")
    end = 1.0 if scheduler.set_alpha_to_one else levels[0]
    below = [levels[t - stride] if t >= stride else end for t in states]
    if encode:
        return [Step(t, low, levels[t], levels[t]) for t, low in zip(states, below, strict=True)]
    return [Step(t, levels[t], low) for t, low in zip(states, below, strict=True)][::-1]


def ddim(
    predict: Predict,
    x: Tensor,
    trajectory: Sequence[Step],
    clip: float,
    recompute: bool,
    predicts_v: bool = False,
) -> Tensor:
    """Deterministic DDIM along the steps, with x_0 clamped to [-clip, clip], or for 0 not at all.
    What a network that `predicts_v` says of a timestep is taken for v of the state's own level, as
    diffusers does."""
    for step in trajectory:
        here, eps = Level.of(step.here), predict(x, step.t)
        if predicts_v and step.at is not None:
            asked = Level.of(step.at)
            eps = here.signal * (eps - asked.noise * x) / asked.signal + here.noise * x
        x_0 = here.x_0(x, eps)
        if clip:
            x_0 = x_0.clamp(-clip, clip)
        if clip and recompute:
            eps = here.eps(x, x_0)
        x = Level.of(step.there).noised(x_0, eps)
    return x
