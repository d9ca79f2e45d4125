"""What labelled pictures teach: attributes that they have or haven't, and numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..engine.attributes import DECAY, Attributes, both_kinds, check_names, fit, fit_numbers
from ..errors import UsageError
from .data import Pictures, split
from .labels import Labels


@dataclass
class Lesson:
    """Pictures to learn from and those held out, each a list of sets, and what is known of them."""

    parts: list[list[Pictures]]
    names: list[str]
    marks: list[Tensor]  # int8 (N, A) of each part: 1, 0 and -1 (unknown)
    numbers: list[str] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)  # float64 (N, B) of each part, NaN unknown
    units: dict[str, str] = field(default_factory=dict)
    groups: Tensor | None = None  # of the pictures to learn from, int64 (N,)
    left: list[str] = field(default_factory=list)  # labels that tell nothing apart

    def learnt(self, z: list[Tensor], decay: float | None) -> Attributes:
        """Fit what the labels say on normalised z (N, D) of both parts; facts tell the decay."""
        found, decay = None, DECAY if decay is None else decay
        if self.names:
            found = fit(self.names, z[0], self.marks[0], z[1], self.marks[1], self.groups, decay)
        if self.numbers:
            parts = z[0], self.values[0], z[1], self.values[1]
            more = fit_numbers(self.numbers, *parts, self.groups, decay)
            for name, unit in self.units.items():
                more.facts[name]["unit"] = unit
            found = more if found is None else found.merged(more)
        assert found is not None  # else there is no Lesson
        for facts in found.facts.values():
            facts["decay"] = decay
        return found


def of_two(with_: Pictures, without: Pictures, name: str) -> Lesson:
    """Pictures that have an attribute, and such that haven't, as far as they can be read. Raises
    UsageError for its name."""
    check_names([name])
    kinds = [[part.checked() for part in split(one, None)] for one in (with_, without)]
    parts = [list(part) for part in zip(*kinds, strict=True)]
    marks = [
        torch.tensor([1] * len(one) + [0] * len(other), dtype=torch.int8)[:, None]
        for one, other in parts
    ]
    return Lesson(parts, [name], marks)


def of_labels(pictures: Pictures, labels: Labels) -> Lesson:
    """All that labels tell apart. Raises UsageError where that is nothing, or for names that
    attributes can't have."""
    parts = [part.checked() for part in split(pictures, labels)]
    marks = [labels.matrix(part.names) for part in parts]
    values = [labels.values(part.names) for part in parts]
    told = both_kinds(marks[0])
    least, most = (values[0].nan_to_num(nan=end) for end in (math.inf, -math.inf))
    varied = least.amin(0) < most.amax(0)
    names = [name for name, one in zip(labels.attributes, told.tolist(), strict=True) if one]
    numbers = [name for name, one in zip(labels.numbers, varied.tolist(), strict=True) if one]
    if not names and not numbers:
        raise UsageError(f"{pictures.root}: no label tells the pictures apart")
    try:
        check_names([*names, *numbers])
    except UsageError as error:
        raise UsageError(f"{labels.source}: {error}") from error
    groups = None
    if labels.groups:
        of = [labels.groups.get(name, "") for name in parts[0].names]
        sources = {source: number for number, source in enumerate(sorted(set(of)))}
        groups = torch.tensor([sources[source] for source in of])
    return Lesson(
        [[part] for part in parts],
        names,
        [part[:, told] for part in marks],
        numbers,
        [part[:, varied] for part in values],
        {name: unit for name, unit in labels.units.items() if name in numbers},
        groups,
        [one for one in (*labels.attributes, *labels.numbers) if one not in (*names, *numbers)],
    )
