"""Convolutions and linear maps whose result for a picture doesn't depend on the batch it is in.

On a CPU torch takes another algorithm for a single small map than for many, and matrix products sum
in another order for few rows than for many. The ODE multiplies such roundings by up to 100. By
oneDNN's convolution a row's result is the same to the bit in every batch; for a single picture it
is also faster. Gradients, low precision, compiled graphs and other devices go torch's own way.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv2d(nn.Conv2d):
    """As torch's, rows independent of their batch."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C', H', W')."""
        if not _plain(x, self.weight) or isinstance(self.padding, str):
            return super().forward(x)
        return torch.mkldnn_convolution(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


class Linear(nn.Linear):
    """As torch's, rows independent of their batch."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, D'); any (…, D) is taken."""
        if x.ndim != 2 or not _plain(x, self.weight):
            return super().forward(x)
        weight = self.weight[:, :, None, None]
        one, none = (1, 1), (0, 0)
        return torch.mkldnn_convolution(
            x[:, :, None, None], weight, self.bias, none, one, one, 1
        ).flatten(1)


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
