"""Stage 1: eps_theta, by DDPM's simple objective (DDPM eq. 14)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import write_model
from ..config import ModelConfig, ScheduleConfig
from ..engine import Model
from ..errors import UsageError
from ..heads import Heads
from ..images import to_float, write_sheet
from ..networks.blocks import UNetConfig
from ..networks.unet import UNet
from ..noise import generator
from ..schedule import Schedule, gather
from .data import Pictures
from .loop import Stage

HELD_OUT = 256  # pictures that metrics are computed on


class DPMLoss(nn.Module):
    """E |eps - eps_theta(x_t, t)|^2 (DDPM eq. 14); where the network predicts v, E |v - v_theta|^2,
    the same divided by alpha_bar_t (Salimans & Ho 2022). A Diff-AE's eps_theta takes z (N, D) too.
    """

    def __init__(self, heads: Heads, schedule: Schedule) -> None:
        super().__init__()
        self.heads, self.schedule = heads, schedule

    def forward(self, x_0: Tensor, t: Tensor, eps: Tensor, *z: Tensor) -> Tensor:
        predicted, _ = self.heads(self.schedule.add_noise(x_0, t, eps), t, *z)
        errors = (eps - predicted).square()
        if self.heads.prediction == "v":
            errors = errors / gather(self.schedule.alpha_bar, t, eps)
        return errors.mean()


def uniform(schedule: Schedule) -> Tensor:
    """The same chance for every timestep: (T,) float64."""
    return torch.full((schedule.timesteps,), 1 / schedule.timesteps, dtype=torch.float64)


def held_out_noise(pictures: Pictures, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """x_0, t spread evenly over first … last, and eps: always the same for the same pictures."""
    count = min(HELD_OUT, len(pictures))
    x_0 = to_float(pictures.stack(range(count)))
    t = torch.linspace(first, last, count).long()
    return x_0, t, torch.randn(x_0.shape, generator=generator(0, "held out"))


def dpm_stage(
    model: Model, train: Pictures, held_out: Pictures, folder: Path, dtype: torch.dtype
) -> Stage:
    """Train the model's eps_theta."""
    before = model.config.training
    model.dpm.requires_grad_(True).train()
    schedule = model.schedule.to(model.device)
    objective = DPMLoss(model.heads, schedule)
    x_0, t, eps = held_out_noise(held_out, 0, schedule.timesteps - 1)

    def measure() -> dict[str, float]:
        losses = [
            objective(*(part.to(model.device) for part in batch)) * len(batch[0])
            for batch in zip(x_0.split(64), t.split(64), eps.split(64), strict=True)
        ]
        return {"held_out_loss": torch.stack(losses).sum().item() / len(x_0)}

    def preview(path: Path) -> None:
        pictures, _ = model.sample(16, unconditional=True, inference_steps=20)
        write_sheet(path.with_suffix(".png"), pictures, 8, {"command": "train dpm"})

    def save(summary: dict[str, Any]) -> None:
        model.config = replace(model.config, training=(*before, summary))
        write_model(folder, model, dtype)

    return Stage("dpm", objective, train, uniform(schedule), measure, preview, save)


def new_dpm(seed: int, betas: str, prediction: str, **shape: Any) -> Model:
    """A model with an untrained ADM-style eps_theta; `shape`: fields of UNetConfig.

    Raises UsageError for a shape that can't be.
    """
    rest: dict[str, Any] = {
        "heads": 1,
        "time_conditioning": "scale_shift",
        "resampling": "residual",
        "learn_sigma": False,
        "norm_eps": 1e-5,
    }
    try:
        groups = math.gcd(32, shape["base_channels"])
        cfg = UNetConfig(**rest, groups=groups, **shape)
        torch.manual_seed(seed)
        return Model(ModelConfig(ScheduleConfig(betas=betas), cfg, prediction), UNet(cfg))
    except ValueError as error:
        raise UsageError(str(error)) from error
