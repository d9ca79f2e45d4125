"""Measure a model on the validation split of its data: every figure of the model card.

    python benchmarks/model_card.py MODEL DATA --judge runs/judge.safetensors -o figures.json

Prints the figures as Markdown and writes them as JSON. Each section is one small function.
`--against OTHER` says of each attribute how much better it is told than by another model's z.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from report import table, write_between_marks
from torch import Tensor

import pdae_cli
from pdae_cli.cli.output import plain
from pdae_cli.diffusion.noise import generator
from pdae_cli.engine.attributes import auroc
from pdae_cli.engine.model import Model
from pdae_cli.evaluation import metrics
from pdae_cli.evaluation.gap import gap as measure_gap
from pdae_cli.evaluation.judge import Judge, read_judge
from pdae_cli.pictures.images import to_float
from pdae_cli.training.data import Pictures, open_pictures, split
from pdae_cli.training.labels import Labels, find_labels
from pdae_cli.training.latent import encode_all

EDITED = ("Smiling", "Eyeglasses", "Male", "Young", "Blond_Hair")
EDIT_SAMPLING = {"inference_steps": 12}
RESAMPLED = 200
SAMPLED = 48
JUDGED = 128  # samples, for their distance to real ones
KEPT = 5  # attributes that move most beside an edit's own, as --keep takes them
Figures = dict[str, Any]


def gap(model: Model, x_0: Tensor) -> Figures:
    """Posterior mean gap at each t: share that G_psi closes with the right z and with another's."""
    rows = measure_gap(model, x_0).rows
    middle = [row["closed"] for row in rows if 200 <= row["t"] <= 800]
    return {"pictures": len(x_0), "by_t": rows, "mean_closed_200_800": sum(middle) / len(middle)}


def compared(a: Tensor, b: Tensor) -> Figures:
    return {
        "mse": metrics.mse(a, b).mean().item(),
        "ssim": metrics.ssim(a, b).mean().item(),
        "equal": metrics.equal_share(a, b).mean().item(),
    }


def reconstruction(model: Model, x_0: Tensor, train: Pictures) -> Figures:
    """Inferred x_T; z with random x_T; eps_theta with random x_T; the mean training face."""
    codes = model.encode(x_0)
    mean = to_float(train.stack(range(0, len(train), 10))).mean(0, keepdim=True).expand_as(x_0)
    evaluations = model.trajectory(pdae_cli.Sampling(**codes.sampling)).evaluations()
    return {
        "pictures": len(x_0),
        "nfe": sum(evaluations),
        "sampling": codes.sampling,
        "inferred x_T": compared(model.decode(codes), x_0),
        "random x_T, from z": compared(model.decode(codes, random_noise=True), x_0),
        "random x_T, eps_theta alone": compared(
            model.decode(codes, random_noise=True, guidance=0.0), x_0
        ),
        "mean face": compared(mean, x_0),
    }


def probes(model: Model, held_out: Pictures, labels: Labels) -> Figures:
    """AUROC of the model's attributes on held-out z, in all and for each source."""
    assert model.attributes is not None
    z = model.normalise(encode_all(model, held_out))
    scores, truth = model.attributes.scores(z), labels.matrix(held_out.names)
    sources = sorted({labels.groups[name] for name in held_out.names if name in labels.groups})
    groups = {"all": torch.ones(len(z), dtype=torch.bool)} | {
        source: torch.tensor([labels.groups.get(n) == source for n in held_out.names])
        for source in sources
    }
    table = {}
    for k, name in enumerate(model.attributes.names):
        column = truth[:, labels.attributes.index(name)]
        table[name] = {
            group: auroc(scores[member & (column >= 0), k], column[member & (column >= 0)])
            for group, member in groups.items()
        }
    return table


