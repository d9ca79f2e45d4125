"""Which stage of the trajectory z matters in (PDAE sec. 3.4, fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..diffusion.noise import clone, generator
from ..diffusion.sampling import Sampling
from ..engine.codes import Codes
from ..engine.model import Model
from ..errors import ModelError, UsageError
from ..pictures.images import to_pixels
from ..pictures.sheets import sheet
from .finding import Finding, Row, Track, column, on_schedule, untracked
from .plots import Line, Plot
from .reconstruction import compared

EDGES = (0, 200, 400, 600, 800, 999)
FACES = 3  # pictures of the sheet
KEPT = ("mse", "ssim", "agreement")  # of what is measured


def stages(
    model: Model,
    x_0: Tensor,
    *,
    edges: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    track: Track = untracked,
) -> Finding:
    """Decode z of pictures with guidance at t1 >= t >= t2 only, for all pairs of edges, and not at
    all: error to the pictures, with random x_T and with the x_T inferred under full guidance.

    `agreement`: share of the model's attributes on whose side of the classifier the decoded
    picture's own z is where the picture's is. Raises ModelError for a model without G_psi,
    UsageError for less than two edges, or one that is no timestep.
    """
    rising = sorted(set(on_schedule(model, EDGES) if edges is None else edges))
    if len(rising) < 2 or rising[0] < 0 or rising[-1] >= model.schedule.timesteps:
        last = model.schedule.timesteps - 1
        raise UsageError(f"stages take two edges or more, of 0 … {last}, not {rising}")
    if model.gradient_estimator is None:
        raise ModelError(f"{model.name} has no G_psi to guide with")
    sampling = sampling or Sampling()
    codes = model.encode(x_0, sampling)
    generators = [generator(seed, "x_T", number) for number in range(len(x_0))]
    pairs = [(high, low) for low in rising for high in rising if high > low]
    rows, shown = [], [x_0[:FACES]]
    for pair in track([None, *pairs]):
        part = (
            {"guidance": 0.0} if pair is None else {"guide_from": pair[0], "guide_until": pair[1]}
        )
        row: Row = {"guide_from": pair and pair[0], "guide_until": pair and pair[1]}
        for suffix, random_noise in (("", True), ("_inferred", False)):
            draws = [clone(one) for one in generators]  # the same x_T for every pair
            made = model.decode(codes, generators=draws, random_noise=random_noise, **part)
            found = compared(made, x_0) | agreement(model, codes, made)
            row |= {f"{key}{suffix}": found[key] for key in found if key in KEPT}
            if random_noise and _is_shown(row, rising):
                shown.append(made[:FACES])
        rows.append(row | {"pictures": len(x_0)})
    plot = _plot(rows, rising, len(x_0))
    titles = ["picture", *(_title(row) for row in rows if _is_shown(row, rising))]
    pixels = sheet(list(to_pixels(torch.cat(shown))), columns=len(shown[0]), row_titles=titles)
    return Finding("stages", _words(rows, rising), rows, plot, pixels)


def agreement(model: Model, codes: Codes, pictures: Tensor) -> Row:
    """Share of attributes whose scores have the same sign for the codes and for the pictures' own
    z, over all pictures; nothing for a model without attributes."""
    if model.attributes is None:
        return {}
    before, after = (
        model.scores(codes),
        model.scores(model.encode(pictures.clamp(-1, 1), noise=False)),
    )
    return {"agreement": ((before > 0) == (after > 0)).float().mean().item()}


def _is_shown(row: Row, edges: Sequence[int]) -> bool:
    return row["guide_from"] in (None, edges[-1]) or row["guide_until"] == edges[0]


def _title(row: Row) -> str:
    return "none" if row["guide_from"] is None else f"{row['guide_from']} … {row['guide_until']}"


def _plot(rows: Sequence[Row], edges: Sequence[int], count: int) -> Plot:
    lines = [
        Line(
            f"down to t = {low}",
            column(rows, "guide_from", guide_until=low),
            column(rows, "mse", guide_until=low),
        )
        for low in edges[:-1]
    ]
    lines.append(Line("never", [edges[1], edges[-1]], [rows[0]["mse"]] * 2, dashed=True))
    title = f"Guided only from t1 down to t2: {count} pictures from z, random x_T"
    return Plot(title, "guided from t1", "MSE on [0, 1]", lines)


def _words(rows: Sequence[Row], edges: Sequence[int]) -> str:
    """Which of the intervals between neighbouring edges gains most of what guidance gains."""
    none = rows[0]["mse"]
    errors = {
        (high, low): column(rows, "mse", guide_from=high, guide_until=low)[0]
        for low, high in [(edges[0], edges[-1]), *pairwise(edges)]
    }
    whole = errors[edges[-1], edges[0]]
    told = f"the error (MSE {none:.3g} to {whole:.3g})"
    if not whole < none:
        return f"Guidance from {edges[-1]} to {edges[0]} takes nothing off {told}."
    high, low = min(pairwise(edges), key=lambda one: errors[one[1], one[0]])[::-1]
    gain = (none - errors[high, low]) / (none - whole)
    return (
        f"Of what guidance from {edges[-1]} to {edges[0]} takes off {told}, guiding at "
        f"{high} >= t >= {low} alone takes {gain:.0%}, more than any other part."
    )
