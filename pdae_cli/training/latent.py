"""Stage 3: the latent DPM, on the normalised z of the training pictures (PDAE sec. 4.8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..checkpoints import read_card, write_latent_dpm
from ..diffusion.noise import generator
from ..diffusion.schedule import Schedule
from ..diffusion.trajectory import LATENT_SCHEDULE
from ..engine.model import Model
from ..engine.tensors import fingerprint
from ..evaluation.likeness import Likeness
from ..networks.latent import LatentConfig, LatentDPM
from ..pictures.images import to_float
from .data import Pictures, Task
from .dpm import HELD_OUT, held_out_rows, uniform
from .folder import check_latent
from .stage import Stage

CHUNK = 256


def encode_all(
    model: Model,
    pictures: Pictures,
    progress: Callable[[int], None] = lambda done: None,
    mirrored: bool = False,
) -> Tensor:
    """Encode all pictures: z (N, D) on the CPU. Raises InputError where numbers aren't finite."""
    parts = []
    for first in range(0, len(pictures), CHUNK):
        rows = range(first, min(first + CHUNK, len(pictures)))
        x_0 = to_float(pictures.stack(rows))
        parts.append(model.z_of(x_0.flip(3) if mirrored else x_0))
        progress(rows.stop)
    return torch.cat(parts)


class Vectors:
    """Normalised z as a training set."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def __len__(self) -> int:
        return len(self.z)

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Return rows as float32 (N, D)."""
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
    model: Model, task: Task, width: int, layers: int, dropout: float, seed: int
) -> Stage:
    """Train a latent DPM for the model; pictures are seen mirrored as well."""
    read_card(task.folder)  # or the error, before the work
    z = torch.cat([encode_all(model, task.train, mirrored=flip) for flip in (False, True)])
    z, z_held_out = model.normalise(z), model.normalise(encode_all(model, task.held_out))
    assert model.encoder is not None  # which made them
    if len(z_held_out) < HELD_OUT:
        z_held_out = z_held_out[held_out_rows(len(z_held_out))]
    torch.manual_seed(seed)
    network = LatentDPM(LatentConfig(z.shape[1], width, layers, dropout)).train()
    model.latent_dpm = network
    schedule = LATENT_SCHEDULE.to(model.device)
    objective = LatentLoss(network, schedule)
    t = torch.linspace(0, schedule.timesteps - 1, len(z_held_out)).long()
    eps = torch.randn(z_held_out.shape, generator=generator(0, "held out"))

    def save(summary: dict[str, object]) -> None:
        likeness = Likeness.of(model)
        assert likeness is not None
        facts = {"data": task.name, "z": model.config.z_digest} | likeness.recorded()
        write_latent_dpm(task.folder, network, summary | facts, task.dtype)

    held = [part.to(model.device) for part in (z_held_out, t, eps)]
    return Stage(
        "latent",
        objective,
        Vectors(z),
        uniform(schedule),
        lambda: {"held_out_loss": objective(*held).item()},
        lambda: (model.sample(16, inference_steps=20)[0], 8),
        save,
        z.shape[1:],
        settings={
            "frozen_sha": fingerprint(model.encoder),
            "width": width,
            "layers": layers,
            "dropout": dropout,
        },
        guard=lambda: check_latent(model, task.folder),
    )
