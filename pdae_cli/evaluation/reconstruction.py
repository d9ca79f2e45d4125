"""How well codes hold a picture: by solver and steps, with inferred and random x_T."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..diffusion.noise import clone, generator
from ..diffusion.trajectory import Sampling
from ..engine.model import Model
from ..errors import counted
from . import metrics
from .figures import Finding, Plot, Row, Track, curve, laid_out
from .judge import Judge

SOLVERS = ("dpmpp", "ddim", "ddpm")
STEPS = (5, 10, 20, 50)
FACES = 6  # pictures of the sheet
# What is decoded; else x_T ~ N(0, I), and eps_theta alone.
SOURCES: dict[str, dict[str, Any]] = {
    "z and x_T": {},
    "z": {"random_noise": True, "guidance": 1.0},
    "neither": {"random_noise": True, "guidance": 0.0},
}


def compared(a: Tensor, b: Tensor, judge: Judge | None = None) -> Row:
    """Measure MSE, PSNR of that MSE (dB), SSIM and the share of equal values, means over pictures;
    with a judge, its distance of them too."""
    error = metrics.mse(a, b).mean()
    found: Row = {
        "mse": error.item(),
        "psnr": (-10 * error.log10()).item(),
        "ssim": metrics.ssim(a, b).mean().item(),
        "equal": metrics.equal_share(a, b).mean().item(),
    }
    if judge is not None:
        found |= {"judge_distance": judge.distance(a, b).mean().item(), "features": judge.protocol}
    return found


def reconstruction(
    model: Model,
    x_0: Tensor,
    *,
    solvers: Sequence[str] = SOLVERS,
    steps: Sequence[int] = STEPS,
    judge: Judge | None = None,
    seed: int = 0,
    track: Track = iter,
) -> Finding:
    """Compare pictures x_0 with what comes back of their z and x_T, of z alone (with random x_T),
    and of neither (eps_theta alone with random x_T), for each solver and number of steps.

    A solver that decodes by chance, as ddpm does, takes the x_T that the default solver infers.
    All ways start from the same random x_T. `nfe` counts the network evaluations of a picture, both
    ways. LPIPS isn't among the measures, as it needs weights of another network; its formula on a
    judge's features is. Raises UsageError for a judge of another size.
    """
    if judge is not None:
        judge.check(*x_0.shape[1:3])
    generators = [generator(seed, "x_T", number) for number in range(len(x_0))]
    sources = list(SOURCES)[: 2 if model.takes_z else 3]
    rows: list[Row] = []
    shown = [x_0[:FACES]]
    for solver, count in track(list(product(solvers, steps))):
        sampling = Sampling(solver=solver, inference_steps=count)
        codes = model.encode(x_0, sampling)
        there, back = model.trajectory(sampling).evaluations()
        for source in sources:
            draws = [clone(one) for one in generators]  # the same whatever is compared
            made = model.decode(codes, generators=draws, **SOURCES[source])
            row = {"solver": solver, "inference_steps": count, "from": source}
            row |= {"nfe": back + there * (source == "z and x_T"), "pictures": len(x_0)}
            rows.append(row | compared(made, x_0, judge))
            if (solver, count) == (solvers[0], steps[-1]):
                shown.append(made[:FACES])
    lines = [
        curve(rows, f"{one}, {source}", "nfe", "mse", source == "z", solver=one, **{"from": source})
        for one, source in product(solvers, sources[:2])
    ]
    title = f"Reconstruction of {counted(len(x_0), 'picture')}"
    plot = Plot(title, "network evaluations", "MSE on [0, 1]", lines, log_x=True, log_y=True)
    pixels = laid_out(torch.cat(shown), len(shown[0]), row_titles=["picture", *sources])
    return Finding("reconstruction", _words(rows), rows, plot, pixels)


def _words(rows: Sequence[Row]) -> str:
    """Say what comes back at best, of both codes and of z alone."""
    best, alone = (
        min((row for row in rows if row["from"] == source), key=lambda row: row["mse"])
        for source in ("z and x_T", "z")
    )
    words = (
        f"Best from z and x_T: MSE {best['mse']:.3g}, SSIM {best['ssim']:.4f} by {best['solver']} "
        f"in {best['nfe']} evaluations; z alone gives back MSE {alone['mse']:.3g}, SSIM "
        f"{alone['ssim']:.3f}. "
    )
    if "judge_distance" not in best:
        return words + "LPIPS is left out: its weights are another network's."
    return (
        f"{words}Judge-distance: {best['judge_distance']:.3g}, of z alone "
        f"{alone['judge_distance']:.3g}; it is LPIPS's formula on other features, not LPIPS."
    )
