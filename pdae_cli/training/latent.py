"""Stage 3: the latent DPM, on the normalised z of the training pictures (PDAE sec. 4.8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ..checkpoints import read_card, write_latent_dpm
from ..diffusion.noise import generator
from ..diffusion.schedule import Schedule
from ..diffusion.trajectory import LATENT_SCHEDULE
from ..engine.computing import ignore
from ..engine.model import Model
from ..engine.tensors import networks_sha
from ..evaluation.likeness import Likeness
from ..networks.latent import LatentConfig, LatentDPM
from ..pictures.images import to_float
from .data import Pictures, Task, learnt_with
from .dpm import HELD_OUT, held_out_rows, uniform
from .folder import check_latent
from .stage import Stage

CHUNK = 256


def encode_all(
    model: Model,
    pictures: Pictures,
    progress: Callable[[int], None] = ignore,
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
    """Normalised z of the pictures, and of mirrored ones where E_phi knows such, as a training
    set. They are encoded when a row is first asked for: whatever refuses a run comes before."""

    def __init__(self, model: Model, task: Task) -> None:
        self.model, self.task = model, task
        self.ways = (
            (False,) if learnt_with(model.config.training, "flip") is False else (False, True)
        )  # mirrored

    @cached_property
    def z(self) -> tuple[Tensor, Tensor]:
        """z to learn from, and of the pictures held out, each (N, D)."""
        train = [encode_all(self.model, self.task.train, mirrored=way) for way in self.ways]
        held_out = encode_all(self.model, self.task.held_out)
        return self.model.normalise(torch.cat(train)), self.model.normalise(held_out)

    def __len__(self) -> int:
        return len(self.ways) * len(self.task.train)

    def stack(self, indices: Sequence[int]) -> Tensor:
        """Return rows as float32 (N, D)."""
        return self.z[0][torch.as_tensor(indices)]


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
    """Train a latent DPM for the model; pictures are seen mirrored as well, if its z's were."""
    read_card(task.folder)  # or the error, before the work
    z = Vectors(model, task)
    (z_dim,) = model.normalise(model.z_of(to_float(task.train.stack([0]))))[0].shape
    assert model.encoder is not None  # which made it
    count = len(task.held_out)
    rows = held_out_rows(count) if count < HELD_OUT else range(count)
    torch.manual_seed(seed)
    network = LatentDPM(LatentConfig(z_dim, width, layers, dropout)).train()
    model.latent_dpm = network
    schedule = LATENT_SCHEDULE.to(model.device)
    objective = LatentLoss(network, schedule)
    t = torch.linspace(0, schedule.timesteps - 1, len(rows)).long()
    eps = torch.randn(len(rows), z_dim, generator=generator(0, "held out"))

    def save(summary: dict[str, object]) -> None:
        likeness = Likeness.of(model)
        assert likeness is not None
        facts = {"data": task.name, "z": model.config.z_sha} | likeness.recorded()
        write_latent_dpm(task.folder, network, summary | facts, task.dtype)

    def measure() -> dict[str, float]:
        held = (part.to(model.device) for part in (z.z[1][rows], t, eps))
        return {"held_out_loss": objective(*held).item()}

    return Stage(
        "latent",
        objective,
        z,
        uniform(schedule),
        measure,
        lambda: (model.sample(16, inference_steps=20)[0], 8),
        save,
        (z_dim,),
        settings={
            "frozen_sha": networks_sha(model.encoder),
            "width": width,
            "layers": layers,
            "dropout": dropout,
            "flip": len(z.ways) > 1,
        },
        guard=lambda: check_latent(model, task.folder),
    )
