"""The latent DPM: an MLP with skips that predicts the noise in z (PDAE sec. 4.8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ..errors import Range, check_ranges
from .layers import Linear, Share, TimeEmbedding, Width, linear, silu


@dataclass(frozen=True)
class LatentConfig:
    z_dim: Width
    width: Width  # of the hidden layers
    layers: Annotated[int, Range(2, 256)]
    dropout: Share
    time_channels: Width = 64  # of the timestep's sinusoids
    embedding_channels: Width = 64  # of the time embedding
    whitened: bool = False  # whether it is of whitened z: see LatentDPM

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.time_channels % 2:
            raise ValueError(f"{self.time_channels} sinusoids; an even number can be")


class LatentLayer(nn.Module):
    """Linear, scaled by the timestep: h = SiLU(LN((1 + t_s) W x))."""

    def __init__(self, cfg: LatentConfig, c_in: int) -> None:
        super().__init__()
        self.linear = Linear(c_in, cfg.width)
        self.time = Linear(cfg.embedding_channels, cfg.width)
        self.norm = nn.LayerNorm(cfg.width)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.linear(x) * (1 + self.time(silu(time, keep=True)))
        return self.dropout(silu(self.norm(h)))


class LatentDPM(nn.Module):
    """eps_omega(z_t, t): (N, D) noisy z → its noise. z_t enters every layer again.

    z is normalised, number by number, as the authors' is, or `whitened` as well: `colour` holds the
    axes along which training's z don't covary, each as long as their standard deviation. Many hold
    next to nothing, and noise of the same size along all of them would drown what they do.
    """

    def __init__(self, cfg: LatentConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.time = TimeEmbedding(cfg.time_channels, cfg.embedding_channels)
        widths = [cfg.z_dim] + [cfg.width + cfg.z_dim] * (cfg.layers - 1)
        self.layers = nn.ModuleList([LatentLayer(cfg, width) for width in widths])
        self.out = Linear(cfg.width + cfg.z_dim, cfg.z_dim)
        if cfg.whitened:
            self.colour = Linear(cfg.z_dim, cfg.z_dim, bias=False).requires_grad_(False)

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        time = self.time(t)
        h = self.layers[0](z_t, time)
        for layer in self.layers[1:]:
            h = layer(torch.cat([h, z_t], dim=1), time)
        return self.out(torch.cat([h, z_t], dim=1))

    def whiten(self, z: Tensor) -> Tensor:
        """Bring normalised z (N, D) to what this is of."""
        if not self.cfg.whitened:
            return z
        axes = self.colour.weight  # at right angles, so that the inverse needs no solving
        return linear(z, (axes / axes.square().sum(0)).T)

    def unwhiten(self, z: Tensor) -> Tensor:
        """The way back from `whiten`."""
        return self.colour(z) if self.cfg.whitened else z
