"""Attributes: linear classifiers on normalised z, and their weights as directions to move."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import UsageError
from .metrics import auroc

# With ten times less, a classifier tells a little better, but by directions in which z hardly
# varies: moving along them changes little in the picture. With five times more it moves along
# whatever goes with the attribute.
DECAY = 1e-2


@dataclass
class Attributes:
    """A named linear classifier each: score = weight · normalised z + bias (a logit)."""

    names: list[str]
    weight: Tensor  # (A, D) float32
    bias: Tensor  # (A,) float32
    facts: dict[str, Any] = field(default_factory=dict)  # name → how it was fitted, held-out AUROC

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

    def move(self, z: Tensor, name: str, scale: float, length: int | None = None) -> Tensor:
        """z + s sqrt(length) w/|w| on normalised z (PDAE sec. 4.5); `length` is dim z."""
        weight = self.weight[self.index(name)]
        return z + scale * math.sqrt(length or z.shape[1]) * weight / weight.norm()

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

    def without(self, names: list[str]) -> Attributes:
        """These but the named ones."""
        drop = {self.index(name) for name in names}
        keep = [i for i in range(len(self.names)) if i not in drop]
        kept = [self.names[i] for i in keep]
        facts = {name: self.facts.get(name) for name in kept}
        return Attributes(kept, self.weight[keep], self.bias[keep], facts)


def simplified(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


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
    """
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
    scores = fitted.scores(z_held_out)
    for row, name in enumerate(names):
        known = labels_held_out[:, row] >= 0
        truth = labels_held_out[known, row]
        fitted.facts[name] = {
            "train_with": int((labels[:, row] == 1).sum()),
            "train_without": int((labels[:, row] == 0).sum()),
            "held_out": int(known.sum()),
            "auroc": auroc(scores[known, row], truth),
        }
    return fitted


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
