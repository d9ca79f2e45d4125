"""What training takes: memory and FLOPs by model, pictures a second by processes, plans with costs.

    python benchmarks/scaling.py memory       # on the meta device: no weights are made
    python benchmarks/scaling.py throughput   # 1 and 2 CPU processes in turns
    python benchmarks/scaling.py plan         # FFHQ-256, and 100 M pictures
    python benchmarks/scaling.py encode       # codes of a picture: CPU seconds, bytes
    python benchmarks/scaling.py fsdp         # sharded by torch, on 2 CPU processes

Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from evaluation import PAPER
from report import stamp, table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from training import OPTIONS, make_stage

import pdae_cli
from pdae_cli.engine.codes import stack
from pdae_cli.engine.columns import to_parquet
from pdae_cli.engine.config import ModelConfig, ScheduleConfig
from pdae_cli.engine.model import Model
from pdae_cli.networks.unet import ResBlock, UNet, UNetConfig
from pdae_cli.training.autoencoder import AutoencoderLoss, with_autoencoder
from pdae_cli.training.dpm import DPMLoss
from pdae_cli.training.estimate import (
    Memory,
    checkpoint_bytes,
    kept_bytes,
    memory_of,
    seconds_a_step,
)
from pdae_cli.training.loop import Training, checkpoint_activations

# ffhq128 is the paper's; 64 and 256 pixels as Diff-AE has them, whose networks PDAE starts from.
MODELS = {
    "faces64": pdae_cli.load("faces64", device="cpu").config.unet,
    "64 pixels": replace(PAPER, image_size=64, base_channels=64, multipliers=(1, 2, 4, 8),
                         embedding_channels=256),
    "128 pixels": PAPER,
    "256 pixels": replace(PAPER, image_size=256, multipliers=(1, 1, 2, 2, 4, 4)),
}  # fmt: skip
STAGES = ("dpm", "autoencoder")
GIB = 2**30
H100 = 989.4e12  # dense bf16 FLOP/s of an H100 SXM, NVIDIA's data sheet
UTILISATION = 0.3


def objective(cfg: UNetConfig, stage: str) -> nn.Module:
    """Of the model with z of 512 dimensions; inside torch.device("meta") it takes no memory."""
    torch.manual_seed(0)
    model = with_autoencoder(Model(ModelConfig(ScheduleConfig(), cfg), UNet(cfg)), 512, 0)
    if stage == "dpm":
        model.dpm.requires_grad_(True).train()
        model.heads.gradient = None
        return DPMLoss(model.heads, model.schedule)
    assert model.encoder is not None
    return AutoencoderLoss(model.heads, model.encoder, model.schedule)


class Cost(NamedTuple):
    """Of forward and backward pass over one micro-batch."""

    saved: int  # bytes of tensors that the backward pass needs, beside weights
    flops: int  # of matrix products and convolutions, a multiplication and an addition as two


def cost(module: nn.Module, *batch: Tensor) -> Cost:
    """The cost of module(*batch), on the meta device."""
    with FlopCounterMode(display=False) as counter:
        saved = kept_bytes(module, *batch)
    return Cost(saved, counter.get_total_flops())


@cache
def needs(name: str, stage: str, checkpointed: bool = False) -> tuple[Memory, Cost]:
    """Memory without activations, and the cost of one picture in bfloat16."""
    cfg = MODELS[name]
    with torch.device("meta"):
        module, costs = objective(cfg, stage), []
        if checkpointed:
            checkpoint_activations(module)
        for rows in (1, 2):
            x = torch.empty(rows, cfg.channels, cfg.image_size, cfg.image_size)
            with torch.autocast("cpu", torch.bfloat16):
                costs.append(cost(module, x, torch.zeros(rows).long(), x))
    one = Cost(*(two - one for one, two in zip(*costs, strict=True)))
    return memory_of(module, 0), one


def memory() -> str:
    """What is there whatever the batch, activations a picture, and both for 32 pictures."""
    rows: list[list[object]] = []
    for name in MODELS:
        for stage in STAGES:
            (fixed, plain), (_, saving) = (needs(name, stage, one) for one in (False, True))
            rows.append([
                name, stage, fixed.weights / 4e6, fixed.gradients / 4e6, fixed.total / GIB,
                plain.saved / 2**20, saving.saved / 2**20,
                (fixed.total + 32 * plain.saved) / GIB, (fixed.total + 32 * saving.saved) / GIB,
                plain.flops / 1e9, saving.flops / 1e9, checkpoint_bytes(fixed, torch.float32) / GIB,
            ])  # fmt: skip
    return table(
        "model|stage|M parameters|trained|fixed, GiB|activations a picture, MiB|checkpointed"
        "|32 pictures, GiB|checkpointed|GFLOP a picture|checkpointed|checkpoint, GiB",
        rows,
    )


@dataclass(frozen=True)
class Plan:
    name: str
    model: str
    pictures: int
    seen: dict[str, int]  # pictures seen in each stage
    batch_size: int  # of all GPUs
    gpus: int


FFHQ = {"dpm": 200_000_000, "autoencoder": 100_000_000}
LARGE = {"dpm": 1_000_000_000, "autoencoder": 500_000_000}
PLANS = (
    Plan("FFHQ-256", "256 pixels", 70_000, FFHQ, batch_size=256, gpus=8),
    Plan("100 M pictures", "256 pixels", 100_000_000, LARGE, batch_size=2048, gpus=64),
)


def plans() -> str:
    """The formulas stand in docs/scaling.md."""
    rows: list[list[object]] = []
    for plan in PLANS:
        for stage, seen in plan.seen.items():
            fixed, one = needs(plan.model, stage)
            hours = seen * one.flops / (H100 * UTILISATION) / 3600
            rate = seen / (hours * 3600 / plan.gpus)  # pictures a second
            ring = 2 * (plan.gpus - 1) / plan.gpus * fixed.gradients  # bytes a GPU sends in a step
            size = MODELS[plan.model].channels * MODELS[plan.model].image_size ** 2
            rows.append([
                plan.name, stage, f"{seen / 1e6:.0f}", seen * one.flops / 1e18, round(hours),
                hours / plan.gpus / 24, plan.gpus, rate, plan.pictures * size / 1e12,
                checkpoint_bytes(fixed, torch.float32) / GIB, rate * size / 1e6,
                ring * rate / plan.batch_size / 1e9,
            ])  # fmt: skip
    return table(
        "plan|stage|M pictures seen|EFLOP|GPU hours|days|GPUs|pictures/s|pixels, TB"
        "|checkpoint, GiB|reading, MB/s of pixels|gradients, GB/s sent by each GPU",
        rows,
    )


def launched(processes: int, *args: str) -> str:
    """What this file prints as that many processes of a thread each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [sys.executable, *launcher, __file__, *args],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip


