"""PDAE beside Diff-AE at equal images seen, with networks of the same shape on the same data.

    python benchmarks/baseline.py faces64.zip --dpm weights/faces64 --images 64000 -o runs/baseline

PDAE's autoencoder stage begins with --dpm's eps_theta, Diff-AE from scratch: that the former costs
images of its own, which may have been seen by somebody else long ago, is PDAE's argument, and they
aren't counted. Each is stopped and measured at every number of --images on held-out pictures:

    MSE, SSIM     decode(z) with random x_T against the picture (PDAE table 1)
    unexplained   what z leaves of eps, mean square over t = 200 … 800 (the posterior mean gap but
                  for a factor of t; PDAE sec. 4.2), and what another picture's z leaves
    AUROC         mean of linear probes on z over all labels

Prints a Markdown table and what it says. The same command goes on with the runs in its folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from report import stamp, table

from pdae_cli.checkpoints import load_dpm
from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine.codes import Codes
from pdae_cli.engine.model import Model
from pdae_cli.evaluation import metrics
from pdae_cli.evaluation.probes import attributes, standardised
from pdae_cli.pictures.images import to_float
from pdae_cli.training.autoencoder import Weighting, autoencoder_stage, with_autoencoder
from pdae_cli.training.data import Pictures, Task, open_pictures, split
from pdae_cli.training.diffae import diffae_stage, new_diffae
from pdae_cli.training.dpm import held_out_noise
from pdae_cli.training.labels import Labels, find_labels
from pdae_cli.training.loop import Training
from pdae_cli.training.stage import Stage, TrainOptions

COLUMNS = ("images", "MSE", "SSIM", "unexplained", "by another's z", "AUROC")
Row = dict[str, Any]


def pdae(dpm: str, z_dim: int) -> Model:
    """E_phi and G_psi, untrained, on a pre-trained eps_theta."""
    return with_autoencoder(load_dpm(dpm, print), z_dim, seed=0)


def diffae(dpm: str, z_dim: int) -> Model:
    """E_phi and an eps_theta that takes z, untrained, of the pre-trained one's shape."""
    config = load_dpm(dpm, print).config
    own = ("heads", "time_conditioning", "resampling", "learn_sigma", "norm_eps", "groups")
    shape = {k: v for k, v in asdict(config.unet).items() if k not in (*own, "z_channels")}
    return new_diffae(0, config.schedule.betas, config.prediction, z_dim, **shape)


METHODS: dict[str, Callable[[str, int], Model]] = {"PDAE": pdae, "Diff-AE": diffae}


def stage_of(method: str, model: Model, task: Task, gamma: float) -> Stage:
    """The method's objective: only PDAE's has a weighting of its own to choose."""
    if method == "PDAE":
        return autoencoder_stage(model, task, Weighting(gamma=gamma))
    return diffae_stage(model, task)


def measured(model: Model, train: Pictures, held_out: Pictures, labels: Labels | None) -> Row:
    """All figures of a model, on held-out pictures."""
    x_0, t, eps = held_out_noise(model, held_out, 200, 800)
    z = model.z_of(x_0)
    back = model.decode(
        Codes(z, sampling=asdict(Sampling())),
        random_noise=True,
        generators=[generator(0, "baseline", row) for row in range(len(z))],
    )
    row = {
        "MSE": metrics.mse(x_0, back).mean().item(),
        "SSIM": metrics.ssim(x_0, back).mean().item(),
    }
    for name, code in ((COLUMNS[3], z), (COLUMNS[4], z.roll(1, 0))):
        row[name] = unexplained(model, x_0, t, eps, code)
    row["AUROC"] = float("nan") if labels is None else auroc(model, train, held_out, labels)
    return row


