"""Training the judge, which measures models and isn't part of any."""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor

from ..engine.attributes import auroc, both_kinds, cell_weights
from ..engine.computing import Say, ignore, within_memory
from ..errors import UsageError
from ..evaluation.judge import CHUNK, Judge, mean_of, to_bytes
from ..pictures.images import to_float
from .data import Pictures
from .labels import Labels

BATCH = 128
RATE = 2e-3
CPU = torch.device("cpu")


def augmented(x: Tensor) -> Tensor:
    """Mirror half, shift by up to 2 pixels, change brightness and contrast a little."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    down, right = torch.randint(-2, 3, (2,)).tolist()
    x = torch.roll(x, (down, right), dims=(2, 3))
    gain = 1 + 0.2 * (torch.rand(len(x), 1, 1, 1) - 0.5)
    return x * gain + 0.2 * (torch.rand(len(x), 1, 1, 1) - 0.5)


@within_memory("no room in memory to train a judge; free some, or choose another --device")
def train_judge(
    pictures: Pictures,
    held_out: Pictures,
    labels: Labels,
    epochs: int,
    seed: int = 1,
    report: Say = ignore,
    device: torch.device = CPU,
) -> tuple[Judge, dict[str, float]]:
    """A judge trained on labelled pictures, with both labels of each attribute weighing the same,
    and its AUROC on those held out, NaN where these all have the same label. On a CPU it is a
    function of the pictures and the seed; wherever it was trained, it comes back on the CPU.

    Raises UsageError where no label tells the pictures apart, OutOfMemory.
    """
    torch.manual_seed(seed)
    target = labels.matrix(pictures.names)
    if not both_kinds(target).any():
        raise UsageError(
            f"no label tells the {len(pictures)} training pictures of {pictures.root} apart, so "
            "there is nothing to learn; pass --labels with a CSV that names them"
        )
    weight = (cell_weights(target, None) * len(target) / 2).to(device)
    positive = (target == 1).float().to(device)
    judge = Judge(labels.attributes, pictures.size, pictures.channels).to(device)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=RATE, weight_decay=0.02)
    batch = min(BATCH, len(pictures))
    steps = epochs * (len(pictures) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(steps, 2))
    for epoch in range(epochs):
        for rows in torch.randperm(len(pictures)).split(batch)[: steps // epochs]:
            logits = judge(augmented(to_float(pictures.stack(rows.tolist()))).to(device))
            losses = F.binary_cross_entropy_with_logits(logits, positive[rows], reduction="none")
            optimizer.zero_grad()
            (losses * weight[rows]).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        report(f"judge: epoch {epoch + 1} of {epochs}")
    judge.eval().requires_grad_(False).cpu()
    parts = torch.arange(len(held_out)).split(CHUNK)
    logits = torch.cat([judge.logits(to_float(held_out.stack(one.tolist()))) for one in parts])
    truth = labels.matrix(held_out.names)
    quality = {
        name: auroc(logits[truth[:, k] >= 0, k], truth[truth[:, k] >= 0, k])
        for k, name in enumerate(labels.attributes)
    }
    judge.auroc = mean_of(quality)
    judge.weights_sha = hashlib.sha256(to_bytes(judge, quality)).hexdigest()
    return judge, quality
