"""How good samples are: distances to real pictures in the judge's features, by steps."""

import math
from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from ..diffusion.trajectory import Sampling
from ..engine.model import Model
from ..errors import ModelError, UsageError
from .figures import Finding, Line, Plot, Row, Track, curve, half_interval, laid_out, require
from .judge import Judge
from .metrics import frechet, kernel_distance, kernel_parts, precision_recall

STEPS = (10, 20, 50, 100)
SHOWN = 8  # samples of each kind in the sheet
LEAST = 5  # pictures of a set: precision and recall ask for third neighbours
REAL = "held-out pictures"  # what samples that nothing tells from real ones would measure
KINDS = {"unconditional": "eps_theta alone", "latent": "PDAE with its latent DPM"}


def samples(
    model: Model,
    judge: Judge,
    real: Tensor,
    *,
    count: int = 64,
    steps: Sequence[int] = STEPS,
    sampling: Sampling | None = None,
    seed: int = 0,
    track: Track = iter,
) -> Finding:
    """Measure samples of eps_theta alone, and of PDAE where the model has a latent DPM, beside real
    pictures: Fréchet and kernel distance in the judge's features, precision and recall.

    `real` (N, C, size, size) are pictures that neither the model nor the judge learnt from. The
    first row, REAL, says how far real ones are from real ones: `count` of them, or half where there
    are fewer than twice as many, from the others. Half of the kernel distance's 95 % interval is
    too wide rather than too narrow where that is near 0. Raises ModelError for a model that makes
    no samples, UsageError for a judge of another size, or fewer than LEAST samples.
    """
    kinds = kinds_of(model)
    judge.check(*real.shape[1:3])
    require(real, 2 * LEAST)
    if count < LEAST:
        raise UsageError(f"count is {count}, and samples are measured of {LEAST} or more")
    features = judge.features(real)
    some, others = features.tensor_split([min(count, len(features) // 2)])
    protocol = {"features": judge.protocol}
    rows: list[Row] = [{"samples": REAL} | _distances(some, others) | protocol]
    columns = min(SHOWN, count)
    shown = {"held out": real[:columns]}
    for kind, number in track(list(product(kinds, steps))):
        how = (sampling or Sampling()).changed({"inference_steps": number})
        made, _ = model.sample(count, how, seed=seed, unconditional=kind == "unconditional")
        row = {"samples": KINDS[kind], "inference_steps": number, "solver": how.solver}
        rows.append(row | _distances(judge.features(made), features) | protocol)
        if number == steps[-1]:
            shown[KINDS[kind]] = made[:columns]
    lines = [
        curve(rows, KINDS[kind], "inference_steps", "judge_frechet", samples=KINDS[kind])
        for kind in kinds
    ]
    lines.append(Line(REAL, list(steps), [rows[0]["judge_frechet"]] * len(steps), dashed=True))
    title = f"Judge-Fréchet distance, {count} samples, {len(real)} real pictures (not FID)"
    plot = Plot(title, "solver steps", "judge-Fréchet", lines, log_x=True)
    pixels = laid_out(torch.cat([*shown.values()]), columns, row_titles=[*shown])
    return Finding("samples", _words(rows, count, features.shape[1]), rows, plot, pixels)


def kinds_of(model: Model) -> list[str]:
    """Name those of KINDS that a model makes. Raises ModelError for one that makes none."""
    kinds = [k for k in KINDS if (model.latent_dpm if k == "latent" else not model.takes_z)]
    if not kinds:
        raise ModelError(
            f"{model.name} has no latent DPM, and its eps_theta makes nothing without z; "
            "`pdae train latent` makes one"
        )
    return kinds


def _distances(made: Tensor, real: Tensor) -> Row:
    precision, recall = precision_recall(real, made)
    parts = kernel_parts(made, real)
    return {
        "judge_frechet": frechet(made, real),
        "judge_kid": kernel_distance(made, real),
        "judge_kid_interval": math.hypot(*(half_interval(2 * part) for part in parts)),
        "precision": precision,
        "recall": recall,
        "count": len(made),
        "real": len(real),
    }


def _words(rows: Sequence[Row], count: int, features: int) -> str:
    """Tell the best of each kind by judge-KID, which few samples don't bias."""
    told = []
    for title in (*KINDS.values(), REAL):
        if own := [row for row in rows if row["samples"] == title]:
            best = min(own, key=lambda row: row["judge_kid"])
            kid = f"{best['judge_kid']:.2g} ± {best['judge_kid_interval']:.1g}"
            told.append(f"{kid} ({best['judge_frechet']:.3g})")
            if title != REAL:
                told[-1] = f"{title} {told[-1]} in {best['inference_steps']} steps"
    words = (
        f"Judge-KID ± its 95 % interval (judge-Fréchet) of {count} samples at best: "
        f"{', '.join(told[:-1])}; of {rows[0]['count']} held-out pictures {told[-1]}. "
        "Not comparable with KID and FID"
    )
    if count <= features:
        words += f"; of so few, judge-Fréchet says little: it has {features} dimensions"
    return words + "."
