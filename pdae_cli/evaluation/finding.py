"""What an experiment found, and how sure its means are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from ..errors import UsageError
from ..plots import Plot

NORMAL_95 = 1.96  # half of a 95 % interval, in standard errors
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
    """Half of the 95 % confidence interval of the mean of values (N,); NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    return (NORMAL_95 * values.double().std() / math.sqrt(len(values))).item()


def column(rows: Sequence[Row], name: str, **where: Any) -> list[float]:
    """A field of those rows that have these values in other fields; NaN where it is missing."""
    chosen = (row for row in rows if all(row.get(key) == one for key, one in where.items()))
    return [math.nan if row.get(name) is None else float(row[name]) for row in chosen]


def needs_pictures(x_0: Tensor, least: int) -> None:
    """Raise UsageError for fewer pictures than an experiment makes sense with."""
    if len(x_0) < least:
        raise UsageError(f"this takes at least {least} pictures, not {len(x_0)}")
