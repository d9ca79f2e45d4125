"""Stage 1: eps_theta, by DDPM's simple objective (DDPM eq. 14)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.noise import generator
from ..diffusion.schedule import Schedule, gather
from ..diffusion.trajectory import Latents, unchanged
from ..engine.config import ModelConfig, ScheduleConfig
from ..engine.model import Model
from ..errors import UsageError
from ..networks.first_stage import FirstStage, FirstStageConfig
from ..networks.heads import Heads
from ..networks.layers import groups_of
from ..networks.unet import UNet, UNetConfig
from ..pictures.images import to_float
from .data import Pictures, Task
from .folder import check_model, saving
from .stage import Stage

HELD_OUT = 256  # rows that metrics are computed on
MOST_DRAWS = 8  # of a held-out picture, where there are fewer


class DPMLoss(nn.Module):
    """E |eps - eps_theta(x_t, t)|^2 (DDPM eq. 14); where the network predicts v, E |v - v_theta|^2,
    the same divided by alpha_bar_t (Salimans & Ho 2022). A Diff-AE's eps_theta takes z (N, D) too.

    x_0 are pictures, x_t and eps of their `latents`.
    """

    def __init__(self, heads: Heads, schedule: Schedule, latents: Latents = unchanged) -> None:
        super().__init__()
        self.heads, self.schedule, self.latents = heads, schedule, latents

    def forward(self, x_0: Tensor, t: Tensor, eps: Tensor, *z: Tensor) -> Tensor:
        x_t = self.schedule.add_noise(self.latents(x_0), t, eps)
        predicted, _ = self.heads(x_t, t, *z)
        errors = (eps - predicted).square()
        if self.heads.prediction == "v":
            errors = errors / gather(self.schedule.alpha_bar, t, eps)
        return errors.mean()


def first_stage_sha(model: Model) -> dict[str, str]:
    """Return the setting by which a run that goes on knows its latents' first stage again."""
    sha = model.first_stage_sha
    return {"first_stage_sha": sha} if sha else {}


def uniform(schedule: Schedule) -> Tensor:
    """Give every timestep the same chance: (T,) float64."""
    return torch.full((schedule.timesteps,), 1 / schedule.timesteps, dtype=torch.float64)


