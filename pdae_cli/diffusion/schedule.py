"""The noise schedule, and the equations of DDPM and PDAE that follow from it in closed form.

t = 0 … T-1, alpha_t = 1 - beta_t, alpha_bar_t = prod alpha_s, alpha_bar_{-1} = 1. Functions of
(x, t) gather from float64 tables on the CPU, and return tensors of x's dtype on x's device.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import check_known

BETAS = ("linear", "scaled_linear", "cosine", "constant")
WEIGHTINGS = ("lambda", "v")
LEAST_SIGNAL = 1e-20  # of alpha_bar: below it states divided by their signal leave float32


def make_betas(kind: str, timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """Return beta_t (timesteps,) float64. `linear`: DDPM sec. 4; `scaled_linear`: in its root
    (latent diffusion); `cosine`: improved DDPM eq. 17, without start and end;
    `constant`: beta_start throughout, the latent DPM's (PDAE sec. 4.8)."""
    check_known("beta schedule", kind, BETAS)
    if kind == "linear":
        return torch.linspace(beta_start, beta_end, timesteps, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2
    if kind == "cosine":
        u = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        f = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return torch.full((timesteps,), beta_start, dtype=torch.float64)


class Level(NamedTuple):
    """How noisy states are: x_t = signal x_0 + noise eps. Numbers, or (N, 1, …), a row each."""

    signal: Any
    noise: Any

    @classmethod
    def of(cls, alpha_bar: float) -> Level:
        return cls(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar))

    def noised(self, x_0: Tensor, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM eq. 4)."""
        return self.signal * x_0 + self.noise * eps

    def x_0(self, x_t: Tensor, eps: Tensor) -> Tensor:
        """The picture that x_t and its noise imply."""
        return (x_t - self.noise * eps) / self.signal

    def eps(self, x_t: Tensor, x_0: Tensor) -> Tensor:
        """The noise that x_t and its picture imply."""
        return (x_t - self.signal * x_0) / self.noise

    def guided(self, eps: Tensor, gradient: Tensor, w: float = 1.0) -> Tensor:
        """eps^ = eps_theta - sqrt(1 - alpha_bar_t) w G (PDAE eq. 9; with G = grad log p(y | x_t),
        classifier guidance: Dhariwal & Nichol 2021, algorithm 2)."""
        return eps - self.noise * w * gradient


def posterior(here: Any, there: Any) -> tuple[Any, Any, Any]:
    """Weights of x_0 and of x_here in the mean of q(x_there | x_here, x_0), and its variance (DDPM
    eq. 7). here, there: alpha_bar, numbers or tables."""
    alpha = here / there
    beta = 1 - alpha
    of_x_0 = there**0.5 * beta / (1 - here)
    of_x_t = alpha**0.5 * (1 - there) / (1 - here)
    return of_x_0, of_x_t, beta * (1 - there) / (1 - here)


class Schedule:
    """beta_t and its consequences, as float64 tables of shape (T,)."""

    def __init__(
        self,
        betas: str = "linear",
        timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
    ) -> None:
        self.timesteps, self.beta = timesteps, make_betas(betas, timesteps, beta_start, beta_end)
        self.alpha = 1 - self.beta
        self.alpha_bar = self.alpha.cumprod(0)
        first, last = self.alpha_bar[0], self.alpha_bar[-1]
        if not self.alpha_bar.is_meta and not (first < 1 and last > LEAST_SIGNAL):
            raise ValueError(
                f"{betas} betas from {beta_start} to {beta_end} leave no signal at the end"
            )
        self.alpha_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])
        self.snr = self.alpha_bar / (1 - self.alpha_bar)
        self.signal, self.noise = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        # What the mean shift Sigma_t G_psi means in units of eps: PDAE eq. 10.
        self.shift = self.alpha.sqrt() * (1 - self.alpha_bar_prev) / self.noise

    def to(self, device: torch.device) -> Schedule:
        """The same tables on another device, so that training doesn't copy them in each step."""
        moved = copy.copy(self)
        for name, table in vars(self).items():
            if isinstance(table, Tensor):
                table = table.float() if device.type == "mps" else table  # no float64 there
                setattr(moved, name, table.to(device))
        return moved

    def level(self, t: int | Tensor, like: Tensor | None = None) -> Level:
        """The level of all states at the timestep t, or of each, `like` x, at its own, t (N,)."""
        if isinstance(t, int) or like is None:
            return Level.of(self.alpha_bar[t].item())
        return Level(gather(self.signal, t, like), gather(self.noise, t, like))

    def add_noise(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t of pictures x_0 (N, …) at t (N,): see `Level.noised`."""
        return self.level(t, x_0).noised(x_0, eps)

    def residual(self, eps: Tensor, eps_theta: Tensor, t: Tensor, gradient: Tensor) -> Tensor:
        """eps - eps_theta + shift_t G_psi: what PDAE's objective squares (eq. 10), and the gap
        mu~ - mu_theta - Sigma_t G_psi up to a factor of t (sec. 3.2)."""
        return eps - eps_theta + gather(self.shift, t, eps) * gradient

    def loss_weight(self, kind: str = "lambda", gamma: float = 0.1) -> Tensor:
        """The weight of the squared residual in eps at each t, (T,) float64. `lambda`: SNR^gamma /
        (1 + SNR) (PDAE sec. 3.4); `v`: 1 / alpha_bar, the residual as the error of v (Salimans &
        Ho 2022), at most 1e5, since the cosine schedule ends at alpha_bar = 2e-9."""
        check_known("weighting", kind, WEIGHTINGS)
        as_v = 1 / self.alpha_bar.clamp(min=1e-5)
        return as_v if kind == "v" else self.snr**gamma / (1 + self.snr)


def gather(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Return table[t] as (N, 1, …) with the rank, dtype and device of `like`. t: (N,) integers."""
    values = table[t.to(table.device)].to(device=like.device, dtype=like.dtype)
    return values.reshape(-1, *[1] * (like.ndim - 1))
