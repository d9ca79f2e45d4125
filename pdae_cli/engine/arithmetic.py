"""Arithmetic on codes: weighted sums, means, and who is near whom."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InputError, UsageError
from .codes import Codes, require_alike

NOISES = ("sphere", "plain", "first", "none")
METRICS = ("cosine", "euclidean")
LONGEST = 1000  # characters of a sum's name
CHUNK = 1 << 24  # distances in memory at once


def combine(
    terms: Sequence[tuple[float, Codes]], noise: str = "sphere", names: Sequence[str] = ()
) -> Codes:
    """The weighted sum of codes, row by row; a term of a single row serves for every row.

    z is summed. What becomes of x_T, `noise` says (NOISES):

    - `sphere`: it is summed and brought to the mean length of its terms, so that it stays what
      decoding begins from, N(0, I): a sum of two halves alone would have std 0.7. For mixtures;
      two halves give what `noise.slerp` does. Terms without x_T add to z alone, and where the
      others' weights cancel, the sum is a direction and has no x_T.
    - `plain`: it is summed as z is. Means of many have little noise, which decodes to a smooth
      picture, as a mean of pictures is.
    - `first`: the first term's stays. For edits, as in `Model.manipulate`.
    - `none`: it is left out.

    Rows keep the digests, which name their random numbers, of the first term that has all rows.
    Raises InputError for codes of different models or settings, by `names`, and for unlike rows.
    """
    if noise not in NOISES:
        raise UsageError(f"unknown noise {noise!r}; known: {', '.join(NOISES)}")
    codes = [one for _, one in terms]
    require_alike(codes, names)
    rows = max(map(len, codes))
    if any(len(one) not in (1, rows) for one in codes):
        counts = " and ".join(str(count) for count in sorted({len(one) for one in codes}))
        raise InputError(f"codes of {counts} pictures can't be summed row by row; split them")
    whole = next(one for one in codes if len(one) == rows)
    noisy = [(weight, one.x_T) for weight, one in terms if one.x_T is not None]
    z = _sum([(weight, one.z) for weight, one in terms], rows).float()
    x_T = _noise(noisy, noise, rows) if noisy else None
    if not all(part.isfinite().all() for part in (z, x_T) if part is not None):
        raise InputError("the sum is too large a number; choose smaller weights")
    return replace(
        whole,
        z=z,
        x_T=x_T,
        eps_T=None,
        sources=tuple(_formula(terms, row) for row in range(rows)),
        sampling=next((one for one in codes if one.x_T is not None), whole).sampling,
        converged=(),
    )


def _sum(terms: Sequence[tuple[float, Tensor]], rows: int) -> Tensor:
    """sum w x in float64, (rows, …); a single row counts for all."""
    total = torch.zeros(rows, *terms[0][1].shape[1:], dtype=torch.float64)
    for weight, x in terms:
        total += weight * x.double()
    return total


def _noise(terms: Sequence[tuple[float, Tensor]], noise: str, rows: int) -> Tensor | None:
    """x_T (rows, C, H, W) of a sum of terms that have it, or None."""
    if noise == "none":
        return None
    if noise == "first":
        return terms[0][1].expand(rows, -1, -1, -1)
    total = _sum(terms, rows)
    if noise == "sphere":
        share = sum(abs(weight) for weight, _ in terms)
        if abs(sum(weight for weight, _ in terms)) <= 1e-6 * share:
            return None
        length = sum(abs(weight) * _length(x_T) for weight, x_T in terms) / share
        total *= length / _length(total).clamp(min=1e-12)
    return total.float()


def _length(x: Tensor) -> Tensor:
    """Length of each row as one vector: (N, C, H, W) → (N, 1, 1, 1) float64."""
    return x.double().flatten(1).norm(dim=1)[:, None, None, None]


def _formula(terms: Sequence[tuple[float, Codes]], row: int) -> str:
    """A name for a row of a sum, e.g. "a.png + 0.3 b.png"."""
    text = ""
    for weight, one in terms:
        sign = " - " if weight < 0 else " + "
        text += sign if text else sign.strip(" +")
        text += f"{abs(weight):.6g} " if abs(weight) != 1 else ""
        text += one.sources[row if len(one) > 1 else 0]
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def mean(codes: Codes, noise: str = "plain") -> Codes:
    """The mean of all rows, as one row; whatever their order. `noise` is as in `combine`."""
    order = list(range(len(codes)))
    if noise != "first":
        order.sort(key=codes.fingerprint)
    rows = [codes[row : row + 1] for row in order]
    summed = combine([(1 / len(rows), row) for row in rows], noise)
    name = hashlib.sha256("".join(sorted(codes.digests)).encode()).hexdigest()
    source = codes.sources[0] if len(rows) == 1 else f"mean of {len(rows)}"
    return replace(summed, sources=(source,), digests=(name,))


def nearest(
    query: Tensor, library: Tensor, count: int, metric: str = "cosine"
) -> tuple[Tensor, Tensor]:
    """The `count` nearest rows of a library (M, D) to each of a query (N, D), nearest first.

    Returns distances (N, count) float64 and row numbers (N, count); a row is at 0 from itself.
    `cosine`: 1 - cos of the angle between the two z, 0 … 2. `euclidean`: root mean square
    difference of z, in standard deviations over the library of each dimension.
    """
    if metric not in METRICS:
        raise UsageError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    scaled = _unit if metric == "cosine" else _standardised(library)
    targets, found = scaled(library), []
    for some in scaled(query).split(max(1, CHUNK // len(library))):
        # Not by matrix products, whose rounding would put a row away from itself.
        distances = torch.cdist(some, targets, compute_mode="donot_use_mm_for_euclid_dist")
        # |u - v|^2 / 2 of unit vectors is 1 - cos.
        distances = (
            distances.square() / 2 if metric == "cosine" else distances / library.shape[1] ** 0.5
        )
        found.append(distances.topk(min(count, len(library)), largest=False))
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def _unit(z: Tensor) -> Tensor:
    return torch.nn.functional.normalize(z.double(), dim=1)


def _standardised(library: Tensor) -> Callable[[Tensor], Tensor]:
    """Divides by the library's standard deviations; a dimension without any is taken as it is."""
    spread = library.double().std(dim=0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    return lambda z: z.double() / spread
