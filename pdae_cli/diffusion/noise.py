"""Random numbers that depend on what they are for and on nothing else: neither on batch size, order
nor device. Everything is drawn on the CPU."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def generator(seed: int, *key: object) -> Generator:
    """A generator whose stream is a pure function of the seed and the key (a picture's SHA, a
    sample's number, a training step)."""
    name = ":".join(str(part) for part in (seed, *key))
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal(generators: Sequence[Generator], shape: Sequence[int]) -> Tensor:
    """N(0, 1) of shape (N, *shape), float32, row i from generator i."""
    return torch.stack([torch.randn(*shape, generator=one) for one in generators])


def clone(one: Generator) -> Generator:
    """A generator that goes on as this one would."""
    return torch.Generator().set_state(one.get_state())


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of noise, each row (N, …) as one vector; 0 gives a, 1 gives b: along
    the chord of parallel ones, around opposite ones by a fixed direction. Always finite."""
    shape, u, v = a.shape, a.flatten(1).double(), b.flatten(1).double()
    length_u, length_v = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    unit_u, unit_v = u / length_u.clamp(min=1e-12), v / length_v.clamp(min=1e-12)
    # Angle by atan2 of difference and sum: exact where arccos loses half of its digits.
    angle = 2 * torch.atan2((unit_u - unit_v).norm(dim=1), (unit_u + unit_v).norm(dim=1))[:, None]
    arc = ((1 - share) * angle).sin() * u + (share * angle).sin() * v
    arc = arc / angle.sin().clamp(min=1e-12)
    signs = 1.0 - 2.0 * (torch.arange(u.shape[1], device=u.device) % 2)  # +1, -1 …: not parallel
    side = torch.roll(unit_u, 1, dims=1) * signs
    side = side - (side * unit_u).sum(1, keepdim=True) * unit_u
    side = side / side.norm(dim=1, keepdim=True).clamp(min=1e-12)
    around = (share * angle).cos() * unit_u + (share * angle).sin() * side
    around = around * (length_u * (1 - share) + length_v * share)
    result = torch.where(angle > math.pi - 1e-6, around, arc)
    result = torch.where(angle < 1e-6, u + share * (v - u), result)
    return result.reshape(shape).to(a.dtype)
