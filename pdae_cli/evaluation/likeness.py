"""Whether pictures look as if they lay in a model's frame: how far their codes are from those of
its training pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from ..diffusion.noise import generator, normal
from ..diffusion.trajectory import LATENT_SCHEDULE
from ..engine.model import Model

TIMESTEP = 100  # the one of 20 … 400 at which shifted, scaled and turned faces stood out most
NOISES = 8  # each also with the opposite sign
OWN = 64  # codes that the latent DPM makes, to compare with
OWN_ERROR = "own_error"  # in the latent DPM's training summary
LIMIT = 5.0
ROWS = 64  # codes at once


@dataclass(frozen=True)
class Likeness:
    """How far codes are from those of training: the latent DPM, which has learned how those are
    spread, denoises them, and its error is told in standard deviations above the mean of codes that
    it makes itself.

    Beyond LIMIT are most pictures whose faces lie far off and few of those a little off
    (docs/photos.md has the figures). The plain mean of z^2 tells less.
    """

    model: Model
    mean: float
    spread: float

    @classmethod
    def of(cls, model: Model, training: Mapping[str, Any] | None = None) -> Likeness | None:
        """Take what the latent DPM's training recorded of the model's own codes, or measure them
        anew where it didn't; None for a model that lacks a latent DPM."""
        if model.latent_dpm is None:
            return None
        match (training or {}).get(OWN_ERROR):
            case {"mean": float(mean), "spread": float(spread)}:
                if isfinite(mean) and 0 < spread < inf:
                    return cls(model, mean, spread)
        own = model.sample_z([generator(0, "likeness", row) for row in range(OWN)])
        errors = _errors(model, own)
        return cls(model, errors.mean().item(), errors.std().item())

    def recorded(self) -> dict[str, object]:
        """Tell what `of` takes, for the training summary: drawing the codes is most of the work."""
        return {OWN_ERROR: {"mean": self.mean, "spread": self.spread}}

    def distances(self, z: Tensor) -> list[float]:
        """Tell one distance for each row of z (N, D), not normalised."""
        return ((_errors(self.model, z) - self.mean) / self.spread).tolist()


@torch.inference_mode()
def _errors(model: Model, z: Tensor) -> Tensor:
    """Return the latent DPM's mean squared error (N,), with the same noise for each row."""
    assert model.latent_dpm is not None
    noise = normal([generator(0, "noise", row) for row in range(NOISES)], z.shape[1:])
    noise = torch.cat([noise, -noise])
    errors = []
    for rows in model.normalise(z).split(ROWS):
        eps = noise.repeat(len(rows), 1)
        t = torch.full((len(eps),), TIMESTEP)
        z_t = LATENT_SCHEDULE.add_noise(rows.repeat_interleave(len(noise), 0), t, eps)
        found = model.latent_dpm(z_t.to(model.device), t.to(model.device)).float().cpu()
        errors.append((found - eps).square().unflatten(0, (len(rows), -1)).mean((1, 2)))
    return torch.cat(errors)
