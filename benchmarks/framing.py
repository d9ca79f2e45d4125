"""Train the network that brings faces into the frame: weights/frame/network.safetensors.

    OMP_NUM_THREADS=1 python benchmarks/framing.py DATA.zip -o weights/frame/network.safetensors

DATA.zip holds aligned faces and a labels.csv with their split, as for training; `train` is learnt
from, and `val` looked at. A face is seen under a random similarity, through a random soft hole, so
that its square's border tells nothing, before haze or pieces of other faces.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import time
import zipfile
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from pdae_cli.pictures.photos.refining import ROOM, SEEN, FrameNet

BATCH = 128
# Of the widest perturbation: log of the scale, turn (radians), shift (half sides).
WIDEST = (0.4, 0.6, 0.5, 0.5)
CORNERS = torch.tensor([-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j])


def faces_of(path: Path, split: str) -> Tensor:
    """Grey pictures (N, 1, 64, 64) uint8."""
    archive = zipfile.ZipFile(path)
    rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
    names = [row["file"] for row in rows if row["split"] == split]
    images = (Image.open(io.BytesIO(archive.read(name))).convert("L") for name in names)
    return torch.from_numpy(numpy.stack([numpy.asarray(image) for image in images]))[:, None]


def uniform(count: int, low: float, high: float, dims: int = 3) -> Tensor:
    """One number a row: (count, 1, …) of so many dimensions behind the first."""
    return torch.empty(count, *[1] * dims).uniform_(low, high)


def chance(count: int, share: float) -> Tensor:
    return torch.rand(count, 1, 1, 1) < share


def grids(maps: Tensor) -> Tensor:
    """Where the pixels of a seen square lie (N, SEEN, SEEN, 2) by maps (N, 4) as FrameNet's."""
    (log_scale, turn), shift = maps[:, :2].T, maps[:, 2:]
    a, b = log_scale.exp() * turn.cos(), log_scale.exp() * turn.sin()
    turned = torch.stack([torch.stack([a, -b], 1), torch.stack([b, a], 1)], 1)
    matrices = torch.cat([turned, shift[:, :, None]], 2)
    return F.affine_grid(matrices, [len(maps), 1, SEEN, SEEN], align_corners=False)


def looked_at(faces: Tensor, grid: Tensor, beyond: str) -> Tensor:
    return F.grid_sample(faces, grid, padding_mode=beyond, align_corners=False)


def backgrounds(faces: Tensor) -> Tensor:
    """Haze, coarse or fine, or pieces of other faces, near and far, however turned."""
    count = len(faces)
    cells = 2 ** int(torch.randint(1, 6, ())) + 1
    haze = F.interpolate(torch.rand(count, 1, cells, cells), SEEN, mode="bilinear")
    haze = haze * uniform(count, 0.2, 1.2) + uniform(count, -0.2, 0.6)
    ranges = ((-3, 0.7), (-3, 3), (-1, 1), (-1, 1))
    maps = torch.cat([uniform(count, low, high, 1) for low, high in ranges], 1)
    others = looked_at(faces.roll(1, 0), grids(maps), "reflection")
    return torch.where(chance(count, 0.5), haze, others)


def holes(grid: Tensor) -> Tensor:
    """Through which a face is seen: (N, 1, SEEN, SEEN) from 0 to 1, something between a turned
    ellipse and a rectangle. Now and then it reaches beyond the face's square."""
    count = len(grid)
    x, y = grid.unbind(3)
    square = torch.maximum(x.abs(), y.abs())
    x, y = x - uniform(count, -0.15, 0.15, 2), y - uniform(count, -0.15, 0.15, 2)
    turn = uniform(count, -0.5, 0.5, 2)
    x, y = x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()
    x, y = (x / uniform(count, 0.75, 1.5, 2)).abs(), (y / uniform(count, 0.85, 1.6, 2)).abs()
    far = torch.lerp((x * x + y * y).sqrt(), torch.maximum(x, y), uniform(count, 0, 1, 2))
    hole = ((1 - far) / uniform(count, 0.02, 0.5, 2)).clamp(0, 1)
    end = torch.where(chance(count, 0.4)[:, 0], uniform(count, 1.0, 1.6, 2), 1.0)
    return (hole * ((end - square) / uniform(count, 0.02, 0.3, 2)).clamp(0, 1))[:, None]


