"""How exact and how dear each way from picture to noise and back is, and how fit for editing.

    python benchmarks/roundtrip.py faces64 DATA --judge runs/judge.safetensors \
        --json docs/solvers.json --plot docs/solvers.png --text docs/solvers.md

Every figure is of held-out pictures, float32. NFE counts both ways. The authors' procedure is
ours with `parity="pdae"`: 999 evaluations to noise, 100 back, clamped. Edits and midpoints of two
faces are the nearer to the truth the nearer they are to those of the long reference (MSE).
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from candidates import backward_ddim, implicit
from report import stamp, table, write_between_marks
from torch import Tensor

import pdae_cli
from pdae_cli.cli.output import plain
from pdae_cli.diffusion import solvers
from pdae_cli.diffusion.likelihood import trapezoid
from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.solvers import decode_grid
from pdae_cli.diffusion.trajectory import PRESETS, Sampling
from pdae_cli.engine.codes import Codes, between
from pdae_cli.engine.model import Model
from pdae_cli.evaluation import metrics
from pdae_cli.evaluation.judge import Judge, read_judge
from pdae_cli.pictures.images import to_float
from pdae_cli.training.data import open_pictures, split
from pdae_cli.training.labels import Labels, find_labels

Figures = dict[str, Any]
EDITED = ("Smiling", "Eyeglasses", "Male", "Young", "Blond_Hair")
SCALE = 0.3


@dataclass(frozen=True)
class Way:
    """A row of the table: settings to encode with, and other ones to decode with, if any."""

    name: str
    encode: dict[str, Any]
    decode: dict[str, Any] = field(default_factory=dict)
    alone: bool = False  # x_T, without residual_T


AUTHORS = Way(
    "authors' procedure, 1000 + 100",
    {"parity": "pdae", "inference_steps": 1000},
    {"inference_steps": 100},
)
LONG = Way("long reference: dpmpp, asinh, 100", {"spacing": "asinh", "inference_steps": 100})
WAYS = [
    LONG,  # first: the others' edits are compared with its
    AUTHORS,
    *(Way(f"**{name}**", settings) for name, settings in PRESETS.items()),
    *(
        Way(f"ddim, {spacing}, {steps}",
            {"solver": "ddim", "inference_steps": steps, "spacing": spacing})
        for spacing, steps in (("uniform", 50), ("asinh5", 20))
    ),
    *(
        Way(f"dpmpp, {spacing}, 20", {"inference_steps": 20, "spacing": spacing})
        for spacing in ("uniform", "quadratic", "logsnr", "asinh")
    ),
    *(
        Way(f"dpmpp, asinh5, {steps}", {"inference_steps": steps}) for steps in (8, 12, 16)
    ),
    *(
        Way(f"dpmpp, asinh5, {steps}, corrections: {corrections}",
            {"inference_steps": steps, "corrections": corrections})
        for steps, corrections in ((10, 1), (12, 1), (12, 2), (16, 1))
    ),
    Way("ddim, asinh5, 20, corrections: 2",
        {"solver": "ddim", "inference_steps": 20, "corrections": 2}),
    *(
        Way(f"leapfrog, {spacing}, {steps}",
            {"solver": "leapfrog", "inference_steps": steps, "spacing": spacing})
        for spacing, steps in (
            ("logsnr", 10), ("asinh5", 6), ("asinh", 9), ("asinh5", 12), ("asinh5", 18)
        )
    ),
    *(
        Way(f"{name}, x_T alone", PRESETS[name], alone=True) for name in ("exact", "archival")
    ),
]  # fmt: skip


def statistics(x_T: Tensor) -> Figures:
    """How near x_T is to N(0, I): over all values, and between horizontal neighbours."""
    mean, std = x_T.mean(), x_T.std()
    standard = (x_T - mean) / std
    return {
        "mean": mean.item(),
        "std": std.item(),
        "kurtosis": standard.pow(4).mean().item() - 3,
        "correlation": (standard[..., 1:] * standard[..., :-1]).mean().item(),
    }


def compared(x_0: Tensor, back: Tensor) -> Figures:
    return {
        "mse": metrics.mse(x_0, back).mean().item(),
        "max": (x_0 - back).abs().max().item() / 2,
        "equal": metrics.equal_share(x_0, back).mean().item(),
        "ssim": metrics.ssim(x_0, back).mean().item(),
    }


def round_trips(
    model: Model, x_0: Tensor, ways: list[Way] = WAYS
) -> tuple[list[Figures], dict[str, Codes]]:
    """Every way there and back, and the codes it made."""
    rows, made, reference = list[Figures](), dict[str, Codes](), dict[str, Tensor]()
    for way in ways:
        begun = time.perf_counter()
        codes = model.encode(x_0, **way.encode)
        codes = replace(codes, residual_T=None) if way.alone else codes
        back = model.decode(codes, **way.decode)
        seconds = (time.perf_counter() - begun) / len(x_0)
        there = Sampling(**way.encode)
        nfe = (
            model.trajectory(there).evaluations()[0]
            - way.alone  # which was for the residual
            + model.trajectory(there.changed(way.decode)).evaluations()[1]
        )
        assert codes.x_T is not None
        row = {"name": way.name, "nfe": nfe, "seconds": seconds} | compared(x_0, back)
        if model.attributes is not None and ways[0] is LONG:
            moved = {
                "edit": model.manipulate(codes, [(EDITED[0], SCALE)]),
                "midpoint": midpoints(codes, range(0, len(codes) - 1, 2)),
            }
            for name, one in moved.items():
                picture = model.decode(one, **way.decode).clamp(-1, 1)
                row[name] = metrics.mse(picture, reference.setdefault(name, picture)).mean().item()
        rows.append(row | {"x_T": statistics(codes.x_T)})
        made[way.name] = codes
        print(rows[-1], flush=True)
    return rows, made


def implicit_trips(model: Model, x_0: Tensor) -> list[Figures]:
    """The candidates that weren't taken."""
    rows = []
    z = torch.cat([model.encode_z(part) for part in x_0.split(model.batch_size)])
    for name, weights, steps, iterations in (
        ("implicit DDIM, 12, 2 iterations", backward_ddim, 12, 2),
        ("implicit DDIM, 12, 3 iterations", backward_ddim, 12, 3),
        ("trapezoid, 10, 2 iterations", trapezoid, 10, 2),
        ("trapezoid, 10, 3 iterations", trapezoid, 10, 3),
    ):
        grid = decode_grid(model.schedule, steps, "asinh5")
        noises, backs = [], []
        for x, code in zip(x_0.split(model.batch_size), z.split(model.batch_size), strict=True):
            predict = model.guided(Sampling(steps), code)
            x_T = implicit(predict, x.to(model.device), grid[::-1], weights, iterations)
            noises.append(x_T.cpu())
            back = partial(implicit, weights=weights, iterations=iterations)
            decode = solvers.ddim if weights is backward_ddim else back
            backs.append(decode(predict, x_T, grid).cpu())
        there = iterations * steps + 1
        rows.append(
            {"name": name, "nfe": there + (steps if weights is backward_ddim else there)}
            | compared(x_0, torch.cat(backs)) | {"x_T": statistics(torch.cat(noises))}
        )  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def editing(
    model: Model, judge: Judge, made: dict[str, Codes], truth: Tensor, labels: Labels, real: Tensor
) -> list[Figures]:
    """Edits and midpoints of each preset beside those of the long reference, judged.

    Edits: share that the judge calls positive, of faces without the attribute, with each way's own
    codes. Midpoints: of neighbouring faces, their Fréchet distance to real faces, and how far the
    judge's opinion of them is from the mean of its opinions of both ends.
    """
    rows = []
    for way in (LONG, *(Way(f"**{name}**", settings) for name, settings in PRESETS.items())):
        codes = made[way.name]
        row: Figures = {"name": way.name}
        for name in EDITED:
            without = (truth[:, labels.attributes.index(name)] == 0).nonzero()[:, 0].tolist()
            moved = model.manipulate(_rows(codes, without), [(name, SCALE)])
            with torch.no_grad():
                chance = judge(model.decode(moved, **way.decode).clamp(-1, 1)).sigmoid()
            row[name] = (chance[:, judge.names.index(name)] > 0.5).float().mean().item()
        middle = midpoints(codes, range(len(codes) - 1))
        pictures = model.decode(middle, **way.decode)
        ends = model.decode(codes, **way.decode)
        with torch.no_grad():
            opinion = judge(pictures.clamp(-1, 1)).sigmoid()
            of_ends = judge(ends.clamp(-1, 1)).sigmoid()
        mean = (of_ends[1:] + of_ends[:-1]) / 2
        row["midpoints_off"] = (opinion - mean).abs().mean().item()
        row["midpoints_frechet"] = metrics.frechet(judge.features(pictures), judge.features(real))
        rows.append(row)
        print(row, flush=True)
    return rows


