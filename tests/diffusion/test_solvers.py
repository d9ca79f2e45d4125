"""Grids; and solvers against an exactly known diffusion in float64: order of convergence,
reversibility, and the distributions that stochastic ones end in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mixture
import pytest
import torch
from mixture import SCHEDULE, eps, flow, pictures
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pdae_cli.diffusion import solvers
from pdae_cli.diffusion.noise import generator, normal
from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.diffusion.solvers import SPACINGS, Node, decode_grid

Solve = Callable[[Tensor, Sequence[Node]], Tensor]
DETERMINISTIC: dict[str, tuple[Solve, int]] = {  # and the order of convergence
    "ddim": (lambda x, grid: solvers.ddim(eps, x, grid), 1),
    "dpmpp": (lambda x, grid: solvers.dpmpp(eps, x, grid), 2),
    "leapfrog": (lambda x, grid: solvers.leapfrog(eps, x, grid)[0], 2),
}


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 500, 999, 5000])
def test_grids_go_from_noise_to_picture_in_as_many_steps_as_asked(spacing: str, steps: int) -> None:
    """Or as the schedule has; whole, distinct timesteps."""
    timesteps = [node.t for node in decode_grid(Schedule(), steps, spacing)]
    assert timesteps[0] == 999 and timesteps[-1] == 0
    assert all(here > there for here, there in itertools.pairwise(timesteps))
    assert len(timesteps) == min(steps, 999) + 1
    with pytest.raises(ValueError, match="asinh"):
        decode_grid(SCHEDULE, 10, "square")


@pytest.mark.parametrize("spacing", SPACINGS)
def test_nodes_are_even_in_the_spacings_coordinate(spacing: str) -> None:
    """To within half a timestep, where timesteps are dense enough not to collide."""
    coordinate = SPACINGS[spacing](SCHEDULE)
    values = [coordinate[node.t].item() for node in decode_grid(SCHEDULE, 10, spacing)]
    gaps = [b - a for a, b in itertools.pairwise(values)]
    assert max(gaps) == pytest.approx(min(gaps), rel=3e-2)


def grid_by_distances(schedule: Schedule, steps: int, spacing: str) -> list[int]:
    """The timesteps of a grid by the distances of every node to every timestep."""
    coordinate, last = SPACINGS[spacing](schedule), schedule.timesteps - 1
    steps = min(steps, last)
    ends = coordinate[0].item(), coordinate[-1].item()
    wanted = torch.linspace(*ends, steps + 1, dtype=torch.float64)
    nearest = (coordinate[None] - wanted[:, None]).abs().argmin(dim=1)
    place = torch.arange(steps + 1)
    distinct = ((nearest - place).cummax(0).values + place).minimum(last - steps + place)
    return list(reversed(distinct.tolist()))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "schedule",
    [("linear", 1000), ("linear", 2), ("cosine", 1000), ("scaled_linear", 777),
     ("constant", 1000, 1e-4), ("constant", 3000, 1e-10)],
    ids=str,
)  # fmt: skip
def test_nodes_are_those_nearest_to_where_they_are_wanted(
    spacing: str, schedule: tuple[Any, ...]
) -> None:
    """Of several as near, such as numbers that are rounded alike, the first."""
    noise = Schedule(*schedule)
    for steps in (*range(1, 60), 499, 998, 999, 2000, 2998):
        found = [node.t for node in decode_grid(noise, steps, spacing)]
        assert found == grid_by_distances(noise, steps, spacing), steps


class Largest(TorchDispatchMode):
    """Knows how many numbers the largest tensor made here has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_grid_takes_no_more_memory_than_its_schedule(spacing: str) -> None:
    """That has up to 100,000 timesteps, and a grid up to 2,000 nodes."""
    schedule = Schedule(timesteps=20_000, beta_end=1e-3)
    with Largest() as largest:
        decode_grid(schedule, 2000, spacing)
    assert largest.numbers == 20_000


@pytest.mark.parametrize(("spacing", "longer"), [("asinh", 1.3), ("asinh5", 1.9)])
def test_asinh_steps_are_shortest_around_an_even_ratio(spacing: str, longer: float) -> None:
    grid = decode_grid(Schedule(), 12, spacing)
    steps = [there.lam - here.lam for here, there in itertools.pairwise(grid)]
    assert abs(grid[steps.index(min(steps))].lam) < 1 and max(steps) > longer * min(steps)


def test_a_node_knows_its_level() -> None:
    node = Node(3, 0.64)
    assert node.signal == pytest.approx(0.8) and node.noise == pytest.approx(0.6)
    assert node.sigma == pytest.approx(0.75) and node.lam == pytest.approx(math.log(4 / 3))


def test_every_deterministic_solver_is_tested_here() -> None:
    known = {name for name, row in solvers.SOLVERS.items() if row.kind != "sde"}
    assert known == set(DETERMINISTIC)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("spacing", ["logsnr", "asinh", "asinh5"])
@pytest.mark.parametrize("reverse", [False, True], ids=["decode", "encode"])
def test_converges_to_the_flow_with_its_order(name: str, spacing: str, reverse: bool) -> None:
    """Halving the steps divides the error by 2^order."""
    solve, order = DETERMINISTIC[name]
    errors = []
    for steps in (40, 80, 160, 320):
        grid = decode_grid(SCHEDULE, steps * solvers.SOLVERS[name].intervals, spacing)
        picture, noise = pictures(), flow(pictures(), grid[-1], grid[0])
        start, end = (picture, noise) if reverse else (noise, picture)
        error = solve(start, grid[::-1] if reverse else grid) - end
        errors.append((error.norm() / end.norm()).item())
    assert errors[-1] < (0.05 if order == 1 else 1e-3)
    for coarse, fine in itertools.pairwise(errors[1:]):
        assert 0.75 * 2**order < coarse / fine < 1.45 * 2**order


