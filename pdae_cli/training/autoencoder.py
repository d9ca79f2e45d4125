"""Stage 2: E_phi and G_psi against the frozen eps_theta (PDAE eq. 10)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..diffusion.schedule import Schedule, gather
from ..diffusion.trajectory import Latents, unchanged
from ..engine.config import ModelConfig, Normalisation
from ..engine.model import Model
from ..engine.tensors import networks_sha
from ..errors import UsageError
from ..evaluation.figures import on_schedule
from ..evaluation.gap import gap_residuals
from ..networks.encoder import Encoder, EncoderConfig
from ..networks.gradient import GradientEstimator
from ..networks.heads import Heads
from ..pictures.images import to_float
from .data import Pictures, Task
from .dpm import dpm_config, first_stage_sha, held_out_noise, held_out_rows, uniform
from .folder import check_model, saving
from .latent import encode_all
from .stage import PREVIEWED, Stage

STATISTICS = 8192  # pictures that z's mean and standard deviation are computed on


class Weighting(NamedTuple):
    """How the residual counts at each timestep: see `Schedule.loss_weight`."""

    weighting: str = "lambda"
    gamma: float = 0.1


LAMBDA = Weighting()  # the paper's


def density(schedule: Schedule, weighting: Weighting = LAMBDA) -> Tensor:
    """Return the chance of drawing each timestep, (T,) float64; the same for all by the error of v.

    Weighed by lambda_t, what is left to explain in eps shrinks with alpha_bar_t: of timesteps drawn
    evenly, half would hardly count. Three quarters of the draws go where lambda_t sqrt(alpha_bar_t)
    is; dividing by the density leaves the expectation as it was.
    """
    if weighting.weighting == "v":
        return uniform(schedule).to(schedule.alpha_bar)
    counts = schedule.loss_weight(*weighting) * schedule.alpha_bar.sqrt()
    return 0.25 * uniform(schedule).to(counts) + 0.75 * counts / counts.sum()


class AutoencoderLoss(nn.Module):
    """E w_t |eps - eps_theta(x_t, t) + shift_t G_psi(x_t, E_phi(x_0), t)|^2 (PDAE eq. 10), w_t by
    `Schedule.loss_weight`, over timesteps drawn by `density`. With labels y the encoder takes those
    instead of x_0.

    x_0 are pictures, x_t and eps of their `latents`."""

    def __init__(
        self,
        heads: Heads,
        encoder: nn.Module,
        schedule: Schedule,
        latents: Latents = unchanged,
        weighting: Weighting = LAMBDA,
    ) -> None:
        super().__init__()
        self.heads, self.encoder, self.schedule, self.latents = heads, encoder, schedule, latents
        self.requires_grad_(True)
        heads.dpm.requires_grad_(False)
        self.density = density(schedule, weighting)
        self.weight = schedule.loss_weight(*weighting) / (schedule.timesteps * self.density)
        self.train()

    def train(self, mode: bool = True) -> AutoencoderLoss:
        """Train all but the frozen network, whose dropout stays off."""
        super().train(mode)
        self.heads.dpm.eval()
        return self

    def forward(self, x_0: Tensor, t: Tensor, eps: Tensor, y: Tensor | None = None) -> Tensor:
        x_t = self.schedule.add_noise(self.latents(x_0), t, eps)
        eps_theta, (gradient,) = self.heads(x_t, t, self.encoder(x_0 if y is None else y))
        residual = self.schedule.residual(eps, eps_theta, t, gradient)
        return (gather(self.weight, t, eps) * residual.square()).mean()


def gap_closed(
    model: Model, held_out: Pictures, first: int = 200, last: int = 800, zs: Tensor | None = None
) -> dict[str, float]:
    """Measure which share of the posterior mean gap G_psi closes, over t in first … last of 1000
    timesteps, or where those are on the model's schedule: with the right z, and with other z, those
    of the pictures before, where there are any. If both are alike, z isn't used.
    `zs`: (N, D) of the pictures, where they aren't E_phi's; of labels, some may be the same."""
    here = on_schedule(model, (first, last))
    x_0, t, eps = held_out_noise(model, held_out, here[0], here[-1])
    numbers = held_out_rows(len(held_out))
    z = (model.z_of(x_0[: len(set(numbers))]) if zs is None else zs)[numbers].cpu()
    other = z.roll(1, 0)
    differ = (z != other).any(dim=1)

    def measure(rows: slice) -> Tensor:
        clean = model.latents(x_0[rows].to(model.device))
        gaps = [gap_residuals(model, clean, t[rows], eps[rows], one[rows]) for one in (z, other)]
        return torch.stack([1 - shifted / plain for plain, shifted in gaps], dim=1)

    right, shuffled = model.by_rows(len(x_0), measure).T.contiguous()
    closed = {"gap_closed": right.mean().item()}
    if differ.any():
        closed["gap_closed_shuffled"] = shuffled[differ].mean().item()
    return closed


def statistics(model: Model, pictures: Pictures) -> Normalisation:
    """Average z over (at most STATISTICS of) the training pictures: mean and deviation."""
    stride = -(-len(pictures) // STATISTICS)
    z = encode_all(model, pictures.subset(range(0, len(pictures), stride))).double()
    std = z.std(dim=0, correction=0).clamp(min=1e-6)
    return Normalisation(tuple(z.mean(dim=0).tolist()), tuple(std.tolist()))


def preview(model: Model, held_out: Pictures) -> tuple[Tensor, int]:
    """Make rows of a sheet: pictures, what z and x_T give back, and what z alone does."""
    x_0 = to_float(held_out.stack(range(min(PREVIEWED, len(held_out)))))
    codes = model.encode(x_0, inference_steps=20)
    rows = [x_0, model.decode(codes), model.decode(codes, random_noise=True)]
    return torch.cat(rows), len(x_0)


def saving_statistics(model: Model, task: Task, stage: str) -> Callable[[dict[str, object]], None]:
    """Return `saving`, with the statistics of z as it then is."""
    write = saving(model, task, stage)

    def save(summary: dict[str, object]) -> None:
        model.config = replace(model.config, normalisation=statistics(model, task.train))
        write(summary)

    return save


def autoencoder_stage(
    model: Model, task: Task, weighting: Weighting = LAMBDA, freeze_encoder: bool = False
) -> Stage:
    """Train the model's G_psi and, unless that is frozen, E_phi; its eps_theta stays as it is."""
    if model.gradient_estimator is None or model.encoder is None:
        raise ValueError("the model has no gradient estimator and encoder to train")
    schedule = model.schedule.to(model.device)
    objective = AutoencoderLoss(model.heads, model.encoder, schedule, model.latents, weighting)
    frozen = [model.dpm, model.encoder] if freeze_encoder else [model.dpm]
    known = freeze_encoder and model.config.normalisation is not None  # then z stays what it is
    save = saving if known else saving_statistics
    for network in frozen:
        network.requires_grad_(False)
    settings = {"frozen_sha": networks_sha(*frozen), "freeze_encoder": freeze_encoder}
    return Stage(
        "autoencoder",
        objective,
        task.train,
        objective.density.cpu(),
        lambda: gap_closed(model, task.held_out),
        lambda: preview(model, task.held_out),
        save(model, task, "autoencoder"),
        model.config.state_shape,
        settings=weighting._asdict() | settings | first_stage_sha(model),
        guard=lambda: check_model(model, task.folder, "autoencoder", keeps_z=freeze_encoder),
    )


def with_autoencoder(model: Model, z_dim: int, seed: int) -> Model:
    """Give the model an untrained encoder and gradient estimator that fit its eps_theta.

    Raises UsageError for a size that the encoder can't take.
    """
    config = dpm_config(model)
    encoder, unet = encoder_for(config, z_dim), config.unet.taking_z(z_dim)
    torch.manual_seed(seed)
    return Model(
        config=replace(config, unet=unet, encoder=encoder),
        dpm=model.dpm,
        gradient_estimator=GradientEstimator(unet, z_dim),
        encoder=Encoder(encoder),
        first_stage=model.first_stage,
        name=model.name,
    )


def encoder_for(config: ModelConfig, z_dim: int) -> EncoderConfig:
    """Shape E_phi for a model's pictures. Raises UsageError for a size that it can't take."""
    try:
        return EncoderConfig.for_size(config.image_size, config.channels, z_dim)
    except ValueError as error:
        raise UsageError(str(error)) from error
