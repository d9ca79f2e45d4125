"""What an experiment found: rows, a plot, a sheet and words; and how sure its means are."""

import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from ..engine.model import Model
from ..errors import UsageError, printable
from ..pictures.images import to_pixels
from ..pictures.sheets import sheet

Row = dict[str, Any]
# Hands an experiment its parts one by one; whoever gives it sees how far it has come.
Track = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Line:
    """A curve through points (x, y), and half of the interval of each y, if known."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    interval: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Plot:
    """Curves over common axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False

    def draw(self) -> bytes:
        """Draw it as an SVG that is a function of the data alone.

        Points that aren't finite, or that a logarithmic axis has no place for, are left out.
        Labels are anybody's and are shown as they are. Raises UsageError without matplotlib.
        """
        needs_matplotlib()
        from matplotlib import style
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullLocator

        settings = {"svg.hashsalt": "pdae", "svg.fonttype": "none", "text.parse_math": False}
        buffer = io.BytesIO()
        with style.context(["default", settings]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure = Figure(figsize=(9, 4.4), layout="constrained")
            axes = figure.add_subplot(
                title=printable(self.title),
                xlabel=printable(self.x_label),
                ylabel=printable(self.y_label),
                xscale="log" if self.log_x else "linear",
                yscale="log" if self.log_y else "linear",
            )
            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_scale() == "log":
                    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                    axis.set_minor_locator(NullLocator())
                axis.set_major_formatter("{x:.4g}")
            axes.grid(color="#e2e4e8")
            drawn: Any = [
                axes.errorbar(*self._points(line), fmt="o--" if line.dashed else "o-", markersize=4)
                for line in self.lines
            ]
            labels = [printable(line.label) for line in self.lines]
            figure.legend(drawn, labels, loc="outside right upper", frameon=False)
            unsaid = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(buffer, format="svg", metadata=unsaid)
        return buffer.getvalue()

    def _points(self, line: Line) -> tuple[list[float], list[float], list[float] | None]:
        """x, y and half the interval, if any, of the points that can be shown, by rising x."""
        known = zip(line.x, line.y, line.interval or [0.0] * len(line.x), strict=True)
        points = sorted(point for point in known if all(map(math.isfinite, point)))
        shown = [p for p in points if (p[0] > 0 or not self.log_x) and (p[1] > 0 or not self.log_y)]
        x, y, half = ([point[k] for point in shown] for k in range(3))
        return x, y, half if line.interval else None


def curve(
    rows: Sequence[Row], label: str, x: str, y: str, dashed: bool = False, **where: Any
) -> Line:
    """Draw field y over x of the rows that have these values in other fields, and y's interval."""
    chosen = [row for row in rows if x in row and all(row.get(k) == v for k, v in where.items())]
    interval = [row[f"{y}_interval"] for row in chosen if f"{y}_interval" in row]
    return Line(label, [row[x] for row in chosen], [row[y] for row in chosen], interval, dashed)


def needs_matplotlib() -> None:
    """Raise UsageError where plots can't be drawn: to be known before the work, not after it."""
    if find_spec("matplotlib") is None:
        raise UsageError("plots need matplotlib: pip install 'pdae-cli[plots]'")


@dataclass(frozen=True)
class Finding:
    """Figures, and what they say."""

    experiment: str
    words: str  # one line for people
    rows: Sequence[Row] = ()
    plot: Plot | None = None
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
    """Find the t that |T| of Student's distribution is within 95 times of 100, by bisection of
    Abramowitz & Stegun 26.7.3 (odd degrees of freedom) and 26.7.4 (even)."""
    odd, low, high = freedom % 2, 0.0, 16.0  # 12.7 with one degree
    for _ in range(60):
        middle = (low + high) / 2
        angle = math.atan(middle / math.sqrt(freedom))
        term, within = math.cos(angle) ** odd, 0.0
        for k in range(1, freedom // 2 + 1):
            within += term
            term *= math.cos(angle) ** 2 * (2 * k - 1 + odd) / (2 * k + odd)
        within *= math.sin(angle)
        if odd:
            within = (angle + within) * 2 / math.pi
        low, high = (middle, high) if within < 0.95 else (low, middle)
    return middle


def on_schedule(model: Model, timesteps: Sequence[int]) -> list[int]:
    """Where timesteps of 0 … 999 are on a model's schedule, which may have another length."""
    last = model.schedule.timesteps - 1
    return list(dict.fromkeys(round(t * last / 999) for t in timesteps))


def require(x_0: Tensor, least: int) -> None:
    """Raise UsageError for fewer pictures than an experiment makes sense with."""
    if len(x_0) < least:
        left = "of a training set only those held out count, unless --whole takes all"
        raise UsageError(f"this takes at least {least} pictures, not {len(x_0)}: {left}")


def laid_out(pictures: Tensor, columns: int, **titles: Any) -> Tensor:
    """Lay pictures (N, C, H, W) in [-1, 1] out, row by row: uint8 (C, H, W). See `sheet`."""
    return sheet(list(to_pixels(pictures.cpu())), columns=columns, **titles)