def against(model: Model, other: Model, held_out: Pictures, labels: Labels) -> Figures:
    """AUROC of each attribute minus another model's, and the difference's standard error, by
    drawing the held-out pictures anew RESAMPLED times."""
    truth, scores = labels.matrix(held_out.names), []
    for one in (model, other):
        assert one.attributes is not None
        scores.append(one.attributes.scores(one.normalise(encode_all(one, held_out))))
    found = {}
    for k, name in enumerate(model.attributes.names if model.attributes else ()):
        column = truth[:, labels.attributes.index(name)]
        known = (column >= 0).nonzero()[:, 0]
        draws = torch.randint(
            len(known), (RESAMPLED, len(known)), generator=generator(0, "bootstrap", k)
        )
        changes = [
            auroc(scores[0][rows, k], column[rows]) - auroc(scores[1][rows, k], column[rows])
            for rows in (known, *known[draws])
        ]
        found[name] = {"change": changes[0], "error": torch.tensor(changes[1:]).std().item()}
    return found


def edits(
    model: Model, held_out: Pictures, labels: Labels, judge_path: Path, count: int, scale: float
) -> Figures:
    """Share that the judge calls positive before and after, on faces without the attribute; how
    much the judge's other opinions and the picture move; both again where the KEPT that move most
    keep their scores."""
    judge, quality = read_judge(judge_path)
    pool = torch.randperm(len(held_out), generator=generator(0, "edits"))[: 3 * count]
    truth = labels.matrix(held_out.names)[pool]
    codes = model.encode(to_float(held_out.stack(pool.tolist())), **EDIT_SAMPLING)
    before = model.decode(codes)
    table = {}
    for name in EDITED:
        column, own = labels.attributes.index(name), judge.names.index(name)
        rows = (truth[:, column] == 0).nonzero()[:count, 0]
        assert codes.x_T is not None
        chosen = replace(
            codes,
            z=codes.z[rows],
            x_T=codes.x_T[rows],
            picture_shas=tuple(codes.picture_shas[int(row)] for row in rows),
        )
        others = [k for k in range(len(judge.names)) if k != own]
        after = model.decode(model.manipulate(chosen, [(name, scale)]))
        chance = [judged(judge, x) for x in (before[rows], after)]
        moved = (chance[1] - chance[0])[:, others].abs().mean(0)
        largest = [others[k] for k in moved.topk(KEPT).indices.tolist()]
        keep = [judge.names[k] for k in largest]
        kept = judged(judge, model.decode(model.manipulate(chosen, [(name, scale)], keep)))
        table[name] = {
            "pictures": len(rows),
            "scale": scale,
            "judge_auroc": quality[name],
            "positive_before": (chance[0][:, own] > 0.5).float().mean().item(),
            "positive_after": (chance[1][:, own] > 0.5).float().mean().item(),
            "others_moved": moved.mean().item(),
            "most_moved": {judge.names[k]: moved[others.index(k)].item() for k in largest},
            "kept_positive_after": (kept[:, own] > 0.5).float().mean().item(),
            "kept_others_moved": (kept - chance[0])[:, others].abs().mean().item(),
            "picture": compared(after, before[rows]),
        }
    return table


@torch.no_grad()
def judged(judge: Judge, pictures: Tensor) -> Tensor:
    """The judge's opinions (N, A) in 0 … 1."""
    return judge(pictures.clamp(-1, 1)).sigmoid()


def samples(model: Model, held_out: Pictures, judge_path: Path) -> Figures:
    """Fréchet distance of samples to held-out pictures in the judge's features, beside that of as
    many of these to the others."""
    judge, _ = read_judge(judge_path)
    # In any order: by name the first are all CelebA's.
    order = torch.randperm(len(held_out), generator=generator(0, "real")).tolist()
    real = judge.features(to_float(held_out.stack(order)))
    found: Figures = {"real": metrics.frechet(real[:JUDGED], real[JUDGED:]), "pictures": JUDGED}
    for steps in (20, 50):
        made, _ = model.sample(JUDGED, inference_steps=steps)
        found[str(steps)] = metrics.frechet(judge.features(made), real)
    return found


