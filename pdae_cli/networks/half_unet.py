"""Diff-AE's semantic encoder: the input half of a U-Net, pooled (Preechakul et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .layers import Conv2d, Layer, Linear, Shape, Width, resized, silu


@dataclass(frozen=True)
class HalfUNetConfig(Shape):
    z_dim: Width


class TimelessBlock(nn.Module):
    """A residual block that sees no time, with one convolution: skip(x) + conv(SiLU(GN(x)))."""

    def __init__(self, cfg: HalfUNetConfig, c_in: int, c_out: int, halve: bool = False) -> None:
        super().__init__()
        self.halve = halve
        self.norm_in = cfg.norm(c_in)
        self.conv_in = Conv2d(c_in, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = silu(self.norm_in(x))
        if self.halve:
            h, x = resized(h, "down"), resized(x, "down")
        return self.skip(x) + self.conv_in(h)


class HalfUNet(nn.Module):
    """z = E_phi(x_0): (N, C, H, W) in [-1, 1] → (N, z_dim)."""

    def __init__(self, cfg: HalfUNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        c, size = cfg.widths[0], cfg.image_size
        self.conv = Conv2d(cfg.channels, c, 3, padding=1)
        self.layers = nn.ModuleList()
        for level, width in enumerate(cfg.widths):
            for _ in range(cfg.blocks):
                attention = cfg.attention_of(width, size)  # first: weights are drawn in this order
                self.layers.append(Layer(TimelessBlock(cfg, c, width), attention))
                c = width
            if level < len(cfg.widths) - 1:
                self.layers.append(Layer(TimelessBlock(cfg, c, c, halve=True)))
                size //= 2
        first = Layer(TimelessBlock(cfg, c, c), cfg.attention_of(c))
        self.middle = nn.ModuleList([first, Layer(TimelessBlock(cfg, c, c))])
        self.norm = cfg.norm(c)
        self.out = Linear(c, cfg.z_dim)

    def forward(self, x_0: Tensor) -> Tensor:
        h = self.conv(x_0)
        for layer in [*self.layers, *self.middle]:
            h = layer(h)
        return self.out(silu(self.norm(h)).mean((2, 3)))
