"""Edits up to a score, and of a part of a picture: local ones, inpainting, colourisation (Song et
al. 2021, sec. 5).

What is to stay has a trajectory of its own, which the network sees in that part's place. Solvers
take the same factors for all pixels and channels, so this is as if the state itself was replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..diffusion.noise import clone, generator
from ..diffusion.schedule import Schedule
from ..diffusion.solvers import Predict
from ..diffusion.trajectory import Sampling, settings, to_decode
from ..errors import InputError, ModelError, UsageError
from ..pictures.images import in_range, picture_sha, to_pixels
from . import arguments
from .attributes import Scale
from .codes import Z_ALONE, Codes, stack
from .model import Model

LUMA = (0.299, 0.587, 0.114)  # of R, G, B in a grey value (ITU-R BT.601, as Pillow's L)
# Of inpainting and colourisation, where fresh noise in each of many steps tells the free part more
# of the known one (docs/editing.md).
COMPLETING = Sampling(inference_steps=100, solver="ddpm", spacing="asinh")

Join = Callable[[Tensor, Tensor], Tensor]  # (known, free), both (N, C, H, W) → their parts in one


def reach(
    model: Model,
    codes: Codes,
    scores: Sequence[tuple[str, Scale]],
    keep: Sequence[str] = (),
) -> Codes:
    """Move each z along attributes to scores: so many standard deviations from the mean, "sd" or
    "", or a number's own value, "u". None of them is changed by another, nor those of attributes to
    `keep`. Raises UsageError where a score's mean isn't known, or one can't move without the
    others."""
    if (known := model.attributes) is None:
        raise ModelError(f"{model.name} has no attributes")
    model.check(codes)
    rows, names = [codes[row : row + 1] for row in range(len(codes))], [name for name, _ in scores]
    for name, target in scores:
        spread = (0.0, 1.0) if target.unit == "u" else known.spread(name)
        if spread is None:
            raise UsageError(f"how the score of {name} varies isn't known; fit it again")
        kept, column = [*keep, *(one for one in names if one != name)], known.index(name)
        for row, one in enumerate(rows):
            now = (model.scores(one)[0, column].item() - spread[0]) / spread[1]
            left = Scale(target.count - now, target.unit or "sd")
            rows[row] = model.manipulate(one, [(name, left)], kept)
    return stack(rows)


def alongside(lead: Predict, predict: Predict, join: Join) -> Predict:
    """Two trajectories solved as one, of states (2N, C, H, W): N that `lead` leads, which are
    known, and N of `predict`, which sees join(known, free) in place of its own state."""

    def both(x: Tensor, t: int) -> Tensor:
        known, free = x.chunk(2)
        return torch.cat([lead(known, t), predict(join(known, free), t)])

    return both


def settled(schedule: Schedule, x_0: Tensor) -> Predict:
    """The noise in states of known pictures x_0. From a draw of q(x_T | x_0), an ODE solver keeps
    to the draws of q(x_t | x_0) of the same noise; ancestral sampling makes new ones."""
    return lambda x, t: schedule.level(t).eps(x, x_0)


def by_mask(mask: Tensor) -> Join:
    """Free where the mask, (N or 1, 1, H, W) in [0, 1], is 1, known to the bit where it is 0."""
    return lambda known, free: torch.lerp(known, free, mask.to(known))


def states_mask(model: Model, mask: Tensor) -> Tensor:
    """The mask (N, 1, H, W) of pictures for a trajectory's states: where those are latents, each is
    as free as the freest of its pixels."""
    return F.max_pool2d(mask, model.config.image_size // model.config.unet.image_size)


def by_luma(known: Tensor, free: Tensor) -> Tensor:
    """The one's luma and the other's colours, for R, G, B in channels. Luma is the first axis of an
    orthogonal basis of the three, in which noise is N(0, I) as in any (after Song et al. 2021, app.
    I.2, who take the channels' mean)."""
    axis = torch.tensor(LUMA, dtype=known.dtype, device=known.device)[:, None, None]
    axis = axis / axis.norm()
    return free + axis * ((known - free) * axis).sum(1, keepdim=True)


def inpaint(
    model: Model,
    pictures: Tensor,
    mask: Tensor | None,
    z: Tensor | None = None,
    sampling: Sampling | None = None,
    *,
    generators: Sequence[Generator] | None = None,
    **changes: Any,
) -> Tensor:
    """Make what the mask, (N or 1, 1, H, W) from 0.5 on, covers of pictures (N, C, H, W), or (None)
    their colours, anew from noise, guided by z (N, D). The rest is diffused too and comes back to
    the bit (Song et al. 2021, app. I.2).

    The z of a picture with a hole says that there is one. So by default z is that of what eps_theta
    alone makes of it first, or where eps_theta needs z, the picture's own. With guidance=0 that
    first is the result. Picture i's noise comes from generator i (default: seed 0 and its SHA).
    """
    x_0, sampling = model.pictures(pictures), settings(sampling or COMPLETING, changes)
    if mask is not None:
        arguments.check_mask(mask, len(x_0), model.config.image_size)
        mask = (mask >= 0.5).to(x_0).expand(len(x_0), -1, -1, -1)
    in_range(x_0 if mask is None else x_0.masked_fill(mask > 0, 0))
    states = None if mask is None else states_mask(model, mask)
    generators = generators or [generator(0, picture_sha(one)) for one in to_pixels(x_0)]
    arguments.check_rows(len(x_0), generators, z)
    guided = sampling.guidance != 0 or model.takes_z
    if guided and z is None:
        alone, draws = replace(sampling, guidance=0.0), [clone(one) for one in generators]
        seen = x_0 if model.takes_z else inpaint(model, x_0, mask, None, alone, generators=draws)
        z = model.by_rows(len(seen), lambda rows: model.encode_z(seen[rows]))  # of any range
    trajectory, noise = model.trajectory(sampling), model.noise(generators)
    level = model.schedule.level(trajectory.timesteps()[-1])

    def make(rows: slice) -> Tensor:
        pictures, eps = x_0[rows].to(model.device), noise[rows].to(model.device)
        known = model.latents(pictures)
        join = by_luma if states is None else by_mask(states[rows])
        join_pictures = by_luma if mask is None else by_mask(mask[rows])
        predict = model.guided(sampling, *([z[rows]] if guided and z is not None else []))
        both = alongside(settled(model.schedule, known), predict, join)
        x_T, draws = torch.cat([level.noised(known, eps), eps]), [*generators[rows]] * 2
        return join_pictures(pictures, trajectory.to_picture(both, x_T, draws).chunk(2)[1])

    return model.by_rows(len(x_0), make)


def colourise(
    model: Model,
    pictures: Tensor,
    z: Tensor | None = None,
    sampling: Sampling | None = None,
    *,
    generators: Sequence[Generator] | None = None,
    **changes: Any,
) -> Tensor:
    """Give pictures (N, 3, H, W) new colours with their own luma (see `by_luma`): grey ones with
    R = G = B get some. Else as `inpaint`. Raises ModelError for a model of grey pictures."""
    if model.config.channels != len(LUMA):
        raise ModelError(f"{model.name} makes pictures without colours; take a model that has them")
    if model.first_stage is not None:
        raise ModelError(f"{model.name} diffuses latents, which have no colours to leave free")
    return inpaint(model, pictures, None, z, sampling, generators=generators, **changes)


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
    """Decode edited codes to pictures (N, C, H, W) where the mask, (N or 1, 1, H, W) in [0, 1], is
    1, and the unedited ones where it is 0, to the bit as `Model.decode`. The edited trajectory sees
    the unedited one's states outside of the mask, so that it fits them; between, they are mixed."""
    model.check(codes)
    model.check(edited)
    arguments.check_mask(mask, len(codes), model.config.image_size)
    if codes.x_T is None or edited.x_T is None:
        raise InputError(f"{Z_ALONE}; edit with --random-noise, or encode with x_T")
    sampling = to_decode(codes.sampling, changes, sampling)
    trajectory = model.trajectory(sampling)
    draws = generators or [generator(0, name) for name in codes.names()]
    arguments.check_rows(len(codes), draws, edited.z)
    z, x_T = torch.stack([codes.z, edited.z]), torch.stack([codes.x_T, edited.x_T])
    residuals = [one.residual_of(sampling) for one in (codes, edited)]
    residual_T = torch.stack([torch.zeros_like(codes.x_T) if r is None else r for r in residuals])
    weights = mask.expand(len(codes), -1, -1, -1)
    of_states = states_mask(model, weights)

    def make(rows: slice) -> Tensor:
        lead, predict = (model.guided(sampling, one[rows]) for one in z)
        both = alongside(lead, predict, by_mask(of_states[rows]))
        x, r = (one[:, rows].flatten(0, 1).to(model.device) for one in (x_T, residual_T))
        x_0 = trajectory.to_picture(both, x, [*draws[rows]] * 2, r)
        return by_mask(weights[rows])(*x_0.chunk(2))

    return model.by_rows(len(codes), make)
