"""What is measured, generated: labelled pictures, in which even ones are red and odd ones blue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from conftest import picture
from PIL import Image
from torch import Tensor, nn

from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.trajectory import Sampling

FAST = Sampling(inference_steps=3, solver="ddim")
LABELS = {"red": lambda n: 1 - n % 2, "odd": lambda n: int(n % 4 == 1)}  # of a picture's number


def labelled(
    folder: Path,
    count: int,
    train: int,
    size: int = 32,
    labels: Mapping[str, Callable[[int], object]] = LABELS,
) -> Path:
    """The folder with so many pictures, those after the first `train` held out."""
    folder.mkdir()
    lines = [",".join(("file", "split", *labels))]
    for n in range(count):
        plain = Image.new("RGB", (size, size), ("red", "blue")[n % 2])
        Image.blend(picture(n, (size, size)), plain, 0.7).save(folder / f"{n:02d}.png")
        values = (str(value(n)) for value in labels.values())
        lines.append(",".join((f"{n:02d}.png", "train" if n < train else "val", *values)))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def faces(count: int = 4) -> Tensor:
    """Noise as pictures (count, 3, 32, 32) in [-1, 1]."""
    return torch.randn(count, 3, 32, 32, generator=generator(0, "faces")).tanh()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64)


def zero(network: nn.Module | None) -> None:
    """A network that gives nothing, whatever it is asked."""
    assert network is not None
    for parameter in network.parameters():
        parameter.zero_()
