"""Streams of random numbers have names; interpolation stays on the sphere, always finite."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pdae_cli.diffusion.noise import generator, normal, slerp


def states(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class TestSlerp:
    def test_ends(self) -> None:
        a, b = states(2).split(1)
        assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-12)
        assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-12)

    def test_constant_speed_on_the_sphere(self) -> None:
        """Equal steps make equal angles, and unit vectors stay unit vectors."""
        a, b = torch.nn.functional.normalize(torch.randn(2, 50, dtype=torch.float64))[:, None]
        points = [slerp(a, b, k / 4) for k in range(5)]
        for point in points:
            assert point.norm().item() == pytest.approx(1, abs=1e-12)
        cosines = [(p * q).sum().item() for p, q in itertools.pairwise(points)]
        assert cosines == pytest.approx([cosines[0]] * 4, abs=1e-9)

    def test_identical_inputs_stay_put(self) -> None:
        for seed in range(200):
            a = torch.randn(1, 3, 8, 8, generator=generator(seed))
            assert torch.allclose(slerp(a, a.clone(), 0.37), a, atol=1e-6)

    @pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
    def test_antipodal_inputs_go_around(self, share: float) -> None:
        a = states(1)
        assert slerp(a, -a, share).norm().item() == pytest.approx(a.norm().item(), rel=1e-6)
        assert slerp(a, torch.zeros_like(a), share).isfinite().all()


def test_streams_are_named_by_seed_and_key() -> None:
    same = [torch.randn(4, generator=generator(1, "a", 2)) for _ in range(2)]
    assert torch.equal(*same)
    for other in (generator(2, "a", 2), generator(1, "b", 2), generator(1, "a", 3)):
        assert not torch.equal(same[0], torch.randn(4, generator=other))


def test_rows_are_their_own() -> None:
    both = normal([generator(0, "a"), generator(0, "b")], (2, 3))
    assert torch.equal(both[1:], normal([generator(0, "b")], (2, 3)))
