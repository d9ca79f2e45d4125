"""eps_theta: the ADM-style U-Net, in two halves, so that G_psi can share the first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    Conditioning,
    Layer,
    Modulation,
    Norm,
    ResBlock,
    UNetConfig,
    attention_block,
    placed,
    resampling_block,
    silu,
    timestep_embedding,
    zeroed,
)
from .layers import Conv2d, Linear


class Half(nn.Module):
    """What both halves share: the conditioning of all their residual blocks, side by side.

    `forward` is everything at once; `by_time` and `by_z` don't depend on x and `run` does.
    """

    def forward(self, x: Any, time: Tensor, z: Tensor | None = None) -> Any:
        return self.run(x, self.by_time(time).then(self.by_z(z)))

    def run(self, x: Any, modulation: Modulation) -> Any:
        """What of the half depends on x; `modulation`: of all its blocks, (N, …) or (1, …)."""
        raise NotImplementedError

    def path(self) -> Iterator[nn.Module]:
        """The layers in the order in which they run."""
        raise NotImplementedError

    def blocks(self) -> list[ResBlock]:
        return [layer.block for layer in self.path() if isinstance(layer.block, ResBlock)]

    def by_time(self, time: Tensor) -> Modulation:
        """What the time embedding (N, E) does to each block."""
        return Modulation.joined([block.by_time(time) for block in self.blocks()])

    def by_z(self, z: Tensor | None) -> Modulation | None:
        """What z does to each block after that; None without z, or where no block takes it."""
        blocks = self.blocks()
        if z is None or blocks[0].z is None:
            return None
        return Modulation.joined([block.by_z(z) for block in blocks])

    def split(self, modulation: Modulation) -> Iterator[Modulation]:
        """Block by block, in the order in which they run."""
        return iter(modulation.split([block.width for block in self.blocks()]))


class InputHalf(Half):
    """From a picture down to the smallest feature map; returns the skip features, widest first."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.patch = cfg.patch
        conditioning = own_conditioning(cfg)
        c = cfg.widths[0]
        self.conv = Conv2d(cfg.patch_channels, c, 3, padding=1)
        self.layers = nn.ModuleList()
        for level, (width, size) in enumerate(zip(cfg.widths, cfg.sizes, strict=True)):
            for _ in range(cfg.blocks):
                attention = attention_block(cfg, width) if size in cfg.attention else None
                block = ResBlock(cfg, c, width, conditioning=conditioning)
                self.layers.append(Layer(block, attention))
                c = width
            if level < len(cfg.widths) - 1:
                self.layers.append(Layer(resampling_block(cfg, c, "down", conditioning)))

    @staticmethod
    def skip_channels(cfg: UNetConfig) -> list[int]:
        """Channels of each returned feature map."""
        channels = [cfg.widths[0]]
        for level, width in enumerate(cfg.widths):
            last = level == len(cfg.widths) - 1
            channels += [width] * (cfg.blocks + (0 if last else 1))
        return channels

    def path(self) -> Iterator[nn.Module]:
        return iter(self.layers)

    def run(self, x: Tensor, modulation: Modulation) -> list[Tensor]:
        x = placed(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        features = [placed(self.conv(x))]
        modulations = self.split(modulation)
        for layer in self.layers:
            features.append(layer(features[-1], modulations))
        return features


class OutputHalf(Half):
    """Middle block, output half and output convolution: from skip features back to a picture.

    eps_theta has one of these; G_psi is another one, with every block conditioned on z.
    """

    def __init__(
        self, cfg: UNetConfig, c_out: int, conditioning: Conditioning | None = None
    ) -> None:
        super().__init__()
        self.patch = cfg.patch
        skips = InputHalf.skip_channels(cfg)
        c = cfg.widths[-1]
        self.middle = nn.ModuleList(
            [
                Layer(ResBlock(cfg, c, c, conditioning=conditioning), attention_block(cfg, c)),
                Layer(ResBlock(cfg, c, c, conditioning=conditioning)),
            ]
        )
        self.layers = nn.ModuleList()  # each first takes one skip feature
        self.upsamplers = nn.ModuleDict()  # keyed by the index of the layer they follow
        for level in reversed(range(len(cfg.widths))):
            width, size = cfg.widths[level], cfg.sizes[level]
            for _ in range(cfg.blocks + 1):
                block = ResBlock(cfg, c + skips.pop(), width, conditioning=conditioning)
                attention = attention_block(cfg, width) if size in cfg.attention else None
                self.layers.append(Layer(block, attention))
                c = width
            if level > 0:
                up = Layer(resampling_block(cfg, c, "up", conditioning))
                self.upsamplers[str(len(self.layers) - 1)] = up
        self.norm = Norm(cfg, c)
        self.conv = zeroed(Conv2d(c, c_out * cfg.patch**2, 3, padding=1))

    def path(self) -> Iterator[nn.Module]:
        yield from self.middle
        for index, layer in enumerate(self.layers):
            yield layer
            if str(index) in self.upsamplers:
                yield self.upsamplers[str(index)]

    def run(self, features: list[Tensor], modulation: Modulation) -> Tensor:
        modulations = self.split(modulation)
        h = features[-1]
        for layer in self.middle:
            h = layer(h, modulations)
        for index, (layer, skip) in enumerate(zip(self.layers, reversed(features), strict=True)):
            h = layer(torch.cat([h, skip], dim=1), modulations)
            if str(index) in self.upsamplers:
                h = self.upsamplers[str(index)](h, modulations)
        h = self.conv(silu(self.norm(h)))
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h


def own_conditioning(cfg: UNetConfig) -> Conditioning | None:
    """How z enters eps_theta itself: not at all, but in a Diff-AE."""
    return Conditioning(cfg.z_channels, shift=False) if cfg.z_channels else None


class TimeEmbedding(nn.Sequential):
    """Timesteps (N,) → (N, E)."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__(
            Linear(cfg.base_channels, cfg.embedding_channels),
            nn.SiLU(),
            Linear(cfg.embedding_channels, cfg.embedding_channels),
        )
        self.cfg = cfg

    def forward(self, t: Tensor) -> Tensor:
        cfg = self.cfg
        return super().forward(
            timestep_embedding(t, cfg.base_channels, cfg.sine_first, cfg.frequency_shift)
        )


class UNet(nn.Module):
    """eps_theta(x_t, t), or with `z_channels` eps_theta(x_t, t, z): predicts the noise in x_t."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.time = TimeEmbedding(cfg)
        self.input = InputHalf(cfg)
        c_out = cfg.channels * (2 if cfg.learn_sigma else 1)
        self.output = OutputHalf(cfg, c_out, own_conditioning(cfg))

    def features(
        self, x_t: Tensor, t: Tensor, z: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return the skip features and the time embedding, which both output halves take."""
        time = self.embedded(t)
        return self.input(x_t, time, z), time

    def embedded(self, t: Tensor) -> Tensor:
        """The time embedding (N, E) of timesteps (N,)."""
        return self.time(t)

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """x_t: (N, C, H, W); t: (N,) integer timesteps; z: (N, z_channels). Returns (N, C, H, W),
        or (N, 2C, H, W) with `learn_sigma`: eps, then the variance's interpolation."""
        features, time = self.features(x_t, t, z)
        return self.output(features, time, z)
