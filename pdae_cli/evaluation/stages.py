"""Which stage of the trajectory z matters in (PDAE sec. 3.4, fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..codes import Codes
from ..engine import Model
from ..errors import ModelError
from ..images import to_pixels
from ..noise import generator
from ..plots import Line, Plot
from ..sampling import Sampling
from ..views.sheets import sheet
from .finding import Finding, Row, column
from .reconstruction import compared

EDGES = (0, 200, 400, 600, 800, 999)
FACES = 3  # pictures of the sheet
KEPT = ("mse", "ssim", "agreement")  # of what is measured


def stages(
    model: Model,
    x_0: Tensor,
    *,
    edges: Sequence[int] = EDGES,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> Finding:
    """Decode z of pictures with guidance at t1 >= t >= t2 only, for all pairs of edges, and not at
    all: error to the pictures, with random x_T and with the x_T inferred under full guidance.

    `agreement`: share of the model's attributes on whose side of the classifier the decoded
    picture's own z is where the picture's is. Raises ModelError for a model without G_psi.
    """
    if model.gradient_estimator is None:
        raise ModelError(f"{model.name} has no G_psi to guide with")
    sampling = sampling or Sampling()
    codes = model.encode(x_0, sampling)
    generators = [generator(seed, "x_T", number) for number in range(len(x_0))]
    rising = sorted(set(edges))
    pairs = [(high, low) for low in rising for high in rising if high > low]
    rows, shown = [], [x_0[:FACES]]
    for pair in [None, *pairs]:
        part = (
            {"guidance": 0.0} if pair is None else {"guide_from": pair[0], "guide_until": pair[1]}
        )
        row: Row = {"guide_from": pair and pair[0], "guide_until": pair and pair[1]}
        for suffix, random_noise in (("", True), ("_inferred", False)):
            made = model.decode(codes, generators=generators, random_noise=random_noise, **part)
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
    none, gains = rows[0]["mse"], {}
    whole = next(r for r in rows if (r["guide_until"], r["guide_from"]) == (edges[0], edges[-1]))
    for low, high in pairwise(edges):
        mse = column(rows, "mse", guide_from=high, guide_until=low)[0]
        gains[(high, low)] = (none - mse) / (none - whole["mse"])
    (high, low), gain = max(gains.items(), key=lambda one: one[1])
    return (
        f"Of what guidance all the way takes off the error (MSE {none:.3g} to {whole['mse']:.3g}), "
        f"guiding at {high} >= t >= {low} alone takes {gain:.0%}, more than any other."
    )
