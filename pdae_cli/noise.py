"""Random numbers that depend on what they are for and on nothing else.

A stream is named by a seed and a key (a picture's digest, a sample's number, a training step), so
it doesn't change with batch size, order or device. Everything is drawn on the CPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def generator(seed: int, *key: object) -> Generator:
    """A generator whose stream is a pure function of the seed and the key."""
    name = ":".join(str(part) for part in (seed, *key))
    digest = hashlib.sha256(name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal(generators: Sequence[Generator], shape: Sequence[int]) -> Tensor:
    """N(0, 1) of shape (N, *shape), float32, row i from generator i."""
    return torch.stack([torch.randn(*shape, generator=one) for one in generators])
