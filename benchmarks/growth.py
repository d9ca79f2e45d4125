"""How cost grows: with pictures in a folder, with the size of pictures, with the batch.

    python benchmarks/growth.py FACE.png --plot docs/growth.png [--most 5000]

A folder of 1 … MOST copies of a picture, each with another first pixel, is encoded by `pdae encode
--no-noise`, and again when all is done. At other sizes the network is the bundled one's, with
random weights. Prints tables; seconds are by the clock, so nothing else should run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from report import stamp, table, write_between_marks

import pdae_cli
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine.model import Model
from pdae_cli.networks.gradient import GradientEstimator
from pdae_cli.networks.unet import UNet

UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of ru_maxrss
SIZES, BATCHES = (64, 128, 192, 256), (1, 2, 4, 8, 16, 32, 64)
NUMBERS = dict[str, list[float]]


def encoded(folder: Path, out: Path) -> tuple[float, float]:
    """Seconds and MiB of one command in a process of its own."""
    line = [sys.executable, "-m", "pdae_cli", "encode", folder, "-o", out, "--no-noise", "-q"]
    begun = time.perf_counter()
    process = subprocess.Popen(list(map(str, line)))
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"pdae encode ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - begun, used.ru_maxrss * UNIT / (1 << 20)


def of_folders(face: Image.Image, most: int) -> NUMBERS:
    """By pictures in a folder: seconds and MiB of encoding them, seconds when they are done."""
    found: NUMBERS = {"pictures": [], "seconds": [], "MiB": [], "again": []}
    for count in sorted({1, 10, 100, 1000, most}):
        with TemporaryDirectory() as place:
            folder, out = Path(place, "in"), Path(place, "out")
            folder.mkdir()
            for number in range(count):
                face.putpixel((0, 0), (number % 256, number // 256, 0))
                face.save(folder / f"{number:05}.png", compress_level=1)
            (seconds, memory), (again, _) = encoded(folder, out), encoded(folder, out)
        for name, value in zip(found, (float(count), seconds, memory, again), strict=True):
            found[name].append(value)
    return found


def per_evaluation(model: Model, count: int) -> float:
    """Seconds a picture of one evaluation, the fastest of several."""
    torch.manual_seed(0)
    x = torch.randn(count, *model.config.state_shape)
    z = torch.randn(count, model.gradient_estimator.z.in_features)  # type: ignore[union-attr]
    predict = model.guided(Sampling(inference_steps=2), z)
    middle = model.trajectory(Sampling(inference_steps=2)).timesteps()[1]
    return fastest(lambda: predict(x, middle)) / count


def fastest(work: Callable[[], object]) -> float:
    times, end = list[float](), time.perf_counter() + 2
    while len(times) < 4 or time.perf_counter() < end:
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def of_sizes(bundled: Model) -> NUMBERS:
    """By the size of pictures: ms of one evaluation of one."""
    found: NUMBERS = {"pixels": [], "ms": []}
    for size in SIZES:
        cfg, z_dim = replace(bundled.config.unet, image_size=size), bundled.config.z_dim or 0
        config = replace(bundled.config, unet=cfg, normalisation=None)
        model = Model(config, UNet(cfg), GradientEstimator(cfg, z_dim)).to("cpu")
        found["pixels"].append(size)
        found["ms"].append(1000 * per_evaluation(model, 1))
    return found


def of_batches(bundled: Model) -> NUMBERS:
    """By pictures in a batch: ms a picture of one evaluation."""
    return {
        "batch": [float(count) for count in BATCHES],
        "ms": [1000 * per_evaluation(bundled, count) for count in BATCHES],
    }


def plot(folders: NUMBERS, sizes: NUMBERS, batches: NUMBERS, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    for axis, x, y, name in (
        (axes[0], folders["pictures"], {n: folders[n] for n in ("seconds", "again")}, "seconds"),
        (axes[1], folders["pictures"], {"": folders["MiB"]}, "MiB at most"),
        (axes[2], sizes["pixels"], {"": sizes["ms"]}, "ms an evaluation"),
        (axes[3], batches["batch"], {"": batches["ms"]}, "ms an evaluation and picture"),
    ):
        for label, values in y.items():
            axis.plot(x, values, "o-", label=label)
        axis.set(ylabel=name, ylim=(0, None), xscale="linear" if axis is axes[2] else "log")
        axis.grid(alpha=0.3)
    for axis, name in zip(axes, ("pictures in a folder",) * 2 + ("pixels a side", "batch"),
                          strict=True):  # fmt: skip
        axis.set_xlabel(name)
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("face", type=Path)
    parser.add_argument("--most", type=int, default=5000, help="pictures in a folder")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--text", type=Path, help="put the tables between its marks")
    args = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    bundled = pdae_cli.load("faces64", "cpu")
    with Image.open(args.face) as face:
        folders = of_folders(face.convert("RGB"), args.most)
    sizes, batches = of_sizes(bundled), of_batches(bundled)
    parts = [stamp() + "."]
    for numbers in (folders, sizes, batches):
        rows = [[f"{one:.4g}" for one in row] for row in zip(*numbers.values(), strict=True)]
        parts.append(table("|".join(numbers), [list(row) for row in rows]))
    body = "\n\n".join(parts)
    print(body)
    if args.plot:
        plot(folders, sizes, batches, args.plot)
    if args.text:
        write_between_marks(args.text, body)


if __name__ == "__main__":
    main()
