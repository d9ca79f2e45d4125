"""Labels as a user names them, and their probability."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from ..networks.classes import Classes
from .attributes import simplified


def chosen(classes: Classes, labels: Sequence[str]) -> Tensor:
    """y (1, A) of what `labels` say: NAME or NAME=1 with, NAME=0 without; the rest is unknown.

    Raises UsageError for a class that isn't there, and for two that exclude each other.
    """
    plain = [simplified(name) for name in classes.names]
    y = torch.full((1, len(plain)), -1, dtype=torch.int8)
    for label in labels:
        name, _, value = label.partition("=")
        if simplified(name) not in plain:
            raise UsageError(f"no class {name!r}; known: {_listed(classes.names)}")
        if value not in ("", "0", "1") or (classes.exclusive and value == "0"):
            wanted = "NAME" if classes.exclusive else "NAME, NAME=1 or NAME=0"
            raise UsageError(f"--label {label!r} isn't {wanted}")
        y[0, plain.index(simplified(name))] = 0 if value == "0" else 1
    if classes.exclusive and (y == 1).any():
        if (y == 1).sum() > 1:
            raise UsageError(f"{' and '.join(labels)} exclude each other; give one --label")
        y[y != 1] = 0
    return y


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def log_probability(classes: Classes, logits: Tensor, y: Tensor) -> Tensor:
    """log p(y) of each row, by logits (N, A), for y (N, A) or (1, A) of 1, 0 and -1: (N,).

    What is unknown counts for nothing. Classes that don't exclude each other are independent.
    """
    if classes.exclusive:
        return (F.log_softmax(logits, 1) * (y == 1)).sum(1)
    return (F.logsigmoid(torch.where(y == 1, logits, -logits)) * (y >= 0)).sum(1)
