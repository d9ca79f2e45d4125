"""eps_theta: the ADM-style U-Net (Dhariwal & Nichol 2021, sec. 3), in two halves, so that G_psi can
share the first.

Shapes: x (N, C, H, W); the time's embedding (N, E), or (1, E) for all pictures alike; z (N, D), its
embedding, or None.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Range, check_known
from .layers import (
    AnyWidth,
    Conv2d,
    ConvResample,
    Layer,
    Linear,
    Shape,
    Share,
    TimeEmbedding,
    placed,
    resized,
    silu,
    zeroed,
)

# How feature maps are halved and doubled: inside a residual block (ADM), or by convolutions of
# their own, padded on all sides, or right and below only (the first DDPM and its descendants).
RESAMPLING = ("residual", "convolution", "convolution_right")
Patch = Annotated[int, Range(1, 64)]


@dataclass(frozen=True)
class Conditioning:
    """How z enters a block, after the time."""

    channels: int  # of z, or of its embedding
    shift: bool  # scale and shift (PDAE), or scale alone (Diff-AE)


@dataclass(frozen=True)
class UNetConfig(Shape):
    """Everything that fixes the shape of eps_theta, and through it that of G_psi."""

    patch: Patch  # space-to-depth factor at the input: 1 none, 2 makes 64x64 pixels 32x32 positions
    time_conditioning: str  # "scale_shift" (AdaGN) or "additive"
    resampling: str  # see RESAMPLING
    learn_sigma: bool  # the network also predicts the variance's interpolation
    dropout: Share
    embedding_channels: AnyWidth = 0  # of the time embedding; 0: 4 base_channels, the usual
    sine_first: bool = False  # order of the time embedding's sinusoids
    frequency_shift: Annotated[int, Range(0, 1)] = 0  # of 10000^(-i / (half - shift))
    time_scale: Annotated[float, Range(1e-6, 1e6)] = 1.0  # of t, before its sinusoids
    z_channels: AnyWidth = 0  # of z, where every block of the U-Net itself takes it (Diff-AE)
    z_embedding_channels: AnyWidth = 0  # of G_psi's embedding of z; 0: as many as the time's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_channels % 2 or self.base_channels < 4:
            raise ValueError(f"{self.base_channels} base channels; an even number from 4 on can be")
        if self.embedding_channels == 0:
            object.__setattr__(self, "embedding_channels", 4 * self.base_channels)
        levels = len(self.multipliers)
        smallest = self.patch * 2 ** (levels - 1)
        if self.image_size % smallest:
            wrong = f"image_size {self.image_size} is not a multiple of {smallest}"
            raise ValueError(f"{wrong} (patch {self.patch}, {levels} levels)")
        check_known("time_conditioning", self.time_conditioning, ("scale_shift", "additive"))
        check_known("resampling", self.resampling, RESAMPLING)

    @property
    def sizes(self) -> list[int]:
        """Height and width of the feature maps, level by level."""
        return [self.image_size // self.patch // 2**level for level in range(len(self.multipliers))]

    @property
    def skips(self) -> list[int]:
        """Channels of each feature map of the input half, in the order in which they are made."""
        channels = self.widths[:1]
        for width in self.widths:
            channels += [width] * (self.blocks + 1)
        return channels[:-1]  # the last level isn't halved

    @property
    def z_conditioning(self) -> Conditioning:
        """How z enters G_psi."""
        return Conditioning(self.z_embedding_channels or self.embedding_channels, shift=True)

    def taking_z(self, z_dim: int) -> UNetConfig:
        """Return the same for an untrained G_psi, whose embedding holds all of z."""
        wider = z_dim if z_dim > self.embedding_channels else 0
        return replace(self, z_embedding_channels=wider)

    @property
    def own_conditioning(self) -> Conditioning | None:
        """How z enters eps_theta itself: not at all, but in a Diff-AE."""
        return Conditioning(self.z_channels, shift=False) if self.z_channels else None

    def time_embedding(self) -> TimeEmbedding:
        order = int(self.sine_first), self.frequency_shift, self.time_scale
        return TimeEmbedding(self.base_channels, self.embedding_channels, *order)

    def resampler(self, channels: int, resample: str, conditioning: Conditioning | None) -> Layer:
        """The layer between two levels."""
        if self.resampling == "residual":
            return Layer(ResBlock(self, channels, channels, resample, conditioning))
        return Layer(ConvResample(channels, resample, symmetric=self.resampling == "convolution"))


class ResBlock(nn.Module):
    """Residual block, conditioned on t and, with a `conditioning`, on z by AdaGN."""

    def __init__(
        self,
        cfg: UNetConfig,
        c_in: int,
        c_out: int,
        resample: str | None = None,  # "down", "up" or None
        conditioning: Conditioning | None = None,
    ) -> None:
        super().__init__()
        self.resample = resample
        self.columns = slice(0, c_out)  # of its half's modulation
        self.norm_in = cfg.norm(c_in)
        self.conv_in = Conv2d(c_in, c_out, 3, padding=1)
        time_parts = 2 if cfg.time_conditioning == "scale_shift" else 1
        self.time = Linear(cfg.embedding_channels, c_out * time_parts)
        self.z: Linear | None = None
        if conditioning is not None:
            self.z = Linear(conditioning.channels, (2 if conditioning.shift else 1) * c_out)
        self.norm_out = cfg.norm(c_out)
        self.dropout = nn.Dropout(cfg.dropout)
        self.conv_out = zeroed(Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """modulation: (N or 1, 2 or 3, S), see `adagn`."""
        scale, shift, *added = modulation[..., self.columns].unbind(1)
        h = silu(self.norm_in(x))
        if self.resample is not None:
            h, x = resized(h, self.resample), resized(x, self.resample)
        h = self.conv_in(h)
        for t in added:
            h = h + t[:, :, None, None].to(h.dtype)
        h = silu(modulated(h, self.norm_out, scale, shift))
        return self.skip(x) + self.conv_out(self.dropout(h))


def modulated(h: Tensor, norm: nn.GroupNorm, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise h (N, C, H, W) by groups, then scale and shift it, both (N or 1, C), in one pass;
    the norm's own weights are in them already."""
    if len(scale) == 1:  # all pictures alike
        return F.group_norm(h, norm.num_groups, scale[0], shift[0], norm.eps)
    if h.is_contiguous():  # to a GroupNorm, N pictures of C channels are one of N C channels
        one, groups = h.view(1, -1, *h.shape[2:]), len(h) * norm.num_groups
        one = F.group_norm(one, groups, scale.flatten(), shift.flatten(), norm.eps)
        return one.view(h.shape)
    h = F.group_norm(h, norm.num_groups, None, None, norm.eps)
    scale, shift = (part[:, :, None, None].to(h.dtype) for part in (scale, shift))
    return torch.addcmul(shift, h, scale)


