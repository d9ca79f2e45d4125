"""Muon: what an orthogonalised step is, against a float64 SVD and torch's own; the rest is Adam."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pdae_cli.training.muon import COEFFICIENTS, STEPS, Muon, orthogonalised


def by_svd(matrix: Tensor) -> Tensor:
    """U p(p(… p(S / |S|))) V^T with p(s) = a s + b s^3 + c s^5, in float64."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    a, b, c = COEFFICIENTS
    s = s / s.norm()
    for _ in range(STEPS):
        s = a * s + b * s**3 + c * s**5
    return u @ s.diag() @ v


@pytest.mark.parametrize("shape", [(7, 7), (5, 40), (40, 5), (1, 9), (9, 1)])
def test_singular_values_go_through_the_polynomial_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    expected = by_svd(matrix)
    assert (orthogonalised(matrix) - expected).norm() < 1e-5 * expected.norm()


def test_singular_values_of_two_and_a_half_decades_come_near_one() -> None:
    g = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 32, generator=g).double())[0] for n in (32, 288))
    matrix = u @ torch.logspace(0, -2.5, 32, dtype=torch.float64).diag() @ v.T
    values = torch.linalg.svdvals(orthogonalised(matrix.float()))
    assert values.min() > 0.6 and values.max() < 1.3


@pytest.mark.parametrize(
    ("small", "found"), [(0.1, 0.986), (0.04, 1.004), (0.01, 0.299), (1e-3, 0.030)]
)
def test_beside_many_large_singular_values_small_ones_stay_small(
    small: float, found: float
) -> None:
    """What counts is how large they are beside the root of the sum of all squares."""
    values = torch.ones(512)
    values[256:] = small
    made = orthogonalised(values.diag()).diag()
    share = values / values.norm()
    near = made[share > 1 / 650]
    assert near.min() > 0.68 and near.max() < 1.21 and (made < 485 * share).all()
    assert made.min().item() == pytest.approx(found, abs=1e-3)


def test_nothing_is_made_of_a_zero_gradient() -> None:
    assert torch.equal(orthogonalised(torch.zeros(3, 4)), torch.zeros(3, 4))


def gradients(*shape: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=g) * 10.0**-n for n in range(5)]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (6, 4, 3, 3)])
def test_steps_of_a_matrix_are_torchs_muon_s(shape: tuple[int, ...]) -> None:
    """Whose Newton-Schulz steps are in bfloat16; a convolution's weight is (C_out, rest)."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    ours, bias = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(3))
    theirs = nn.Parameter(start.flatten(1).clone())
    optimizer = Muon([ours, bias], lr=0.02)
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients(*shape):
        ours.grad, theirs.grad = gradient, gradient.flatten(1)
        optimizer.step()
        reference.step()
    moved, expected = ours.detach() - start, theirs.detach() - start.flatten(1)
    assert (moved.flatten(1) - expected).norm() < 0.02 * expected.norm()


def test_a_vector_is_stepped_as_by_adam_and_the_rate_is_one() -> None:
    ours, theirs = (nn.Parameter(torch.ones(4)) for _ in range(2))
    matrix = nn.Parameter(torch.zeros(2, 2))
    optimizer, reference = Muon([matrix, ours], lr=1), torch.optim.Adam([theirs], fused=True)
    for one in (optimizer, reference):
        for settings in one.param_groups:
            settings["lr"] = 0.01
    for gradient in gradients(4):
        ours.grad, theirs.grad = gradient, gradient.clone()
        optimizer.step()
        reference.step()
    assert torch.equal(ours, theirs)
    assert torch.equal(matrix, torch.zeros(2, 2))  # which had no gradient
    optimizer.zero_grad()
    assert ours.grad is None


def test_steps_have_the_size_of_adams() -> None:
    """RMS 0.2 at learning rate 1, whatever the shape and the gradient's size."""
    for shape, scale in (((8, 300), 1e-6), ((300, 8), 1e3), ((64, 64), 1.0)):
        weight, bias = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(1))
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(4)) * scale
        Muon([weight, bias], lr=1).step()
        assert 0.14 < weight.square().mean().sqrt() < 0.26
