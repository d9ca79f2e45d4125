"""The blocks that eps_theta and G_psi are made of (ADM: Dhariwal & Nichol 2021, sec. 3).

Shapes: x (N, C, H, W), time embedding (N, E), z embedding (N, E) or None. What doesn't depend on
x is computed apart from what does (`by_time`, `by_z`, then `forward`), so that a solver computes it
once for a whole trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Conv2d, Linear

# How feature maps are halved and doubled: inside a residual block (ADM), or by convolutions of
# their own, padded on all sides, or right and below only (the first DDPM and its descendants).
RESAMPLING = ("residual", "convolution", "convolution_right")
MAX_BLOCKS = 128  # of one half, five times what is usual: building takes time even without memory
LARGE_MAP = 1024  # positions: see `placed`


@dataclass(frozen=True)
class UNetConfig:
    """Everything that fixes the shape of eps_theta, and through it that of G_psi."""

    image_size: int  # pixels, height and width
    channels: int  # of the pictures: 3 for RGB
    patch: int  # space-to-depth factor at the input: 1 none, 2 makes 64x64 pixels 32x32 positions
    base_channels: int  # width of the first level
    multipliers: tuple[float, ...]  # width of each level, in units of base_channels
    blocks: int  # residual blocks a level (one more in the output half)
    attention: tuple[int, ...]  # attention at these feature-map sizes, and always in the middle
    head_channels: int | None  # channels an attention head; None: use `heads`
    heads: int  # attention heads, where head_channels is None
    time_conditioning: str  # "scale_shift" (AdaGN) or "additive"
    resampling: str  # see RESAMPLING
    learn_sigma: bool  # the network also predicts the variance's interpolation
    groups: int  # of every GroupNorm, or as many as it has channels
    norm_eps: float  # of every GroupNorm
    dropout: float
    embedding_channels: int = 0  # of the time embedding; 0: 4 base_channels, the usual
    sine_first: bool = False  # order of the time embedding's sinusoids
    frequency_shift: int = 0  # of the sinusoids' frequencies: 10000^(-i / (half - shift))
    z_channels: int = 0  # of z, where every block of the U-Net itself takes it (Diff-AE)

    def __post_init__(self) -> None:
        if self.embedding_channels == 0:
            object.__setattr__(self, "embedding_channels", 4 * self.base_channels)
        levels, all_blocks = len(self.multipliers), len(self.multipliers) * self.blocks
        if not 1 <= levels <= 16 or self.blocks < 1 or all_blocks > MAX_BLOCKS:
            raise ValueError(
                f"{levels} levels of {self.blocks} blocks; "
                f"1 to 16 levels and {MAX_BLOCKS} blocks in all can be built"
            )
        smallest = self.patch * 2 ** (len(self.multipliers) - 1)
        if self.image_size % smallest:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {smallest} "
                f"(patch {self.patch}, {len(self.multipliers)} levels)"
            )
        for width in self.widths:
            if width < 1 or width % min(self.groups, width):
                raise ValueError(f"{width} channels don't divide into {self.groups} groups")
        if self.time_conditioning not in ("scale_shift", "additive"):
            raise ValueError(f"unknown time_conditioning {self.time_conditioning!r}")
        if self.resampling not in RESAMPLING:
            raise ValueError(f"unknown resampling {self.resampling!r}")

    @property
    def patch_channels(self) -> int:
        """Channels of a picture after space-to-depth."""
        return self.channels * self.patch**2

    @property
    def widths(self) -> list[int]:
        return [round(self.base_channels * multiplier) for multiplier in self.multipliers]

    @property
    def sizes(self) -> list[int]:
        """Height and width of the feature maps, level by level."""
        return [self.image_size // self.patch // 2**level for level in range(len(self.multipliers))]


def groups_of(widths: Sequence[int]) -> int:
    """Groups for the GroupNorms of maps of these widths: up to 32, of at least 4 channels each.

    A group of one channel is instance normalisation: it throws away a map's mean, which carries
    colour and light.
    """
    fitting = (g for g in (32, 16, 8, 4, 2) if all(w % g == 0 and w >= 4 * g for w in widths))
    return next(fitting, 1)


def timestep_embedding(
    t: Tensor, channels: int, sine_first: bool = False, frequency_shift: int = 0
) -> Tensor:
    """Sinusoids of t: (N,) → (N, channels) float32, cosines first (DDPM, after Vaswani et al.)."""
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / (half - frequency_shift)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * exponents)
    waves = [angles.sin(), angles.cos()] if sine_first else [angles.cos(), angles.sin()]
    return torch.cat(waves, dim=1)


def zeroed(module: nn.Module) -> nn.Module:
    """Set all parameters to zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@dataclass(frozen=True)
