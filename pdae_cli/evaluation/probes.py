"""What a representation tells of pictures: linear probes for every label, beside raw pixels and
their principal components, and how few labels they need."""

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from ..diffusion.noise import generator
from ..engine.attributes import auroc, both_kinds, fit
from ..errors import UsageError
from .figures import Finding, Plot, Row, Track, curve, half_interval
from .metrics import average_precision

DECAYS = (1e-3, 1e-2, 1e-1, 1.0)  # a probe takes the one that does best on a fifth it doesn't see
FEW_DECAY = 0.1  # of probes on few labels, which have nothing to choose one by
COUNTS = (4, 10, 20, 50, 100)  # labels an attribute, half of them positive
DRAWS = 3  # of those labels
MEASURES = ("auroc", "average_precision")
Features = tuple[Tensor, Tensor]  # of training and of held-out pictures: (N, F) and (M, F)


def standardised(train: Tensor, held_out: Tensor) -> Features:
    """Bring each dimension to mean 0 and variance 1 over the training pictures."""
    mean, std = train.mean(0), train.std(0, correction=0).clamp(min=1e-6)
    return (train - mean) / std, (held_out - mean) / std


def pixels_and_components(train: Tensor, held_out: Tensor, size: int) -> dict[str, Features]:
    """Return raw pixels of pictures (N, C, H, W), and their `size` principal components.

    Pixels are centred, and given in coordinates of the axes that the training pictures span: a
    linear probe with decay has no weight beyond those, so it is the same probe with fewer numbers.
    Components are the leading ones of them, each with its own variance: whitened they tell less, as
    a decay then holds the leading ones back, and would be no fair baseline. The mean squared length
    of both is made `size`, as that of a standardised z is, so that a decay means the same.
    """
    x, y = train.flatten(1), held_out.flatten(1)
    mean = x.mean(0)
    x, y = x - mean, y - mean
    variances, axes = torch.linalg.eigh((x @ x.T).double())
    kept = variances > 1e-6 * variances[-1]
    lengths, axes = variances[kept].flip(0).sqrt(), axes[:, kept].flip(1)
    spanned = axes * lengths, (y @ x.T).double() @ axes / lengths

    def leading(count: int) -> Features:
        scale = math.sqrt(size * len(x)) / lengths[:count].norm()
        return (scale * spanned[0][:, :count]).float(), (scale * spanned[1][:, :count]).float()

    count = min(size, len(lengths))
    return {"pixels": leading(len(lengths)), f"PCA of {count}": leading(count)}


def attributes(
    names: Sequence[str],
    representations: Mapping[str, Features],
    labels: Tensor,
    labels_held_out: Tensor,
    *,
    seed: int = 0,
    track: Track = iter,
) -> Finding:
    """Measure AUROC and average precision of logistic regressions of every label on each
    representation.

    labels: (N, A) and (M, A) of 1, 0 and -1 (unknown). Labels that training or held-out pictures
    have of one kind only are left out. Rows of the attribute "mean of K" are means over K labels,
    those with `labels` from so many labels of each attribute; their interval is over the draws.
    Raises UsageError where no label is left.
    """
    kept = both_kinds(labels) & both_kinds(labels_held_out)
    if not kept.any():
        raise UsageError("no label tells both the training and the held-out pictures apart")
    names = [name for name, one in zip(names, kept.tolist(), strict=True) if one]
    labels, labels_held_out = labels[:, kept], labels_held_out[:, kept]
    rows: list[Row] = []
    for title, features in track(list(representations.items())):
        decay = _chosen_decay(features[0], labels, seed)
        own = _probed(features, labels, labels_held_out, decay)
        whole = {"attribute": f"mean of {len(names)}"} | _mean(own)
        named = [{"attribute": name, **row} for name, row in zip(names, own, strict=True)]
        found = [*named, whole | {"decay": decay, "pictures": len(labels)}]
        found += _few(features, labels, labels_held_out, seed)
        rows += [{"representation": title} | row for row in found]
    means = (f"{row['representation']} {row['auroc']:.3f}" for row in rows if "decay" in row)
    words = f"Mean AUROC of linear probes: {', '.join(means)} ({len(labels)} training pictures)."
    if left := int((~kept).sum()):
        words += f" Left out: {left} labels that all or none have, where it is learnt or measured."
    lines = [curve(rows, one, "labels", "auroc", representation=one) for one in representations]
    title = "Linear probes on few labels, 95 % intervals over the draws"
    plot = Plot(title, "labels of an attribute", "mean AUROC, held out", lines, log_x=True)
    return Finding("attributes", words, rows, plot)


