"""How many of the samples like a few pictures have what those have in common, by the judge.

The pictures are held out: no model and no attribute was learnt from them.

    python benchmarks/fewshot.py DATA --judge runs/judge.safetensors --attr Eyeglasses Smiling \
        --scales 1 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor

import pdae_cli as pdae
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine import guidance
from pdae_cli.engine.model import Model
from pdae_cli.evaluation.judge import Judge, read_judge
from pdae_cli.pictures.images import write_sheet
from pdae_cli.training.data import Pictures, open_pictures, split
from pdae_cli.training.labels import Labels, find_labels
from pdae_cli.training.latent import encode_all


def held_out_z(
    model: Model, pictures: Pictures, labels: Labels, attribute: str, value: int, count: int
) -> Tensor:
    """Normalised z (count, D) of the first held-out pictures with that label."""
    column = labels.matrix(pictures.names)[:, labels.attributes.index(attribute)]
    rows = (column == value).nonzero()[:count, 0].tolist()
    return model.normalise(encode_all(model, pictures.subset(rows)))


def share(judge: Judge, attribute: str, x: Tensor) -> float:
    """Of pictures (N, C, H, W), the share that the judge finds the attribute in."""
    return (judge.logits(x)[:, judge.names.index(attribute)] > 0).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="faces64")
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--attr", nargs="+", required=True)
    parser.add_argument("--labelled", type=int, default=50, help="pictures of each kind")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="powers of p(y | z)")
    parser.add_argument("--sheets", type=Path, help="folder for the pictures")
    args = parser.parse_args()
    model, (judge, _) = pdae.load(args.model), read_judge(args.judge)
    config = model.config
    pictures = open_pictures(args.data, config.image_size, config.channels)
    labels = find_labels(args.data, None, pictures.names)
    if labels is None:
        raise SystemExit(f"{args.data} has no labels.csv")
    _, held_out = split(pictures, labels)
    drawn, numbers = guidance.unlabelled(model), range(args.samples)
    plain, _ = model.sample(args.samples)
    for name in args.attr:
        print(f"{name:12} all samples  {share(judge, name, plain):.0%}", flush=True)
        with_, without = (
            held_out_z(model, held_out, labels, name, value, args.labelled) for value in (1, 0)
        )
        for kind, unlike in (("with, without", without), ("with alone", None)):
            likeness = guidance.learn(with_, unlike, drawn)
            told = f"AUROC {likeness.auroc:.3f}, share {likeness.share:.1%}"
            for scale in args.scales:
                x = guidance.pictures_like(model, likeness, scale, numbers, Sampling(), seed=0)
                found = f"scale {scale:g}: {share(judge, name, x):.0%}"
                print(f"{name:12} {kind:13} {found}; {told}", flush=True)
                if args.sheets:
                    path = args.sheets / f"{name}-{kind.replace(', ', '-')}-{scale:g}.png"
                    write_sheet(path, x, 8, {"command": "benchmarks/fewshot.py"})


if __name__ == "__main__":
    main()