def views(faces: Tensor, width: float | None = None) -> tuple[Tensor, Tensor]:
    """What FrameNet sees of faces (N, 1, H, W) uint8, and the true maps (N, 4), perturbed by up to
    `width` of the widest; by default by all of it for some, by less for others."""
    count = len(faces)
    faces = faces.float() / 255
    faces = torch.where(chance(count, 0.5), faces, faces.flip(3))
    widths = uniform(count, 0.05, 1, 1) if width is None else width
    maps = widths * torch.tensor(WIDEST) * uniform(4 * count, -1, 1, 0).view(count, 4)
    maps[:, 0] += math.log(ROOM)
    grid, half = grids(maps), count // 2
    face = torch.cat([looked_at(faces[:half], grid[:half], "border"),
                      looked_at(faces[half:], grid[half:], "reflection")])  # fmt: skip
    face = face.clamp(min=1e-3) ** uniform(count, 0.6, 1.6) * uniform(count, 0.5, 1.2)
    hole, behind = holes(grid), backgrounds(faces)
    seen, weight = ((one.sum((1, 2, 3), True)) for one in (face * hole, hole))
    alike = behind + seen / weight.clamp(min=1) - behind.mean((1, 2, 3), True)
    seen = torch.lerp(torch.where(chance(count, 0.4), alike, behind), face, hole)
    few = count // 4  # blurred
    soft = F.interpolate(F.interpolate(seen[:few], SEEN // 2, mode="area"), SEEN, mode="bilinear")
    seen = torch.cat([soft, seen[few:]])
    seen = seen + torch.randn_like(seen) * uniform(count, 0, 0.05) * chance(count, 0.5)
    order = torch.randperm(count)
    return seen.clamp(0, 1)[order], maps[order]


def off(said: Tensor, true: Tensor) -> Tensor:
    """Mean distances (N,) of the frame's corners from the true ones, in its sides."""
    (turned, shift), (turned_said, shift_said) = (
        (torch.polar(one[:, :1].exp(), one[:, 1:2]), torch.complex(one[:, 2:3], one[:, 3:]))
        for one in (true, said)
    )
    corners = (CORNERS - shift) / turned
    return (turned_said * corners + shift_said - CORNERS).abs().mean(1) / 2


def new_network() -> FrameNet:
    network = FrameNet()
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        network[-1].weight *= 0.05
    return network


def train(faces: Tensor, held_out: Tensor, steps: int) -> FrameNet:
    network = new_network()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    begun, losses = time.perf_counter(), []
    for step in range(1, steps + 1):
        seen, maps = views(faces[torch.randint(len(faces), (BATCH,))])
        loss = off(network(seen), maps).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        pace.step()
        losses.append(loss.item())
        if step % 500 == 0 or step == steps:
            with torch.no_grad():
                pairs = [(w, views(held_out, w)) for w in (1, 0.3, 0.1)]
                errors = {w: off(network(seen), maps).median().item() for w, (seen, maps) in pairs}
            text = ", ".join(f"from {width}: {error:.4f}" for width, error in errors.items())
            seconds = time.perf_counter() - begun
            print(f"{step}: {sum(losses) / len(losses):.4f}; held out {text}; {seconds:.0f} s")
            losses = []
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = train(
        faces_of(arguments.data, "train"), faces_of(arguments.data, "val")[::3], arguments.steps
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: one.half() for name, one in network.state_dict().items()}, arguments.output)


if __name__ == "__main__":
    main()