def unexplained(
    model: Model, x_0: torch.Tensor, t: torch.Tensor, eps: torch.Tensor, z: torch.Tensor
) -> float:
    """E |eps - eps_theta(x_t, t, z)|^2, or |eps - eps_theta + shift G_psi|^2 (PDAE eq. 10)."""
    errors = []
    for rows in torch.arange(len(x_0)).split(model.batch_size):
        x_t = model.schedule.add_noise(x_0[rows], t[rows], eps[rows])
        eps_theta, gradient = model.predict(x_t, t[rows], z[rows])
        if gradient is not None:
            shift = model.schedule.shift[t[rows]].float()[:, None, None, None]
            eps_theta = eps_theta - shift * gradient.cpu()
        errors.append((eps[rows] - eps_theta.cpu()).square().mean((1, 2, 3)))
    return torch.cat(errors).mean().item()


def auroc(model: Model, train: Pictures, held_out: Pictures, labels: Labels) -> float:
    """Mean over all labels, of probes on at most 4,000 training pictures' z."""
    some = train.subset(range(0, len(train), max(1, len(train) // 4000)))
    z = [model.z_of(to_float(part.stack(range(len(part))))) for part in (some, held_out)]
    known = [labels.matrix(part.names) for part in (some, held_out)]
    found = attributes(labels.attributes, {"z": standardised(z[0], z[1])}, known[0], known[1])
    return next(float(row["auroc"]) for row in found.rows if "decay" in row)


def compared(arguments: argparse.Namespace) -> list[Row]:
    """Train both to each number of images, and measure them there."""
    labels = find_labels(arguments.data, None, open_pictures(arguments.data, 1).names)
    rows: list[Row] = []
    for method, make in METHODS.items():
        for images in sorted(arguments.images):
            model = make(arguments.dpm, arguments.z_dim)
            model.batch_size = 64
            unet = model.config.unet
            pictures = open_pictures(arguments.data, unet.image_size, unet.channels)
            train, held_out = split(pictures, labels)
            folder = arguments.output / method
            options = TrainOptions(
                images=images, batch_size=arguments.batch_size, accumulate=1, lr=arguments.lr,
                warmup=100, grad_clip=1.0, ema_images=500_000, precision=arguments.precision,
                channels_last=False, compile=False, flip=True, seed=0, log_every=50,
                save_every=10**9, optimizer=arguments.optimizer,
            )  # fmt: skip
            stage = stage_of(method, model, Task(train, held_out, folder), arguments.gamma)
            run = Training(stage, options, folder)
            run.train(lambda record: print(record, flush=True))
            with run.ema.applied(), torch.no_grad():
                for network in model.networks():
                    network.eval()
                row = {"method": method, "images": run.step * options.batch_size}
                rows.append(row | measured(model, train, held_out, labels))
    return rows


def words(rows: list[Row]) -> str:
    """Which is ahead at the largest number of images, and whether the paper's claim shows."""
    last = {row["method"]: row for row in rows}
    ours, theirs = last["PDAE"], last["Diff-AE"]
    lines = []
    for name, better in (("MSE", -1), ("SSIM", 1), (COLUMNS[3], -1), ("AUROC", 1)):
        ahead = "PDAE" if better * ours[name] > better * theirs[name] else "Diff-AE"
        enough = [
            row["images"]
            for row in rows
            if row["method"] == "PDAE" and better * row[name] >= better * theirs[name]
        ]
        claim = f"; PDAE is there after {min(enough)} images" if enough else ""
        lines.append(f"- {name}: {ahead} is ahead at {theirs['images']} images{claim}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--dpm", default="faces64", help="pre-trained eps_theta for PDAE")
    parser.add_argument("--images", type=int, nargs="+", default=[64_000, 128_000, 256_000])
    parser.add_argument("--z-dim", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--optimizer", choices=("adam", "muon"), default="adam")
    parser.add_argument("--gamma", type=float, default=0.1, help="of PDAE's weights of the loss")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="of training")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    rows = compared(arguments)
    header = "|".join(("", *COLUMNS))
    print(table(header, [[row["method"], *(row[name] for name in COLUMNS)] for row in rows]))
    print(f"\n{words(rows)}\n\n{stamp()}")


if __name__ == "__main__":
    main()
