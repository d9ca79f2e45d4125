"""Pictures a second of a training step: ours, in several settings, and a plain loop's.

    python benchmarks/training.py --stage autoencoder --batch-size 32 --device cpu --profile

All settings train the same network on the same pictures (random ones, or --data), take turns in
every round, and count with their fastest round. Prints a Markdown table. With --profile also where
the time of our float32 step goes, and how near it comes to its operations at a product's rate.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, cast

import torch
from evaluation import matmul_rate
from report import hardware, table
from torch import nn
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

import pdae_cli
from pdae_cli.cli.process import keep_memory
from pdae_cli.engine.config import UNetConfig
from pdae_cli.errors import UsageError
from pdae_cli.training.autoencoder import autoencoder_stage
from pdae_cli.training.data import Pictures, Task, open_pictures
from pdae_cli.training.dpm import dpm_stage
from pdae_cli.training.loop import Training
from pdae_cli.training.stage import Stage, TrainOptions

STAGES = {"dpm": dpm_stage, "autoencoder": autoencoder_stage}
OPTIONS = TrainOptions(
    images=10**9, batch_size=32, accumulate=1, lr=1e-5, warmup=500, grad_clip=1.0,
    ema_images=500_000, precision="no", channels_last=False, compile=False, flip=True, seed=0,
    log_every=50, save_every=1000,
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "ours, float32": {"precision": "no", "compile": False},
    "ours, float32, compiled": {"precision": "no", "compile": True},
    "ours, bfloat16": {"precision": "bf16", "compile": False},
    "ours, bfloat16, compiled": {"precision": "bf16", "compile": True},
}
EMA_DECAY = 0.9999
Step = Callable[[], object]


class RandomPictures:
    """As many pictures of noise as a training set needs to be one."""

    def __init__(self, cfg: UNetConfig, count: int = 1024) -> None:
        shape = (count, cfg.channels, cfg.image_size, cfg.image_size)
        self.pictures = torch.randint(0, 256, shape, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.pictures)

    def stack(self, indices: object) -> torch.Tensor:
        """uint8 (N, C, H, W)."""
        return self.pictures[torch.as_tensor(indices)]


def make_stage(name: str, model_name: str, device: str, data: Path | None) -> Stage:
    """A stage with a network of its own."""
    model = pdae_cli.load(model_name, device=device)
    cfg = model.config.unet
    pictures = open_pictures(data, cfg.image_size, cfg.channels) if data else RandomPictures(cfg)
    pictures = cast(Pictures, pictures)
    return STAGES[name](model, Task(pictures, pictures, Path("unused")))


def plain_step(stage: Stage, batch_size: int, device: str) -> Step:
    """The loop as one writes it at first: float32, gradients through everything (the frozen half as
    well), an optimiser and an average that go from tensor to tensor, the loss fetched each step."""
    objective, source = stage.objective, stage.source
    trained = [p for p in objective.parameters() if p.requires_grad]
    objective.requires_grad_(True)
    average = [p.detach().clone() for p in trained]
    optimizer = torch.optim.Adam(trained, lr=OPTIONS.lr, foreach=False)

    def step() -> float:
        numbers = torch.randint(len(source), (batch_size,)).tolist()
        x_0 = (source.stack(numbers).float() / 127.5 - 1).to(device)
        t = torch.randint(len(stage.density), (batch_size,)).to(device)
        loss = objective(x_0, t, torch.randn_like(x_0))
        objective.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, OPTIONS.grad_clip, foreach=False)
        optimizer.step()
        with torch.no_grad():
            for mean, parameter in zip(average, trained, strict=True):
                mean.mul_(EMA_DECAY).add_(parameter, alpha=1 - EMA_DECAY)
        return loss.item()

    return step


def our_step(stage: Stage, options: TrainOptions, device: str) -> Step:
    """A step of `pdae train`, with the batch that it draws."""
    run = Training(stage, options, Path(tempfile.gettempdir()) / "unused", cpu=device == "cpu")
    batches = run.batches()
    return lambda: run.train_step(next(batches))


def seconds(step: Step, steps: int, device: str) -> float:
    """Seconds a step, over so many of them."""
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) / steps


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 is computed in hardware."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def settings(args: argparse.Namespace) -> dict[str, Step]:
    """A step of each setting that this machine can run, the plain one first."""

    def stage() -> Stage:
        return make_stage(args.stage, args.model, args.device, args.data)

    steps = {"plain, float32": plain_step(stage(), args.batch_size, args.device)}
    for name, changes in SETTINGS.items():
        if changes["precision"] == "bf16" and not has_bfloat16(args.device):
            continue
        options = replace(OPTIONS, batch_size=args.batch_size, **changes)
        try:
            steps[name] = our_step(stage(), options, args.device)
        except UsageError as error:
            print(f"Without {name!r}: {error}\n")
    return steps


def profiled(step: Step, steps: int, batch_size: int, device: str) -> str:
    """Where the time of a step goes, as a table, and how near its operations come to the rate of a
    large product. On a CPU, in float32."""
    with profile() as found:
        took = seconds(step, steps, device)
    times = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    whole = sum(times.values())
    first = sorted(times, key=lambda key: -times[key])[:8]
    rows: list[list[object]] = [[name, f"{times[name] / whole:.1%}"] for name in first]
    counter = FlopCounterMode(display=False)
    with torch.backends.mkldnn.flags(enabled=False), counter:  # it knows torch's own operations
        step()
    done, rate = counter.get_total_flops(), matmul_rate(torch.device(device), torch.float32, 1)
    return (
        f"{table('operation|share of time', rows)}\n\n{done / batch_size / 1e9:.2f} GFLOP a "
        f"picture, {done / took / 1e9:.0f} GFLOP/s; products of 2048 rows run at {rate / 1e9:.0f} "
        f"GFLOP/s: at that rate a step would be {took * rate / done:.2f} times faster."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=list(STAGES), default="autoencoder")
    parser.add_argument("--model", default="faces64", help="whose architecture is trained")
    parser.add_argument("--data", type=Path, help="folder or zip of pictures; default: random ones")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="of each setting in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true", help="share of time by operation")
    args = parser.parse_args()
    keep_memory()  # as the commands do

    steps = settings(args)
    first = {name: seconds(step, 1, args.device) for name, step in steps.items()}
    fastest = dict.fromkeys(steps, float("inf"))
    for _ in range(args.rounds):
        for name, step in steps.items():
            fastest[name] = min(fastest[name], seconds(step, args.steps, args.device))

    print(
        f"{args.stage} stage of {args.model}, batch size {args.batch_size}; "
        f"{hardware(args.device)}; torch {torch.__version__}; {date.today()}; "
        f"fastest of {args.rounds} rounds of {args.steps} steps\n"
    )
    print("| setting | images/s | x plain | first step, s |\n|---|---|---|---|")
    plain = next(iter(fastest.values()))
    for name, best in fastest.items():
        rate = args.batch_size / best
        print(f"| {name} | {rate:.1f} | {plain / best:.2f} | {first[name]:.1f} |")
    if args.profile:
        print(f"\n{profiled(steps['ours, float32'], args.steps, args.batch_size, args.device)}")


if __name__ == "__main__":
    main()
