"""How well codes hold a picture: by solver and steps, with inferred and random x_T."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from ..diffusion.noise import clone, generator
from ..diffusion.sampling import Sampling
from ..engine.codes import Codes
from ..engine.model import Model
from ..pictures.images import to_pixels
from ..pictures.sheets import sheet
from . import metrics
from .finding import Finding, Row, Track, column, untracked
from .judge import Judge
from .plots import Line, Plot

SOLVERS = ("dpmpp", "ddim", "ddpm")
STEPS = (5, 10, 20, 50)
FACES = 6  # pictures of the sheet
SOURCES = ("z and x_T", "z", "neither")  # what is decoded; else x_T ~ N(0, I), eps_theta alone


def compared(a: Tensor, b: Tensor, judge: Judge | None = None) -> Row:
    """MSE, PSNR of that MSE (dB), SSIM and the share of equal values, means over pictures; with a
    judge, its distance of them too."""
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
    track: Track = untracked,
) -> Finding:
    """Pictures x_0 beside what comes back of their z and x_T, of z alone (with random x_T), and of
    neither (eps_theta alone with random x_T), for each solver and number of steps.

    A solver that decodes by chance, as ddpm does, takes the x_T that the default solver infers.
    All ways start from the same random x_T. `nfe` counts the network evaluations of a picture, both
    ways. LPIPS isn't among the measures, as it needs weights of another network; its formula on a
    judge's features is. Raises UsageError for a judge of another size.
    """
    if judge is not None:
        judge.check(*x_0.shape[1:3])
    generators = [generator(seed, "x_T", number) for number in range(len(x_0))]
    rows: list[Row] = []
    shown: list[Tensor] = [x_0[:FACES]]
    for solver, count in track(list(product(solvers, steps))):
        sampling = Sampling(solver=solver, inference_steps=count)
        codes = model.encode(x_0, sampling)
        there, back = model.trajectory(sampling).evaluations()
        for source in SOURCES[: 2 if model.takes_z else 3]:
            made = _decoded(model, codes, source, generators)
            row = {"solver": solver, "inference_steps": count, "from": source}
            row |= {"nfe": back + there * (source == SOURCES[0]), "pictures": len(x_0)}
            rows.append(row | compared(made, x_0, judge))
            if (solver, count) == (solvers[0], steps[-1]):
                shown.append(made[:FACES])
    best = min((r for r in rows if r["from"] == SOURCES[0]), key=lambda r: r["mse"])
    alone = min((r for r in rows if r["from"] == "z"), key=lambda r: r["mse"])
    lines = [
        Line(f"{solver}, {source}", *_curve(rows, solver, source), dashed=source != SOURCES[0])
        for solver in solvers
        for source in SOURCES[:2]
    ]
    title = f"Reconstruction of {len(x_0)} pictures"
    plot = Plot(title, "network evaluations", "MSE on [0, 1]", lines, log_x=True, log_y=True)
    titles = ["picture", *SOURCES][: len(shown)]
    pixels = sheet(list(to_pixels(torch.cat(shown))), columns=len(shown[0]), row_titles=titles)
    return Finding("reconstruction", _words(best, alone), rows, plot, pixels)


def _words(best: Row, alone: Row) -> str:
    """What comes back at best, of both codes and of z alone."""
    words = (
        f"Best from z and x_T: MSE {best['mse']:.3g}, SSIM {best['ssim']:.4f} by {best['solver']} "
        f"in {best['nfe']} evaluations; z alone gives back MSE {alone['mse']:.3g}, SSIM "
        f"{alone['ssim']:.3f}"
    )
    if "judge_distance" in best:
        return (
            f"{words}. Judge-distance: {best['judge_distance']:.3g}, of z alone "
            f"{alone['judge_distance']:.3g}; it is LPIPS's formula on other features, not LPIPS."
        )
    return words + ". LPIPS is left out: its weights are another network's."


def _decoded(
    model: Model, codes: Codes, source: str, generators: Sequence[torch.Generator]
) -> Tensor:
    generators = [clone(one) for one in generators]  # the same draws whatever is compared
    if source == SOURCES[0]:
        return model.decode(codes, generators=generators)
    weight = {"z": 1.0, "neither": 0.0}[source]
    return model.decode(codes, generators=generators, random_noise=True, guidance=weight)


def _curve(rows: Sequence[Row], solver: str, source: str) -> tuple[list[float], list[float]]:
    where = {"solver": solver, "from": source}
    return column(rows, "nfe", **where), column(rows, "mse", **where)
