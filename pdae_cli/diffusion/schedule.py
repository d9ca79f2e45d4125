"""The noise schedule and everything that follows from it in closed form.

Notation of DDPM and PDAE: t = 0 … T-1, alpha_t = 1 - beta_t, alpha_bar_t = prod alpha_s,
alpha_bar_{-1} = 1, SNR_t = alpha_bar_t / (1 - alpha_bar_t). Tables are float64 and live on the
CPU; functions of (x, t) gather from them and return tensors of x's dtype on x's device.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

BETAS = ("linear", "scaled_linear", "cosine", "constant")


def make_betas(kind: str, timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Return beta_t as float64 of shape (timesteps,).

    `linear`: DDPM sec. 4; `scaled_linear`: linear in its root (latent diffusion); `cosine`:
    improved DDPM eq. 17 (start and end are not used); `constant`: beta_start throughout, the
    latent DPM's (PDAE sec. 4.8).
    """
    if kind == "linear":
        return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2
    if kind == "cosine":
        u = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=0.999)
    if kind == "constant":
        return torch.full((timesteps,), beta_start, dtype=torch.float64)
    raise ValueError(f"unknown beta schedule {kind!r}; known: {', '.join(BETAS)}")


class Schedule:
    """beta_t and its consequences, as float64 tables of shape (T,)."""

    def __init__(
        self,
        betas: str = "linear",
        timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        self.timesteps = timesteps
        self.beta = make_betas(betas, timesteps, beta_start, beta_end)
        self.alpha = 1 - self.beta
        self.alpha_bar = self.alpha.cumprod(0)
        self.alpha_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        self.snr = self.alpha_bar / (1 - self.alpha_bar)
        self.sigma = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()

        # Posterior q(x_{t-1} | x_t, x_0): DDPM eq. 7.
        self.posterior_variance = self.beta * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)
        self.posterior_x_0 = self.alpha_bar_prev.sqrt() * self.beta / (1 - self.alpha_bar)
        self.posterior_x_t = self.alpha.sqrt() * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar)

        # What the mean shift Sigma_t G_psi means in units of eps: PDAE eq. 10.
        self.shift = self.alpha.sqrt() * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar).sqrt()

    def to(self, device: torch.device) -> Schedule:
        """The same tables on another device, so that training doesn't copy them in each step."""
        moved = copy.copy(self)
        for name, table in vars(self).items():
            if isinstance(table, Tensor):
                table = table.float() if device.type == "mps" else table  # no float64 there
                setattr(moved, name, table.to(device))
        return moved

    def loss_weight(self, gamma: float = 0.1) -> Tensor:
        """lambda_t = SNR^gamma / (1 + SNR), PDAE sec. 3.4; (T,) float64."""
        return self.snr**gamma / (1 + self.snr)

    def add_noise(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM eq. 4)."""
        return (
            gather(self.alpha_bar.sqrt(), t, x_0) * x_0
            + gather((1 - self.alpha_bar).sqrt(), t, x_0) * eps
        )

    def predict_x_0(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The x_0 that x_t and eps imply: the inverse of `add_noise`."""
        return (x_t - gather((1 - self.alpha_bar).sqrt(), t, x_t) * eps) / gather(
            self.alpha_bar.sqrt(), t, x_t
        )

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """mu~_t(x_t, x_0), the mean of q(x_{t-1} | x_t, x_0) (DDPM eq. 7)."""
        return gather(self.posterior_x_0, t, x_t) * x_0 + gather(self.posterior_x_t, t, x_t) * x_t

    def model_mean(self, x_t: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """mu_theta(x_t, t) of a network that predicts eps (DDPM eq. 11)."""
        coefficient = self.beta / (1 - self.alpha_bar).sqrt()
        return (x_t - gather(coefficient, t, x_t) * eps) / gather(self.alpha.sqrt(), t, x_t)


def gather(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Return table[t] as (N, 1, …) with the rank, dtype and device of `like`. t: (N,) integers."""
    values = table[t.to(table.device)].to(device=like.device, dtype=like.dtype)
    return values.reshape(-1, *[1] * (like.ndim - 1))
