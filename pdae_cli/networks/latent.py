"""The latent DPM: an MLP with skips that predicts the noise in normalised z (PDAE sec. 4.8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ..errors import Range, check_ranges
from .layers import Linear, Share, TimeEmbedding, Width, silu


@dataclass(frozen=True)
class LatentConfig:
    z_dim: Width
    width: Width  # of the hidden layers
    layers: Annotated[int, Range(2, 256)]
    dropout: Share
    time_channels: Width = 64  # of the timestep's sinusoids
    embedding_channels: Width = 64  # of the time embedding

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
    """eps_omega(z_t, t): (N, D) normalised, noisy z → its noise. z_t enters every layer again."""

    def __init__(self, cfg: LatentConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.time = TimeEmbedding(cfg.time_channels, cfg.embedding_channels)
        widths = [cfg.z_dim] + [cfg.width + cfg.z_dim] * (cfg.layers - 1)
        self.layers = nn.ModuleList([LatentLayer(cfg, width) for width in widths])
        self.out = Linear(cfg.width + cfg.z_dim, cfg.z_dim)

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        time = self.time(t)
        h = self.layers[0](z_t, time)
        for layer in self.layers[1:]:
            h = layer(torch.cat([h, z_t], dim=1), time)
        return self.out(torch.cat([h, z_t], dim=1))
