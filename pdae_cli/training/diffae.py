"""Diff-AE (Preechakul et al. 2022), PDAE's baseline: E_phi and an eps_theta that takes z, both from
scratch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..engine.model import Model
from ..networks.encoder import Encoder
from .autoencoder import encoder_for, preview, saving_statistics
from .data import Pictures, Task
from .dpm import DPMLoss, first_stage_sha, held_out_loss, held_out_noise, new_dpm, uniform
from .folder import check_model
from .stage import Stage


class DiffAELoss(nn.Module):
    """E |eps - eps_theta(x_t, t, E_phi(x_0))|^2 (Diff-AE eq. 8), or its form for v: see DPMLoss."""

    def __init__(self, eps_theta: DPMLoss, encoder: nn.Module) -> None:
        super().__init__()
        self.eps_theta, self.encoder = eps_theta, encoder
        self.requires_grad_(True).train()

    def forward(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        loss: Tensor = self.eps_theta(x_0, t, eps, self.encoder(x_0))
        return loss


def held_out_losses(model: Model, held_out: Pictures) -> dict[str, float]:
    """Measure the objective on held-out pictures: with their own z, and with the z of other ones,
    where there are any. If both are alike, z isn't used."""
    parts = held_out_noise(model, held_out, 0, model.schedule.timesteps - 1)
    objective = DPMLoss(model.heads, model.schedule, model.latents)
    z = model.z_of(parts[0])
    losses = held_out_loss(model, objective, *parts, z)
    if len(held_out) > 1:
        shuffled = held_out_loss(model, objective, *parts, z.roll(1, 0))
        losses["held_out_loss_shuffled"] = shuffled["held_out_loss"]
    return losses


def diffae_stage(model: Model, task: Task) -> Stage:
    """Train the model's E_phi and its eps_theta together."""
    if model.encoder is None or not model.takes_z:
        raise ValueError("the model's eps_theta takes no z, or no encoder makes it")
    schedule = model.schedule.to(model.device)
    eps_theta = DPMLoss(model.heads, schedule, model.latents)
    objective = DiffAELoss(eps_theta, model.encoder)
    return Stage(
        "diffae",
        objective,
        task.train,
        uniform(schedule),
        lambda: held_out_losses(model, task.held_out),
        lambda: preview(model, task.held_out),
        saving_statistics(model, task, "diffae"),
        model.config.state_shape,
        settings=first_stage_sha(model),
        guard=lambda: check_model(model, task.folder, "diffae"),
    )


def new_diffae(seed: int, betas: str, prediction: str, z_dim: int, **shape: Any) -> Model:
    """Make a model with an untrained encoder and an eps_theta that takes its z in every block;
    `shape`: as of `new_dpm`. Raises UsageError for a shape that can't be."""
    model = new_dpm(seed, betas, prediction, z_channels=z_dim, **shape)
    encoder = encoder_for(model.config, z_dim)
    return Model(
        replace(model.config, encoder=encoder),
        model.dpm,
        encoder=Encoder(encoder),
        first_stage=model.first_stage,
    )
