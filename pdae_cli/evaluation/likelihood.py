"""The likelihood of pictures, in bits per dimension."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor

from ..diffusion.likelihood import LEVEL, bits_per_dimension, log_density
from ..diffusion.noise import clone, normal
from ..diffusion.trajectory import Sampling
from ..engine.model import Model
from ..errors import ModelError, UsageError


def likelihood(
    model: Model,
    x_0: Tensor,
    generators: Sequence[Generator],
    sampling: Sampling | None = None,
    conditional: bool = False,
    probes: int = 1,
) -> Tensor:
    """Compute bits per dimension of pictures x_0 (N, C, H, W): how many the model needs for each of
    their 8-bit values; (N,) float32. Of p(x), or `conditional` of p(x | z) with their own z.

    Values are spread evenly over their level (uniform dequantisation), and the picture is taken as
    the state at timestep 0. `generators`, one a row, draw both that and the probes of the
    divergence, whose estimates are averaged. Raises ModelError for a latent diffusion model, whose
    density is that of latents, and UsageError for less than one probe.
    """
    if probes < 1:
        raise UsageError(f"probes is {probes}; the divergence takes at least one")
    if model.first_stage is not None:
        raise ModelError(f"{model.name} diffuses latents, which have no likelihood of the picture")
    sampling = replace(sampling or Sampling(), solver="ddim", corrections=0)  # for its grid alone
    grid, shape = model.trajectory(sampling).grid()[::-1], x_0.shape[1:]

    def measure(rows: slice) -> Tensor:
        own = [clone(one) for one in generators[rows]]
        evenly = torch.stack([torch.rand(shape, generator=one) - 0.5 for one in own])
        x = (x_0[rows] + LEVEL * evenly).to(model.device)
        zs = [model.encode_z(x_0[rows])] if conditional else []
        predict = model.guided(sampling, *zs, differentiable=True)
        draw = partial(normal, own, shape)
        estimates = [log_density(predict, x, grid, draw) for _ in range(probes)]
        return bits_per_dimension(torch.stack(estimates).mean(0), x[0].numel())

    return model.by_rows(len(x_0), measure)
