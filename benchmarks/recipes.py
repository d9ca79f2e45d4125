"""What E_phi and G_psi learn by one recipe or another, at equal pictures seen.

    python benchmarks/recipes.py faces64.zip --dpm weights/faces64 --images 9600 -o runs/recipes \\
        optimizer=adam,lr=6e-4 optimizer=muon,lr=6e-4

A recipe is options of `pdae train autoencoder`, the others as below; all see the same pictures,
timesteps and noise but for --gamma's and --weighting's own timesteps. On held-out pictures:

    closed    share of the posterior mean gap that G_psi closes (PDAE sec. 4.2), at t = 200, 400,
              600, 800, and the mean over 200 … 800
    AUROC     mean of linear probes on z over all labels
    kept      of z's dimensions: principal components that hold 99 % of its variance

They begin untrained, or with --init-from as those of a model. `nothing` trains nothing. The same
command goes on with the runs in its folder. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path

import torch
from baseline import auroc, pdae
from report import stamp, table

from pdae_cli.checkpoints import load, load_dpm
from pdae_cli.engine.model import Model
from pdae_cli.pictures.images import to_float
from pdae_cli.training.autoencoder import Weighting, autoencoder_stage, gap_closed
from pdae_cli.training.data import Pictures, Task, open_pictures, split
from pdae_cli.training.labels import Labels, find_labels
from pdae_cli.training.loop import Training
from pdae_cli.training.stage import TrainOptions

TIMESTEPS = (200, 400, 600, 800)
COLUMNS = ("recipe", *(f"closed at {t}" for t in TIMESTEPS), "200 … 800", "AUROC", "kept")
USUAL = TrainOptions(
    images=0, batch_size=32, accumulate=1, lr=6e-4, warmup=200, grad_clip=1.0, ema_images=500_000,
    precision="no", channels_last=False, compile=False, flip=True, seed=0, log_every=50,
    save_every=10**9,
)  # fmt: skip


def options_of(recipe: str, images: int, precision: str) -> tuple[TrainOptions, Weighting]:
    """Read `lr=1e-3,gamma=-0.4,…` over what is usual here."""
    said = dict(part.split("=", 1) for part in recipe.split(","))
    options, weighting = replace(USUAL, images=images, precision=precision), Weighting(gamma=-0.4)
    known = {one.name for one in fields(options)} | set(Weighting._fields)
    if not known >= set(said):
        raise SystemExit(f"no option {', '.join(sorted(set(said) - known))}")
    for name, text in said.items():
        if name in Weighting._fields:
            weighting = weighting._replace(**{name: text if name == "weighting" else float(text)})
        else:
            kind = type(vars(USUAL)[name])
            options = replace(options, **{name: kind(text)})
    return options, weighting


def kept(model: Model, pictures: Pictures) -> int:
    """Count the principal components that hold 99 % of z's variance over at most 2,000 pictures."""
    some = pictures.subset(range(0, len(pictures), max(1, len(pictures) // 2000)))
    z = model.z_of(to_float(some.stack(range(len(some))))).double()
    shares = torch.linalg.svdvals(z - z.mean(0)).square()
    return int((shares.cumsum(0) < 0.99 * shares.sum()).sum()) + 1


def row(
    recipe: str, pictures: Pictures, labels: Labels | None, arguments: argparse.Namespace
) -> list[object]:
    """Train by a recipe, or not, and measure."""
    begun = arguments.init_from
    model = load(begun, "cpu") if begun else pdae(arguments.dpm, arguments.z_dim)
    model.batch_size = 64
    train, held_out = split(pictures, labels)
    with ExitStack() as stack:
        if recipe != "nothing":
            options, weighting = options_of(recipe, arguments.images, arguments.precision)
            folder = arguments.output / recipe
            stage = autoencoder_stage(model, Task(train, held_out, folder), weighting)
            run = Training(stage, options, folder)
            run.train(lambda record: print(record, flush=True))
            stack.enter_context(run.ema.applied())
        stack.enter_context(torch.no_grad())
        for network in model.networks():
            network.eval()
        closed = [gap_closed(model, held_out, t, t)["gap_closed"] for t in TIMESTEPS]
        closed.append(gap_closed(model, held_out)["gap_closed"])
        probed = auroc(model, train, held_out, labels) if labels else float("nan")
        return [recipe, *closed, probed, kept(model, train)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="lr=1e-3,gamma=-0.4,…")
    parser.add_argument("--dpm", default="faces64", help="pre-trained eps_theta")
    parser.add_argument("--init-from", help="or a model whose E_phi and G_psi go on")
    parser.add_argument("--images", type=int, default=9600)
    parser.add_argument("--z-dim", type=int, default=512)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="of training")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    unet = load_dpm(arguments.init_from or arguments.dpm, print).config.unet
    pictures = open_pictures(arguments.data, unet.image_size, unet.channels)
    labels = find_labels(arguments.data, None, pictures.names)
    rows = [row(recipe, pictures, labels, arguments) for recipe in arguments.recipes]
    print(table("|".join(COLUMNS), rows))
    print(f"\n{arguments.images} pictures. {stamp()}")


if __name__ == "__main__":
    main()