def midpoints(codes: Codes, firsts: range) -> Codes:
    """Codes half way between neighbours."""
    return pdae_cli.engine.codes.stack([between(codes[k : k + 2], [0.5]) for k in firsts])


def _rows(codes: Codes, rows: list[int]) -> Codes:
    return pdae_cli.engine.codes.stack([codes[row : row + 1] for row in rows])


def samples(model: Model, judge: Judge, count: int, real: Tensor) -> list[Figures]:
    """Fréchet distance (judge's features) of samples to real faces, by solver and steps."""
    rows: list[Figures] = []
    # In any order: by name the first are all CelebA's.
    features = judge.features(real[torch.randperm(len(real), generator=generator(0, "real"))])
    floor = metrics.frechet(features[:count], features[count:])
    rows.append({"name": "as many real faces to the others", "nfe": 0, "frechet": floor})
    wanted = [("dpmpp", spacing, n) for spacing in ("asinh5", "asinh") for n in (5, 10, 20, 50)]
    wanted += [("leapfrog", "asinh5", n) for n in (10, 20)]
    wanted += [("ddim", "asinh5", n) for n in (10, 20, 50)]
    wanted += [(name, "uniform", 50) for name in ("ddpm", "sde", "pc")]
    for solver, spacing, steps in wanted:
        sampling = Sampling(solver=solver, spacing=spacing, inference_steps=steps)
        pictures, _ = model.sample(count, sampling)
        nfe = model.trajectory(sampling).evaluations()[1]
        distance = metrics.frechet(judge.features(pictures), features)
        rows.append({"name": f"{solver}, {spacing}, {steps}", "nfe": nfe, "frechet": distance})
        print(rows[-1], flush=True)
    return rows


