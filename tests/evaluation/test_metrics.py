"""Our measures, and those of torchmetrics and of the authors, which share no code with them.

torchmetrics' FID and KID take any features: here numbers as they are. LPIPS isn't held to its own,
which knows no networks but those whose weights are downloaded; here are closed forms.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from labelled import draw
from model_card import grid_power, speck
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from pdae_cli.diffusion.noise import generator
from pdae_cli.engine.attributes import auroc
from pdae_cli.evaluation import metrics
from pdae_cli.pictures.images import to_pixels

SAVES = pytest.mark.filterwarnings("ignore:Metric .Kernel Inception Distance. will save all")


class AsTheyAre(nn.Module):
    """Features (N, 16) in the place of pictures, given back."""

    num_features = 16

    def forward(self, x: Tensor) -> Tensor:
        return x


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


def test_metrics_agree_with_the_authors(shared: Path) -> None:
    golden = load_file(shared / "golden" / "pdae_data_and_metrics" / "metrics.safetensors")
    sample, target = (golden[f"in.{name}_01"] * 2 - 1 for name in ("sample", "target"))
    assert torch.allclose(metrics.ssim(sample, target), golden["ssim"], rtol=0, atol=5.6e-5)
    assert torch.allclose(metrics.mse(sample, target), golden["mse"], rtol=0, atol=1e-6)


def test_pixels_agree_with_the_authors(shared: Path) -> None:
    golden = load_file(shared / "golden" / "pdae_data_and_metrics" / "to_uint8.safetensors")
    ours = to_pixels(golden["in.x"]).permute(0, 2, 3, 1)
    assert (ours.int() - golden["uint8_nhwc"].int()).abs().max() <= 1  # halves may round apart
    assert (ours == golden["uint8_nhwc"]).float().mean() > 0.999


def test_mse_and_psnr_are_on_the_unit_scale() -> None:
    a, b = torch.full((1, 3, 8, 8), -1.0), torch.full((1, 3, 8, 8), 1.0)
    assert metrics.mse(a, b).item() == 1.0 and metrics.psnr(a, b).item() == 0.0
    assert metrics.psnr(a, a).item() == math.inf
    assert metrics.mse(a, a + 0.2).item() == pytest.approx(0.01)
    a, b = pair()
    theirs = peak_signal_noise_ratio(
        (a + 1) / 2, (b + 1) / 2, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    assert torch.allclose(metrics.psnr(a, b), theirs, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@SAVES
def test_frechet_and_kernel_distance(seed: int) -> None:
    """Theirs of the kernel is a mean over random subsets; of one, of all, it is the estimator."""
    a, b = sets(seed, count=90)
    b[:, :3] *= seed < 2  # once with a covariance that lacks rank
    frechet = FrechetInceptionDistance(feature=AsTheyAre())
    kernel = KernelInceptionDistance(feature=AsTheyAre(), subsets=1, subset_size=90)
    for theirs in (frechet, kernel):
        theirs.update(a, real=True)
        theirs.update(b, real=False)
    assert metrics.frechet(a, b) == pytest.approx(frechet.compute().item(), rel=1e-6)
    x = draw(90, 16, seed=seed)
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert metrics.kernel_distance(a, b) == pytest.approx(kernel.compute()[0].item(), rel=1e-9)


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
    assert auroc(scores, truth) == pytest.approx(theirs[0].item(), abs=1e-6)
    assert metrics.average_precision(scores, truth) == pytest.approx(theirs[1].item(), abs=1e-6)
    assert math.isnan(auroc(scores, torch.ones(80)))
    assert math.isnan(metrics.average_precision(scores, torch.zeros(80)))


def test_artefacts_of_a_network_stand_out() -> None:
    """Of noise nothing does; a faint checkerboard and a faint dot at one place of all do, and
    neither is the other."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 3, 32, 32, generator=generator)
    board = torch.tensor([1.0, -1.0]).repeat(16)
    dotted = noise.clone()
    dotted[:, :, 11, 20] += 3
    assert grid_power(noise) < 2 and speck(noise) < 2
    assert grid_power(noise + 0.2 * board * board[:, None]) > 10
    assert grid_power(noise + 0.2 * board.roll(1)) > 10  # stripes
    quarter = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(8)
    assert grid_power(noise + 0.2 * quarter) > 10
    assert grid_power(dotted) < 2 and speck(dotted) > 2


