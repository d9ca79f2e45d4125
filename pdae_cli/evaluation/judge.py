"""The judge: a small classifier of clean pictures, trained on their labels alone.

It shares nothing with the models that it judges. Its last features stand where other programs have
Inception's, and those of all its layers where LPIPS has its own network's: what is measured in them
is called judge-Fréchet, judge-KID and judge-distance, since it can't be compared with FID, KID and
LPIPS of anybody else.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.native import fill
from ..engine import tensors as safe
from ..engine.config import build
from ..errors import ModelError, Range, UsageError, check_ranges
from ..files import write_bytes
from ..pictures.images import to_float, to_pixels
from .metrics import feature_distance

WIDTHS = (32, 64, 128, 192)
CHUNK = 256


@dataclass(frozen=True)
class JudgeFacts:
    """What a judge's file says of it."""

    names: tuple[str, ...]
    auroc: dict[str, Any]  # of held-out pictures, for each name; None where it can't be told
    size: Annotated[int, Range(1, 1 << 14)]
    channels: Annotated[int, Range(1, 1 << 10)]

    def __post_init__(self) -> None:
        check_ranges(self)
        known = [one for one in self.auroc.values() if one is not None]
        if not all(type(one) in (int, float) and 0 <= one <= 1 for one in known):
            raise ValueError("its auroc aren't numbers from 0 to 1")


class Judge(nn.Module):
    """Pictures (N, C, size, size) in [-1, 1] → a logit for each attribute (N, A)."""

    def __init__(self, names: list[str], size: int = 64, channels: int = 3) -> None:
        super().__init__()
        self.names, self.size, self.channels = names, size, channels
        self.weights_sha = "untrained"  # then the SHA-256 of its file (`to_bytes`)
        self.auroc = math.nan  # of held-out pictures, over attributes
        layers: list[nn.Module] = []
        for before, width in pairwise((channels, *WIDTHS)):
            norm = nn.BatchNorm2d(width)
            norm.num_batches_tracked = None  # a whole number, which no file of ours holds
            convolution = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
            layers += [convolution, norm, nn.ReLU()]
        self.body = nn.Sequential(*layers)
        side = math.ceil(size / 2 ** len(WIDTHS))
        self.head = nn.Linear(WIDTHS[-1] * side**2, len(names))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.body(x).flatten(1), 0.3, self.training))

    def features(self, x: Tensor) -> Tensor:
        """Average the last map over its places, of pictures rounded to 8 bits: (N, 192) float64."""
        parts = [self.layers(part)[-1].mean(dim=(2, 3)) for part in x.split(CHUNK)]
        return torch.cat(parts).double()

    @torch.no_grad()
    def layers(self, x: Tensor) -> list[Tensor]:
        """What each layer makes of pictures rounded to 8 bits, after its ReLU: (N, C, H, W)."""
        found, x = [], to_float(to_pixels(x))
        for module in self.body:
            x = module(x)
            if isinstance(module, nn.ReLU):
                found.append(x)
        return found

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """How far pictures are from others, by all layers (see `feature_distance`): (N,)."""
        pairs = zip(a.split(CHUNK), b.split(CHUNK), strict=True)
        return torch.cat([feature_distance(self.layers(x), self.layers(y)) for x, y in pairs])

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """What it thinks of pictures: (N, A), without gradients."""
        return torch.cat([self(part) for part in x.clamp(-1, 1).split(CHUNK)])

    @property
    def protocol(self) -> str:
        """What its figures are figures of: two are comparable where this is the same."""
        return f"judge {self.weights_sha[:12]} of AUROC {self.auroc:.3f}, of 8-bit pictures"

    def check(self, channels: int, size: int) -> None:
        """Raise UsageError unless it takes pictures (channels, size, size)."""
        if (self.channels, self.size) != (channels, size):
            raise UsageError(
                f"the judge takes {self.channels}x{self.size}x{self.size} pictures, the model "
                f"makes {channels}x{size}x{size}; take a judge of those"
            )


def to_bytes(judge: Judge, auroc: Mapping[str, float | None]) -> bytes:
    """Make the content of a judge's file, with its AUROC on held-out pictures for each attribute:
    the same for the same judge, so that it is known by it whether it was written or not."""
    known = {k: v if v is not None and math.isfinite(v) else None for k, v in auroc.items()}
    facts = {"names": judge.names, "auroc": known, "size": judge.size, "channels": judge.channels}
    state = {name: one.contiguous() for name, one in judge.state_dict().items()}
    return safe.sealed(state, {"judge": json.dumps(facts)})


def write_judge(path: Path, judge: Judge, auroc: Mapping[str, float | None]) -> None:
    """Write a judge, with its AUROC on held-out pictures for each attribute."""
    write_bytes(path, to_bytes(judge, auroc))


def read_judge(path: Path) -> tuple[Judge, dict[str, float]]:
    """Read a trained judge and its held-out AUROC for each attribute. Raises ModelError."""
    try:
        content, header = safe.opened(path, keys=("judge",))
        facts: JudgeFacts = build(JudgeFacts, header.facts("judge"), "its metadata")
        names, size, channels = list(facts.names), facts.size, facts.channels
        judge: Judge = fill(lambda: Judge(names, size, channels), content, header)
        judge.weights_sha = hashlib.sha256(content).hexdigest()
        judge.auroc = mean_of(facts.auroc)
        return judge.eval().requires_grad_(False), facts.auroc
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = "a folder, as models are" if path.is_dir() else "no such file"
        if path.is_file():
            reason = str(error).partition("\n")[0] or type(error).__name__
        what = f"{path} can't be read as a judge: {reason}"
        raise ModelError(f"{what}; `pdae evaluate judge` makes one") from error


def mean_of(auroc: Mapping[str, float | None]) -> float:
    """Average those attributes that have one; NaN where none has."""
    known = [one for one in auroc.values() if one is not None and math.isfinite(one)]
    return statistics.fmean(known) if known else math.nan
