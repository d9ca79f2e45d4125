"""What z holds and what x_T holds: all pairs of some z and some x_T, decoded."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.noise import generator
from ..diffusion.trajectory import Sampling
from ..engine.codes import stack
from ..engine.model import Model
from ..errors import UsageError
from .figures import Finding, Plot, Row, Track, curve, laid_out, require


def shares(values: Tensor) -> Row:
    """Split the variance of values (I, J, …), I and J at least 2, into shares: of the first index
    alone, of the second alone, and of both together, which add up to 1.

    They are estimates of the components of variance, not sums of squares, so that they don't depend
    on how many z and x_T there are (Searle, Casella & McCulloch 1992, sec. 4.3: two-way crossed
    classification with random effects, one value each; estimates below 0 are 0).
    """
    values = values.double().reshape(*values.shape[:2], -1)
    i, j = values.shape[:2]
    mean = values.mean((0, 1), keepdim=True)
    rows, columns = values.mean(1, keepdim=True), values.mean(0, keepdim=True)
    of_both = (values - rows - columns + mean).square().sum((0, 1)) / ((i - 1) * (j - 1))
    of_rows = (rows - mean).square().sum((0, 1)) / (i - 1) - of_both / j
    of_columns = (columns - mean).square().sum((0, 1)) / (j - 1) - of_both / i
    found = [max(part.mean().item(), 0.0) for part in (of_rows, of_columns, of_both)]
    total = sum(found)
    parts = (one / total if total else 0.0 for one in found)
    return {"variance": total} | dict(zip(("z", "x_T", "together"), parts, strict=True))


def semantics(
    model: Model,
    x_0: Tensor,
    *,
    noises: int = 6,
    sampling: Sampling | None = None,
    seed: int = 0,
    track: Track = iter,
) -> Finding:
    """Decode each picture's z with each of `noises` x_T ~ N(0, I): what of the results' variance
    is z's, and what x_T's.

    Of values averaged over blocks of 1, 2, 4 … pixels, and of the logits that attributes have for
    the results' own z, if the model has such. The sheet has a z a row and an x_T a column. Raises
    UsageError for fewer than two pictures or noises.
    """
    require(x_0, 2)
    if noises < 2:
        raise UsageError(f"noises is {noises}; of one x_T nothing says what is x_T's: give 2")
    codes = model.encode(x_0, sampling or Sampling(), noise=False)
    rendered = []
    for k in track(range(len(codes))):
        same = stack([codes[k : k + 1]] * noises)
        generators = [generator(seed, "x_T", number) for number in range(noises)]
        rendered.append(model.decode(same, generators=generators, random_noise=True))
    made = torch.cat(rendered)
    counts, pairs = {"pictures": len(codes), "noises": noises}, (len(codes), noises)
    rows: list[Row] = []
    block = 1
    while block <= min(made.shape[2:]):
        pooled = (F.avg_pool2d(made, block).unflatten(0, pairs) + 1) / 2
        rows.append({"of": f"blocks of {block}", "block": block} | shares(pooled) | counts)
        block *= 2
    words = (
        f"z decides {rows[0]['z']:.0%} of the variance of single values and "
        f"{max(row['z'] for row in rows):.0%} of that of blocks at most, x_T "
        f"{rows[0]['x_T']:.0%} and {max(row['x_T'] for row in rows):.0%}"
    )
    if model.attributes is not None and (logits := model.attributes.logits()):
        scores = model.scores(model.encode(made.clamp(-1, 1), noise=False))[:, logits]
        last = {"of": "attribute scores"} | shares(scores.unflatten(0, pairs)) | counts
        words += f"; z decides {last['z']:.0%} of that of attribute scores, x_T {last['x_T']:.0%}"
        rows.append(last)
    names = {"z": "z", "x_T": "x_T", "together": "both together"}
    lines = [curve(rows, label, "block", name) for name, label in names.items()]
    title = f"Whose the variance is, over {len(codes)} z and {noises} x_T"
    plot = Plot(title, "side of the blocks averaged over, in pixels", "share", lines, log_x=True)
    pixels = laid_out(
        made,
        columns=noises,
        titles=[f"x_T {number + 1}" for number in range(noises)],
        row_titles=[f"z {number + 1}" for number in range(len(codes))],
    )
    return Finding("semantics", words + ".", rows, plot, pixels)
