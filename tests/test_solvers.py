"""Solvers against closed forms: a Gaussian data distribution has an exact denoiser and flow."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pdae_cli import solvers
from pdae_cli.noise import generator
from pdae_cli.schedule import Schedule

SCHEDULE = Schedule()
SPREAD = 0.5  # standard deviation of the data


def gaussian_eps(x: Tensor, t: int) -> Tensor:
    """E[eps | x_t] for data N(0, SPREAD^2)."""
    alpha_bar = SCHEDULE.alpha_bar[t].item()
    return math.sqrt(1 - alpha_bar) * x / (alpha_bar * SPREAD**2 + 1 - alpha_bar)


def flow(x: Tensor, here: solvers.Node, there: solvers.Node) -> Tensor:
    """The ODE's solution for that denoiser: x scales with the marginal's standard deviation."""
    variance_here, variance_there = (
        node.alpha_bar * SPREAD**2 + 1 - node.alpha_bar for node in (here, there)
    )
    return x * math.sqrt(variance_there / variance_here)


def states(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("spacing", solvers.SPACINGS)
@pytest.mark.parametrize("reverse", [False, True], ids=["decode", "encode"])
def test_ddim_converges_to_the_flow_with_order_one(spacing: str, reverse: bool) -> None:
    errors = []
    for steps in (25, 50, 100, 200):
        grid = solvers.decode_grid(SCHEDULE, steps, spacing)
        grid = grid[::-1] if reverse else grid
        exact = flow(states(), grid[0], grid[-1])
        error = solvers.ddim(gaussian_eps, states(), grid) - exact
        errors.append((error.norm() / exact.norm()).item())
    assert errors[-1] < 0.015
    for coarse, fine in itertools.pairwise(errors):
        assert 1.6 < coarse / fine < 2.6


@pytest.mark.parametrize("spacing", solvers.SPACINGS)
@pytest.mark.parametrize("steps", [10, 50])
def test_inverse_undoes_ddim_on_its_own_grid(spacing: str, steps: int) -> None:
    """decode(encode(x)) = x to the fixed point's tolerance, and more iterations are better."""
    grid = solvers.decode_grid(SCHEDULE, steps, spacing)
    errors = []
    for iterations in (0, 2, 12):
        x_T = solvers.ddim_inverse(gaussian_eps, states(), grid[::-1], iterations)
        errors.append((solvers.ddim(gaussian_eps, x_T, grid) - states()).abs().max().item())
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 1e-3


def test_inverse_without_iterations_is_explicit_ddim() -> None:
    grid = solvers.decode_grid(SCHEDULE, 20)[::-1]
    explicit = solvers.ddim(gaussian_eps, states(), grid)
    assert torch.equal(solvers.ddim_inverse(gaussian_eps, states(), grid, 0), explicit)


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_evaluations_are_counted_right(iterations: int) -> None:
    calls = []

    def counted(x: Tensor, t: int) -> Tensor:
        calls.append(t)
        return gaussian_eps(x, t)

    grid = solvers.decode_grid(SCHEDULE, 10)
    solvers.ddim_inverse(counted, states(), grid[::-1], iterations)
    assert len(calls) == (10 * iterations + 1 if iterations else 10)


def test_uniform_grid_is_the_authors(shared: Path) -> None:
    golden = load_file(shared / "golden" / "pdae_schedules" / "ddim_linear_T1000.safetensors")
    checked = 0
    for name, timesteps in golden.items():
        if name.endswith(".timestep_map"):
            steps = int(name.removeprefix("ddim").removesuffix(".timestep_map"))
            grid = solvers.decode_grid(SCHEDULE, steps)
            assert [node.t for node in grid[::-1]] == sorted(set(timesteps.tolist())), name
            checked += 1
    assert checked


@pytest.mark.parametrize("spacing", solvers.SPACINGS)
def test_grids_go_from_noise_to_picture(spacing: str) -> None:
    for steps in (1, 7, 50, 999):
        timesteps = [node.t for node in solvers.decode_grid(SCHEDULE, steps, spacing)]
        assert timesteps[0] == 999 and timesteps[-1] == 0
        assert timesteps == sorted(set(timesteps), reverse=True)
        assert len(timesteps) <= steps + 1


def test_ancestral_sampling_reaches_the_data_distribution() -> None:
    """From N(0, 1) the full chain ends with the data's standard deviation."""
    grid = solvers.decode_grid(SCHEDULE, 999)
    generators = [generator(0, row) for row in range(8)]
    x_T = torch.randn(8, 1, 32, 32, generator=generator(1))
    x_0 = solvers.ddpm(gaussian_eps, x_T, grid, generators)
    assert abs(x_0.std().item() - SPREAD) < 0.02
    assert abs(x_0.mean().item()) < 0.02


def test_ancestral_noise_belongs_to_the_row() -> None:
    """A row's result doesn't depend on its neighbours."""
    grid = solvers.decode_grid(SCHEDULE, 10)
    together = solvers.ddpm(gaussian_eps, states(3), grid, [generator(0, r) for r in range(3)])
    alone = solvers.ddpm(gaussian_eps, states(3)[2:], grid, [generator(0, 2)])
    assert torch.allclose(together[2:], alone, atol=1e-12)


class TestSlerp:
    def test_ends(self) -> None:
        a, b = states(2).split(1)
        assert torch.allclose(solvers.slerp(a, b, 0.0), a, atol=1e-12)
        assert torch.allclose(solvers.slerp(a, b, 1.0), b, atol=1e-12)

    def test_constant_speed_on_the_sphere(self) -> None:
        """Equal steps make equal angles, and unit vectors stay unit vectors."""
        a, b = torch.nn.functional.normalize(torch.randn(2, 50, dtype=torch.float64))[:, None]
        points = [solvers.slerp(a, b, k / 4) for k in range(5)]
        for point in points:
            assert point.norm().item() == pytest.approx(1, abs=1e-12)
        cosines = [(p * q).sum().item() for p, q in itertools.pairwise(points)]
        assert cosines == pytest.approx([cosines[0]] * 4, abs=1e-9)

    def test_identical_inputs_stay_put(self) -> None:
        for seed in range(200):
            a = torch.randn(1, 3, 8, 8, generator=generator(seed))
            assert torch.allclose(solvers.slerp(a, a.clone(), 0.37), a, atol=1e-6)

    @pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
    def test_antipodal_inputs_go_around(self, share: float) -> None:
        a = states(1)
        middle = solvers.slerp(a, -a, share)
        assert middle.isfinite().all()
        assert middle.norm().item() == pytest.approx(a.norm().item(), rel=1e-6)

    def test_zero_vector_is_finite(self) -> None:
        a = states(1)
        assert solvers.slerp(a, torch.zeros_like(a), 0.5).isfinite().all()