def held_out_rows(count: int) -> list[int]:
    """Number the held-out picture of each row that metrics are computed on: the first HELD_OUT, or
    all `count`, one after the other, again and again, each with other timesteps and noise."""
    draws = min(MOST_DRAWS, max(1, HELD_OUT // count))
    return list(range(min(HELD_OUT, count))) * draws


def held_out_noise(
    model: Model, pictures: Pictures, first: int, last: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_0 of `held_out_rows`, t spread evenly over first … last, and eps: always the same
    for the same pictures."""
    rows = held_out_rows(len(pictures))
    t = torch.linspace(first, last, len(rows)).long()
    shape = (len(rows), *model.config.state_shape)
    return to_float(pictures.stack(rows)), t, torch.randn(shape, generator=generator(0, "held out"))


def held_out_loss(model: Model, objective: nn.Module, *parts: Tensor) -> dict[str, float]:
    """Average the objective over held-out rows: x_0, t, eps and what else it takes."""
    total, count = 0.0, len(parts[0])
    for rows in model.parts(count):
        with model.within(rows):
            batch = [one[rows].to(model.device) for one in parts]
            total += objective(*batch).item() * len(batch[0])
    return {"held_out_loss": total / count}


def check_plain(model: Model) -> None:
    """Raise UsageError where eps_theta takes z itself."""
    if model.takes_z:
        raise UsageError(f"eps_theta of {model.name} takes z itself; give a plain diffusion model")


def dpm_config(model: Model) -> ModelConfig:
    """Return what the model's config says of its eps_theta alone: an E_phi and G_psi that it may
    have are left behind, and so is how they were trained. Raises UsageError where eps_theta takes z
    itself."""
    check_plain(model)
    training = tuple(one for one in model.config.training if one.get("stage") == "dpm")
    alone = replace(model.config.unet, z_embedding_channels=0)
    return replace(
        model.config, unet=alone, encoder=None, labels=None, normalisation=None, training=training
    )


def eps_theta_of(model: Model) -> Model:
    """Return the model without what was trained against its eps_theta, which another one makes
    wrong; a diffusion model alone as it is. Raises UsageError as `dpm_config` does."""
    config = dpm_config(model)
    if model.config.z_dim is None:
        return model
    return Model(config, model.dpm, first_stage=model.first_stage, name=model.name)


def dpm_stage(model: Model, task: Task) -> Stage:
    """Train the model's eps_theta."""
    model.dpm.requires_grad_(True).train()
    schedule, shape = model.schedule.to(model.device), model.config.state_shape
    objective = DPMLoss(model.heads, schedule, model.latents)
    measured = held_out_noise(model, task.held_out, 0, schedule.timesteps - 1)
    return Stage(
        "dpm",
        objective,
        task.train,
        uniform(schedule),
        lambda: held_out_loss(model, objective, *measured),
        lambda: (model.sample(16, unconditional=True, inference_steps=20)[0], 8),
        saving(model, task, "dpm"),
        shape,
        settings=first_stage_sha(model),
        guard=lambda: check_model(model, task.folder, "dpm", keeps_z=True),
    )


def usual_shape(size: int, accelerated: bool) -> dict[str, Any]:
    """Choose eps_theta's shape for states of `size` x `size`, where nothing is said of it.

    With an accelerator ADM's (Dhariwal & Nichol 2021), with another level for each doubling beyond
    64. Without one 5 million parameters, whose first level is patches on about 32 x 32 positions.
    """
    if accelerated:
        more = max(0, (size // 64).bit_length() - 1)
        return {
            "patch": 1, "base_channels": 64, "multipliers": (1,) * more + (1, 2, 3, 4), "blocks": 2,
            "attention": (16, 8), "dropout": 0.1,
        }  # fmt: skip
    return {
        "patch": next(p for p in (8, 4, 2, 1) if size >= 32 * p or p == 1), "base_channels": 32,
        "multipliers": (1, 3, 5), "blocks": 1, "attention": (8,), "dropout": 0.0,
    }  # fmt: skip


def usual_batch(image_size: int, accelerated: bool) -> int:
    """Choose how many pictures a step sees, where nothing is said of it: on an accelerator so many
    that activations take about as much at every size."""
    return max(8, min(128, 128 * 64**2 // image_size**2)) if accelerated else 32


def new_dpm(
    seed: int,
    betas: str,
    prediction: str,
    first_stage: FirstStage | None = None,
    accelerated: bool = False,
    licence: str = "unknown",
    source: str = "",
    **shape: Any,
) -> Model:
    """Make a model with an untrained ADM-style eps_theta, of pictures or a first stage's latents,
    whose `licence` and `source` its config has;
    `shape`: fields of UNetConfig, its size and channels those of the pictures; what it leaves out
    is `usual_shape`'s. Raises UsageError for a shape that can't be."""
    stage = None if first_stage is None else first_stage.cfg
    if stage is not None:
        shape |= _of_latents(stage, shape["image_size"], shape["channels"])
    shape = usual_shape(shape["image_size"], accelerated) | shape
    shape.setdefault("head_channels", math.gcd(64, shape["base_channels"]))
    try:
        cfg = UNetConfig(
            heads=1, time_conditioning="scale_shift", resampling="residual", learn_sigma=False,
            norm_eps=1e-5, groups=1, **shape,
        )  # fmt: skip
        cfg = replace(cfg, groups=groups_of(cfg.widths))
        torch.manual_seed(seed)
        config = ModelConfig(
            ScheduleConfig(betas=betas), cfg, prediction, licence=licence, source=source,
            first_stage=stage,
        )  # fmt: skip
        return Model(config, UNet(cfg), first_stage=first_stage)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _of_latents(cfg: FirstStageConfig, image_size: int, channels: int) -> dict[str, int]:
    """Size the latents of such pictures. Raises UsageError if they have none."""
    if channels != cfg.channels or image_size % cfg.factor:
        raise UsageError(
            f"the first stage is of pictures of {cfg.channels} channels and a multiple of "
            f"{cfg.factor} pixels, not of {channels} and {image_size}"
        )
    return {"image_size": image_size // cfg.factor, "channels": cfg.latent_channels}
