"""Layers that the networks share. A picture's result doesn't depend on the batch that it is in.

On a CPU torch takes other algorithms for few rows than for many, and the ODE multiplies such
roundings by up to 100. By oneDNN's convolution a row is the same to the bit in every batch, and a
single picture faster. Gradients, low precision, compiled graphs, other devices go torch's own way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import Range, check_ranges

LARGE_MAP = 1024  # positions: see `placed`
LANES = 32  # numbers that torch's CPU kernels take at once, at most: see `silu`
GRAIN = 32768  # numbers that are worth a thread to them (at::internal::GRAIN_SIZE)
# What may be built. A network's tensors are compared with its file before there is memory for them.
Width = Annotated[int, Range(1, 1 << 20)]  # of channels, dimensions, codes
AnyWidth = Annotated[int, Range(0, 1 << 20)]
Side = Annotated[int, Range(1, 1 << 14)]  # of pictures and feature maps
AnySide = Annotated[int, Range(0, 1 << 14)]
Multiplier = Annotated[float, Range(1 / 64, 64)]
Blocks = Annotated[int, Range(1, 64)]  # of a level
Few = Annotated[int, Range(1, 1 << 12)]  # groups, heads
Share = Annotated[float, Range(0, 1)]
Epsilon = Annotated[float, Range(1e-12, 1)]
MAX_BLOCKS = 128  # of all levels, five times what is usual: building takes time even without memory


class Conv2d(nn.Conv2d):
    """As torch's, rows independent of their batch."""

    def forward(self, x: Tensor) -> Tensor:
        if not _plain(x, self.weight) or isinstance(self.padding, str):
            return super().forward(x)
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


class Linear(nn.Linear):
    """As torch's, rows independent of their batch."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or not _plain(x, self.weight):
            return super().forward(x)
        x, weight = x[:, :, None, None], self.weight[:, :, None, None]
        return torch.mkldnn_convolution(x, weight, self.bias, (0, 0), (1, 1), (1, 1), 1).flatten(1)


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Whether this is inference in float32 on a CPU with oneDNN, as torch is set."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and len(x) > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
    )


def zeroed(module: nn.Module) -> nn.Module:
    """Set all parameters to zero, so that a residual branch starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def silu(h: Tensor, keep: bool = False) -> Tensor:
    """Return SiLU of a tensor: in place, unless autograd needs it or the caller keeps it.

    Torch's CPU kernel computes what is left of 32 numbers, in all and by each thread, by another
    formula. Where that can be within rows it is written out, so that a row is the same in every
    batch."""
    if not _plain(h, h) or _whole(h[0].numel(), torch.get_num_threads()):
        return F.silu(h, inplace=not (keep or h.requires_grad))
    return h / h.neg().exp_().add_(1)


