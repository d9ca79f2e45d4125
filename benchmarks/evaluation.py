"""How fast one network evaluation is, and how far from what its convolutions alone cost.

    python benchmarks/evaluation.py [MODEL] --batch-sizes 1,8,64 --device cpu --dtype float32

MODEL: a bundled name, a folder, or `paper128`: the paper's network for 128 pixels with random
weights. An evaluation is eps_theta and G_psi over one pass, as a solver asks for it in each step.
Prints Markdown. Two floors stand beside each time, both measured in the same run:

own convolutions: each distinct convolution of the model timed alone, in the memory format that is
    best for it, times how often it occurs;
at full rate: all FLOPs at the rate of one large 3x3 convolution (256 channels, 32x32 positions).
"""

from __future__ import annotations

import argparse
import platform
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import pdae_cli
from pdae_cli.cli.process import keep_memory
from pdae_cli.engine.computing import PRECISIONS, computing
from pdae_cli.engine.config import ModelConfig, ScheduleConfig
from pdae_cli.engine.model import Model
from pdae_cli.networks.gradient import GradientEstimator
from pdae_cli.networks.unet import UNet, UNetConfig

T = 500
SECONDS = 0.7  # spent on each measurement, and at least REPEATS runs
REPEATS = 5
FORMATS = (torch.contiguous_format, torch.channels_last)
PAPER = UNetConfig(
    image_size=128, channels=3, patch=1, base_channels=128, multipliers=(1, 1, 2, 3, 4), blocks=2,
    attention=(16,), head_channels=None, heads=1, time_conditioning="scale_shift",
    resampling="residual", learn_sigma=False, groups=32, norm_eps=1e-5, dropout=0.1,
)  # fmt: skip


class Convolution(NamedTuple):
    """What two convolutions share that take the same time."""

    x: tuple[int, ...]  # (C, H, W) of the input
    weight: tuple[int, ...]  # (C_out, C_in, k, k)
    stride: tuple[int, ...]
    padding: tuple[int, ...]


