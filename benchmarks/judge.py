"""An independent judge of edits: a small classifier of pixels, trained on the labels alone.

It shares nothing with the model that it judges: not its encoder, not its weights. Test equipment,
not part of the package.

    python benchmarks/judge.py DATA -o runs/judge.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import safe_open, save_file
from torch import Tensor, nn

from pdae_cli.images import to_float
from pdae_cli.metrics import auroc
from pdae_cli.training.data import find_labels, open_pictures, split

WIDTHS = (32, 64, 128, 192)


class Judge(nn.Module):
    """Pictures (N, 3, 64, 64) in [-1, 1] → a logit for each attribute (N, A)."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        layers: list[nn.Module] = []
        c = 3
        for width in WIDTHS:
            layers += [
                nn.Conv2d(c, width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            c = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(c * 16, len(names))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(self.body(x).flatten(1), 0.3, self.training))


def augmented(x: Tensor) -> Tensor:
    """Mirror half, shift by up to 2 pixels, change brightness and contrast a little."""
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
    down, right = torch.randint(-2, 3, (2,)).tolist()
    x = torch.roll(x, (down, right), dims=(2, 3))
    gain = 1 + 0.2 * (torch.rand(len(x), 1, 1, 1) - 0.5)
    return x * gain + 0.2 * (torch.rand(len(x), 1, 1, 1) - 0.5)


def train(data: Path, epochs: int, seed: int = 1) -> tuple[Judge, dict[str, float]]:
    """Train on the training split with both labels weighing the same; AUROC on the other split."""
    torch.manual_seed(seed)
    labels = find_labels(data, None)
    if labels is None:
        raise SystemExit(f"{data} has no labels.csv")
    pictures, held_out = split(open_pictures(data, 64), labels)
    target = labels.matrix(pictures.names)
    known = (target >= 0).float()
    positive = (target == 1).float()
    share = positive.sum(0) / known.sum(0)
    weight = known * torch.where(positive > 0, 0.5 / share, 0.5 / (1 - share))
    judge = Judge(labels.attributes)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.02)
    steps = epochs * (len(pictures) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for epoch in range(epochs):
        for rows in torch.randperm(len(pictures)).split(128)[: steps // epochs]:
            logits = judge(augmented(to_float(pictures.stack(rows.tolist()))))
            losses = F.binary_cross_entropy_with_logits(logits, positive[rows], reduction="none")
            optimizer.zero_grad()
            (losses * weight[rows]).mean().backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}", file=sys.stderr)
    judge.eval()
    with torch.no_grad():
        x = to_float(held_out.stack(range(len(held_out))))
        logits = torch.cat([judge(part) for part in x.split(256)])
    truth = labels.matrix(held_out.names)
    quality = {
        name: auroc(logits[truth[:, k] >= 0, k], truth[truth[:, k] >= 0, k])
        for k, name in enumerate(labels.attributes)
    }
    return judge, quality


def load(path: Path) -> tuple[Judge, dict[str, float]]:
    """A trained judge and its held-out AUROC for each attribute."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["judge"])
        judge = Judge(facts["names"]).eval()
        judge.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
    return judge, facts["auroc"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/judge.safetensors"))
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    judge, quality = train(args.data, args.epochs)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"names": judge.names, "auroc": quality}
    state = {key: value.contiguous() for key, value in judge.state_dict().items()}
    save_file(state, args.output, metadata={"judge": json.dumps(facts)})
    for name, value in quality.items():
        print(f"{name:22} AUROC {value:.3f}")


if __name__ == "__main__":
    main()
