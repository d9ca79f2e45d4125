"""Our measures and those of torchmetrics, which shares no code with them.

Its FID and KID take any features: here numbers as they are. LPIPS isn't held to it, as its LPIPS
knows no networks but its own, whose weights are downloaded; see test_metrics.py for closed forms.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from pdae_cli.diffusion.noise import generator
from pdae_cli.evaluation import metrics

SAVES = pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance. will save all")


class AsTheyAre(nn.Module):
    """Features (N, 16) in the place of pictures, given back."""

    num_features = 16

    def forward(self, x: Tensor) -> Tensor:
        return x


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64)


def sets(seed: int, count: int = 60) -> tuple[Tensor, Tensor]:
    """Features of two sets whose means and covariances differ."""
    a = draw(90, 16, seed=seed) @ draw(16, 16, seed=seed + 100)
    return a, 1.5 * draw(count, 16, seed=seed + 200) @ draw(16, 16, seed=seed + 300) + 0.3


def pair() -> tuple[Tensor, Tensor]:
    """Pictures in [-1, 1] and the same with noise, black within 6 pixels of the border: there our
    padding with zeros and theirs by reflection are one."""
    a = torch.rand(3, 3, 20, 28, generator=generator(1))
    b = (a + 0.2 * torch.randn(a.shape, generator=generator(2))).clamp(0, 1)
    a, b = (2 * nn.functional.pad(x, [6] * 4) - 1 for x in (a, b))
    return a, b


def test_ssim() -> None:
    a, b = pair()
    theirs = structural_similarity_index_measure(
        (a + 1) / 2, (b + 1) / 2, data_range=1.0, reduction="none"
    )
    assert torch.allclose(metrics.ssim(a, b), theirs, atol=1e-5)
    assert theirs.std() > 1e-4 and theirs.max() < 0.99  # so that it says something


def test_psnr() -> None:
    a, b = pair()
    theirs = peak_signal_noise_ratio(
        (a + 1) / 2, (b + 1) / 2, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    assert torch.allclose(metrics.psnr(a, b), theirs, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_distance(seed: int) -> None:
    a, b = sets(seed)
    theirs = FrechetInceptionDistance(feature=AsTheyAre())
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert metrics.frechet(a, b) == pytest.approx(theirs.compute().item(), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
@SAVES
def test_kernel_distance(seed: int) -> None:
    """Theirs is a mean over random subsets; of one, of everything, it is the whole estimator."""
    a, b = sets(seed, count=90)
    theirs = KernelInceptionDistance(feature=AsTheyAre(), subsets=1, subset_size=90)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert metrics.kernel_distance(a, b) == pytest.approx(theirs.compute()[0].item(), rel=1e-9)


@SAVES
def test_kernel_distance_is_what_means_over_subsets_estimate() -> None:
    """Sets of unlike sizes: subsets of 30 agree with the whole on average."""
    a, b = sets(7)
    torch.manual_seed(0)  # theirs draws by the global state
    theirs = KernelInceptionDistance(feature=AsTheyAre(), subsets=2000, subset_size=30)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    mean, std = (one.item() for one in theirs.compute())
    assert abs(metrics.kernel_distance(a, b) - mean) < 4 * std / 2000**0.5


def test_auroc_and_average_precision() -> None:
    """With ties; theirs takes probabilities."""
    scores = torch.randint(0, 12, (80,), generator=generator(5)) / 12
    truth = torch.randint(0, 2, (80,), generator=generator(6))
    theirs = binary_auroc(scores, truth), binary_average_precision(scores, truth)
    assert metrics.auroc(scores, truth) == pytest.approx(theirs[0].item(), abs=1e-6)
    assert metrics.average_precision(scores, truth) == pytest.approx(theirs[1].item(), abs=1e-6)