class Conditioning:
    """How z enters a block, after the time."""

    channels: int  # of z, or of its embedding
    shift: bool  # scale and shift (PDAE), or scale alone (Diff-AE)


class Modulation(NamedTuple):
    """What t and z do to a block, h → GN(h + bias) scale + shift, or to several side by side.

    Each (N, C), or (1, C) for all pictures alike; the GroupNorm's own weights are in it.
    """

    scale: Tensor
    shift: Tensor
    bias: Tensor | None = None

    def then(self, outer: Modulation | None) -> Modulation:
        """This scale and shift, then the outer one's: (h a + b) A + B = h (a A) + (b A + B)."""
        if outer is None:
            return self
        shift = torch.addcmul(outer.shift, self.shift, outer.scale)
        return Modulation(self.scale * outer.scale, shift, self.bias)

    def row(self, row: int) -> Modulation:
        """One row, as (1, C)."""
        scale, shift, bias = self
        rows = slice(row, row + 1)
        return Modulation(scale[rows], shift[rows], None if bias is None else bias[rows])

    @staticmethod
    def joined(parts: Sequence[Modulation]) -> Modulation:
        """Those of several blocks side by side: (N, C_1 + C_2 + …)."""
        biases = [part.bias for part in parts if part.bias is not None]
        return Modulation(
            torch.cat([part.scale for part in parts], dim=1),
            torch.cat([part.shift for part in parts], dim=1),
            torch.cat(biases, dim=1) if biases else None,
        )

    def split(self, widths: list[int]) -> list[Modulation]:
        """The inverse of `joined`, for blocks of these widths."""
        scales, shifts = self.scale.split(widths, dim=1), self.shift.split(widths, dim=1)
        biases = [None] * len(widths) if self.bias is None else self.bias.split(widths, dim=1)
        return [Modulation(*parts) for parts in zip(scales, shifts, biases, strict=True)]


def modulated(h: Tensor, norm: nn.GroupNorm, modulation: Modulation) -> Tensor:
    """GN(h + bias) scale + shift, in one pass over h where scale and shift can take the place of
    the GroupNorm's own weights."""
    scale, shift, bias = modulation
    groups, eps = norm.num_groups, norm.eps
    if bias is not None:
        h = h + bias[:, :, None, None].to(h.dtype)
    if len(scale) == 1:  # all pictures alike
        return F.group_norm(h, groups, scale[0], shift[0], eps)
    if h.is_contiguous():  # to a GroupNorm, N pictures of C channels are like one of N C channels
        one = h.view(1, -1, *h.shape[2:])
        one = F.group_norm(one, len(h) * groups, scale.flatten(), shift.flatten(), eps)
        return one.view(h.shape)
    h = F.group_norm(h, groups, None, None, eps)
    scale, shift = (part[:, :, None, None].to(h.dtype) for part in (scale, shift))
    return torch.addcmul(shift, h, scale)


