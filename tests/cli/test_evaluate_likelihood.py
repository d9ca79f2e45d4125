"""pdae evaluate likelihood: bits per dimension from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_runs import records
from conftest import Command

FAST = ("--inference-steps", 3)


def test_bits_depend_on_picture_and_seed_alone(pdae: Command, pictures: list[Path]) -> None:
    def bits(*args: object) -> list[object]:
        result = pdae("evaluate", "likelihood", *args, "--json", *FAST)
        found = records(result.text)
        assert result.code == 0 and {(one["nfe"], one["status"]) for one in found} == {(7, "done")}
        inputs = [one for one in args if isinstance(one, Path)]
        assert [Path(str(one["input"])) for one in found] == inputs
        return [one["bits_per_dimension"] for one in found]

    together = bits(*pictures)
    assert bits(pictures[1]) == pytest.approx(together[1:2], rel=1e-4)
    assert bits(*pictures, "--batch-size", 1) == pytest.approx(together, rel=1e-4)
    assert bits(pictures[1], "--seed", 1) != together[1:2]
    assert bits(pictures[1], "--conditional") != together[1:2]


def test_what_it_cant_take_is_one_line(pdae: Command, pictures: list[Path]) -> None:
    z = pdae("encode", pictures[0], "-o", "-", *FAST).out
    codes = pdae("evaluate", "likelihood", "-", stdin=z)
    assert codes.code == 3 and "takes pictures" in codes.err
    for option in ("--guidance", "--guide-from", "--guide-until"):
        guided = pdae("evaluate", "likelihood", pictures[0], option, 1)
        assert guided.code == 2 and "add --conditional" in guided.err