def _probed(features: Features, labels: Tensor, truth: Tensor, decay: float) -> list[Row]:
    """Fit a probe of every label (N, A), and measure each on held-out labels (M, A)."""
    names, unknown = [str(k) for k in range(labels.shape[1])], torch.full((1, labels.shape[1]), -1)
    fitted = fit(names, features[0], labels, features[1][:1], unknown, decay=decay)
    rows = []
    for scores, true in zip(fitted.scores(features[1]).T, truth.T, strict=True):
        scores, true = scores[true >= 0], true[true >= 0]
        row = {"auroc": auroc(scores, true), "average_precision": average_precision(scores, true)}
        rows.append(row | {"held_out": len(true), "held_out_with": int((true == 1).sum())})
    return rows


def _mean(rows: Sequence[Row]) -> Row:
    return {key: statistics.fmean(row[key] for row in rows) for key in MEASURES}


def _chosen_decay(z: Tensor, labels: Tensor, seed: int) -> float:
    """Choose the one of DECAYS whose probes, fitted on four fifths, do best on the last."""
    order = torch.randperm(len(z), generator=generator(seed, "fifths"))
    seen, unseen = order[len(z) // 5 :], order[: len(z) // 5]
    labels = labels[:, both_kinds(labels[seen]) & both_kinds(labels[unseen])]
    if not labels.shape[1]:
        return DECAYS[1]
    parts = (z[seen], z[unseen]), labels[seen], labels[unseen]
    return max(DECAYS, key=lambda decay: _mean(_probed(*parts, decay))["auroc"])


def _few(features: Features, labels: Tensor, truth: Tensor, seed: int) -> list[Row]:
    """Measure by the number of labels, over those attributes that have enough for all numbers;
    numbers that most attributes haven't got are left out."""
    rarer = torch.minimum((labels == 1).sum(0), (labels == 0).sum(0))
    counts = [n for n in COUNTS if 2 * int((rarer >= n // 2).sum()) >= labels.shape[1]]
    if not counts:
        return []
    enough = rarer >= counts[-1] // 2
    labels, truth = labels[:, enough], truth[:, enough]
    rows = []
    for count in counts:
        draws = []
        for draw in range(DRAWS):
            known = drawn_labels(labels, count, generator(seed, "labels", count, draw))
            used = (known >= 0).any(1)
            few = features[0][used], features[1]
            draws.append(_mean(_probed(few, known[used], truth, FEW_DECAY)))
        row = {"attribute": f"mean of {labels.shape[1]}", "labels": count} | _mean(draws)
        interval = half_interval(torch.tensor([one["auroc"] for one in draws]))
        rows.append(row | {"auroc_interval": interval})
    return rows


def drawn_labels(labels: Tensor, count: int, random: Generator) -> Tensor:
    """Leave `count` of an attribute's labels (N, A), half of each kind; the rest are -1."""
    left = torch.full_like(labels, -1)
    for column in range(labels.shape[1]):
        for kind in (0, 1):
            rows = (labels[:, column] == kind).nonzero()[:, 0]
            chosen = rows[torch.randperm(len(rows), generator=random)[: count // 2]]
            left[chosen, column] = kind
    return left
