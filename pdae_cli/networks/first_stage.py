"""The first stage of a latent diffusion model (Rombach et al. 2022, sec. 3.1): pictures to latents
and back, by an AutoencoderKL or a VQModel of diffusers, which is an optional package."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ..errors import Range, check_known, check_ranges
from .layers import Few, Width

KINDS = ("AutoencoderKL", "VQModel")
BLOCKS = (
    "DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"
)  # fmt: skip
PIXELS = 1 << 19  # that an accelerator computes at once: 2 pictures of 512x512, 128 of 64x64
MAX_LEVELS = 8  # twice what is usual: building takes time even without memory


@dataclass(frozen=True)
class FirstStageConfig:
    """Everything that fixes the shape of a first stage, and the scale of its latents."""

    kind: str  # see KINDS: diffusers' class
    channels: Width  # of the pictures
    latent_channels: Width
    down_blocks: tuple[str, ...]  # diffusers' classes, from the pictures on
    up_blocks: tuple[str, ...]  # from the latents on
    widths: tuple[Width, ...]  # of each level
    blocks: Annotated[int, Range(1, 16)]  # residual blocks a level (one more on the way up)
    groups: Few  # of every GroupNorm
    middle_attention: bool
    bottleneck: bool  # 1x1 convolutions beside the latents; a VQModel always has them
    codes: Width  # of a VQModel's codebook, and their channels
    code_channels: Width
    # Latents are scale (encoded - shift), of about unit variance.
    scale: Annotated[float, Range(1e-6, 1e6)]
    shift: Annotated[float, Range(-1e6, 1e6)]

    def __post_init__(self) -> None:
        levels, unknown = len(self.widths), {*self.down_blocks, *self.up_blocks} - {*BLOCKS}
        check_ranges(self)
        check_known("first stage", self.kind, KINDS)
        if not 1 <= levels <= MAX_LEVELS:
            raise ValueError(f"a first stage of {levels} levels; 1 to {MAX_LEVELS} can be")
        if not len(self.down_blocks) == len(self.up_blocks) == levels:
            raise ValueError(f"a first stage of {levels} widths and other numbers of blocks")
        if unknown:
            raise ValueError(f"blocks {', '.join(sorted(unknown))} of a first stage")
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"widths {self.widths} don't divide into {self.groups} groups")

    @property
    def factor(self) -> int:
        """Pixels a latent, in height and in width."""
        return 2 ** (len(self.widths) - 1)

    def arguments(self) -> dict[str, Any]:
        """Of diffusers' class."""
        common = {
            "in_channels": self.channels, "out_channels": self.channels,
            "latent_channels": self.latent_channels, "block_out_channels": self.widths,
            "down_block_types": self.down_blocks, "up_block_types": self.up_blocks,
            "layers_per_block": self.blocks, "norm_num_groups": self.groups,
            "mid_block_add_attention": self.middle_attention, "scaling_factor": self.scale,
        }  # fmt: skip
        if self.kind == "VQModel":
            return common | {"num_vq_embeddings": self.codes, "vq_embed_dim": self.code_channels}
        convs = {"use_quant_conv": self.bottleneck, "use_post_quant_conv": self.bottleneck}
        return common | convs | {"shift_factor": self.shift or None}


class FirstStage(nn.Module):
    """Frozen. Raises ImportError where diffusers isn't installed."""

    def __init__(self, cfg: FirstStageConfig) -> None:
        from diffusers import AutoencoderKL, VQModel

        super().__init__()
        self.cfg = cfg
        made = VQModel if cfg.kind == "VQModel" else AutoencoderKL
        self.network: Any = made(**cfg.arguments())
        # A compiled graph would hold the network once for each part. (Not as a decorator: torch's
        # compiler takes longer to import than all the rest, and pictures need no first stage.)
        self.in_parts = torch.compiler.disable(in_parts)

    def __getstate__(self) -> dict[str, Any]:  # that function can't be pickled
        return {name: value for name, value in vars(self).items() if name != "in_parts"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.in_parts = torch.compiler.disable(in_parts)

    def encode(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) float32 in [-1, 1] → latents (N, C', H / factor, W / factor) of about unit
        variance: the posterior's mean, or what a VQModel would quantise."""

        def latents(x: Tensor) -> Tensor:
            found = self.network.encode(x)
            return found.latents if self.cfg.kind == "VQModel" else found.latent_dist.mode()

        size = math.prod(pictures.shape[2:])
        return (self.in_parts(latents, pictures, size) - self.cfg.shift) * self.cfg.scale

    def decode(self, latents: Tensor) -> Tensor:
        """The way back; a VQModel quantises on it. Pictures may leave [-1, 1]."""
        x, size = latents / self.cfg.scale + self.cfg.shift, math.prod(latents.shape[2:])
        return self.in_parts(lambda x: self.network.decode(x).sample, x, size * self.cfg.factor**2)


def in_parts(network: Callable[[Tensor], Tensor], x: Tensor, pixels: int) -> Tensor:
    """Run the network on as many rows at once, of `pixels` each, as PIXELS leaves room for: feature
    maps of pictures take many times the memory of eps_theta's latents. On a CPU, where a batch
    gains nothing, row by row, so that a picture's result is the same to the bit in every batch."""
    rows = 1 if x.device.type == "cpu" else max(1, PIXELS // pixels)
    return torch.cat([network(part) for part in x.split(rows)])