def adagn(by_time: Tensor, by_z: Tensor | None) -> Tensor:
    """Fold what t and z make of each GroupNorm's output into one scale and shift (AdaGN applied
    twice, PDAE sec. 3.3):

        (1 + z_s) ((1 + t_s) GN(h) + t_b) + z_b, with (t_s, t_b) of t and (z_s, z_b) of z

    Diff-AE's (its sec. 3) has no z_b; with additive time it is (1 + z_s) GN(h + t) + z_b. by_time,
    by_z: (N or 1, 2 or 3, S) of `Half.by_time` and `Half.by_z`. Returns their like.
    """
    if by_z is None:
        return by_time
    scale, shift, *added = by_time.unbind(1)
    z_scale, z_shift = by_z.unbind(1)
    scale, shift = scale * z_scale, torch.addcmul(z_shift, shift, z_scale)
    return torch.stack((scale, shift, *(t.expand_as(scale) for t in added)), dim=1)


class Half(nn.Module):
    """A half of the U-Net, whose blocks t and z modulate: S channels over all blocks, of which each
    has its columns. So t and z are brought to all blocks at once, before a trajectory begins."""

    blocks: list[ResBlock]

    def number_blocks(self) -> None:
        """Give each block its columns."""
        self.blocks = [module for module in self.modules() if isinstance(module, ResBlock)]
        first = 0
        for block in self.blocks:
            block.columns = slice(first, first + block.norm_out.num_channels)
            first = block.columns.stop

    def by_time(self, time: Tensor) -> Tensor:
        """Return scale, shift and, with additive time, what is added before: (N, 2 or 3, S), for
        the time's embedding (N, E). The GroupNorms' own weights are folded in."""
        weight = torch.cat([block.norm_out.weight for block in self.blocks])
        bias = torch.cat([block.norm_out.bias for block in self.blocks])
        time = silu(time, keep=True)
        t = self._rows([block.time(time) for block in self.blocks]).to(weight.dtype)
        if t.shape[1] == 1:
            return torch.stack((weight.expand_as(t[:, 0]), bias.expand_as(t[:, 0]), t[:, 0]), dim=1)
        scale, shift = t.unbind(1)
        return torch.stack((weight * (1 + scale), bias * (1 + scale) + shift), dim=1)

    def by_z(self, z: Tensor) -> Tensor:
        """Return 1 + z_s and z_b: (N, 2, S), for z or its embedding (N, D)."""
        z = silu(z, keep=True)
        z = self._rows([block.z(z) for block in self.blocks if block.z is not None])
        z = z.to(self.blocks[0].norm_out.weight.dtype)
        shift = z[:, 1] if z.shape[1] == 2 else torch.zeros_like(z[:, 0])
        return torch.stack((1 + z[:, 0], shift), dim=1)

    def _rows(self, parts: list[Tensor]) -> Tensor:
        """Join each block's (N, k C) into (N, k, S)."""
        channels = (block.norm_out.num_channels for block in self.blocks)
        split = [part.unflatten(1, (-1, c)) for part, c in zip(parts, channels, strict=True)]
        return torch.cat(split, dim=2)

    def modulation(self, time: Tensor, z: Tensor | None = None) -> Tensor:
        """Return what t and z make of all blocks: (N, 2 or 3, S), see `adagn`."""
        return adagn(self.by_time(time), None if z is None else self.by_z(z))


