"""Time grids: whole, distinct timesteps from noise to picture, even in their coordinate."""

from __future__ import annotations

import itertools
import math

import pytest

from pdae_cli.diffusion.grids import SPACINGS, Node, decode_grid
from pdae_cli.diffusion.schedule import Schedule

SCHEDULE = Schedule()


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 500, 999])
def test_grids_go_from_noise_to_picture_in_as_many_steps_as_asked(spacing: str, steps: int) -> None:
    timesteps = [node.t for node in decode_grid(SCHEDULE, steps, spacing)]
    assert timesteps[0] == 999 and timesteps[-1] == 0
    assert all(here > there for here, there in itertools.pairwise(timesteps))
    assert len(timesteps) == steps + 1


@pytest.mark.parametrize("spacing", SPACINGS)
def test_no_more_steps_than_the_schedule_has(spacing: str) -> None:
    assert [node.t for node in decode_grid(SCHEDULE, 5000, spacing)] == list(range(999, -1, -1))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_nodes_are_even_in_the_spacings_coordinate(spacing: str) -> None:
    """To within half a timestep, where timesteps are dense enough not to collide."""
    schedule = Schedule(timesteps=100_000, beta_start=1e-6, beta_end=2e-4)
    coordinate = SPACINGS[spacing](schedule)
    values = [coordinate[node.t].item() for node in decode_grid(schedule, 10, spacing)]
    gaps = [b - a for a, b in itertools.pairwise(values)]
    assert max(gaps) == pytest.approx(min(gaps), rel=3e-2)


def test_asinh_steps_are_shortest_around_an_even_ratio() -> None:
    grid = decode_grid(SCHEDULE, 12, "asinh")
    steps = [there.lam - here.lam for here, there in itertools.pairwise(grid)]
    assert abs(grid[steps.index(min(steps))].lam) < 1 and max(steps) > 1.3 * min(steps)


def test_a_node_knows_its_level() -> None:
    node = Node(3, 0.64)
    assert node.signal == pytest.approx(0.8) and node.noise == pytest.approx(0.6)
    assert node.sigma == pytest.approx(0.75) and node.lam == pytest.approx(math.log(4 / 3))


def test_unknown_spacing_is_named() -> None:
    with pytest.raises(ValueError, match="asinh"):
        decode_grid(SCHEDULE, 10, "square")
