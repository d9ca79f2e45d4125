"""Before stage 2: E_phi, taught what frozen networks already know of a picture.

G_psi's objective alone takes long to teach E_phi what a picture means. A diffusion model's features
of a clean picture tell that without labels (Xiang et al. 2023, "Denoising Diffusion Autoencoders
are Unified Self-supervised Learners"), and the E_phi of another model may be at hand: both are
copied into E_phi by regression, for which the U-Net needs no backward pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engine.computing import computing
from ..engine.config import Normalisation
from ..engine.model import Model
from ..engine.tensors import networks_sha
from ..errors import UsageError
from ..networks.heads import Heads
from ..pictures.images import to_float
from .autoencoder import saving_statistics
from .data import Pictures, Task
from .dpm import HELD_OUT, first_stage_sha, uniform
from .folder import check_model
from .latent import CHUNK
from .stage import PREVIEWED, Stage

EARLY = 20  # features are those at t = T / EARLY, where a clean picture is hardly out of place
SIDE = 4  # pixels of the averaged feature maps, as of the map that E_phi ends in
SEEN = 4096  # pictures that the components are of
SPARE = 64  # dimensions in which components are looked for, beyond their number

Teacher = Callable[[Tensor], Tensor]  # pictures (N, C, H, W) → (N, D)


def features(model: Model, x_0: Tensor) -> Tensor:
    """Run eps_theta on clean pictures up to the first block of its output half, the one by which
    linear probes tell most; average its maps: (N, SIDE^2 C), or less of smaller maps."""
    unet, t = model.dpm, torch.full((1,), model.schedule.timesteps // EARLY, device=model.device)
    x = model.latents(x_0.to(model.device))
    with computing(model.device, "float32"):
        time = unet.time(t)
        deepest = unet.input(x, unet.input.modulation(time))[-1]
        h, modulation = deepest, unet.output.modulation(time)
        for layer in unet.output.middle:
            h = layer(h, modulation)
        h = unet.output.layers[0](torch.cat([h, deepest], dim=1), modulation)
        return F.adaptive_avg_pool2d(h, min(SIDE, h.shape[-1])).flatten(1)


def _seen(model: Model, x_0: Tensor) -> Tensor:
    """`features` of any number of pictures, on the CPU."""
    return model.by_rows(len(x_0), lambda rows: features(model, x_0[rows]))


def components(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the leading principal components of standardised values (N, F): their mean (F,), and
    axes (F, count) such that (values - mean) @ axes has as variances the components' standard
    deviations, one on average. Raises UsageError where the values haven't so many.

    Whitened by half: whitened wholly, noise would count as much as what matters; not at all, a few
    components would be all that E_phi learns.
    """
    values = values.double()
    mean, std = values.mean(0), values.std(0, correction=0).clamp(min=1e-6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rank = min(count + SPARE, *values.shape)
        _, lengths, axes = torch.svd_lowrank((values - mean) / std, q=rank, niter=8)
    told = int((lengths > 1e-5 * lengths[0]).sum())
    if count > told:
        raise UsageError(
            f"{values.shape[0]} pictures of {values.shape[1]} features have {told} principal "
            f"components, not {count}; give more pictures, or a smaller --z-dim"
        )
    lengths, axes = lengths[:count], axes[:, :count]
    # An axis points where it will: fixed, so that a run that goes on on such a device has the same.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    deviations = lengths / len(values) ** 0.5
    axes = axes / std[:, None] / (deviations * deviations.mean()).sqrt()
    return mean.float(), axes.float()


def teacher_of(
    model: Model, pictures: Pictures, other: Model | None, z_dim: int
) -> tuple[Teacher, str]:
    """Return what gives the z to be learnt, the other model's, normalised, if there is one, then as
    many components of eps_theta's features as there is room for; and the first 12 digits of the
    SHA-256 of the pictures that the components are of. Raises UsageError as `components` does, and
    `check_teacher`."""
    taken, mean, axes, found = 0, torch.zeros(1), torch.zeros(1, 0), hashlib.sha256()
    if other is not None:
        known = check_teacher(model, other, z_dim)
        assert other.encoder is not None
        other.encoder.to(model.device)
        other.device = model.device
        taken = len(known.mean)
        shift, scale = (torch.tensor(of, device=model.device) for of in (known.mean, known.std))
    if z_dim > taken:
        rows = torch.linspace(0, len(pictures) - 1, min(SEEN, len(pictures))).long().tolist()
        seen = []
        for first in range(0, len(rows), CHUNK):
            part = pictures.stack(rows[first : first + CHUNK])
            found.update(part.numpy().tobytes())
            seen.append(_seen(model, to_float(part)))
        mean, axes = components(torch.cat(seen), z_dim - taken)
    mean, axes = mean.to(model.device), axes.to(model.device)

    @torch.no_grad()
    def teach(x_0: Tensor) -> Tensor:
        z = [] if other is None else [(other.encode_z(x_0) - shift) / scale]
        if z_dim > taken:
            z.append((features(model, x_0) - mean) @ axes)
        return torch.cat(z, dim=1)

    return teach, found.hexdigest()[:12]


def check_teacher(model: Model, other: Model, z_dim: int) -> Normalisation:
    """Return the statistics of the other model's z. Raises UsageError where it can't be learnt."""
    config, ours = other.config, model.config
    if config.encoder is None:
        raise UsageError(f"{other.name} has no encoder to teach")
    if config.normalisation is None:
        raise UsageError(f"{other.name} doesn't say how its z is distributed, so it can't teach it")
    size = config.encoder.z_dim
    if size > z_dim:
        raise UsageError(f"z of {other.name} has {size} numbers, more than --z-dim {z_dim}")
    if (config.image_size, config.channels) != (ours.image_size, ours.channels):
        raise UsageError(
            f"{other.name} takes pictures of {config.image_size} pixels and {config.channels} "
            f"channels, and {model.name} of {ours.image_size} and {ours.channels}"
        )
    return config.normalisation


class EncoderLoss(nn.Module):
    """E |teacher(x_0) - E_phi(x_0)|^2, the mean over numbers of z. t and eps don't matter."""

    def __init__(self, heads: Heads, encoder: nn.Module, teacher: Teacher) -> None:
        super().__init__()
        self.heads, self.encoder, self.teacher = heads, encoder, teacher
        self.requires_grad_(True)
        heads.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> EncoderLoss:
        """Train E_phi; the dropout of the others stays off."""
        super().train(mode)
        self.heads.eval()
        return self

    def forward(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return F.mse_loss(self.encoder(x_0).float(), self.teacher(x_0).float())


def explained(model: Model, pictures: Pictures, teacher: Teacher) -> dict[str, float]:
    """Measure the objective on held-out pictures and, where those differ, which share of their z's
    variance E_phi gets right; 0 is what their mean gets."""
    x_0 = to_float(pictures.stack(range(min(HELD_OUT, len(pictures)))))
    true = model.by_rows(len(x_0), lambda rows: teacher(x_0[rows]))
    errors = model.z_of(x_0) - true
    spread = (true - true.mean(0)).square().sum()
    measured = {"held_out_loss": errors.square().mean().item()}
    if spread > 0:
        measured["explained"] = (1 - errors.square().sum() / spread).item()
    return measured


def preview(model: Model, pictures: Pictures) -> tuple[Tensor, int]:
    """Make rows of a sheet: held-out pictures, and below each the one whose z is most like its."""
    x_0 = to_float(pictures.stack(range(min(HELD_OUT, len(pictures)))))
    z = model.z_of(x_0)
    z = F.normalize(z - z.mean(0), dim=1)
    alike = (z @ z.T).fill_diagonal_(-2)
    shown = min(PREVIEWED, len(x_0))
    return torch.cat([x_0[:shown], x_0[alike[:shown].argmax(1)]]), shown


def encoder_stage(model: Model, task: Task, other: Model | None = None) -> Stage:
    """Teach the model's E_phi; its eps_theta and G_psi stay as they are. Raises UsageError, see
    `teacher_of`."""
    if model.encoder is None or model.config.encoder is None:
        raise ValueError("the model has no encoder to teach")
    save = saving_statistics(model, task, "encoder")
    teacher, components_of = teacher_of(model, task.train, other, model.config.encoder.z_dim)
    name, sha = ("", "") if other is None else (other.name, other.weights_sha)
    return Stage(
        "encoder",
        EncoderLoss(model.heads, model.encoder, teacher),
        task.train,
        uniform(model.schedule),
        lambda: explained(model, task.held_out, teacher),
        lambda: preview(model, task.held_out),
        save,
        (0,),  # no noise is needed
        settings={
            "frozen_sha": networks_sha(model.dpm),
            "components_of": components_of,
            "teacher": name,
            "teacher_sha": sha[:12],
        }
        | first_stage_sha(model),
        guard=lambda: check_model(model, task.folder, "encoder"),
    )
