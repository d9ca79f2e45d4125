"""The procedures of the programs that converted models come from, exactly as they are; ours differ
on purpose (docs/checkpoints.md). A trajectory is a list of steps of DDIM, with x_0 clamped to
[-1, 1] and eps recomputed from it:

`pdae`: n + 1 states at int(linspace(0, T-1, n + 1)), the picture is the state at t = 0 both ways;
    so too in the latent DPM, which starts from a clamped z_T.
`diffae` (and guided-diffusion): n states evenly strided from t = 0; decoding ends at alpha_bar = 1,
    encoding at alpha_bar = 0, so that x_T is the last eps.
`diffusers`: the same strides; encoding asks the network at the timestep that it goes to; clamped
    only where the scheduler's clip_sample says so, and eps isn't recomputed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from .schedule import Level, Schedule
from .solvers import Predict

PROGRAMS = ("pdae", "diffae", "diffusers")
OF_PICTURES = ("pdae", "diffae")  # know no latent diffusion models
ATTRIBUTE_LENGTH = 512  # manipulation moves by s sqrt(512) whatever dim(z) is (PDAE, Diff-AE)
UNGUIDED_SHARE = 0.3  # samples leave the last part of the way to eps_theta (PDAE sec. 4.8)


@dataclass(frozen=True)
class Step:
    """A step between states of alpha_bar `here` and `there`, with the network asked at t."""

    t: int
    here: float
    there: float


def steps(program: str, schedule: Schedule, count: int, encode: bool) -> list[Step]:
    """A program's `count` steps from noise to picture, or with `encode` the other way."""
    levels = schedule.alpha_bar.tolist()
    if program == "pdae":
        times = torch.linspace(0, schedule.timesteps - 1, count + 1, dtype=torch.float64).long()
        states = sorted(set(times.tolist()), reverse=not encode)
        return [Step(t, levels[t], levels[to]) for t, to in itertools.pairwise(states)]
    states = list(range(0, schedule.timesteps, schedule.timesteps // count))
    if len(states) != count:
        uneven = f"{program} can't divide {schedule.timesteps} timesteps into {count} equal strides"
        raise UsageError(f"{uneven}; choose a divisor as --inference-steps")
    below = [1.0, *(levels[t] for t in states[:-1])]
    above = [*(levels[t] for t in states[1:]), 0.0]
    if not encode:
        return [Step(t, levels[t], low) for t, low in zip(states, below, strict=True)][::-1]
    if program == "diffusers":
        return [Step(t, low, levels[t]) for t, low in zip(states, below, strict=True)]
    return [Step(t, levels[t], high) for t, high in zip(states, above, strict=True)]


def ddim(
    predict: Predict,
    x: Tensor,
    trajectory: Sequence[Step],
    clip: bool,
    recompute: bool,
    seen: Callable[[Tensor], None] = lambda x: None,
) -> Tensor:
    """Deterministic DDIM along the steps; `seen` is shown the state after each."""
    for step in trajectory:
        here, eps = Level.of(step.here), predict(x, step.t)
        x_0 = here.x_0(x, eps)
        if clip:
            x_0 = x_0.clamp(-1, 1)
        if clip and recompute:
            eps = here.eps(x, x_0)
        x = Level.of(step.there).noised(x_0, eps)
        seen(x)
    return x


def guide_until(trajectory: Sequence[Step]) -> int:
    """The timestep at which PDAE's samples stop being guided: all but the last 30 % of steps."""
    guided = len(trajectory) - int(UNGUIDED_SHARE * len(trajectory))
    return trajectory[guided - 1].t