def best(work: Callable[[], object], device: torch.device, seconds: float = SECONDS) -> float:
    """Seconds of the fastest of several runs, after two that warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times: list[float] = []
    end = time.perf_counter() + seconds
    for run in range(2 + 10_000):
        wait()
        start = time.perf_counter()
        work()
        wait()
        if run >= 2:
            times.append(time.perf_counter() - start)
        if len(times) >= REPEATS and time.perf_counter() > end:
            break
    return min(times)


def opened(name: str, device: str, dtype: str, compile: bool) -> Model:
    """The model, placed; `paper128` has random weights and z of 512 dimensions."""
    if name != "paper128":
        return pdae_cli.load(name).to(device, dtype, compile)
    torch.manual_seed(0)
    parts = UNet(PAPER), GradientEstimator(PAPER, 512)
    return Model(ModelConfig(ScheduleConfig(), PAPER), *parts, name=name).to(device, dtype, compile)


def evaluation(model: Model, count: int) -> Callable[[], object]:
    """One evaluation of `count` pictures."""
    unet, gradient = model.config.unet, model.gradient_estimator
    z_dim = unet.z_channels if gradient is None else gradient.z.in_features
    x = torch.randn(count, unet.channels, unet.image_size, unet.image_size, device=model.device)
    zs = [torch.randn(count, z_dim, device=model.device)] if z_dim else []
    with computing(model.device, model.dtype):
        prepared = model.heads.prepare([T], zs)

    def work() -> object:
        with computing(model.device, model.dtype):
            return model.heads.at(x, T, prepared)

    return work


def convolutions(model: Model) -> Counter[Convolution]:
    """The distinct convolutions of one evaluation, and how often each occurs."""
    found: Counter[Convolution] = Counter()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d) and not isinstance(module.padding, str)
        shapes = tuple(inputs[0].shape[1:]), tuple(module.weight.shape)
        found[Convolution(*shapes, module.stride, module.padding)] += 1

    layers = [module for module in model.heads.modules() if isinstance(module, nn.Conv2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    compiled, model.heads.compiled = model.heads.compiled, None
    evaluation(model, 1)()
    model.heads.compiled = compiled
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def convolution_time(
    kind: Convolution, count: int, device: torch.device, dtype: torch.dtype, seconds: float
) -> float:
    """Seconds of one convolution alone, in the memory format that is best for it."""

    def timed(memory_format: torch.memory_format) -> float:
        x = torch.randn(count, *kind.x, device=device, dtype=dtype)
        weight = torch.randn(kind.weight, device=device, dtype=dtype)
        bias = torch.randn(kind.weight[0], device=device, dtype=dtype)
        x, weight = (part.contiguous(memory_format=memory_format) for part in (x, weight))
        work = lambda: F.conv2d(x, weight, bias, kind.stride, kind.padding)  # noqa: E731
        return best(work, device, seconds)

    return min(timed(memory_format) for memory_format in FORMATS)


def convolution_rate(count: int, device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a large 3x3 convolution: 256 channels, 32x32 positions."""
    kind = Convolution((256, 32, 32), (256, 256, 3, 3), (1, 1), (1, 1))
    operations = 2 * count * 256 * 256 * 9 * 32 * 32
    return operations / convolution_time(kind, count, device, dtype, seconds)


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of a square product of 2048 rows."""
    size = 2048
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    return 2 * size**3 / best(lambda: a @ b, device, seconds)


def operations(model: Model, count: int) -> int:
    """FLOPs of one evaluation: convolutions and products, a multiplication and an addition as 2."""
    compiled, model.heads.compiled = model.heads.compiled, None
    counter = FlopCounterMode(display=False)
    with torch.backends.mkldnn.flags(enabled=False), counter:  # it knows torch's own operations
        evaluation(model, count)()
    model.heads.compiled = compiled
    return counter.get_total_flops()


def row(model: Model, count: int, seconds: float) -> str:
    """One line of the table."""
    device, dtype = model.device, PRECISIONS[model.dtype]
    shared = (count, device, dtype, seconds / 10)
    took = best(evaluation(model, count), device, seconds)
    flops = operations(model, count)
    own = sum(
        times * convolution_time(kind, *shared) for kind, times in convolutions(model).items()
    )
    rate = convolution_rate(count, device, dtype, seconds)
    full = flops / rate
    return (
        f"| {count} | {took * 1e3:.1f} | {took * 1e3 / count:.2f} | {flops / 1e9:.2f} "
        f"| {flops / took / 1e9:.0f} | {rate / 1e9:.0f} | {own * 1e3:.1f} | {took / own:.2f} "
        f"| {full * 1e3:.1f} | {took / full:.2f} |"
    )


def shares(model: Model, count: int) -> list[str]:
    """The eight operations that most of an evaluation's time goes to."""
    work = evaluation(model, count)
    work()
    on_cuda = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with profile(activities=activities) as profiled:
        for _ in range(REPEATS):
            work()
    field = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    times = {event.key: getattr(event, field) for event in profiled.key_averages()}
    total = sum(times.values())
    first = sorted(times, key=lambda key: -times[key])[:8]
    return [f"| {name} | {times[name] / total:.1%} |" for name in first]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", default="faces64")
    parser.add_argument("--batch-sizes", default="1,8,64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=PRECISIONS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="share of time by operation")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each measurement")
    options = parser.parse_args()
    keep_memory()  # as the commands do
    torch.set_num_threads(options.threads)
    model = opened(options.model, options.device, options.dtype, options.compile)
    device, counts = model.device, [int(count) for count in options.batch_sizes.split(",")]
    on_cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if on_cuda else platform.processor() or "CPU"
    rate = matmul_rate(device, PRECISIONS[options.dtype], options.seconds)
    print(
        f"{model.name}, {options.dtype}{', compiled' * options.compile}; {where}, "
        f"{options.threads} threads; torch {torch.__version__}; {date.today()}. "
        f"Products of 2048 rows: {rate / 1e9:.0f} GFLOP/s.\n"
    )
    print(
        "| batch | ms | ms a picture | GFLOP | GFLOP/s | GFLOP/s of a large convolution "
        "| own convolutions, ms | time / that | at full rate, ms | time / that |"
    )
    print("|" + "---:|" * 10)
    for count in counts:
        print(row(model, count, options.seconds), flush=True)
    for count in counts if options.profile else []:
        print(f"\n| batch {count} | share of time |\n|---|---:|")
        print("\n".join(shares(model, count)))


if __name__ == "__main__":
    main()
