"""Plots: where values stand, round ticks, and well-formed SVG whatever the labels hold."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from pdae_cli.evaluation.plots import Axis, Line, Plot

SVG = "{http://www.w3.org/2000/svg}"


def drawn(plot: Plot, tag: str) -> list[ElementTree.Element]:
    return ElementTree.fromstring(plot.svg()).findall(f"{SVG}{tag}")


class TestAxis:
    def test_places(self) -> None:
        assert [Axis(2, 6).place(v) for v in (2, 3, 6, 99, -5)] == [0, 0.25, 1, 1, 0]
        log = Axis(1, 10_000, log=True)
        assert [log.place(v) for v in (1, 10, 100, 1e9, -1)] == pytest.approx([0, 0.25, 0.5, 1, 0])

    @pytest.mark.parametrize(
        ("axis", "ticks"),
        [
            (Axis(0, 1000), [0, 200, 400, 600, 800, 1000]),
            (Axis(-0.1, 0.31), [-0.1, 0, 0.1, 0.2, 0.3]),
            (Axis(0.8, 1200, log=True), [1, 10, 100, 1000]),
            (Axis(9, 60, log=True), [10, 20, 50]),
            (Axis(8, 120, log=True), [10, 30, 100]),
        ],
    )
    def test_ticks_are_round_and_inside(self, axis: Axis, ticks: list[float]) -> None:
        assert axis.ticks() == pytest.approx(ticks)

    @pytest.mark.parametrize("log", [False, True])
    def test_holds_its_values_even_where_all_are_one(self, log: bool) -> None:
        for values in ([3.0], [0.0, 5.0], [], [math.nan, 2.0]):
            axis = Axis.over(values, log)
            assert axis.low < axis.high and 2 <= len(axis.ticks()) <= 13


class TestPlot:
    def test_one_dot_a_point_that_can_be_shown(self) -> None:
        line = Line("a", [1, 2, 3, 4], [1.0, math.nan, math.inf, -1.0], band=[0.1] * 4)
        assert len(drawn(Plot("", "", "", [line]), "circle")) == 2
        assert len(drawn(Plot("", "", "", [line], log_y=True), "circle")) == 1
        assert len(drawn(Plot("", "", "", [line]), "polygon")) == 1

    def test_higher_is_higher_and_a_band_encloses_its_curve(self) -> None:
        plot = Plot("", "", "", [Line("a", [0, 1], [0.0, 1.0], band=[0.2, 0.2])])
        low, high = (float(one.get("cy", "nan")) for one in drawn(plot, "circle"))
        assert high < low
        edge = [tuple(map(float, p.split(","))) for p in
                str(drawn(plot, "polygon")[0].get("points")).split()]  # fmt: skip
        assert edge[0][1] < low < edge[3][1] and edge[1][1] < high < edge[2][1]

    def test_labels_are_text(self) -> None:
        hostile = "</svg><script>alert(1)</script>\x1b & \"'"
        plot = Plot(hostile, hostile, hostile, [Line(hostile, [1], [1])] * 9)
        root = ElementTree.fromstring(plot.svg())
        assert root.find(f".//{SVG}script") is None and len(root.findall(f".//{SVG}text")) > 11

    def test_nothing_to_draw_is_still_a_plot(self) -> None:
        assert drawn(Plot("t", "x", "y", [Line("a", [], [])]), "circle") == []
