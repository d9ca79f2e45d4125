"""An independent judge of edits and samples: a small classifier of pixels, trained on labels alone.

It shares nothing with the model that it judges: not its encoder, not its weights.

    python benchmarks/judge.py DATA -o runs/judge.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pdae_cli.cli.output import plain
from pdae_cli.evaluation.judge import write_judge
from pdae_cli.training.data import find_labels, open_pictures, split
from pdae_cli.training.judge import train_judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/judge.safetensors"))
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    labels = find_labels(args.data, None)
    if labels is None:
        raise SystemExit(f"{args.data} has no labels.csv")
    parts = split(open_pictures(args.data, 64), labels)
    judge, quality = train_judge(*parts, labels, args.epochs, report=print)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_judge(args.output, judge, plain(quality))
    for name, value in quality.items():
        print(f"{name:22} AUROC {value:.3f}")


if __name__ == "__main__":
    main()
