"""The judge: a small classifier of clean pictures, trained on their labels alone.

It shares nothing with the models that it judges. Its last features stand where other programs have
Inception's, and those of all its layers where LPIPS has its own network's: what is measured in them
is called judge-Fréchet, judge-KID and judge-distance, since it can't be compared with FID, KID and
LPIPS of anybody else.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checkpoints.native import guarded
from ..engine import tensors as safe
from ..errors import UsageError
from ..files import sha256, write_bytes
from ..pictures.images import to_float, to_pixels
from .metrics import feature_distance

WIDTHS = (32, 64, 128, 192)
CHUNK = 256


class Judge(nn.Module):
    """Pictures (N, C, size, size) in [-1, 1] → a logit for each attribute (N, A)."""

    def __init__(self, names: list[str], size: int = 64, channels: int = 3) -> None:
        super().__init__()
        self.names, self.size, self.channels = names, size, channels
        self.digest, self.auroc = "untrained", math.nan  # of held-out pictures, over attributes
        layers: list[nn.Module] = []
        c, side = channels, size
        for width in WIDTHS:
            norm = nn.BatchNorm2d(width)
            norm.num_batches_tracked = None  # a whole number, which no file of ours holds
            layers += [nn.Conv2d(c, width, 3, stride=2, padding=1, bias=False), norm, nn.ReLU()]
            c, side = width, (side + 1) // 2
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(c * side**2, len(names))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.body(x).flatten(1), 0.3, self.training))

    def features(self, x: Tensor) -> Tensor:
        """The last map's mean over its places, of pictures rounded to 8 bits: (N, 192) float64."""
        parts = [self.layers(part)[-1].mean(dim=(2, 3)) for part in x.split(CHUNK)]
        return torch.cat(parts).double()

    def layers(self, x: Tensor) -> list[Tensor]:
        """What each layer makes of pictures rounded to 8 bits, after its ReLU: (N, C, H, W)."""
        found, x = [], to_float(to_pixels(x))
        with torch.no_grad():
            for module in self.body:
                x = module(x)
                if isinstance(module, nn.ReLU):
                    found.append(x)
        return found

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """How far pictures are from others, by all layers (see `feature_distance`): (N,)."""
        pairs = zip(a.split(CHUNK), b.split(CHUNK), strict=True)
        return torch.cat([feature_distance(self.layers(x), self.layers(y)) for x, y in pairs])

    def logits(self, x: Tensor) -> Tensor:
        """What it thinks of pictures: (N, A), without gradients."""
        with torch.no_grad():
            return torch.cat([self(part) for part in x.clamp(-1, 1).split(CHUNK)])

    @property
    def protocol(self) -> str:
        """What its figures are figures of: two are comparable where this is the same."""
        return f"judge {self.digest[:12]} of AUROC {self.auroc:.3f}, of 8-bit pictures"

    def check(self, channels: int, size: int) -> None:
        """Raise UsageError unless it takes pictures (channels, size, size)."""
        if (self.channels, self.size) != (channels, size):
            raise UsageError(
                f"the judge takes {self.channels}x{self.size}x{self.size} pictures, the model "
                f"makes {channels}x{size}x{size}; take a judge of those"
            )


def write_judge(path: Path, judge: Judge, auroc: dict[str, float | None]) -> None:
    """Write a judge, with its AUROC on held-out pictures for each attribute."""
    facts: dict[str, Any] = {"names": judge.names, "auroc": auroc}
    facts |= {"size": judge.size, "channels": judge.channels}
    state = {name: one.contiguous() for name, one in judge.state_dict().items()}
    write_bytes(path, safe.sealed(state, {"judge": json.dumps(facts)}))


def mean_of(auroc: Mapping[str, float | None]) -> float:
    """The mean over those attributes that have one; NaN where none has."""
    known = [one for one in auroc.values() if one is not None and math.isfinite(one)]
    return statistics.fmean(known) if known else math.nan


def read_judge(path: Path) -> tuple[Judge, dict[str, float]]:
    """A trained judge and its held-out AUROC for each attribute. Raises ModelError."""

    def read() -> tuple[Judge, dict[str, float]]:
        header = safe.check(path, keys=("judge",))
        facts = safe.strict_json(header.metadata["judge"])
        names = [str(name) for name in facts["names"]]
        shape = names, int(facts["size"]), int(facts["channels"])
        with torch.device("meta"):  # no memory before the file is known to fit
            expected = Judge(*shape).state_dict()
        header.require({name: tuple(one.shape) for name, one in expected.items()})
        judge, tensors = Judge(*shape), safe.load(path, header)
        for name, own in judge.state_dict().items():
            own.copy_(tensors[name])
        quality = dict(facts["auroc"])
        judge.digest, judge.auroc = sha256(path), mean_of(quality)
        return judge.eval().requires_grad_(False), quality

    return guarded(path, read)
