"""E_phi: the semantic encoder, a plain stack of strided convolutions (PDAE sec. 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import check_ranges
from .layers import AnySide, Attention, Conv2d, Few, Linear, Side, Width, groups_of, silu

FINAL_SIZE = 4  # the feature map that is flattened


@dataclass(frozen=True)
class EncoderConfig:
    image_size: Side  # pixels: 4 times a power of two
    channels: Width  # of the pictures
    widths: tuple[Width, ...]  # of the stride-2 convolutions: one for each halving down to 4x4
    attention_size: AnySide  # one self-attention at this feature-map size
    heads: Few
    z_dim: Width
    groups: Few = 32  # of every GroupNorm

    def __post_init__(self) -> None:
        check_ranges(self)
        halvings = math.log2(self.image_size / FINAL_SIZE)
        if halvings != len(self.widths):
            convolutions = f"{len(self.widths)} stride-2 convolutions"
            raise ValueError(f"{convolutions} don't bring {self.image_size} pixels to {FINAL_SIZE}")
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"widths {self.widths} don't divide into {self.groups} groups")

    @classmethod
    def for_size(cls, image_size: int, channels: int = 3, z_dim: int = 512) -> EncoderConfig:
        """The paper's widths (64, 128, 256, 256 …) for a picture of this size."""
        halvings = max(1, round(math.log2(image_size / FINAL_SIZE)))
        widths = tuple(min(64 * 2**level, 256) for level in range(halvings))
        return cls(image_size, channels, widths, 16, 4, z_dim, groups_of(widths))


class Encoder(nn.Module):
    """z = E_phi(x_0): (N, C, H, W) in [-1, 1] → (N, z_dim)."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        self.attention: Attention | None = None
        c, size = cfg.channels, cfg.image_size
        for width in cfg.widths:
            size //= 2
            self.convs.append(Conv2d(c, width, 3, stride=2, padding=1))
            self.norms.append(nn.GroupNorm(cfg.groups, width))
            if size == cfg.attention_size:
                self.attention = Attention(nn.GroupNorm(cfg.groups, width), cfg.heads)
            c = width
        self.out = Linear(c * FINAL_SIZE**2, cfg.z_dim)

    def forward(self, x_0: Tensor) -> Tensor:
        h = x_0
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = conv(h)
            if self.attention is not None and h.shape[2] == self.cfg.attention_size:
                h = self.attention(h)
            h = silu(norm(h))
        return self.out(h.flatten(1))