def silu(h: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else holds: in place, unless autograd needs it."""
    return F.silu(h, inplace=not h.requires_grad)


class NormsAndHeads(Protocol):
    """What a config says about norms and attention: UNetConfig's, or another network's."""

    @property
    def groups(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def head_channels(self) -> int | None: ...
    @property
    def heads(self) -> int: ...


class Norm(nn.GroupNorm):
    def __init__(self, cfg: NormsAndHeads, channels: int) -> None:
        super().__init__(min(cfg.groups, channels), channels, eps=cfg.norm_eps)


class ResBlock(nn.Module):
    """Residual block, conditioned on t and, with a `conditioning`, on z.

    With scale-shift time conditioning, the second norm is AdaGN applied twice (PDAE sec. 3.3):
    h = (1 + z_s) ((1 + t_s) GN(h) + t_b) + z_b; Diff-AE's (its sec. 3) has no z_b.
    """

    def __init__(
        self,
        cfg: UNetConfig,
        c_in: int,
        c_out: int,
        resample: str | None = None,  # "down", "up" or None
        conditioning: Conditioning | None = None,
    ) -> None:
        super().__init__()
        self.resample, self.width = resample, c_out
        self.scale_shift = cfg.time_conditioning == "scale_shift"
        self.norm_in = Norm(cfg, c_in)
        self.conv_in = Conv2d(c_in, c_out, 3, padding=1)
        self.time = Linear(cfg.embedding_channels, 2 * c_out if self.scale_shift else c_out)
        self.z: Linear | None = None
        if conditioning is not None:
            self.z = Linear(conditioning.channels, (2 if conditioning.shift else 1) * c_out)
        self.norm_out = Norm(cfg, c_out)
        self.dropout = nn.Dropout(cfg.dropout)
        self.conv_out = zeroed(Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else Conv2d(c_in, c_out, 1)

    def by_time(self, time: Tensor) -> Modulation:
        """What the time embedding (N, E) does: GN(h) (1 + t_s) + t_b, or GN(h + t)."""
        weight, bias = self.norm_out.weight, self.norm_out.bias
        t = self.time(F.silu(time)).to(weight.dtype)
        if not self.scale_shift:
            return Modulation(weight.expand_as(t), bias.expand_as(t), t)
        t_scale, t_shift = t.chunk(2, dim=1)
        return Modulation(weight * (1 + t_scale), bias * (1 + t_scale) + t_shift)

    def by_z(self, z: Tensor) -> Modulation:
        """What z (N, D), or its embedding, does after that: h (1 + z_s) + z_b."""
        assert self.z is not None
        scale, *shift = self.z(F.silu(z)).to(self.norm_out.weight.dtype).split(self.width, dim=1)
        return Modulation(1 + scale, shift[0] if shift else torch.zeros_like(scale))

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        h = silu(self.norm_in(x))
        if self.resample is not None:
            h, x = resized(h, self.resample), resized(x, self.resample)
        h = silu(modulated(self.conv_in(h), self.norm_out, modulation))
        return self.skip(x) + self.conv_out(self.dropout(h))


class Attention(nn.Module):
    """Residual self-attention over all positions; each head's q, k, v lie side by side."""

    def __init__(self, channels: int, heads: int, norm: nn.GroupNorm) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels don't divide into {heads} attention heads")
        self.heads = heads
        self.norm = norm
        self.qkv = Linear(channels, 3 * channels)
        self.out = zeroed(Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)  # (N, HW, C)
        qkv = self.qkv(h).reshape(n, height * width, self.heads, 3, c // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # each (N, heads, HW, C/heads)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, height * width, c)
        return x + self.out(h).transpose(1, 2).reshape(n, c, height, width)


def attention_block(cfg: NormsAndHeads, channels: int) -> Attention:
    if cfg.head_channels and channels % cfg.head_channels:
        raise ValueError(
            f"{channels} channels don't divide into attention heads of {cfg.head_channels}"
        )
    heads = channels // cfg.head_channels if cfg.head_channels else cfg.heads
    return Attention(channels, heads, Norm(cfg, channels))


class ConvResample(nn.Module):
    """Halve by a strided convolution, or double by nearest neighbours and a convolution."""

    def __init__(self, channels: int, resample: str, symmetric: bool = True) -> None:
        super().__init__()
        self.resample, self.symmetric = resample, symmetric
        stride, padding = (2, int(symmetric)) if resample == "down" else (1, 1)
        self.conv = Conv2d(channels, channels, 3, stride=stride, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return self.conv(resized(x, "up"))
        return placed(self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1))))


class Layer(nn.Module):
    """One layer of a U-Net half: a residual block (or a resampling convolution), then attention."""

    def __init__(self, block: nn.Module, attention: Attention | None = None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, modulations: Iterator[Modulation]) -> Tensor:
        """`modulations`: of the residual blocks from this layer on; it takes its own."""
        block = self.block
        x = block(x, next(modulations)) if isinstance(block, ResBlock) else block(x)
        return x if self.attention is None else self.attention(x)


def resampling_block(
    cfg: UNetConfig, channels: int, resample: str, conditioning: Conditioning | None
) -> nn.Module:
    if cfg.resampling == "residual":
        return ResBlock(cfg, channels, channels, resample, conditioning)
    return ConvResample(channels, resample, symmetric=cfg.resampling == "convolution")


def resized(x: Tensor, resample: str) -> Tensor:
    """Halve (mean of 2x2) or double (nearest neighbours) height and width."""
    if resample == "down":
        return placed(F.avg_pool2d(x, 2))
    return F.interpolate(placed(x, growth=4), scale_factor=2.0)


def placed(x: Tensor, growth: int = 1) -> Tensor:
    """x in the memory format that inference is fastest in; it is about to grow so many times.

    On a CPU in bfloat16, large maps have their channels last, which makes convolutions a sixth
    faster. Small maps are contiguous: PyTorch's GroupNorm takes another way below 1024 positions,
    which is up to 20 times slower with channels last. float32 stays contiguous, because with
    channels last the CPU's convolutions round 2 to 4 times worse, and an ODE solved back to its
    noise shows it. Training stays as it is: bfloat16 with channels last can crash there.
    """
    low = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if x.device.type != "cpu" or not low or torch.is_grad_enabled():
        return x
    large = x.shape[2] * x.shape[3] * growth >= LARGE_MAP
    return x.contiguous(memory_format=torch.channels_last if large else torch.contiguous_format)
