"""Time grids: which states between noise and picture a solver visits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Schedule


@dataclass(frozen=True)
class Node:
    """A state that a solver visits: x = signal x_0 + noise eps."""

    t: int
    alpha_bar: float

    @property
    def signal(self) -> float:
        return math.sqrt(self.alpha_bar)

    @property
    def noise(self) -> float:
        return math.sqrt(1 - self.alpha_bar)

    @property
    def sigma(self) -> float:
        """Noise in units of the signal."""
        return self.noise / self.signal

    @property
    def lam(self) -> float:
        """lambda = log(signal / noise), half the log-SNR (DPM-Solver's time)."""
        return -math.log(self.sigma)


# A spacing is the coordinate, monotonic in t, in which nodes are even.
SPACINGS: dict[str, Callable[[Schedule], Tensor]] = {
    "uniform": lambda schedule: torch.arange(schedule.timesteps, dtype=torch.float64),
    "quadratic": lambda schedule: torch.arange(schedule.timesteps, dtype=torch.float64).sqrt(),
    "logsnr": lambda schedule: schedule.snr.log(),
    # Like logsnr, with steps twice as long at both ends as around SNR = 1, where a picture's
    # content is decided.
    "asinh": lambda schedule: (schedule.snr.log() / 10).asinh(),
}


def decode_grid(schedule: Schedule, steps: int, spacing: str = "uniform") -> list[Node]:
    """steps + 1 nodes (at most T) from t = T-1 down to 0, even in the spacing's coordinate.

    Timesteps are whole and distinct: where nodes would coincide they move to larger t.
    Reversed, it is the grid that encodes.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}")
    coordinate = SPACINGS[spacing](schedule)
    last, steps = schedule.timesteps - 1, min(steps, schedule.timesteps - 1)
    wanted = torch.linspace(
        coordinate[0].item(), coordinate[-1].item(), steps + 1, dtype=torch.float64
    )
    nearest = (coordinate[None] - wanted[:, None]).abs().argmin(dim=1)
    place = torch.arange(steps + 1)
    distinct = ((nearest - place).cummax(0).values + place).minimum(last - steps + place)
    return [Node(t, schedule.alpha_bar[t].item()) for t in reversed(distinct.tolist())]
