"""What the strength of guidance does to samples of a label: certainty against variety.

By a G_psi that takes labels and by a classifier's gradient, its forerunner, from the same x_T:

    python benchmarks/truncation.py DATA --judge runs/judge.safetensors --labelled runs/labelled \\
        --classifier runs/classifier --label Smiling --sheets docs/results

Prints, for each strength, the share of samples that the judge finds the label in, and beside
held-out pictures that have it precision (are samples among them?), recall (are they among samples?)
and judge-KID: what ADM's figure 4 and PDAE's figure 9 show of FID, precision and recall.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from fewshot import share
from report import stamp, table
from torch import Tensor

import pdae_cli as pdae
from pdae_cli.checkpoints import read_classifier
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine.guidance import by_classifier, chosen, embedding, labelled
from pdae_cli.evaluation.judge import Judge, read_judge
from pdae_cli.evaluation.metrics import kernel_distance, precision_recall
from pdae_cli.pictures.images import to_float, write_sheet
from pdae_cli.training.data import open_pictures, split
from pdae_cli.training.labels import find_labels

SHOWN = 8  # samples a row of the sheets
COLUMNS = ("by", "strength", "judge says yes", "precision", "recall", "judge-KID")


def real_pictures(data: Path, size: int, channels: int, label: str) -> Tensor:
    """Held-out pictures (N, C, H, W) that have the label."""
    pictures = open_pictures(data, size, channels)
    labels = find_labels(data, None, pictures.names)
    if labels is None:
        raise SystemExit(f"{data} has no labels.csv")
    _, held_out = split(pictures, labels)
    column = labels.matrix(held_out.names)[:, labels.attributes.index(label)]
    rows = [row for row, value in enumerate(column.tolist()) if value == 1]
    return to_float(held_out.stack(rows))


def measured(judge: Judge, label: str, real: Tensor, made: Tensor) -> list[object]:
    precision, recall = precision_recall(judge.features(real), judge.features(made))
    distance = kernel_distance(judge.features(made), judge.features(real))
    return [f"{share(judge, label, made):.0%}", f"{precision:.2f}", f"{recall:.2f}", distance]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--labelled", required=True, help="model whose G_psi takes labels")
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 0.5, 1, 2, 3, 5])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sheets", type=Path, help="folder for the pictures")
    args = parser.parse_args()
    model, (judge, _) = pdae.load(args.labelled), read_judge(args.judge)
    classifier, numbers = read_classifier(args.classifier), range(args.samples)
    real = real_pictures(args.data, model.config.image_size, model.config.channels, args.label)
    how = Sampling(inference_steps=args.steps)

    def by_labels(strength: float) -> Tensor:
        y = chosen(embedding(model).cfg.classes, [args.label])
        return labelled(model, y, numbers, how.changed({"guidance": strength}), 0)

    def by_gradient(strength: float) -> Tensor:
        y = chosen(classifier.config.classes, [args.label])
        return by_classifier(model, classifier, y, strength, numbers, how, 0)

    ways: dict[str, Callable[[float], Tensor]] = {
        "G_psi(x_t, y, t)": by_labels,
        "classifier": by_gradient,
    }
    said = f"{share(judge, args.label, real):.0%}"
    rows: list[list[object]] = [["held-out pictures", "", said, "", "", ""]]
    for name, way in ways.items():
        shown = []
        for strength in args.strengths:
            made = way(strength)
            shown.append(made[:SHOWN])
            rows.append([name, f"{strength:g}", *measured(judge, args.label, real, made)])
            print(rows[-1], flush=True)
        if args.sheets:
            path = args.sheets / f"truncation-{name.split('(')[0].lower()}.png"
            write_sheet(path, torch.cat(shown), SHOWN, {"command": "benchmarks/truncation.py"})
    print(f"\n{args.samples} samples of {args.label}, {args.steps} steps; {len(real)} held out\n")
    print(table("|".join(COLUMNS), rows))
    print(f"\n{stamp()}, weights {model.weights_sha[:12]}, {judge.protocol}")


if __name__ == "__main__":
    main()
