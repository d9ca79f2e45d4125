"""Attributes: linear classifiers and regressions on normalised z, and their weights as directions
to move."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Range, UsageError, counted

# With ten times less, a classifier tells a little better, but by directions that change little in
# the picture. With five times more it moves along whatever goes with the attribute.
DECAY = 1e-2
RIDGE = 8  # DECAYs weigh beside squares what one does beside logarithms, an eighth as curved
MAX_NAME = 200  # characters
COUNTS = ("train_with", "train_without", "held_out", "held_out_with", "codes")
SHARES = ("auroc", "balanced_accuracy", "explained")
# Of an attribute's facts that are numbers; a file's are checked by them.
FACTS = (
    dict.fromkeys(COUNTS, Range(0, 1 << 53)) | dict.fromkeys(SHARES, Range(0, 1))
    | {"score_mean": Range(-1e30, 1e30), "score_sd": Range(0, 1e30), "decay": Range(0, 1e30)}
)  # fmt: skip
LEFT = 1e-3  # of a direction: less of it than this is rounding
FURTHEST = 1e30  # of normalised z: beyond it, z itself may be too large for float32


@dataclass(frozen=True)
class Scale:
    """How far to move: so many times PDAE's step (sec. 4.5), as a plain number does too; "sd",
    standard deviations of the attribute's score over the codes it was learnt from; or "u", the unit
    of an attribute that is a number: years of an age."""

    count: float
    unit: Literal["", "sd", "u"] = ""

    def __post_init__(self) -> None:
        if self.unit not in ("", "sd", "u"):
            raise UsageError(f"unknown unit {self.unit!r} of a scale; known: sd, u")


@dataclass
class Attributes:
    """A named linear map each: score = weight · normalised z + bias, a classifier's logit or a
    regression's number."""

    names: list[str]
    weight: Tensor  # (A, D) float32
    bias: Tensor  # (A,) float32
    facts: dict[str, Any] = field(default_factory=dict)  # name → how it was learnt, how it does
    of: str = ""  # the z that they are of, as `ModelConfig.z_sha` says; "": not recorded

    def index(self, name: str) -> int:
        """The row of a name, without regard to case, spaces, hyphens and underscores."""
        plain = [simplified(known) for known in self.names]
        if simplified(name) in plain:
            return plain.index(simplified(name))
        close = difflib.get_close_matches(simplified(name), plain, n=3, cutoff=0.5)
        near = " or ".join(self.names[plain.index(one)] for one in close)
        hint = f"did you mean {near}?" if near else "--list prints all of them"
        raise UsageError(f"this model has no attribute {name!r}; {hint}")

    def scores(self, z: Tensor) -> Tensor:
        """Logits or numbers (N, A) of normalised z (N, D)."""
        return z.float() @ self.weight.T + self.bias

    def spread(self, name: str) -> tuple[float, float] | None:
        """Mean and standard deviation of the score over the codes it was learnt from, if known."""
        facts = self.facts.get(self.names[self.index(name)]) or {}
        mean, sd = facts.get("score_mean"), facts.get("score_sd")
        if not (isinstance(mean, int | float) and isinstance(sd, int | float)):
            return None
        return (float(mean), float(sd)) if math.isfinite(mean) and 0 < sd < math.inf else None

    def unit(self, name: str) -> str | None:
        """What the score of an attribute that is a number counts in, "" where that has no name;
        None for one that pictures have or haven't."""
        unit = (self.facts.get(self.names[self.index(name)]) or {}).get("unit")
        return unit[:MAX_NAME] if isinstance(unit, str) else None

    def logits(self) -> list[int]:
        """Number the rows of those that pictures have or haven't: numbers are in other units, and
        what was found without labels has no side that means one of the two."""
        found = {name for name, facts in self.facts.items() if facts and "explained" in facts}
        rows = enumerate(self.names)
        return [row for row, name in rows if self.unit(name) is None and name not in found]

    def direction(self, name: str, keep: Sequence[str] = ()) -> Tensor:
        """w/|w| (D,) float64; with attributes to keep, what is left of w without its part along
        their weights, of length 1 again, so that moving along it leaves their scores as they are
        and goes as far as without them. Raises UsageError where nothing is left, or w is 0."""
        weight = self.weight[self.index(name)].double()
        if not weight.any():
            raise UsageError(f"{name} has no direction, its weights are all 0; fit it on others")
        unit = weight / weight.norm()
        if not keep:
            return unit
        kept = F.normalize(self.weight[[self.index(one) for one in keep]].double(), dim=1)
        _, lengths, axes = torch.linalg.svd(kept, full_matrices=False)
        axes = axes[lengths > 1e-6]  # those kept may depend on each other
        left = unit - (axes @ unit) @ axes
        if left.norm() < LEFT:
            raise UsageError(f"{name} can't move while {', '.join(keep)} stays: it moves with it")
        return left / left.norm()

    def move(
        self,
        z: Tensor,
        name: str,
        scale: Scale | float,
        length: int | None = None,
        keep: Sequence[str] = (),
    ) -> Tensor:
        """Move normalised z (N, D) along an attribute's `direction` d. By a number s: z + s
        sqrt(length) d (PDAE sec. 4.5); `length` is dim z. By sd or units: as far as changes
        the score by so many. Raises UsageError where those aren't known, `keep` leaves nothing, or
        it is too far."""
        scale = scale if isinstance(scale, Scale) else Scale(scale)
        direction = self.direction(name, keep)
        if scale.unit:
            gain = (self.weight[self.index(name)].double() @ direction).item()
            step = scale.count * self._counted(name, scale.unit) / gain
        else:
            step = scale.count * math.sqrt(length or z.shape[1])
        moved = z + (step * direction).to(z.dtype)
        if not (moved.abs() <= FURTHEST).all():
            raise UsageError(f"{name} moves z further than numbers go; choose a smaller scale")
        return moved

    def _counted(self, name: str, unit: str) -> float:
        """How far one of what a scale counts in moves the score."""
        if unit == "u":
            if self.unit(name) is None:
                raise UsageError(f"{name} is no number, so it has no units; count in sd instead")
            return 1.0
        if (spread := self.spread(name)) is None:
            unknown = f"how much the score of {name} varies isn't known"
            either = "give a scale without sd, or learn it again with `pdae attributes fit`"
            raise UsageError(f"{unknown}; {either}")
        return spread[1]

    def merged(self, other: Attributes) -> Attributes:
        """Add the other's, which replace those of the same name. Raises UsageError where they are
        of another z."""
        if self.of and other.of and self.of != other.of:
            raise UsageError("these attributes were learnt from another z; move them away first")
        theirs = {simplified(name) for name in other.names}
        kept = self.without([name for name in self.names if simplified(name) in theirs])
        weight, bias = torch.cat([kept.weight, other.weight]), torch.cat([kept.bias, other.bias])
        facts, of = kept.facts | other.facts, other.of or self.of
        return Attributes(kept.names + other.names, weight, bias, facts, of)

    def of_names(self, names: Sequence[str]) -> dict[str, Any]:
        """The facts of those that have one of these names, by their own."""
        wanted = {simplified(name) for name in names}
        return {n: self.facts.get(n) or {} for n in self.names if simplified(n) in wanted}

    def sha(self, names: Sequence[str]) -> str:
        """Compute a SHA-256 of all that edits along these depend on."""
        rows = [self.index(name) for name in names]
        facts = [[self.spread(name), self.unit(name)] for name in names]
        found = hashlib.sha256(json.dumps(facts).encode())
        for part in (self.weight[rows], self.bias[rows]):
            found.update(part.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def renamed(self, old: str, new: str) -> Attributes:
        """Give one a new name. Raises UsageError for a name that another has."""
        row = self.index(old)
        names = [*self.names[:row], new, *self.names[row + 1 :]]
        check_names(names)
        facts = {one: self.facts.get(was) for one, was in zip(names, self.names, strict=True)}
        return replace(self, names=names, facts=facts)

    def without(self, names: list[str]) -> Attributes:
        """Leave out the named ones."""
        drop = {self.index(name) for name in names}
        keep = [row for row in range(len(self.names)) if row not in drop]
        facts = {self.names[row]: self.facts.get(self.names[row]) for row in keep}
        return Attributes(list(facts), self.weight[keep], self.bias[keep], facts, self.of)


def simplified(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def check_facts(facts: dict[str, Any]) -> None:
    """Raise ValueError where a number of an attribute's facts can't be one."""
    for name, (least, most) in FACTS.items():
        value = facts.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and least <= value <= most):
            raise ValueError(f"{name} of an attribute isn't a number from {least} to {most}")


def check_names(names: Sequence[str]) -> None:
    """Raise UsageError for names that options can't tell: alike, empty, with = or unprintable."""
    for name in names:
        if not simplified(name) or "=" in name or not name.isprintable() or len(name) > MAX_NAME:
            raise UsageError(f"{name!r} can't be an attribute's name: letters and digits, and no =")
        if len(same := [one for one in names if simplified(one) == simplified(name)]) > 1:
            raise UsageError(f"two attributes can't both be {' or '.join(same)}; rename one")


def fit(
    names: list[str],
    z: Tensor,
    labels: Tensor,
    z_held_out: Tensor,
    labels_held_out: Tensor,
    groups: Tensor | None = None,
    decay: float | None = None,
) -> Attributes:
    """Fit a logistic regression of each label on normalised z, all labels at once, by L-BFGS.

    z: (N, D) normalised; labels: (N, A) of 1, 0 and -1 (unknown, left out); groups: (N,) integers,
    e.g. the pictures' sources, see `cell_weights`. `decay` (None: DECAY) times |w|^2 is added to
    the loss. The facts of each count its pictures and say how it does on those held out, None where
    they are of one kind; and how its score varies over the training pictures. Raises UsageError for
    an attribute that all or none of them have, or that nothing in z tells.
    """
    check_names(names)
    for row, name in enumerate(names):
        for value, kind in ((1, "with"), (0, "without")):
            if not (labels[:, row] == value).any():
                raise UsageError(f"{name}: no picture {kind} it to learn from")
    weights, targets = cell_weights(labels, groups), labels.clamp(min=0).float()
    penalty = DECAY if decay is None else decay
    weight = torch.zeros(len(names), z.shape[1], requires_grad=True)
    bias = torch.zeros(len(names), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = Attributes(names, weight, bias).scores(z)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        loss = (losses * weights).sum() + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    fitted = Attributes(names, weight.detach(), bias.detach())
    scores, over_training = fitted.scores(z_held_out), fitted.scores(z)
    for row, name in enumerate(names):
        fitted.direction(name)  # or the error
        known = labels_held_out[:, row] >= 0
        truth, score = labels_held_out[known, row], scores[known, row]
        done = {"auroc": auroc(score, truth), "balanced_accuracy": balanced_accuracy(score, truth)}
        fitted.facts[name] = {
            "train_with": int((labels[:, row] == 1).sum()),
            "train_without": int((labels[:, row] == 0).sum()),
            "held_out": int(known.sum()),
            "held_out_with": int((truth == 1).sum()),
            # JSON has no word for NaN.
            **{key: None if math.isnan(value) else value for key, value in done.items()},
            **variation(over_training[:, row]),
        }
    return fitted


def fit_numbers(
    names: list[str],
    z: Tensor,
    values: Tensor,
    z_held_out: Tensor,
    values_held_out: Tensor,
    groups: Tensor | None = None,
    decay: float | None = None,
) -> Attributes:
    """Fit a ridge regression of numbers on normalised z with RIDGE times `decay` (None: DECAY).

    z: (N, D) normalised; values: (N, B) float64, NaN unknown; groups: (N,) integers, whose own
    means are left out, so that what sets groups apart doesn't bend the direction. The facts of each
    say how it does on the pictures held out, None where they don't vary: `correlation`, Pearson's,
    and `mean_error`, without sign. Raises UsageError for numbers that don't vary,
    or that nothing in z tells.
    """
    check_names(names)
    groups = torch.zeros(len(z), dtype=torch.long) if groups is None else groups
    penalty = RIDGE * (DECAY if decay is None else decay)
    fitted = Attributes(names, torch.zeros(len(names), z.shape[1]), torch.zeros(len(names)))
    for row, name in enumerate(names):
        known = values[:, row].isfinite()
        x, y, group = z[known].double(), values[known, row], groups[known]
        if len(y) < 2 or y.min() == y.max():
            raise UsageError(f"{name}: its numbers don't vary over the pictures to learn from")
        weight, bias = ridge(x, y, group, penalty)
        fitted.weight[row], fitted.bias[row] = weight.float(), bias
        fitted.direction(name)  # or the error
        known = values_held_out[:, row].isfinite()
        truth, score = values_held_out[known, row], fitted.scores(z_held_out[known])[:, row]
        pair = torch.stack([truth, score.double()])
        varies = len(truth) > 1 and bool((pair.min(1).values < pair.max(1).values).all())
        fitted.facts[name] = {
            "unit": "",
            "train": len(y),
            "value_mean": y.mean().item(),
            "value_sd": y.std(correction=0).item(),
            "held_out": len(truth),
            "correlation": torch.corrcoef(pair)[0, 1].item() if varies else None,
            "mean_error": (pair[0] - pair[1]).abs().mean().item() if len(truth) else None,
            **variation(x @ weight + bias),
        }
    return fitted


def ridge(x: Tensor, y: Tensor, groups: Tensor, penalty: float) -> tuple[Tensor, float]:
    """Return w (D,) and b that minimise the mean of (y - w x - b)^2 plus penalty |w|^2, in closed
    form; x (N, D) and y (N,) float64, less the means of their groups (N,) to find w."""
    both = torch.cat([x, y[:, None]], dim=1)
    for one in groups.unique():
        both[groups == one] -= both[groups == one].mean(0)
    inner = both.T @ both / len(y)
    square = inner[:-1, :-1] + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.lstsq(square, inner[:-1, -1:], driver="gelsd").solution[:, 0]
    return weight, (y.mean() - x.mean(0) @ weight).item()


def variation(scores: Tensor) -> dict[str, float]:
    """Tell how scores (N,) of an attribute vary: what a scale in sd counts in."""
    scores = scores.double()
    return {"score_mean": scores.mean().item(), "score_sd": scores.std(correction=0).item()}


def correlations(attributes: Attributes, z: Tensor) -> Tensor:
    """Pearson's correlations (A, A) float64 of scores over z (N, D); 0 of one that doesn't vary."""
    scores = attributes.scores(z).double()
    scores = F.normalize(scores - scores.mean(dim=0), dim=0)
    return scores.T @ scores


def principal(z: Tensor, count: int) -> Attributes:
    """Find the `count` directions in which normalised z (N, D) varies most, as attributes pca_1 …
    of orthogonal weights, the largest number positive, and scores of mean 0 and standard deviation
    1. Facts: `explained`, their share of z's variance. Raises UsageError where z varies in fewer.
    """
    z = z.double()
    centre = z.mean(dim=0)
    variances, axes = torch.linalg.eigh(torch.cov(z.T, correction=0))
    variances, axes = variances.flip(0).clamp(min=0), axes.T.flip(0)
    varied = int((variances > 1e-9 * variances[0]).sum()) if variances[0] > 0 else 0
    if varied < count:
        raise UsageError(f"{counted(len(z), 'code')} vary in {varied} directions; -k says {count}")
    largest = axes.abs().argmax(dim=1, keepdim=True)
    axes = axes * axes.gather(1, largest).sign()
    weight = axes[:count] / variances[:count, None].sqrt()
    facts, unit = {}, {"score_mean": 0.0, "score_sd": 1.0}
    for row, share in enumerate((variances / variances.sum()).tolist()[:count]):
        facts[f"pca_{row + 1}"] = {"codes": len(z), "explained": share, **unit}
    return Attributes(list(facts), weight.float(), -(weight @ centre).float(), facts)


def both_kinds(labels: Tensor) -> Tensor:
    """Which labels (N, A) of 1, 0 and -1 (unknown) tell pictures apart: bool (A,)."""
    return (labels == 1).any(0) & (labels == 0).any(0)


def cell_weights(labels: Tensor, groups: Tensor | None) -> Tensor:
    """Weights (N, A) that give each (group, label) cell of an attribute the same sum, 1 in all, so
    that neither an uneven label nor a group that goes with it bends the direction. A group that
    lacks one of the two labels weighs nothing, unless all do."""
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
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half; of
    scores (N,) for truth (N,) of 1 and 0. NaN where one of the classes is missing."""
    positives, negatives = int((truth == 1).sum()), int((truth != 1).sum())
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse]  # tied scores' average, from 1
    rank_sum = ranks[truth == 1].double().sum().item()
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def balanced_accuracy(scores: Tensor, truth: Tensor) -> float:
    """The mean of two shares: of positives with a score above 0, of negatives with one below, of
    scores (N,) for truth (N,) of 1 and 0. NaN where one of the classes is missing."""
    positives, negatives = scores[truth == 1] > 0, scores[truth != 1] <= 0
    return (positives.float().mean() + negatives.float().mean()).item() / 2
