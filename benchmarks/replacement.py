"""How well completing a picture knows what is given: two Gaussian values that correlate by 0.8, one
of them known, where the mean and the variance of the other are known in closed form.

    python benchmarks/replacement.py

Prints a Markdown table.
"""

from __future__ import annotations

import math

import torch
from report import stamp, table
from torch import Tensor

from pdae_cli.diffusion.noise import generator, normal
from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.diffusion.trajectory import Sampling, Trajectory
from pdae_cli.engine.editing import alongside, settled

SCHEDULE = Schedule()
COVARIANCE = 0.25 * torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
KNOWN = 0.6
RUNS = (("dpmpp", 20), ("dpmpp", 100), ("ddpm", 20), ("ddpm", 100), ("ddpm", 999), ("pc", 20),
        ("pc", 100), ("pc", 500))  # fmt: skip


def eps(x: Tensor, t: int) -> Tensor:
    """E[eps | x_t] of the two values, in channels."""
    alpha_bar = SCHEDULE.alpha_bar[t].item()
    eye = torch.eye(2, dtype=torch.float64)
    precision = torch.linalg.inv(alpha_bar * COVARIANCE + (1 - alpha_bar) * eye)
    return math.sqrt(1 - alpha_bar) * torch.einsum("ij,njhw->nihw", precision, x)


def join(known: Tensor, free: Tensor) -> Tensor:
    return torch.cat([known[:, :1], free[:, 1:]], dim=1)


def completed(solver: str, steps: int) -> Tensor:
    """9,216 draws of the free value."""
    trajectory = Trajectory(SCHEDULE, Sampling(steps, solver=solver), "small", False)
    draws = [generator(0, solver)]
    x_0 = torch.full((1, 2, 96, 96), KNOWN, dtype=torch.float64)
    x_T = normal(draws, x_0.shape[1:]).double()
    pair = alongside(settled(SCHEDULE, x_0), eps, join)
    return trajectory.to_picture(pair, torch.cat([x_T, x_T]), draws * 2)[1, 1]


def main() -> None:
    rows: list[list[object]] = []
    for solver, steps in RUNS:
        free = completed(solver, steps)
        rows.append([solver, steps, free.mean().item(), free.var().item()])
    rows += [
        ["given the known one", "", 0.8 * KNOWN, 0.25 * (1 - 0.8**2)],
        ["alone", "", 0.0, 0.25],
    ]
    print(table("solver|steps|mean|variance", rows))
    print(f"\n{stamp()}")


if __name__ == "__main__":
    main()
