"""What experiments tell: plots that are a function of their data, and intervals of means."""

from __future__ import annotations

import math
import sys
from xml.etree import ElementTree

import pytest
import torch

from pdae_cli.diffusion.noise import generator
from pdae_cli.errors import UsageError, printable
from pdae_cli.evaluation import figures
from pdae_cli.evaluation.figures import Line, Plot, curve, half_interval, student_95

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</svg><script>alert(1)</script>\x1b & \"' $\\frac$ 顔 _"


def texts(plot: Plot) -> list[str]:
    found = ElementTree.fromstring(plot.draw()).iter(f"{SVG}text")
    return ["".join(one.itertext()) for one in found]


class TestPlot:
    def test_points_that_cannot_be_shown_are_left_out_and_the_rest_rise(self) -> None:
        line = Line("a", [4, 1, 2, 3, 0], [-1.0, 1.0, math.nan, math.inf, 2.0], [0.1] * 5)
        assert Plot("", "", "", [line])._points(line) == ([0, 1, 4], [2.0, 1.0, -1.0], [0.1] * 3)
        assert Plot("", "", "", [line], log_y=True)._points(line)[0] == [0, 1]
        assert Plot("", "", "", [line], True, True)._points(line)[0] == [1]

    def test_the_same_data_is_the_same_file(self) -> None:
        def plot(last: float) -> Plot:
            lines = [Line("a", [1, 10, 100], [1e-6, 0.1, last], [1e-6] * 3), Line("b", [1], [1])]
            return Plot("title", "x", "y", lines, log_x=True, log_y=True)

        assert plot(2.0).draw() == plot(2.0).draw() != plot(3.0).draw()

    def test_nothing_global_is_touched(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from matplotlib import rcParams

        def settings() -> dict[str, object]:
            return {name: rcParams[name] for name in rcParams if name != "backend"}

        before = settings()
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # to import it is an error
        Plot("t", "x", "y", [Line("a", [1], [1])]).draw()
        assert settings() == before

    def test_labels_are_text_and_nothing_is_loaded(self) -> None:
        plot = Plot(HOSTILE, HOSTILE, HOSTILE, [Line(HOSTILE, [1], [1])] * 9)
        root = ElementTree.fromstring(plot.draw())
        assert root.find(f".//{SVG}script") is None
        assert texts(plot).count(printable(HOSTILE)) == 3 + 9
        addresses = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
        assert addresses and all(one.startswith("#") for one in addresses)

    @pytest.mark.parametrize("log", [False, True])
    @pytest.mark.parametrize("values", [[], [math.nan, 2.0], [3.0, 3.0], [9.0, 60.0], [0.8, 1200]])
    def test_axes_have_plain_numbers(self, log: bool, values: list[float]) -> None:
        """Also where there is nothing to draw, or all values are one."""
        plot = Plot("t", "x", "y", [Line("a", values, values)], log_x=log, log_y=log)
        numbers = [one for one in texts(plot) if one not in ("t", "x", "y", "a")]
        assert all(math.isfinite(float(one.replace("\N{MINUS SIGN}", "-"))) for one in numbers)
        assert len(numbers) >= 2

    def test_without_matplotlib_it_is_said_how_to_get_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(figures, "find_spec", lambda name: None)
        with pytest.raises(UsageError, match=r"pip install 'pdae-cli\[plots\]'"):
            Plot("t", "x", "y", []).draw()


def test_a_curve_is_of_the_rows_that_are_asked_for() -> None:
    rows = [
        {"of": "a", "x": 1, "y": 2.0, "y_interval": 0.1},
        {"of": "b", "x": 1, "y": 3.0},
        {"of": "a", "x": 2, "y": 4.0, "y_interval": 0.2},
        {"of": "a", "y": 5.0, "y_interval": 0.3},  # a mean over all x
    ]
    assert curve(rows, "it", "x", "y", of="a") == Line("it", [1, 2], [2.0, 4.0], [0.1, 0.2])
    assert curve(rows, "it", "x", "y", True, of="b") == Line("it", [1], [3.0], [], True)


class TestIntervals:
    @pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 15, 30, 101, 1999])
    def test_students_quantile(self, freedom: int) -> None:
        from scipy.stats import t

        assert student_95(freedom) == pytest.approx(t.ppf(0.975, freedom), rel=1e-10)

    def test_an_intervals_half_is_that_many_standard_errors(self) -> None:
        """Of 1 and 3: the mean's standard error is 1, with one degree of freedom."""
        assert half_interval(torch.tensor([1.0, 3.0])) == pytest.approx(12.706, abs=1e-3)
        assert math.isnan(half_interval(torch.tensor([1.0])))

    @pytest.mark.parametrize("count", [3, 8])
    def test_of_few_values_they_hold_the_truth_95_times_of_100(self, count: int) -> None:
        draws = torch.randn(4000, count, generator=generator(0, "coverage"), dtype=torch.float64)
        held = sum(abs(one.mean().item()) <= half_interval(one) for one in draws) / len(draws)
        assert abs(held - 0.95) < 0.015  # 4 standard deviations
