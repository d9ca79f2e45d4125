"""Codes with random z and x_T."""

from __future__ import annotations

from dataclasses import replace

import torch

from pdae_cli.engine.codes import Codes


def codes_of(n: int, seed: int = 0, size: int = 16, **changes: object) -> Codes:
    """Codes with random z (n, 6) and x_T (n, 3, size, size)."""
    draws = torch.Generator().manual_seed(seed)
    values = Codes(
        z=torch.randn(n, 6, generator=draws),
        x_T=torch.randn(n, 3, size, size, generator=draws),
        sources=tuple(f"{seed}-{row}.png" for row in range(n)),
        picture_shas=tuple(f"{seed:032x}{row:032x}" for row in range(n)),
        model="tiny",
        weights_sha="d" * 64,
        sampling={"inference_steps": 5},
    )
    return replace(values, **changes)  # type: ignore[arg-type]


def rows(codes: Codes) -> list[Codes]:
    return [codes[row : row + 1] for row in range(len(codes))]
