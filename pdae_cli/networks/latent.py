"""The latent DPM: an MLP with skips that predicts the noise in normalised z (PDAE sec. 4.8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Linear, TimeEmbedding


@dataclass(frozen=True)
class LatentConfig:
    z_dim: int
    width: int  # of the hidden layers
    layers: int
    dropout: float
    time_channels: int = 64  # of the timestep's sinusoids
    embedding_channels: int = 64  # of the time embedding

    def __post_init__(self) -> None:
        if not 2 <= self.layers <= 256:
            raise ValueError(f"{self.layers} layers; 2 to 256 can be built")
        if min(self.z_dim, self.width) < 1:
            raise ValueError(f"z of {self.z_dim} dimensions and a width of {self.width}")


class LatentLayer(nn.Module):
    """Linear, scaled by the timestep: h = SiLU(LN((1 + t_s) W x))."""

    def __init__(self, cfg: LatentConfig, c_in: int) -> None:
        super().__init__()
        self.linear = Linear(c_in, cfg.width)
        self.time = Linear(cfg.embedding_channels, cfg.width)
        self.norm = nn.LayerNorm(cfg.width)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.linear(x) * (1 + self.time(F.silu(time)))
        return self.dropout(F.silu(self.norm(h)))


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