class InputHalf(Half):
    """From a picture down to the smallest feature map."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.patch, c, conditioning = cfg.patch, cfg.widths[0], cfg.own_conditioning
        self.conv = Conv2d(cfg.channels * cfg.patch**2, c, 3, padding=1)
        self.layers = nn.ModuleList()
        for level, (width, size) in enumerate(zip(cfg.widths, cfg.sizes, strict=True)):
            for _ in range(cfg.blocks):
                attention = cfg.attention_of(width, size)  # first: weights are drawn in this order
                block = ResBlock(cfg, c, width, conditioning=conditioning)
                self.layers.append(Layer(block, attention))
                c = width
            if level < len(cfg.widths) - 1:
                self.layers.append(cfg.resampler(c, "down", conditioning))
        self.number_blocks()

    def forward(self, x: Tensor, modulation: Tensor) -> list[Tensor]:
        """Return the skip features, widest first."""
        x = placed(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        features = [placed(self.conv(x))]
        for layer in self.layers:
            features.append(layer(features[-1], modulation))
        return features


class OutputHalf(Half):
    """Middle block, output half and output convolution: from skip features back to a picture. G_psi
    is another one than eps_theta's, with every block conditioned on z."""

    def __init__(
        self, cfg: UNetConfig, c_out: int, conditioning: Conditioning | None = None
    ) -> None:
        super().__init__()
        self.patch, skips, c = cfg.patch, cfg.skips, cfg.widths[-1]
        first = Layer(ResBlock(cfg, c, c, conditioning=conditioning), cfg.attention_of(c))
        self.middle = nn.ModuleList([first, Layer(ResBlock(cfg, c, c, conditioning=conditioning))])
        self.layers = nn.ModuleList()  # each first takes one skip feature
        self.upsamplers = nn.ModuleDict()  # keyed by the index of the layer they follow
        for level in reversed(range(len(cfg.widths))):
            width, size = cfg.widths[level], cfg.sizes[level]
            for _ in range(cfg.blocks + 1):
                block = ResBlock(cfg, c + skips.pop(), width, conditioning=conditioning)
                self.layers.append(Layer(block, cfg.attention_of(width, size)))
                c = width
            if level > 0:
                last = str(len(self.layers) - 1)
                self.upsamplers[last] = cfg.resampler(c, "up", conditioning)
        self.norm = cfg.norm(c)
        self.conv = zeroed(Conv2d(c, c_out * cfg.patch**2, 3, padding=1))
        self.number_blocks()

    def forward(self, features: list[Tensor], modulation: Tensor) -> Tensor:
        """Return (N, c_out, H, W)."""
        h = features[-1]
        for layer in self.middle:
            h = layer(h, modulation)
        for index, (layer, skip) in enumerate(zip(self.layers, reversed(features), strict=True)):
            h = layer(torch.cat([h, skip], dim=1), modulation)
            if str(index) in self.upsamplers:
                h = self.upsamplers[str(index)](h, modulation)
        h = self.conv(silu(self.norm(h)))
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h


class UNet(nn.Module):
    """eps_theta(x_t, t), or with `z_channels` eps_theta(x_t, t, z): predicts the noise in x_t."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.time = cfg.time_embedding()
        self.input = InputHalf(cfg)
        c_out = cfg.channels * (2 if cfg.learn_sigma else 1)
        self.output = OutputHalf(cfg, c_out, cfg.own_conditioning)

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        """x_t: (N, C, H, W); t: (N,) integer timesteps; z: (N, z_channels). Returns (N, C, H, W),
        or (N, 2C, H, W) with `learn_sigma`: eps, then the variance's interpolation."""
        time = self.time(t)
        features = self.input(x_t, self.input.modulation(time, z))
        return self.output(features, self.output.modulation(time, z))
