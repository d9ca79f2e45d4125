"""Line plots as SVG text, which need no package: axes, ticks, bands and a legend.

They follow the reader's choice of light or dark. Labels are anybody's and are escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import printable

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 48, 56  # margins; the legend's rows come on top of TOP
LETTER, LINE = 6.6, 18  # width of a letter on average, height of a line, in pixels
TICKS = 6  # about so many on an axis
COLOURS = ("#0b6fc2", "#d1501f", "#2b8a4b", "#8a4fc0", "#b58a00", "#c2337f", "#5f6b7a", "#0c8f9c")
DARK = ("#5fb0f2", "#ff8f5e", "#6fcf8f", "#c196f0", "#e6c04d", "#f27ab8", "#a9b4c2", "#5fd3df")
STYLE = """text { font: 12px system-ui, sans-serif; fill: #1c1e21; }
.title { font-size: 14px; font-weight: 600; } .pale { fill: #6a7078; }
.ground { fill: #fff; } .grid { stroke: #e2e4e8; } .frame { stroke: #9aa0a8; fill: none; }
.curve { fill: none; stroke-width: 2; stroke-linejoin: round; } .band { opacity: .16; }"""
STYLE_DARK = """text { fill: #e6e7e9; } .pale { fill: #979da6; } .ground { fill: #16181b; }
.grid { stroke: #2e3238; } .frame { stroke: #666c75; }"""


@dataclass(frozen=True)
class Line:
    """One curve: points (x, y), and half the width of a band around each, if any."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[float] = ()
    dashed: bool = False

    def points(self) -> list[tuple[float, float, float]]:
        """(x, y, half the band's width) of the finite points, by rising x."""
        bands = self.band or [0.0] * len(self.x)
        points = zip(self.x, self.y, bands, strict=True)
        return sorted(one for one in points if all(map(math.isfinite, one)))


@dataclass(frozen=True)
class Axis:
    """A range of values, linear or logarithmic, on 0 … 1."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Sequence[float], log: bool) -> Axis:
        """An axis that holds the values; those that a logarithmic one can't show don't count."""
        shown = [one for one in values if math.isfinite(one) and (one > 0 or not log)] or [1.0]
        low, high = min(shown), max(shown)
        if log:
            return cls(low / 1.15, high * 1.15, True)
        margin = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
        return cls(low - margin, high + margin)

    def place(self, value: float) -> float:
        """Where a value stands; beyond the ends, and at or below 0 on a log axis, at the end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Round values inside the range: steps of 1, 2 or 5 times a power of ten."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for leading in ((1,), (1, 3), (1, 2, 5)):
                found = [a * 10.0**p for p in powers for a in leading]
                found = [one for one in found if self.low <= one <= self.high]
                if len(found) >= 3:
                    return found[:: -(-len(found) // (2 * TICKS))]
        rough = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(a * power for a in (1, 2, 5, 10) if a * power >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [number * step for number in range(first, last + 1)]


@dataclass(frozen=True)
class Plot:
    """Curves over common axes."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False

    def svg(self) -> str:
        """The plot as one SVG document. Points that aren't finite, and those that a logarithmic
        axis has no place for, are left out."""
        curves = [[p for p in line.points() if self._has(p)] for line in self.lines]
        points = [p for curve in curves for p in curve]
        x = Axis.over([p[0] for p in points], self.log_x)
        y = Axis.over([v for p in points for v in (p[1] - p[2], p[1] + p[2])], self.log_y)
        legend = list(_legend([line.label for line in self.lines]))
        top = TOP + LINE * (1 + max((row for _, row in legend), default=0))
        height = HEIGHT + top - TOP

        def across(value: float) -> float:
            return LEFT + x.place(value) * (WIDTH - LEFT - RIGHT)

        def down(value: float) -> float:
            return height - BOTTOM - y.place(value) * (height - BOTTOM - top)

        parts = [_text(LEFT, 24, self.title, "title")]
        for value in x.ticks():
            parts.append(_rule(across(value), top, across(value), height - BOTTOM))
            parts.append(_text(across(value), height - BOTTOM + 18, f"{value:.4g}", "", "middle"))
        for value in y.ticks():
            parts.append(_rule(LEFT, down(value), WIDTH - RIGHT, down(value)))
            parts.append(_text(LEFT - 8, down(value) + 4, f"{value:.4g}", "", "end"))
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 14, self.x_label, "pale", "middle"))
        parts.append(_upright(18, (top + height - BOTTOM) / 2, self.y_label))
        for number, (line, curve, (left, row)) in enumerate(
            zip(self.lines, curves, legend, strict=True)
        ):
            here = [(across(a), down(b)) for a, b, _ in curve]
            if line.band:
                edge = [(across(a), down(b + c)) for a, b, c in curve]
                edge += [(across(a), down(b - c)) for a, b, c in reversed(curve)]
                parts.append(f'<polygon class="band f{_kind(number)}" points="{_path(edge)}"/>')
            parts.append(_curve(here, number, line.dashed))
            for dot_x, dot_y in here:
                parts.append(
                    f'<circle class="f{_kind(number)}" cx="{dot_x:.1f}" cy="{dot_y:.1f}" r="2.6"/>'
                )
            key = TOP - 4 + LINE * row
            parts.append(_curve([(left, key - 4), (left + 22, key - 4)], number, line.dashed))
            parts.append(_text(left + 28, key, line.label))
        frame = f'<rect class="frame" x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" '
        parts.append(f'{frame}height="{height - BOTTOM - top}"/>')
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img">\n<style>{_style()}</style>\n'
            f'<rect class="ground" width="{WIDTH}" height="{height}"/>\n'
            + "\n".join(parts)
            + "\n</svg>\n"
        )

    def _has(self, point: tuple[float, float, float]) -> bool:
        return not (self.log_x and point[0] <= 0) and not (self.log_y and point[1] <= 0)


def _legend(labels: Sequence[str]) -> Iterator[tuple[float, int]]:
    """Left end and row of each label's key."""
    left, row = float(LEFT), 0
    for label in labels:
        width = 28 + LETTER * len(label) + 20
        if left > LEFT and left + width > WIDTH - RIGHT:
            left, row = float(LEFT), row + 1
        yield left, row
        left += width


def _kind(number: int) -> int:
    return number % len(COLOURS)


def _style() -> str:
    def colours(table: Sequence[str]) -> str:
        return " ".join(
            f".s{k} {{ stroke: {one}; }} .f{k} {{ fill: {one}; }}" for k, one in enumerate(table)
        )

    dark = f"@media (prefers-color-scheme: dark) {{ {STYLE_DARK} {colours(DARK)} }}"
    return f"{STYLE} {colours(COLOURS)} {dark}"


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    safe = html.escape(printable(text))
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{safe}</text>'


def _upright(x: float, y: float, text: str) -> str:
    turned = _text(0, 0, text, "pale", "middle")
    return f'<g transform="translate({x:.1f} {y:.1f}) rotate(-90)">{turned}</g>'


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _curve(points: Sequence[tuple[float, float]], number: int, dashed: bool) -> str:
    dashes = ' stroke-dasharray="6 4"' if dashed else ""
    return f'<polyline class="curve s{_kind(number)}"{dashes} points="{_path(points)}"/>'


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
