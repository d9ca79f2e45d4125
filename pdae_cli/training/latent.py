"""Stage 3: the latent DPM, on the normalised z of the training pictures (PDAE sec. 4.8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import write_latent_dpm
from ..diffusion.noise import generator
from ..diffusion.schedule import Schedule
from ..diffusion.trajectory import LATENT_SCHEDULE
from ..engine.model import Model
from ..networks.latent import LatentConfig, LatentDPM
from ..pictures.images import to_float, write_sheet
from .data import Pictures
from .dpm import uniform
from .loop import Stage

CHUNK = 256


def encode_all(
    model: Model,
    pictures: Pictures,
    progress: Callable[[int], None] = lambda done: None,
    mirrored: bool = False,
) -> Tensor:
    """z (N, D) of all pictures, on the CPU."""
    parts = []
    for first in range(0, len(pictures), CHUNK):
        rows = range(first, min(first + CHUNK, len(pictures)))
        x_0 = to_float(pictures.stack(rows))
        parts.append(model.encoder(x_0.flip(3) if mirrored else x_0).cpu())
        progress(rows.stop)
    return torch.cat(parts)


class Vectors:
    """Normalised z as a training set."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def __len__(self) -> int:
        return len(self.z)

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Rows as float32 (N, D)."""
        return self.z[torch.as_tensor(indices)]


class LatentLoss(nn.Module):
    """E |eps - eps_omega(z_t, t)|, the L1 loss of the authors and of Diff-AE."""

    def __init__(self, network: LatentDPM, schedule: Schedule) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule

    def forward(self, z_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        predicted = self.network(self.schedule.add_noise(z_0, t, eps), t)
        return (eps - predicted.float()).abs().mean()


def latent_stage(
    model: Model,
    train: Pictures,
    held_out: Pictures,
    folder: Path,
    width: int,
    layers: int,
    dropout: float,
    seed: int,
    dtype: torch.dtype,
) -> Stage:
    """Train a latent DPM for the model; pictures are seen mirrored as well."""
    z = torch.cat([encode_all(model, train, mirrored=flip) for flip in (False, True)])
    z, z_held_out = model.normalise(z), model.normalise(encode_all(model, held_out))
    torch.manual_seed(seed)
    network = LatentDPM(LatentConfig(z.shape[1], width, layers, dropout)).train()
    model.latent_dpm = network
    schedule = LATENT_SCHEDULE.to(model.device)
    objective = LatentLoss(network, schedule)
    t = torch.linspace(0, schedule.timesteps - 1, len(z_held_out)).long()
    eps = torch.randn(z_held_out.shape, generator=generator(0, "held out"))

    def measure() -> dict[str, float]:
        held = (part.to(model.device) for part in (z_held_out, t, eps))
        return {"held_out_loss": objective(*held).item()}

    def preview(path: Path) -> None:
        pictures, _ = model.sample(16, inference_steps=20)
        write_sheet(path.with_suffix(".png"), pictures, 8, {"command": "train latent"})

    def save(summary: dict[str, Any]) -> None:
        write_latent_dpm(folder, network, summary, dtype)

    return Stage(
        "latent", objective, Vectors(z), uniform(schedule), measure, preview, save, z.shape[1:]
    )
