"""Which stage of the trajectory z matters in (PDAE sec. 3.4, fig. 3)."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..diffusion.noise import clone, generator
from ..diffusion.trajectory import Sampling
from ..engine.codes import Codes
from ..engine.model import Model
from ..errors import ModelError, UsageError
from .figures import Finding, Line, Plot, Row, Track, curve, laid_out, on_schedule
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
    track: Track = iter,
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
    codes = model.encode(x_0, sampling or Sampling())
    generators = [generator(seed, "x_T", number) for number in range(len(x_0))]
    pairs = [(high, low) for low in rising for high in rising if high > low]
    rows, shown = [], {"picture": x_0[:FACES]}
    for high, low in track([(None, None), *pairs]):
        part = {"guidance": 0.0} if high is None else {"guide_from": high, "guide_until": low}
        row: Row = {"guide_from": high, "guide_until": low}
        for suffix, random_noise in (("", True), ("_inferred", False)):
            draws = [clone(one) for one in generators]  # the same x_T for every pair
            made = model.decode(codes, generators=draws, random_noise=random_noise, **part)
            found = compared(made, x_0) | agreement(model, codes, made)
            row |= {f"{key}{suffix}": found[key] for key in found if key in KEPT}
            if random_noise and (high in (None, rising[-1]) or low == rising[0]):
                shown["none" if high is None else f"{high} … {low}"] = made[:FACES]
        rows.append(row | {"pictures": len(x_0)})
    lines = [
        curve(rows, f"down to t = {low}", "guide_from", "mse", guide_until=low)
        for low in rising[:-1]
    ]
    lines.append(Line("never", [rising[1], rising[-1]], [rows[0]["mse"]] * 2, dashed=True))
    title = f"Guided only from t1 down to t2: {len(x_0)} pictures from z, random x_T"
    plot = Plot(title, "guided from t1", "MSE on [0, 1]", lines)
    pixels = laid_out(torch.cat([*shown.values()]), len(x_0[:FACES]), row_titles=[*shown])
    return Finding("stages", _words(rows, rising), rows, plot, pixels)


def agreement(model: Model, codes: Codes, pictures: Tensor) -> Row:
    """Return the share of attributes whose logits have the same sign for the codes and for the
    pictures' own z, over all pictures; nothing for a model without such attributes."""
    rows = model.attributes.logits() if model.attributes else []
    if not rows:
        return {}
    before = model.scores(codes)[:, rows]
    after = model.scores(model.encode(pictures.clamp(-1, 1), noise=False))[:, rows]
    return {"agreement": ((before > 0) == (after > 0)).float().mean().item()}


def _words(rows: Sequence[Row], edges: Sequence[int]) -> str:
    """Say which of the intervals between neighbouring edges gains most of what guidance gains."""
    errors = {(row["guide_from"], row["guide_until"]): row["mse"] for row in rows}
    none, whole = errors[None, None], errors[edges[-1], edges[0]]
    told = f"the error (MSE {none:.3g} to {whole:.3g})"
    if not whole < none:
        return f"Guidance from {edges[-1]} to {edges[0]} takes nothing off {told}."
    low, high = min(pairwise(edges), key=lambda one: errors[one[1], one[0]])
    gain = (none - errors[high, low]) / (none - whole)
    return (
        f"Of what guidance from {edges[-1]} to {edges[0]} takes off {told}, guiding at "
        f"{high} >= t >= {low} alone takes {gain:.0%}, more than any other part."
    )
