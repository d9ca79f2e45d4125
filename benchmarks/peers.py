"""Wall time and exactness of the round trip, beside what a user would take instead.

    python benchmarks/peers.py faces64 DATA [--pictures 8] [--device cuda] [--text FILE]

First the whole model: our presets, and the authors' procedure (`parity="pdae"`, float32, eager).
Then eps_theta alone: ours, and diffusers' DDIMInverseScheduler + DDIMScheduler over its own
UNet2DModel with the same weights through `pdae export` (a random-weight network of the bundled
one's width, since UNet2DModel knows no space-to-depth). All in one run; ratios are what counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from report import stamp, table, write_between_marks
from torch import Tensor

import pdae_cli
from pdae_cli.checkpoints.export import write_diffusers
from pdae_cli.diffusion.trajectory import PRESETS, Sampling
from pdae_cli.engine.config import ModelConfig, ScheduleConfig
from pdae_cli.engine.model import Model
from pdae_cli.evaluation import metrics
from pdae_cli.networks.unet import UNet, UNetConfig
from pdae_cli.pictures.images import to_float
from pdae_cli.training.data import open_pictures, split
from pdae_cli.training.labels import find_labels

RoundTrip = Callable[[Tensor], Tensor]


def timed(
    there_and_back: RoundTrip, x_0: Tensor, compiled: bool = False
) -> tuple[float, float, float]:
    """Seconds a picture, MSE and share of equal 8-bit values; one round trip to warm up on: of all
    pictures, where it is compiled for their number."""
    there_and_back(x_0 if compiled else x_0[:1])
    begun = time.perf_counter()
    back = there_and_back(x_0).cpu()
    seconds = (time.perf_counter() - begun) / len(x_0)
    return (
        seconds,
        metrics.mse(x_0, back).mean().item(),
        metrics.equal_share(x_0, back).mean().item(),
    )


def ours(model: Model, encode: dict[str, Any], decode: dict[str, Any]) -> RoundTrip:
    return lambda x_0: model.decode(model.encode(x_0, **encode), **decode)


def whole(model: Model, x_0: Tensor, compiled: Model | None) -> list[list[object]]:
    """The presets against the authors' procedure."""
    ways: list[tuple[str, Model, dict[str, Any], dict[str, Any]]] = [
        (name, model, settings, {}) for name, settings in PRESETS.items()
    ]
    if compiled is not None:
        ways += [(f"{name}, --compile", compiled, s, {}) for name, s in PRESETS.items()]
    authors = {"parity": "pdae", "inference_steps": 1000}
    ways.append(("authors' procedure", model, authors, {"inference_steps": 100}))
    rows: list[list[object]] = []
    for name, one, encode, decode in ways:
        there = Sampling(**encode)
        nfe = (
            one.trajectory(there).evaluations()[0]
            + one.trajectory(there.changed(decode)).evaluations()[1]
        )
        rows.append([name, nfe, *timed(ours(one, encode, decode), x_0, one is compiled)])
        print(rows[-1], flush=True)
    slowest = rows[-1][2]
    assert isinstance(slowest, float)
    return [[*row, slowest / row[2]] for row in rows if isinstance(row[2], float)]


def plain_model(size: int = 64) -> Model:
    """eps_theta alone, of random weights, in a shape that diffusers' UNet2DModel has too."""
    torch.manual_seed(0)
    cfg = UNetConfig(
        image_size=size, channels=3, patch=1, base_channels=32, multipliers=(1.0, 3.0, 5.0),
        blocks=1, attention=(16,), head_channels=32, heads=1, time_conditioning="scale_shift",
        resampling="residual", learn_sigma=False, groups=8, norm_eps=1e-5, dropout=0.0,
    )  # fmt: skip
    dpm = UNet(cfg)
    for parameter in dpm.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return Model(ModelConfig(ScheduleConfig(), cfg, "eps"), dpm, name="random64")


def diffusers_trip(folder: Path, steps: int, device: torch.device) -> RoundTrip:
    """Its inverse and forward DDIM, as its documentation runs them."""
    from diffusers import DDIMInverseScheduler, DDIMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(folder / "unet").eval().to(device)
    settings = {"num_train_timesteps": 1000, "beta_schedule": "linear", "clip_sample": False}

    @torch.no_grad()
    def trip(x: Tensor) -> Tensor:
        x = x.to(device)
        for scheduler in (DDIMInverseScheduler(**settings), DDIMScheduler(**settings)):
            scheduler.set_timesteps(steps)
            for t in scheduler.timesteps:
                x = scheduler.step(unet(x, t).sample, t, x).prev_sample
        return x

    return trip


def bare(x_0: Tensor, device: str) -> list[list[object]]:
    """eps_theta alone against diffusers, 50 steps each way and ours at its defaults."""
    model = plain_model(x_0.shape[-1])
    with TemporaryDirectory() as folder:
        write_diffusers(model, Path(folder))
        theirs = diffusers_trip(Path(folder), 50, torch.device(device))
        model.to(device)

        def trip(sampling: Sampling) -> RoundTrip:
            way, predict = model.trajectory(sampling), model.guided(sampling)
            return lambda x: way.to_picture(predict, _noise(way, predict, x.to(device)), [])

        rows: list[list[object]] = [["diffusers, DDIM, 50", 100, *timed(theirs, x_0)]]
        for name, sampling in (
            ("ours, DDIM, 50", Sampling(solver="ddim", inference_steps=50, spacing="uniform")),
            ("ours, default", Sampling()),
        ):
            rows.append(
                [name, sum(model.trajectory(sampling).evaluations()), *timed(trip(sampling), x_0)]
            )
    slowest = rows[0][2]
    assert isinstance(slowest, float)
    # Exactness says nothing on random weights.
    return [[*row[:3], slowest / row[2]] for row in rows if isinstance(row[2], float)]


def _noise(way: Any, predict: Any, x: Tensor) -> Tensor:
    return way.to_noise(predict, x).x_T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--text", type=Path, help="put the tables between its marks")
    args = parser.parse_args()
    model = pdae_cli.load(args.model, args.device, args.dtype)
    compiled = None
    if args.compile:
        compiled = pdae_cli.load(args.model, args.device, args.dtype, compile=True)
    size, channels = model.config.unet.image_size, model.config.unet.channels
    pictures = open_pictures(args.data, size, channels)
    _, held_out = split(pictures, find_labels(args.data, None, pictures.names))
    x_0 = to_float(held_out.stack(range(args.pictures)))
    speed, faster = "NFE|seconds a picture", "times faster"
    whole_header = f"round trip of `{model.name}`|{speed}|MSE|8-bit values equal|{faster}"
    body = "\n\n".join(
        [
            f"{stamp(args.device)}; {args.pictures} pictures at once, {args.dtype}.",
            table(whole_header, whole(model, x_0, compiled)),
            table(f"ε_θ alone, the same weights|{speed}|{faster}", bare(x_0, args.device)),
        ]
    )
    print(body)
    if args.text:
        write_between_marks(args.text, body)


if __name__ == "__main__":
    main()