def test_leapfrog_is_undone_exactly_by_going_back_with_both_states() -> None:
    """At any number of steps, however coarse."""
    for steps in (1, 3, 10):
        grid = decode_grid(SCHEDULE, 2 * steps, "asinh")
        x_T, eps_T = solvers.leapfrog(eps, pictures(), grid[::-1])
        back, _ = solvers.leapfrog(eps, x_T, grid, eps_T)
        assert torch.allclose(back, pictures(), rtol=0, atol=1e-10)
        alone, _ = solvers.leapfrog(eps, x_T, grid)
        assert not torch.allclose(alone, pictures(), rtol=0, atol=1e-6)


def test_dpmpp_is_exact_where_x_0_is_known() -> None:
    """A denoiser that knows the picture: any grid leads from its noise to it."""
    x_0, grid = pictures(), decode_grid(SCHEDULE, 3, "asinh")

    def knows(x: Tensor, t: int) -> Tensor:
        return SCHEDULE.level(t).eps(x, x_0)

    eps_true = torch.randn(x_0.shape, generator=generator(0), dtype=torch.float64)
    x_T, expected = (node.level.noised(x_0, eps_true) for node in (grid[0], grid[-1]))
    assert torch.allclose(solvers.dpmpp(knows, x_T, grid), expected, atol=1e-10)


class TestCorrections:
    @staticmethod
    def maps(name: str = "dpmpp", steps: int = 12) -> tuple[Callable[[Tensor], Tensor], ...]:
        solve, grid = DETERMINISTIC[name][0], decode_grid(SCHEDULE, steps, "asinh")
        return (lambda x: solve(x, grid[::-1])), (lambda x: solve(x, grid))

    def test_each_makes_the_round_trip_more_exact(self) -> None:
        encode, decode = self.maps()
        errors = []
        for corrections in range(4):
            x_T, good = solvers.corrected(encode, decode, pictures(), corrections, tolerance=0)
            errors.append((decode(x_T) - pictures()).abs().max().item())
            assert good.all() if corrections else torch.equal(x_T, encode(pictures()))
        for before, after in itertools.pairwise(errors):
            assert after < 0.4 * before

    def test_a_row_within_tolerance_is_left_alone_and_others_go_on(self) -> None:
        """decode gives row 0 back as it is, and row 1 with a defect."""
        x_0 = pictures(2)
        off = torch.tensor([0.0, 0.1], dtype=torch.float64).reshape(2, 1, 1, 1)
        x_T, good = solvers.corrected(lambda w: w, lambda x: x - off, x_0, 3)
        assert torch.equal(x_T[0], x_0[0]) and torch.allclose(x_T[1], x_0[1] + 0.1)
        assert good.tolist() == [True, True]

    def test_a_row_that_gets_worse_goes_back_to_its_best(self) -> None:
        x_0 = pictures(2)
        spread = torch.tensor([3.0, 0.1], dtype=torch.float64).reshape(2, 1, 1, 1)

        def decode(x: Tensor) -> Tensor:
            """Row 0 answers a change threefold and so diverges; row 1 converges."""
            return x_0 + 0.05 + (1 + spread) * (x - x_0)

        x_T, good = solvers.corrected(lambda w: w, decode, x_0, 4)
        assert good.tolist() == [False, True]
        assert torch.equal(x_T[0], x_0[0])
        assert (decode(x_T)[1] - x_0[1]).abs().max() < 1 / 255

    def test_a_hopeless_defect_isnt_tried(self) -> None:
        x_0, asked = pictures(1), []

        def decode(x: Tensor) -> Tensor:
            asked.append(x)
            return x + 1

        x_T, good = solvers.corrected(lambda w: w, decode, x_0, 5)
        assert torch.equal(x_T, x_0) and not good.any() and len(asked) == 1


@pytest.mark.parametrize(
    ("solve", "steps", "tolerance"),
    [
        (solvers.ddpm, 1000, 0.02),
        (solvers.euler_maruyama, 1000, 0.02),
        (solvers.SOLVERS["pc"].solve, 500, 0.03),
    ],
)
def test_stochastic_solvers_end_in_the_data(
    solve: Callable[..., Tensor], steps: int, tolerance: float
) -> None:
    """From N(0, 1): the share of each bump, and the spread around it, are the data's."""
    x_T = normal([generator(1, row) for row in range(8)], (1, 48, 48)).double()
    own = [generator(0, row, "steps") for row in range(8)]
    grid = decode_grid(SCHEDULE, steps, "uniform")
    x_0 = solve(eps, x_T, grid, lambda: normal(own, (1, 48, 48)).to(x_T)).flatten()
    truth = mixture.marginal(1.0)
    above = 1 - truth.cdf(torch.zeros((), dtype=torch.float64))
    assert abs((x_0 > 0).double().mean().item() - above.item()) < tolerance
    assert abs(x_0.mean().item() - truth.mean.item()) < tolerance
    assert abs(x_0.std().item() - truth.stddev.item()) < tolerance


@pytest.mark.parametrize("name", [n for n, row in solvers.SOLVERS.items() if row.kind == "sde"])
def test_stochastic_noise_belongs_to_the_row(name: str) -> None:
    """A row's result doesn't depend on its neighbours."""
    solve, grid = solvers.SOLVERS[name].solve, decode_grid(SCHEDULE, 10)
    x = pictures(3)

    def run(rows: list[int]) -> Tensor:
        generators = [generator(0, row) for row in rows]
        return solve(eps, x[rows], grid, lambda: normal(generators, x.shape[1:]).to(x))

    assert torch.allclose(run([0, 1, 2])[2:], run([2]), atol=1e-12)
