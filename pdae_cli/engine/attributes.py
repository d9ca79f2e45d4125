"""Attributes: linear classifiers on normalised z, and their weights as directions to move."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError

# With ten times less, a classifier tells a little better, but by directions in which z hardly
# varies: moving along them changes little in the picture. With five times more it moves along
# whatever goes with the attribute.
DECAY = 1e-2
MAX_NAME = 200  # characters
LEFT = 1e-3  # of a direction: less of it than this is rounding


@dataclass(frozen=True)
class Deviations:
    """A scale in standard deviations of the attribute's score over the codes it was learnt from."""

    count: float


Scale = float | Deviations


@dataclass
class Attributes:
    """A named linear classifier each: score = weight · normalised z + bias (a logit)."""

    names: list[str]
    weight: Tensor  # (A, D) float32
    bias: Tensor  # (A,) float32
    facts: dict[str, Any] = field(default_factory=dict)  # name → how it was learnt, how it does

    def index(self, name: str) -> int:
        """The row of a name, without regard to case, spaces, hyphens and underscores."""
        plain = [simplified(known) for known in self.names]
        if simplified(name) in plain:
            return plain.index(simplified(name))
        near = difflib.get_close_matches(simplified(name), plain, n=3, cutoff=0.5)
        near = [self.names[plain.index(one)] for one in near]
        hint = f"did you mean {' or '.join(near)}?" if near else "--list prints all of them"
        raise UsageError(f"this model has no attribute {name!r}; {hint}")

    def scores(self, z: Tensor) -> Tensor:
        """Logits (N, A) of normalised z (N, D)."""
        return z @ self.weight.T + self.bias

    def spread(self, name: str) -> tuple[float, float] | None:
        """Mean and standard deviation of the score over the codes it was learnt from, if known."""
        facts = self.facts.get(self.names[self.index(name)]) or {}
        known = [facts.get(key) for key in ("score_mean", "score_sd")]
        values = [float(one) for one in known if isinstance(one, int | float)]
        if len(values) < 2 or not all(map(math.isfinite, values)) or values[1] <= 0:
            return None
        return values[0], values[1]

    def direction(self, name: str, keep: Sequence[str] = ()) -> Tensor:
        """w/|w| (D,) float64 without its part along the weights of the attributes to keep, so that
        moving along it leaves their scores as they are. Raises UsageError where nothing is left."""
        weight = self.weight[self.index(name)].double()
        unit = weight / weight.norm()
        if not keep:
            return unit
        kept = F.normalize(self.weight[[self.index(one) for one in keep]].double(), dim=1)
        _, lengths, axes = torch.linalg.svd(kept, full_matrices=False)
        axes = axes[lengths > 1e-6]  # those kept may depend on each other
        left = unit - (axes @ unit) @ axes
        if left.norm() < LEFT:
            raise UsageError(f"{name} can't move while {', '.join(keep)} stays: it moves with it")
        return left

    def move(
        self,
        z: Tensor,
        name: str,
        scale: Scale,
        length: int | None = None,
        keep: Sequence[str] = (),
    ) -> Tensor:
        """Normalised z (N, D) moved along an attribute, but not along what would change those in
        `keep`.

        By a number s: z + s sqrt(length) w/|w| (PDAE sec. 4.5); `length` is dim z. By Deviations:
        as far as changes the attribute's score by so many of its standard deviations. Raises
        UsageError where those aren't known, or `keep` leaves nothing to move along.
        """
        direction = self.direction(name, keep)
        if isinstance(scale, Deviations):
            spread = self.spread(name)
            if spread is None:
                raise UsageError(
                    f"how much the score of {name} varies isn't known; give a scale without sd, or "
                    "learn it again with `pdae attributes fit`"
                )
            gain = (self.weight[self.index(name)].double() @ direction).item()
            step = scale.count * spread[1] / gain
        else:
            step = scale * math.sqrt(length or z.shape[1])
        return z + (step * direction).to(z.dtype)

    def merged(self, other: Attributes) -> Attributes:
        """These and the other's, which replace those of the same name."""
        names = {simplified(name) for name in other.names}
        keep = [i for i, name in enumerate(self.names) if simplified(name) not in names]
        return Attributes(
            names=[self.names[i] for i in keep] + other.names,
            weight=torch.cat([self.weight[keep], other.weight]),
            bias=torch.cat([self.bias[keep], other.bias]),
            facts={self.names[i]: self.facts.get(self.names[i]) for i in keep} | other.facts,
        )

    def renamed(self, old: str, new: str) -> Attributes:
        """These with a new name for one. Raises UsageError for a name that another has."""
        row = self.index(old)
        check_names([*self.names[:row], new, *self.names[row + 1 :]])
        names = [*self.names[:row], new, *self.names[row + 1 :]]
        facts = {one: self.facts.get(was) for one, was in zip(names, self.names, strict=True)}
        return Attributes(names, self.weight, self.bias, facts)

    def without(self, names: list[str]) -> Attributes:
        """These but the named ones."""
        drop = {self.index(name) for name in names}
        keep = [i for i in range(len(self.names)) if i not in drop]
        kept = [self.names[i] for i in keep]
        facts = {name: self.facts.get(name) for name in kept}
        return Attributes(kept, self.weight[keep], self.bias[keep], facts)