def test_equal_share_counts_eight_bit_values() -> None:
    a = torch.zeros(1, 3, 4, 4)
    b = a.clone()
    b[0, 0] += 0.1
    assert metrics.equal_share(a, b).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize(("move", "most"), [(1.0, 1.15), (0.0, 1.7)])
def test_kernel_parts_tell_how_sure_the_distance_is(move: float, most: float) -> None:
    """Its spread over many draws, and the errors estimated in each; between sets that are
    alike, where first order is none, the estimate is too large, never too small."""
    found, errors = [], []
    for k in range(400):
        a, b = draw(40, 3, seed=k), 1.5 * draw(30, 3, seed=1000 + k) + move
        a = a if move else 1.5 * a
        parts = metrics.kernel_parts(a, b)
        found.append(metrics.kernel_distance(a, b))
        errors.append(sum(4 * part.var() / len(part) for part in parts))
        assert found[-1] == pytest.approx(sum(part.mean().item() for part in parts))
    ratio = torch.stack(errors).mean().sqrt() / torch.tensor(found).std()
    assert 0.93 < ratio < most


def test_precision_and_recall_by_counting() -> None:
    """Each picture's third nearest of its own set, by sorting all distances."""

    def away(x: Tensor, y: Tensor) -> float:
        return math.dist(x.tolist(), y.tolist())

    def covered(by: Tensor, ones: Tensor) -> float:
        radii = [sorted(away(x, y) for y in by)[3] for x in by]
        inside = [any(away(x, y) <= r for y, r in zip(by, radii, strict=True)) for x in ones]
        return sum(inside) / len(ones)

    real, made = draw(30, 6), 1.2 * draw(24, 6, seed=1) + 0.5
    made[:6] = made[0]  # a few that are all alike
    expected = covered(real, made), covered(made, real)
    assert metrics.precision_recall(real, made) == pytest.approx(expected)
    assert 0 < expected[0] < expected[1] < 1  # wider: it covers more than it hits
    assert metrics.precision_recall(real, real) == (1, 1)
    assert metrics.precision_recall(real, real + 1000) == (0, 0)


class TestFeatureDistance:
    """LPIPS's formula with all of its learned weights 1 (Zhang et al. 2018, eq. 1)."""

    def test_only_directions_count_either_way_and_at_most_4_a_layer(self) -> None:
        shapes = (2, 4, 6, 6), (2, 3, 3, 5)
        a, b = ([draw(*shape, seed=seed) for shape in shapes] for seed in (3, 4))
        far = metrics.feature_distance
        assert far(a, a).tolist() == [0, 0] and far(a, [3 * one for one in a]).max() < 1e-12
        assert torch.equal(far(a, b), far(b, a)) and far(a, b).shape == (2,)
        assert far(a, [-one for one in a]).tolist() == pytest.approx([8, 8], rel=1e-6)

    def test_by_hand(self) -> None:
        """One place at a right angle (2), one alike (0), one without features beside one with (1),
        averaged over three places; a second layer adds its own."""
        a = torch.tensor([[[[1.0, 0.6, 0.0]], [[0.0, 0.8, 0.0]]]])
        b = torch.tensor([[[[0.0, 3.0, 5.0]], [[7.0, 4.0, 0.0]]]])
        assert metrics.feature_distance([a], [b]).item() == pytest.approx(1)
        again = metrics.feature_distance([a, a[..., :1]], [b, b[..., :1]])
        assert again.item() == pytest.approx(1 + 2)