def memorised(model: Model, train: Pictures, held_out: Pictures, count: int) -> Figures:
    """Distance (MSE) of each sample to its nearest training picture, beside that of real held-out
    pictures: samples that are much nearer than those would be copies."""
    samples, _ = model.sample(count, inference_steps=20)
    real = to_float(held_out.stack(range(count)))
    stack = to_float(train.stack(range(len(train)))).flatten(1)
    stack = torch.cat([stack, to_float(train.stack(range(len(train))).flip(3)).flatten(1)])
    nearest = {
        name: torch.cdist(x.flatten(1), stack).min(1).values.square() / stack.shape[1] / 4
        for name, x in (("samples", samples), ("held_out", real))
    }
    return {
        name: {"median": d.median().item(), "smallest": d.min().item(), "pictures": count}
        for name, d in nearest.items()
    }


def grid_power(x: Tensor) -> float:
    """Power of pictures (N, C, H, W) at half and a quarter of the pixel grid's frequency, the
    largest by its eight neighbours' mean. A network whose maps are enlarged by an even pattern
    leaves a checkerboard, which stands out there; real faces of 64 pixels have 2 to 3."""
    power = torch.fft.fft2(x.mean(dim=1).double()).abs().square().mean(0)
    rows = range(0, power.shape[0], power.shape[0] // 4)
    columns = range(0, power.shape[1], power.shape[1] // 4)
    near = F.pad(power[None, None], (1, 1, 1, 1), mode="circular")
    near = (9 * F.avg_pool2d(near, 3, stride=1)[0, 0] - power) / 8
    ratios = power / near.clamp(min=1e-30)
    return max(ratios[u, v].item() for u in rows for v in columns if u or v)


def speck(x: Tensor) -> float:
    """Mean absolute Laplacian of pictures (N, C, H, W) at the position where it is the largest by
    the mean of the 9 x 9 around it: what all pictures have at one place stands out. Real faces of
    64 pixels have about 2."""
    kernel = x.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    edges = F.conv2d(x.mean(dim=1, keepdim=True), kernel).abs().mean(0, keepdim=True)
    around = F.avg_pool2d(edges, 9, stride=1, padding=4, count_include_pad=False)
    return (edges / around.clamp(min=1e-30)).max().item()


def artefacts(model: Model, held_out: Pictures) -> Figures:
    """A checkerboard, and specks that all samples have at one place, beside real pictures."""
    samples, _ = model.sample(SAMPLED)
    found = {"samples": samples, "held_out": to_float(held_out.stack(range(SAMPLED)))}
    return {
        name: {"grid": grid_power(x), "speck": speck(x), "pictures": len(x)}
        for name, x in found.items()
    }


def markdown(figures: Figures) -> str:
    """The figures for people."""
    parts = []
    if "gap" in figures:
        rows = [
            [r["t"], r["gap"], r["closed"], r["closed_shuffled"]] for r in figures["gap"]["by_t"]
        ]
        parts.append(table("t|gap of ε_θ|closed with z|with another's z", rows))
        parts.append(f"Mean closed over 200 … 800: {figures['gap']['mean_closed_200_800']:.3f}")
    if "reconstruction" in figures:
        found = {k: v for k, v in figures["reconstruction"].items() if isinstance(v, dict)}
        found.pop("sampling")
        rows = [[name, v["mse"], v["ssim"], v["equal"]] for name, v in found.items()]
        parts.append(table("from|MSE|SSIM|8-bit values equal", rows))
    if "probes" in figures:
        groups = list(next(iter(figures["probes"].values())))
        rows = [[name, *values.values()] for name, values in figures["probes"].items()]
        parts.append(table("|".join(["attribute", *groups]), rows))
    if "against" in figures:
        rows = [[name, v["change"], v["error"]] for name, v in figures["against"].items()]
        parts.append(table("attribute|change of AUROC|standard error", rows))
    if "edits" in figures:
        rows = [
            [name, v["positive_before"], v["positive_after"], v["others_moved"],
             ", ".join(f"{k} {m:.2f}" for k, m in [*v["most_moved"].items()][:3]),
             v["picture"]["ssim"], v["judge_auroc"], v["kept_positive_after"],
             v["kept_others_moved"]]
            for name, v in figures["edits"].items()
        ]  # fmt: skip
        header = "edit|before|after|others moved|most moved|SSIM to unedited|judge's AUROC"
        parts.append(table(f"{header}|after, {KEPT} kept|others moved, {KEPT} kept", rows))
    if "samples" in figures:
        v = figures["samples"]
        rows = [["as many real faces to the others", v["real"]]]
        rows += [[f"samples of {steps} steps", v[str(steps)]] for steps in (20, 50)]
        parts.append(table(f"{v['pictures']} samples|Fréchet distance (judge's features)", rows))
    if "memorised" in figures:
        rows = [[name, v["median"], v["smallest"]] for name, v in figures["memorised"].items()]
        parts.append(table("nearest training picture of|median MSE|smallest", rows))
    if "artefacts" in figures:
        rows = [[name, v["grid"], v["speck"]] for name, v in figures["artefacts"].items()]
        header = f"artefacts in {SAMPLED}|power at ½ and ¼ of the pixel grid|largest speck"
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def write_card(card: Path, figures: Figures) -> None:
    """Put the figures between the card's two marks."""
    head = (
        f"Measured {figures['date']}, {figures['hardware']}, torch {figures['torch']}, "
        f"weights {figures['digest'][:12]}."
    )
    write_between_marks(card, f"{head}\n\n{markdown(figures)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--judge", type=Path, default=Path("runs/judge.safetensors"))
    parser.add_argument("--pictures", type=int, default=64, help="for gap and reconstruction")
    parser.add_argument("--edited", type=int, default=200, help="faces for each edit")
    parser.add_argument("--scale", type=float, default=0.3)
    parser.add_argument("--against", help="another model, whose attributes are compared")
    parser.add_argument(
        "--only", default="gap,reconstruction,probes,edits,samples,memorised,artefacts"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/figures.json"))
    parser.add_argument("--card", type=Path, help="put the figures into this model card")
    args = parser.parse_args()
    model = pdae_cli.load(args.model)
    size, channels = model.config.image_size, model.config.channels
    pictures = open_pictures(args.data, size, channels)
    labels = find_labels(args.data, None, pictures.names)
    if labels is None:
        raise SystemExit(f"{args.data} has no labels.csv")
    train, held_out = split(pictures, labels)
    x_0 = to_float(held_out.stack(range(args.pictures)))
    sections: dict[str, Callable[[], Figures]] = {
        "gap": lambda: gap(model, to_float(held_out.stack(range(2 * args.pictures)))),
        "reconstruction": lambda: reconstruction(model, x_0, train),
        "probes": lambda: probes(model, held_out, labels),
        "edits": lambda: edits(model, held_out, labels, args.judge, args.edited, args.scale),
        "samples": lambda: samples(model, held_out, args.judge),
        "memorised": lambda: memorised(model, train, held_out, args.pictures),
        "artefacts": lambda: artefacts(model, held_out),
    }
    if args.against:
        other = pdae_cli.load(args.against)
        sections["against"] = lambda: against(model, other, held_out, labels)
    figures: Figures = {
        "model": model.name,
        "digest": model.weights_sha,
        "date": date.today().isoformat(),
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, {model.device}",
        "torch": torch.__version__,
    }
    for name in [*args.only.split(","), *(["against"] if args.against else [])]:
        begun = time.perf_counter()
        figures[name] = sections[name]()
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(plain(figures), indent=1, allow_nan=False) + "\n")
    print(markdown(figures))
    if args.card:
        write_card(args.card, figures)


if __name__ == "__main__":
    main()