@cache
def _whole(row: int, threads: int) -> bool:
    """Whether torch's threads end at whole LANES for any number of rows of so many numbers."""
    if row % (LANES * threads):
        return False
    few = range(row, GRAIN * threads, row)  # numbers, too few for all threads
    return all(-(-count // -(-count // GRAIN)) % LANES == 0 for count in few)


def timestep_embedding(
    t: Tensor,
    channels: int,
    sine_first: bool = False,
    frequency_shift: int = 0,
    scale: float = 1.0,
) -> Tensor:
    """Sinusoids of scale t: (N,) → (N, channels) float32, cosines first (DDPM, after Vaswani et
    al.)."""
    half = channels // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / (half - frequency_shift)
    angles = (t.float() * scale)[:, None] * torch.exp(-math.log(10000) * exponents)
    waves = [angles.sin(), angles.cos()] if sine_first else [angles.cos(), angles.sin()]
    return torch.cat(waves, dim=1)


class TimeEmbedding(nn.Sequential):
    """Timesteps (N,) → (N, channels): so many sinusoids, then two layers."""

    def __init__(self, sinusoids: int, channels: int, *order: Any) -> None:
        super().__init__(Linear(sinusoids, channels), nn.SiLU(), Linear(channels, channels))
        self.sinusoids, self.order = sinusoids, order

    def forward(self, t: Tensor) -> Tensor:
        waves = timestep_embedding(t, self.sinusoids, *self.order)
        return self[2](silu(self[0](waves)))  # type: ignore[no-any-return]


def groups_of(widths: Sequence[int]) -> int:
    """Groups for the GroupNorms of maps of these widths: up to 32, of at least 4 channels each. A
    group of one would throw away its map's mean, which carries colour and light."""
    fitting = (g for g in (32, 16, 8, 4, 2) if all(w % g == 0 and w >= 4 * g for w in widths))
    return next(fitting, 1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(C)) v of (N, heads, HW, C) each. Torch's CPU kernel is slower in
    bfloat16 than in float32, its gradient up to four times (benchmarks/attention.py)."""
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            h = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
            return h.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Residual self-attention over all positions; each head's q, k, v lie side by side."""

    def __init__(self, norm: nn.GroupNorm, heads: int, head_channels: int | None = None) -> None:
        """Of as many channels as the norm; of `heads`, or of heads of so many channels."""
        super().__init__()
        channels = norm.num_channels
        self.heads = channels // head_channels if head_channels else heads
        if channels % (head_channels or heads):
            kind = f"heads of {head_channels}" if head_channels else f"{heads} heads"
            raise ValueError(f"{channels} channels don't divide into attention {kind}")
        self.norm = norm
        self.qkv = Linear(channels, 3 * channels)
        self.out = zeroed(Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)  # (N, HW, C)
        qkv = self.qkv(h).reshape(n, height * width, self.heads, 3, c // self.heads)
        q, k, v = qkv.permute(3, 0, 2, 1, 4)  # each (N, heads, HW, C/heads)
        h = attend(q, k, v).transpose(1, 2).reshape(n, height * width, c)
        return x + self.out(h).transpose(1, 2).reshape(n, c, height, width)


@dataclass(frozen=True)
class Shape:
    """What fixes the levels of a U-Net's half, and the layers of each."""

    image_size: Side  # pixels, height and width
    channels: Width  # of the pictures: 3 for RGB
    base_channels: Width
    multipliers: tuple[Multiplier, ...]  # width of each level, in units of base_channels
    blocks: Blocks  # residual blocks a level (one more in a U-Net's output half)
    attention: tuple[AnySide, ...]  # at these feature-map sizes, and always in the middle
    head_channels: Width | None  # channels an attention head; None: use `heads`
    heads: Few  # attention heads, where head_channels is None
    groups: Few  # of every GroupNorm, or as many as it has channels
    norm_eps: Epsilon  # of every GroupNorm

    def __post_init__(self) -> None:
        check_ranges(self)
        levels, all_blocks = len(self.multipliers), len(self.multipliers) * self.blocks
        if not 1 <= levels <= 16 or all_blocks > MAX_BLOCKS:
            most = f"1 to 16 levels and {MAX_BLOCKS} blocks in all can be built"
            raise ValueError(f"{levels} levels of {self.blocks} blocks; {most}")
        for width in self.widths:
            if width < 1 or width % min(self.groups, width):
                raise ValueError(f"{width} channels don't divide into {self.groups} groups")

    @property
    def widths(self) -> list[int]:
        return [round(self.base_channels * multiplier) for multiplier in self.multipliers]

    def norm(self, channels: int) -> nn.GroupNorm:
        return nn.GroupNorm(min(self.groups, channels), channels, eps=self.norm_eps)

    def attention_of(self, channels: int, size: int | None = None) -> Attention | None:
        """The attention at maps of this size, or (None) in the middle; None where there is none."""
        if size is not None and size not in self.attention:
            return None
        return Attention(self.norm(channels), self.heads, self.head_channels)


class Layer(nn.Module):
    """A residual block or a resampling convolution, then attention."""

    def __init__(self, block: nn.Module, attention: Attention | None = None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        x = self.block(x, *conditions)
        return x if self.attention is None else self.attention(x)


class ConvResample(nn.Module):
    """Halve by a strided convolution, or double by nearest neighbours and a convolution."""

    def __init__(self, channels: int, resample: str, symmetric: bool = True) -> None:
        super().__init__()
        self.resample, self.symmetric = resample, symmetric
        stride, padding = (2, int(symmetric)) if resample == "down" else (1, 1)
        self.conv = Conv2d(channels, channels, 3, stride=stride, padding=padding)

    def forward(self, x: Tensor, *conditions: Tensor | None) -> Tensor:
        if self.resample == "up":
            return self.conv(resized(x, "up"))
        return placed(self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1))))


def resized(x: Tensor, resample: str) -> Tensor:
    """Halve (mean of 2x2) or double (nearest neighbours) height and width."""
    if resample == "down":
        return placed(F.avg_pool2d(x, 2))
    if _plain(x, x):  # torch's own goes through channels last and back: 3 to 4 times slower
        return x.repeat_interleave(2, 3).repeat_interleave(2, 2)
    return F.interpolate(placed(x, growth=4), scale_factor=2.0)


def placed(x: Tensor, growth: int = 1) -> Tensor:
    """x in the memory format that inference is fastest in; it is about to grow so many times.

    On a CPU in bfloat16, large maps have their channels last: convolutions are a sixth faster.
    Small ones are contiguous, for a GroupNorm that is up to 20 times slower with channels last;
    float32 too, whose convolutions round 2 to 4 times worse so. In training it can crash.
    """
    low = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if x.device.type != "cpu" or not low or torch.is_grad_enabled():
        return x
    large = x.shape[2] * x.shape[3] * growth >= LARGE_MAP
    return x.contiguous(memory_format=torch.channels_last if large else torch.contiguous_format)