def throughput(batch_size: int, rounds: int) -> str:
    """Pictures a second of `faces64`'s autoencoder stage: one process and two, in turns."""
    best = {1: 0.0, 2: 0.0}
    for _ in range(rounds):
        for count in best:
            best[count] = max(best[count], float(launched(count, "worker", str(batch_size))))
    rows: list[list[object]] = [[n, rate, rate / best[1]] for n, rate in best.items()]
    return table("processes, a thread each|pictures/s|ratio", rows)


def worker(batch_size: int) -> None:
    """One process of `throughput`; the first prints pictures a second of all."""
    options = replace(OPTIONS, batch_size=batch_size)
    run = Training(
        make_stage("autoencoder", "faces64", "cpu", None), options, Path("unused"), cpu=True
    )
    seconds = seconds_a_step(run)
    if run.rank == 0:
        print(batch_size / seconds)
    dist.destroy_process_group()


def fsdp_worker() -> None:
    """torch's FSDP2 around the whole objective, and around each block as well: gradients against
    those of the plain objective on the whole batch."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    rank, mesh = dist.get_rank(), dist.init_device_mesh("cpu", (2,))
    cfg = replace(MODELS["faces64"], dropout=0.0)
    draws = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 4, 3, 64, 64, generator=draws).unbind(0)
    batch = x_0, torch.tensor([3, 300, 600, 900]), eps
    plain = objective(cfg, "dpm")
    plain(*batch).backward()
    for how in ("the whole", "each block too"):
        sharded = objective(cfg, "dpm")
        try:
            for block in sharded.modules():
                if isinstance(block, ResBlock) and how != "the whole":
                    fully_shard(block, mesh=mesh)
            fully_shard(sharded, mesh=mesh)
            sharded(*(part[2 * rank : 2 * rank + 2] for part in batch)).backward()
            pairs = zip(plain.parameters(), sharded.parameters(), strict=True)
            worst = max((a.grad - b.grad.full_tensor()).abs().max().item() for a, b in pairs)  # type: ignore[union-attr, operator]
            held = sum(p.to_local().numel() for p in sharded.parameters())  # type: ignore[operator]
            said = f"{held} of {sum(p.numel() for p in plain.parameters())} weights a process; "
            said += f"largest difference of a gradient {worst:.1e}"
        except RuntimeError as error:
            said = f"fails: {str(error).splitlines()[0]}"
        if rank == 0:
            print(f"FSDP around {how}: {said}")
    dist.destroy_process_group()


def encoding(batch_size: int, rounds: int) -> str:
    """CPU seconds of encoding a picture by faces64 on a thread, the best round, and bytes of
    its row in Parquet."""
    torch.set_num_threads(1)
    model = pdae_cli.load("faces64", device="cpu")
    x = torch.rand(batch_size, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = list[list[object]]()
    for said, noise in (("z and x_T", True), ("z alone, `--no-noise`", False)):
        seconds = []
        for _ in range(rounds + 1):
            begun = time.process_time()
            codes = model.encode(x, noise=noise)
            seconds.append(time.process_time() - begun)
        many = stack([codes] * 20)  # alike, and would be packed
        many = replace(many, **{n: torch.randn_like(one) for n, one in many.tensors().items()})
        a_row = len(to_parquet(many)) / len(many)
        rows.append([said, min(seconds[1:]) / batch_size, round(a_row)])
    return table("codes|CPU seconds a picture|bytes a picture", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    whats = ("memory", "throughput", "plan", "encode", "fsdp", "worker", "fsdp-worker")
    parser.add_argument("what", choices=whats)
    parser.add_argument("batch_size", type=int, nargs="?", default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.what == "worker":
        worker(args.batch_size)
    elif args.what == "fsdp-worker":
        fsdp_worker()
    elif args.what == "memory":
        print(f"{stamp('cpu')}\n\n{memory()}")
    elif args.what == "plan":
        print(plans())
    elif args.what == "encode":
        print(f"{stamp('cpu')}\n\n{encoding(args.batch_size, args.rounds)}")
    elif args.what == "fsdp":
        print(launched(2, "fsdp-worker"))
    else:
        print(f"{stamp('cpu')}\n\n{throughput(args.batch_size, args.rounds)}")


if __name__ == "__main__":
    main()
