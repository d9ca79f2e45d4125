"""Labels: in z's place, G_psi(x_t, y, t) with y embedded (PDAE sec. 4.6), or told from noisy
pictures, p(y | x_t), by the input half of a U-Net, pooled (ADM, sec. 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import check_ranges
from .layers import Linear, Width, silu
from .unet import InputHalf, UNetConfig

MAX_CLASSES = 100_000


@dataclass(frozen=True)
class Classes:
    """What pictures may be. Their labels y are (N, A) of 1 (with), 0 (without) and -1 (unknown)."""

    names: tuple[str, ...]
    exclusive: bool  # each picture is of exactly one; else it may have any of them

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= MAX_CLASSES or len(set(self.names)) < len(self.names):
            raise ValueError(f"{len(self.names)} classes; 1 to {MAX_CLASSES} different ones can be")
        if self.exclusive and len(self.names) < 2:
            raise ValueError("one class excludes no other")


@dataclass(frozen=True)
class EmbeddingConfig:
    classes: Classes
    z_dim: Width

    def __post_init__(self) -> None:
        check_ranges(self)


class ClassEmbedding(nn.Module):
    """y (N, A) of 1, 0 and -1 → z (N, z_dim): one vector for each class, which counts 1 with it
    and, unless classes exclude each other, -1 without."""

    def __init__(self, cfg: EmbeddingConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.vectors = Linear(len(cfg.classes.names), cfg.z_dim)

    def forward(self, y: Tensor) -> Tensor:
        with_, without = (y == 1).float(), (y == 0).float()
        return self.vectors(with_ if self.cfg.classes.exclusive else with_ - without).float()


class NoisyClassifier(nn.Module):
    """x_t (N, C, H, W) at timesteps t (N,) → logits (N, A) of the classes."""

    def __init__(self, cfg: UNetConfig, classes: Classes) -> None:
        super().__init__()
        self.classes = classes
        self.time = cfg.time_embedding()
        self.input = InputHalf(cfg)
        self.norm = cfg.norm(cfg.widths[-1])
        self.out = Linear(cfg.widths[-1], len(classes.names))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        *_, last = self.input(x_t, self.input.modulation(self.time(t)))
        return self.out(silu(self.norm(last)).mean((2, 3)))