def markdown(figures: Figures) -> str:
    """All figures as tables."""
    parts = []
    for model in figures["models"]:
        parts.append(f"### {model['name']}\n\n{model['pictures']} held-out pictures, float32.")
        rows = [
            [row["name"], row["nfe"], row["mse"], row["max"], f"{row['equal']:.5f}", row["ssim"],
             row.get("edit", ""), row.get("midpoint", ""),
             *(f"{value:+.3f}" for value in row["x_T"].values())]
            for row in model["round_trips"]
        ]  # fmt: skip
        heads = "way|NFE|MSE|largest error|8-bit values equal|SSIM|edit|midpoint"
        parts.append(table(f"{heads}|x_T mean|std|kurtosis|corr.", rows))
    if "editing" in figures:
        rows = [
            [f"{v:.3f}" if isinstance(v, float) else v for v in row.values()]
            for row in figures["editing"]
        ]
        parts.append(
            "### Editing\n\n"
            + table("|".join(["codes by", *EDITED, "midpoints: off", "Fréchet"]), rows)
        )
        rows = [[row["name"], row["nfe"], row["frechet"]] for row in figures["samples"]]
        parts.append("### Samples\n\n" + table("solver|NFE|Fréchet distance", rows))
    return "\n\n".join(parts)


def plot(figures: Figures, path: Path) -> None:
    """MSE against NFE of the first model's round trips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colors: dict[str, str] = {}
    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    for row in figures["models"][0]["round_trips"]:
        kind = row["name"].strip("*").split(",")[0].split(" ")[0]
        color = colors.setdefault(kind, f"C{len(colors)}")
        axes.plot(row["nfe"], max(row["mse"], 1e-13), "o", color=color)
        axes.annotate(row["name"].strip("*"), (row["nfe"], row["mse"]), fontsize=6,
                      xytext=(4, 2), textcoords="offset points")  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="NFE, both ways", ylabel="MSE on [0, 1]")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--converted", help="another model, for the round trips alone")
    parser.add_argument("--judge", type=Path, default=Path("runs/judge.safetensors"))
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--json", type=Path, default=Path("runs/solvers.json"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--text", type=Path, help="put the tables between its marks")
    parser.add_argument("--only", help="the round trips whose names this pattern finds, no more")
    args = parser.parse_args()
    labels = find_labels(args.data, None, open_pictures(args.data, 1).names)
    if labels is None:
        raise SystemExit(f"{args.data} has no labels.csv")
    figures: Figures = {"stamp": stamp(), "models": []}
    for name in [args.model] + ([args.converted] if args.converted else []):
        model = pdae_cli.load(name)
        config = model.config
        _, held_out = split(open_pictures(args.data, config.image_size, config.channels), labels)
        own = name == args.model
        x_0 = to_float(held_out.stack(range(args.pictures if own else args.pictures // 4)))
        if args.only:
            rows, _ = round_trips(
                model, x_0, [one for one in WAYS if re.search(args.only, one.name)]
            )
            only = {"name": model.name, "pictures": len(x_0), "round_trips": rows}
            print(f"{figures['stamp']}.\n\n{markdown(figures | {'models': [only]})}")
            return
        rows, made = round_trips(model, x_0, WAYS if own else WAYS[:6])
        figures["models"].append({"name": model.name, "pictures": len(x_0), "round_trips": rows})
        if own:
            rows += implicit_trips(model, x_0)
            judge, _ = read_judge(args.judge)
            real = to_float(held_out.stack(range(len(held_out))))
            truth = labels.matrix(held_out.names[: args.pictures])
            figures["editing"] = editing(model, judge, made, truth, labels, real)
            figures["samples"] = samples(model, judge, args.samples, real)
        args.json.write_text(json.dumps(plain(figures), indent=1, allow_nan=False) + "\n")
    body = f"{figures['stamp']}.\n\n{markdown(figures)}"
    print(body)
    if args.plot:
        plot(figures, args.plot)
    if args.text:
        write_between_marks(args.text, body)


if __name__ == "__main__":
    main()
