"""Edits of a part of a picture: local edits, inpainting, colourisation (Song et al. 2021, sec. 5).

What is to stay as it is has a trajectory of its own; at every evaluation the network sees the state
with that part replaced by it. Solvers combine states, noises and random draws with the same factors
for all pixels and channels, so that what they make of the free part is what replacing the state
itself would make, and none of them needs to know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..diffusion.noise import clone, generator
from ..diffusion.sampling import Sampling
from ..diffusion.schedule import Schedule
from ..diffusion.solvers import Predict
from ..errors import InputError, ModelError
from ..pictures.images import digest, to_pixels
from .codes import Codes
from .computing import joined
from .model import Model

LUMA = (0.299, 0.587, 0.114)  # of R, G, B in a grey value (ITU-R BT.601, as Pillow's L)
# Of inpainting and colourisation: replacing the known part lets the free one know too little of it,
# and fresh noise in each of many steps makes up for some of that (docs/editing.md).
COMPLETING = Sampling(inference_steps=100, solver="ddpm")

Join = Callable[[Tensor, Tensor], Tensor]  # (known, free), both (N, C, H, W) → their parts in one


def alongside(lead: Predict, predict: Predict, join: Join) -> Predict:
    """Two trajectories solved as one, of states (2N, C, H, W): N that `lead` leads, which are
    known, and N of `predict`, which sees join(known, free) in place of its own state."""

    def both(x: Tensor, t: int) -> Tensor:
        known, free = x.chunk(2)
        return torch.cat([lead(known, t), predict(join(known, free), t)])

    return both


def settled(schedule: Schedule, x_0: Tensor) -> Predict:
    """The noise in states of pictures that are known: (x_t - sqrt(alpha_bar) x_0) / sqrt(1 -
    alpha_bar). From a draw of q(x_T | x_0), an ODE solver keeps to the draws of q(x_t | x_0) with
    the same noise, and ancestral sampling makes new ones (Song et al. 2021, app. I.2)."""

    def predict(x: Tensor, t: int) -> Tensor:
        alpha_bar = schedule.alpha_bar[t].item()
        return (x - math.sqrt(alpha_bar) * x_0) / math.sqrt(1 - alpha_bar)

    return predict


def by_mask(mask: Tensor) -> Join:
    """Free where the mask, (N or 1, 1, H, W) in [0, 1], is 1, known to the bit where it is 0."""

    def join(known: Tensor, free: Tensor) -> Tensor:
        return torch.lerp(known, free, mask.to(known))

    return join


def states_mask(model: Model, mask: Tensor) -> Tensor:
    """The mask (N, 1, H, W) of pictures for a trajectory's states: where those are latents, each is
    as free as the freest of its pixels."""
    return F.max_pool2d(mask, model.config.image_size // model.config.unet.image_size)


def by_luma(known: Tensor, free: Tensor) -> Tensor:
    """The one's luma and the other's colours, for R, G, B in channels.

    Luma is the first axis of an orthogonal basis of the three channels: in that, noise is N(0, I)
    as in any (Song et al. 2021, app. I.2, take the mean of the channels for it).
    """
    axis = torch.tensor(LUMA, dtype=known.dtype, device=known.device)[:, None, None]
    axis = axis / axis.norm()
    return free + axis * ((known - free) * axis).sum(1, keepdim=True)


def inpaint(
    model: Model,
    pictures: Tensor,
    mask: Tensor,
    z: Tensor | None = None,
    sampling: Sampling | None = None,
    *,
    generators: Sequence[Generator] | None = None,
    **changes: Any,
) -> Tensor:
    """Pictures (N, C, H, W) with what the mask, (N or 1, 1, H, W) from 0.5 on, covers made anew
    from noise, guided by z (N, D). Everything else comes back to the bit.

    The z of a picture with a hole says that there is a hole. So by default z is that of what
    eps_theta alone makes of the picture first, or where eps_theta needs z, the picture's own. With
    guidance=0 that first is the result; a model without an encoder can do it too. Picture i's noise
    comes from generator i (default: seed 0 and its digest).
    """
    free = (mask >= 0.5).to(pictures).expand(len(pictures), -1, -1, -1)
    sampling = (sampling or COMPLETING).changed(changes)
    states = states_mask(model, free)

    def joins(rows: slice) -> tuple[Join, Join]:
        return by_mask(states[rows]), by_mask(free[rows])

    return _completed(model, pictures, joins, z, sampling, generators)


def colourise(
    model: Model,
    pictures: Tensor,
    z: Tensor | None = None,
    sampling: Sampling | None = None,
    *,
    generators: Sequence[Generator] | None = None,
    **changes: Any,
) -> Tensor:
    """Pictures (N, 3, H, W) with new colours and their own luma (see `by_luma`): grey ones with
    R = G = B get some. Else as `inpaint`. Raises ModelError for a model of grey pictures."""
    if model.config.channels != len(LUMA):
        raise ModelError(f"{model.name} makes pictures without colours; take a model that has them")
    sampling = (sampling or COMPLETING).changed(changes)
    if model.first_stage is not None:
        raise ModelError(f"{model.name} diffuses latents, which have no colours to leave free")
    both = by_luma, by_luma
    return _completed(model, pictures, lambda rows: both, z, sampling, generators)


def _completed(
    model: Model,
    pictures: Tensor,
    joins: Callable[[slice], tuple[Join, Join]],
    z: Tensor | None,
    sampling: Sampling,
    generators: Sequence[Generator] | None,
) -> Tensor:
    """Pictures whose free part is made from noise, while the known one is diffused and comes back
    (Song et al. 2021, app. I.2). `joins`: of states, and of the pictures that come of them."""
    x_0 = model.pictures(pictures)
    generators = generators or [generator(0, digest(one)) for one in to_pixels(x_0)]
    guided = sampling.guidance != 0 or model.takes_z
    if guided and z is None:
        shown = x_0
        if not model.takes_z:
            alone = replace(sampling, guidance=0.0)
            draws = [clone(one) for one in generators]
            shown = _completed(model, x_0, joins, None, alone, draws)
        z = joined(model.by_batches(lambda rows: model.encoder(shown[rows]), len(x_0)))
    trajectory, noise = model.trajectory(sampling), model.noise(generators)
    alpha_bar = model.schedule.alpha_bar[trajectory.timesteps()[-1]].item()

    def work(rows: slice) -> Tensor:
        pictures, eps = x_0[rows].to(model.device), noise[rows].to(model.device)
        known = model.latents(pictures)
        join, join_pictures = joins(rows)
        known_T = math.sqrt(alpha_bar) * known + math.sqrt(1 - alpha_bar) * eps
        zs = [z[rows].to(model.device)] if guided and z is not None else []
        both = alongside(settled(model.schedule, known), model.guided(sampling, *zs), join)
        x_T, draws = torch.cat([known_T, eps]), [*generators[rows], *generators[rows]]
        free = trajectory.to_picture(both, x_T, draws).chunk(2)[1]
        return join_pictures(pictures, free)

    return joined(model.by_batches(work, len(x_0)))


def decode_within(
    model: Model,
    codes: Codes,
    edited: Codes,
    mask: Tensor,
    sampling: Sampling | None = None,
    *,
    generators: Sequence[Generator] | None = None,
    **changes: Any,
) -> Tensor:
    """Pictures (N, C, H, W) of edited codes where the mask, (N or 1, 1, H, W) in [0, 1], is 1, and
    of the unedited ones where it is 0: there they are what `Model.decode` makes of them to the bit.
    Between the two, states are mixed.

    Both are solved side by side, and the edited one sees the unedited one's states outside of the
    mask: what it makes inside fits them. The rest is as in `Model.decode`.
    """
    model.check(codes)
    if codes.x_T is None or edited.x_T is None:
        raise InputError("these codes hold z alone; an edit within a mask needs x_T")
    recorded = Sampling().changed(codes.sampling)
    sampling = (sampling or recorded).changed(changes)
    trajectory = model.trajectory(sampling)
    draws = generators or [generator(0, name) for name in codes.digests]
    eps_T = codes.eps_T if sampling.same_way(recorded) else None
    z, x_T = torch.stack([codes.z, edited.z]), torch.stack([codes.x_T, edited.x_T])
    weights = mask.expand(len(codes), -1, -1, -1)
    of_states = states_mask(model, weights)

    def work(rows: slice) -> Tensor:
        lead, predict = (model.guided(sampling, one[rows].to(model.device)) for one in z)
        join, (known, free) = by_mask(of_states[rows]), x_T[:, rows].to(model.device)
        second = None
        if eps_T is not None:  # the edited trajectory begins anew: see Model.manipulate
            begun = predict(join(known, free), trajectory.grid()[0].t)
            second = torch.cat([eps_T[rows].to(model.device), begun])
        x_0 = trajectory.to_picture(
            alongside(lead, predict, join), torch.cat([known, free]), [*draws[rows]] * 2, second
        )
        return by_mask(weights[rows])(*x_0.chunk(2))

    return joined(model.by_batches(work, len(codes)))
