"""A classifier of noisy pictures, p(y | x_t): the input half of a U-Net, pooled (ADM, sec. 4)."""

from __future__ import annotations

from torch import Tensor, nn

from .blocks import Norm, UNetConfig, silu
from .classes import Classes
from .layers import Linear
from .unet import InputHalf, TimeEmbedding


class NoisyClassifier(nn.Module):
    """x_t (N, C, H, W) at timesteps t (N,) → logits (N, A) of the classes."""

    def __init__(self, cfg: UNetConfig, classes: Classes) -> None:
        super().__init__()
        self.classes = classes
        self.time = TimeEmbedding(cfg)
        self.input = InputHalf(cfg)
        self.norm = Norm(cfg, cfg.widths[-1])
        self.out = Linear(cfg.widths[-1], len(classes.names))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        features = self.input(x_t, self.time(t))
        return self.out(silu(self.norm(features[-1])).mean((2, 3)))
