"""What a representation tells of pictures: linear probes for every label, beside raw pixels and
their principal components, and how few labels they need."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from ..diffusion.noise import generator
from ..engine.attributes import auroc, both_kinds, fit
from ..engine.model import Model
from ..errors import UsageError
from .finding import Finding, Row, Track, half_interval, untracked
from .metrics import average_precision
from .plots import Line, Plot

DECAYS = (1e-3, 1e-2, 1e-1, 1.0)  # a probe takes the one that does best on a fifth it doesn't see
FEW_DECAY = 0.1  # of probes on few labels, which have nothing to choose one by
COUNTS = (4, 10, 20, 50, 100)  # labels an attribute, half of them positive
DRAWS = 3  # of those labels
Features = tuple[Tensor, Tensor]  # of training and of held-out pictures: (N, F) and (M, F)


def encoded(model: Model, x_0: Tensor) -> Tensor:
    """z (N, D) of pictures, on the CPU."""
    return torch.cat(model.by_batches(lambda rows: model.encoder(x_0[rows]).cpu(), len(x_0)))


def standardised(train: Tensor, held_out: Tensor) -> Features:
    """Each dimension to mean 0 and variance 1 over the training pictures."""
    mean, std = train.mean(0), train.std(0, correction=0).clamp(min=1e-6)
    return (train - mean) / std, (held_out - mean) / std


def pixels_and_components(train: Tensor, held_out: Tensor, size: int) -> dict[str, Features]:
    """Raw pixels of pictures (N, C, H, W), and their `size` principal components.

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
    track: Track = untracked,
) -> Finding:
    """AUROC and average precision of logistic regressions of every label on each representation.

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
        decay = _chosen_decay(names, features[0], labels, seed)
        scores = _scores(names, features, labels, decay)
        own = [
            {"representation": title, "attribute": name, **_measured(scores[:, k], truth)}
            for k, (name, truth) in enumerate(zip(names, labels_held_out.T, strict=True))
        ]
        mean = {
            key: statistics.fmean(row[key] for row in own) for key in ("auroc", "average_precision")
        }
        whole: Row = {"representation": title, "attribute": f"mean of {len(names)}", **mean}
        rows += [*own, whole | {"decay": decay, "pictures": len(labels)}]
        rows += _few(names, title, features, labels, labels_held_out, seed)
    means = [row for row in rows if "decay" in row]
    words = "Mean AUROC of linear probes: " + ", ".join(
        f"{row['representation']} {row['auroc']:.3f}" for row in means
    )
    return Finding("attributes", words + f" ({len(labels)} training pictures).", rows, _plot(rows))


def _scores(names: Sequence[str], features: Features, labels: Tensor, decay: float) -> Tensor:
    train, held_out = features
    unknown = torch.full((1, labels.shape[1]), -1)
    fitted = fit(list(names), train, labels, held_out[:1], unknown, decay=decay)
    return fitted.scores(held_out)


def _measured(scores: Tensor, truth: Tensor) -> Row:
    known = truth >= 0
    scores, truth = scores[known], truth[known]
    return {
        "auroc": auroc(scores, truth),
        "average_precision": average_precision(scores, truth),
        "held_out": len(truth),
        "held_out_with": int((truth == 1).sum()),
    }


def _chosen_decay(names: Sequence[str], z: Tensor, labels: Tensor, seed: int) -> float:
    """The one of DECAYS whose probes, fitted on four fifths, do best on the last."""
    order = torch.randperm(len(z), generator=generator(seed, "fifths"))
    seen, unseen = order[len(z) // 5 :], order[: len(z) // 5]
    kept = both_kinds(labels[seen]) & both_kinds(labels[unseen])
    if not kept.any():
        return DECAYS[1]
    chosen = [name for name, one in zip(names, kept.tolist(), strict=True) if one]

    def quality(decay: float) -> float:
        scores = _scores(chosen, (z[seen], z[unseen]), labels[seen][:, kept], decay)
        truth = labels[unseen][:, kept]
        return statistics.fmean(
            float(_measured(scores[:, k], truth[:, k])["auroc"]) for k in range(len(chosen))
        )

    return max(DECAYS, key=quality)


def _few(
    names: Sequence[str],
    title: str,
    features: Features,
    labels: Tensor,
    labels_held_out: Tensor,
    seed: int,
) -> list[Row]:
    """Mean AUROC by the number of labels, over those attributes that have enough for all numbers;
    numbers that most attributes haven't got are left out."""
    rarer = torch.minimum((labels == 1).sum(0), (labels == 0).sum(0))
    counts = [n for n in COUNTS if 2 * int((rarer >= n // 2).sum()) >= len(names)]
    if not counts:
        return []
    enough = rarer >= counts[-1] // 2
    chosen = [name for name, one in zip(names, enough.tolist(), strict=True) if one]
    labels, truth = labels[:, enough], labels_held_out[:, enough]
    rows = []
    for count in counts:
        found = {"auroc": [], "average_precision": []}  # type: dict[str, list[float]]
        for draw in range(DRAWS):
            known = drawn_labels(labels, count, generator(seed, "labels", count, draw))
            used = (known >= 0).any(1)
            few = features[0][used], features[1]
            scores = _scores(chosen, few, known[used], FEW_DECAY)
            measured = [_measured(scores[:, k], truth[:, k]) for k in range(len(chosen))]
            for key, values in found.items():
                values.append(statistics.fmean(float(one[key]) for one in measured))
        rows.append(
            {"representation": title, "attribute": f"mean of {len(chosen)}", "labels": count}
            | {key: statistics.fmean(values) for key, values in found.items()}
            | {"auroc_interval": half_interval(torch.tensor(found["auroc"]))}
        )
    return rows


def drawn_labels(labels: Tensor, count: int, random: Generator) -> Tensor:
    """Labels (N, A) of which `count` an attribute are left, half of each kind; the rest are -1."""
    left = torch.full_like(labels, -1)
    for column in range(labels.shape[1]):
        for kind in (0, 1):
            rows = (labels[:, column] == kind).nonzero()[:, 0]
            chosen = rows[torch.randperm(len(rows), generator=random)[: count // 2]]
            left[chosen, column] = kind
    return left


def _plot(rows: Sequence[Row]) -> Plot:
    few = [row for row in rows if "labels" in row]
    titles = dict.fromkeys(row["representation"] for row in rows)
    curves = {title: [r for r in few if r["representation"] == title] for title in titles}
    lines = [
        Line(
            title,
            [row["labels"] for row in curve],
            [row["auroc"] for row in curve],
            [row["auroc_interval"] for row in curve],
        )
        for title, curve in curves.items()
    ]
    title = "Linear probes on few labels, 95 % intervals over the draws"
    return Plot(title, "labels of an attribute", "mean AUROC, held out", lines, log_x=True)
