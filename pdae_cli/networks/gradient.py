"""G_psi: the gradient estimator, whose shift fills the posterior mean gap (PDAE sec. 3.3)."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import Linear
from .unet import OutputHalf, UNetConfig, adagn


class GradientEstimator(nn.Module):
    """G_psi(x_t, z, t), from the features of eps_theta's frozen input half. Its output convolution
    starts at zero: an untrained G_psi leaves eps_theta as it is."""

    def __init__(self, cfg: UNetConfig, z_dim: int) -> None:
        super().__init__()
        self.z = Linear(z_dim, cfg.z_conditioning.channels)
        self.output = OutputHalf(cfg, cfg.channels, cfg.z_conditioning)

    def by_z(self, z: Tensor) -> Tensor:
        """Return what z (N, z_dim) makes of the blocks: (N, 2, S), see `Half.by_z`."""
        return self.output.by_z(self.z(z))

    def forward(self, features: list[Tensor], time: Tensor, z: Tensor) -> Tensor:
        """features: of the input half; time: the embedding of t (N, E); z: (N, z_dim). Returns
        (N, C, H, W)."""
        return self.output(features, adagn(self.output.by_time(time), self.by_z(z)))