def simplified(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def check_names(names: Sequence[str]) -> None:
    """Raise UsageError for names that options can't tell: alike, empty, with = or unprintable."""
    for name in names:
        if not simplified(name) or "=" in name or not name.isprintable() or len(name) > MAX_NAME:
            raise UsageError(f"{name!r} can't be an attribute's name: letters and digits, and no =")
        if sum(simplified(name) == simplified(other) for other in names) > 1:
            raise UsageError(f"two attributes can't both be {name!r}; `pdae attributes rename` one")


def fit(
    names: list[str],
    z: Tensor,
    labels: Tensor,
    z_held_out: Tensor,
    labels_held_out: Tensor,
    groups: Tensor | None = None,
    decay: float | None = None,
) -> Attributes:
    """Logistic regression of each label on normalised z, all labels at once, by L-BFGS.

    z: (N, D) normalised; labels: (N, A) of 1, 0 and -1 (unknown, left out); groups: (N,) integers,
    e.g. the pictures' sources. Within each attribute every (group, label) cell weighs the same, so
    that neither an uneven label nor a group that goes with it bends the direction. `decay` times
    |w|^2 is added to the loss; None: DECAY.

    The facts of each say how many pictures it was learnt from and how it does on those held out:
    `auroc` and `balanced_accuracy`, None where they hold one kind only; and how its score varies
    over the training pictures. Raises UsageError for an attribute that all or none of them have.
    """
    check_names(names)
    for row, name in enumerate(names):
        for value, kind in ((1, "with"), (0, "without")):
            if not (labels[:, row] == value).any():
                raise UsageError(f"{name}: no picture {kind} it to learn from")
    weights = cell_weights(labels, groups)
    weight = torch.zeros(len(names), z.shape[1], requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )
    targets = labels.clamp(min=0).float()

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = z @ weight.T + bias
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        loss = (losses * weights).sum() + (
            DECAY if decay is None else decay
        ) * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    fitted = Attributes(names, weight.detach(), bias.detach())
    scores, over_training = fitted.scores(z_held_out), fitted.scores(z)
    for row, name in enumerate(names):
        known = labels_held_out[:, row] >= 0
        truth = labels_held_out[known, row]
        fitted.facts[name] = {
            "train_with": int((labels[:, row] == 1).sum()),
            "train_without": int((labels[:, row] == 0).sum()),
            "held_out": int(known.sum()),
            "held_out_with": int((truth == 1).sum()),
            "auroc": _known(auroc(scores[known, row], truth)),
            "balanced_accuracy": _known(balanced_accuracy(scores[known, row], truth)),
            **variation(over_training[:, row]),
        }
    return fitted


def _known(value: float) -> float | None:
    """None for NaN, which JSON has no word for."""
    return None if math.isnan(value) else value


def variation(scores: Tensor) -> dict[str, float]:
    """The facts about how scores (N,) of an attribute vary: what Deviations are counted in."""
    scores = scores.double()
    return {"score_mean": scores.mean().item(), "score_sd": scores.std(correction=0).item()}


def correlations(attributes: Attributes, z: Tensor) -> Tensor:
    """How the attributes' scores go together over normalised z (N, D): (A, A) float64, Pearson's.

    0 where a score doesn't vary.
    """
    scores = attributes.scores(z).double()
    scores = F.normalize(scores - scores.mean(dim=0), dim=0)
    return scores.T @ scores


def principal(z: Tensor, count: int, prefix: str = "pca") -> Attributes:
    """The `count` directions in which normalised z (N, D) varies most, as attributes pca_1 …

    Their scores have mean 0 and standard deviation 1 over z; their weights are orthogonal, each
    with its largest number positive. Facts: `explained`, the share of z's variance. Raises
    UsageError where z varies in fewer.
    """
    z = z.double()
    centre = z.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov(z.T, correction=0))
    variances, axes = variances.flip(0).clamp(min=0), axes.T.flip(0)
    varied = int((variances > 1e-9 * variances[0]).sum()) if variances[0] > 0 else 0
    if varied < count:
        raise UsageError(f"these {len(z)} codes vary in {varied} directions only; -k says {count}")
    largest = axes.abs().argmax(dim=1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()
    weight = axes[:count] / variances[:count, None].sqrt()
    names = [f"{prefix}_{number}" for number in range(1, count + 1)]
    shares = (variances / variances.sum()).tolist()
    facts = {
        name: {"codes": len(z), "explained": share, "score_mean": 0.0, "score_sd": 1.0}
        for name, share in zip(names, shares[:count], strict=True)
    }
    return Attributes(names, weight.float(), -(weight @ centre).float(), facts)


def both_kinds(labels: Tensor) -> Tensor:
    """Which labels (N, A) of 1, 0 and -1 (unknown) tell pictures apart: bool (A,)."""
    return (labels == 1).any(0) & (labels == 0).any(0)


def cell_weights(labels: Tensor, groups: Tensor | None) -> Tensor:
    """Weights (N, A) that give each (group, label) cell of an attribute the same sum, 1 in all.

    A group that lacks one of the two labels says nothing about the difference and weighs nothing,
    unless all do.
    """
    groups = torch.zeros(len(labels), dtype=torch.long) if groups is None else groups
    weights = torch.zeros(labels.shape)
    for row in range(labels.shape[1]):
        column = labels[:, row]
        cells = [[(groups == g) & (column == value) for value in (0, 1)] for g in groups.unique()]
        whole = [pair for pair in cells if all(bool(cell.any()) for cell in pair)]
        used = [cell for pair in whole or cells for cell in pair if bool(cell.any())]
        for cell in used:
            weights[cell, row] = 1 / (len(used) * int(cell.sum()))
    return weights


def auroc(scores: Tensor, truth: Tensor) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    scores: (N,); truth: (N,) of 1 and 0. NaN where one of the classes is missing.
    """
    positives = int((truth == 1).sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks = (last - (counts - 1) / 2)[inverse]  # average rank of tied scores, from 1
    rank_sum = ranks[truth == 1].double().sum().item()
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def balanced_accuracy(scores: Tensor, truth: Tensor) -> float:
    """The mean of two shares: of positives with a score above 0, of negatives with one below.

    scores: (N,); truth: (N,) of 1 and 0. NaN where one of the classes is missing.
    """
    positives, negatives = scores[truth == 1] > 0, scores[truth != 1] <= 0
    return (positives.float().mean() + negatives.float().mean()).item() / 2
