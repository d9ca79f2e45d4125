"""What an experiment found, and how sure its means are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeVar

from torch import Tensor

from ..engine.model import Model
from ..errors import UsageError
from .plots import Plot

Row = dict[str, Any]
Part = TypeVar("Part")


class Track(Protocol):
    """Hands an experiment its parts one by one; whoever gives it sees how far it has come."""

    def __call__(self, parts: Sequence[Part]) -> Iterable[Part]: ...


def untracked(parts: Sequence[Part]) -> Iterable[Part]:
    """The parts, and nobody watches."""
    return parts


@dataclass(frozen=True)
class Finding:
    """Figures, and what they say."""

    experiment: str
    words: str  # one line for people
    rows: list[Row]
    plot: Plot
    sheet: Tensor | None = None  # uint8 (C, H, W)

    def columns(self) -> list[str]:
        """Every field of any row, as they come."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def half_interval(values: Tensor) -> float:
    """Half of the 95 % confidence interval of the mean of values (N,), by Student's t: few values
    know little of their own spread. NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    error = values.double().std().item() / math.sqrt(len(values))
    return student_95(len(values) - 1) * error


@cache
def student_95(freedom: int) -> float:
    """The t that |T| of Student's distribution with so many degrees of freedom is within 95 times
    of 100."""
    low, high = 0.0, 16.0  # 12.7 with one degree
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return middle


# Abramowitz & Stegun 26.7.3 for odd, 26.7.4 for even degrees of freedom
def _within(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's distribution."""
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    term, total = math.cos(angle) ** odd, 0.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * (2 * k - 1 + odd) / (2 * k + odd)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total


def column(rows: Sequence[Row], name: str, **where: Any) -> list[float]:
    """A field of those rows that have these values in other fields; NaN where it is missing."""
    chosen = (row for row in rows if all(row.get(key) == one for key, one in where.items()))
    return [math.nan if row.get(name) is None else float(row[name]) for row in chosen]


def on_schedule(model: Model, timesteps: Sequence[int]) -> list[int]:
    """Where timesteps of 0 … 999 are on a model's schedule, which may have another length."""
    last = model.schedule.timesteps - 1
    return list(dict.fromkeys(round(t * last / 999) for t in timesteps))


def needs_pictures(x_0: Tensor, least: int) -> None:
    """Raise UsageError for fewer pictures than an experiment makes sense with."""
    if len(x_0) < least:
        raise UsageError(f"this takes at least {least} pictures, not {len(x_0)}")
