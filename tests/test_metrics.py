"""Metrics and attributes against independent references."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pdae_cli.diffusion.noise import generator
from pdae_cli.engine.attributes import Attributes, cell_weights, fit
from pdae_cli.errors import UsageError
from pdae_cli.evaluation import metrics
from pdae_cli.pictures.images import to_pixels


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    a = torch.rand(2, 3, 32, 32, generator=generator(1)) * 2 - 1
    return a, (a + 0.2 * torch.randn(a.shape, generator=generator(2))).clamp(-1, 1)


def test_mse_and_psnr_are_on_the_unit_scale() -> None:
    a, b = torch.full((1, 3, 8, 8), -1.0), torch.full((1, 3, 8, 8), 1.0)
    assert metrics.mse(a, b).item() == 1.0 and metrics.psnr(a, b).item() == 0.0
    assert metrics.psnr(a, a).item() == math.inf
    assert metrics.mse(a, a + 0.2).item() == pytest.approx(0.01)


def test_ssim_agrees_with_scikit_image_away_from_the_border() -> None:
    from skimage.metrics import structural_similarity

    a, b = pair()
    for x, y in zip(a, b, strict=True):
        _, full = structural_similarity(
            ((x + 1) / 2).permute(1, 2, 0).numpy(),
            ((y + 1) / 2).permute(1, 2, 0).numpy(),
            channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
            data_range=1.0, full=True,
        )  # fmt: skip
        # Ours pads with zeros, theirs mirrors: compare what no padding reaches, through a crop.
        inner = float(full[5:-5, 5:-5].mean())
        crop = ssim_map(x[None], y[None])[0, :, 5:-5, 5:-5].mean()
        assert crop.item() == pytest.approx(inner, abs=1e-4)


def ssim_map(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Our SSIM at every position, by asking for the mean of one position at a time."""
    n, c, height, width = a.shape
    result = torch.zeros(n, c, height, width)
    for y in range(5, height - 5):
        for x in range(5, width - 5):
            window = (slice(None), slice(None), slice(y - 5, y + 6), slice(x - 5, x + 6))
            result[:, :, y, x] = _center(a[window], b[window])
    return result


def _center(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """SSIM of one 11x11 window, from the definition."""
    a, b = (a + 1) / 2, (b + 1) / 2
    line = torch.exp(-((torch.arange(11) - 5.0) ** 2) / 4.5)
    weight = line[:, None] * line / line.sum() ** 2

    def mean(x: torch.Tensor) -> torch.Tensor:
        return (x * weight).sum((2, 3))

    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    return ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4)) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))


def test_ssim_is_the_mean_of_its_definition() -> None:
    """On pictures whose border is black in both, zero padding is no padding."""
    a, b = (torch.nn.functional.pad(x[..., 10:-10, 10:-10] + 1, [10] * 4) - 1 for x in pair())
    inner = ssim_map(a, b)[:, :, 5:-5, 5:-5].sum((1, 2, 3))
    outside = 3 * (32**2 - 22**2)  # both black: similarity 1
    expected = (inner + outside) / (3 * 32**2)
    assert torch.allclose(metrics.ssim(a, b), expected, atol=1e-4)


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


def test_equal_share_counts_eight_bit_values() -> None:
    a = torch.zeros(1, 3, 4, 4)
    b = a.clone()
    b[0, 0] += 0.1
    assert metrics.equal_share(a, b).item() == pytest.approx(2 / 3)


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    scores = torch.randint(0, 8, (60,), generator=generator(5)).float()
    truth = torch.randint(0, 2, (60,), generator=generator(6))
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[truth == 1].tolist()
        for n in scores[truth == 0].tolist()
    ]
    assert metrics.auroc(scores, truth) == pytest.approx(sum(pairs) / len(pairs))
    assert math.isnan(metrics.auroc(scores, torch.ones(60)))


class TestFeatureDistance:
    """LPIPS's formula with all of its learned weights 1 (Zhang et al. 2018, eq. 1)."""

    def layers(self, seed: int = 3) -> list[torch.Tensor]:
        shapes = (2, 4, 6, 6), (2, 3, 3, 5)
        return [torch.randn(shape, generator=generator(seed)) for shape in shapes]

    def test_nothing_is_far_from_itself_or_from_a_multiple_of_itself(self) -> None:
        a = self.layers()
        assert metrics.feature_distance(a, a).tolist() == [0, 0]
        longer = [3 * one for one in a]  # only directions count
        assert metrics.feature_distance(a, longer).max() < 1e-12

    def test_it_is_symmetric_and_at_most_4_a_layer(self) -> None:
        a, b = self.layers(), self.layers(4)
        found = metrics.feature_distance(a, b)
        assert torch.equal(found, metrics.feature_distance(b, a)) and found.shape == (2,)
        opposite = metrics.feature_distance(a, [-one for one in a])
        assert opposite.tolist() == pytest.approx([4 * len(a)] * 2, rel=1e-6)

    def test_by_hand(self) -> None:
        """One place at a right angle (2), one alike (0), one without features beside one with (1),
        averaged over three places; a second layer adds its own."""
        a = torch.tensor([[[[1.0, 0.6, 0.0]], [[0.0, 0.8, 0.0]]]])
        b = torch.tensor([[[[0.0, 3.0, 5.0]], [[7.0, 4.0, 0.0]]]])
        assert metrics.feature_distance([a], [b]).item() == pytest.approx(1)
        again = metrics.feature_distance([a, a[..., :1]], [b, b[..., :1]])
        assert again.item() == pytest.approx(1 + 2)


class TestAttributes:
    def attributes(self) -> Attributes:
        return Attributes(["Smiling", "5_o_Clock_Shadow"], torch.eye(2), torch.zeros(2))

    @pytest.mark.parametrize("name", ["Smiling", "smiling", "SMILING", "5 o clock shadow"])
    def test_names_match_without_case_and_underscores(self, name: str) -> None:
        assert self.attributes().index(name) in (0, 1)

    def test_wrong_names_list_near_ones(self) -> None:
        with pytest.raises(UsageError, match="did you mean Smiling"):
            self.attributes().index("smilling")
        with pytest.raises(UsageError, match="--list"):
            self.attributes().index("zzz")

    def test_fit_finds_the_direction(self) -> None:
        """Labels drawn from a known direction give it back, and unknown labels are left out."""
        z = torch.randn(2000, 5, generator=generator(7))
        truth = torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0])
        labels = (z @ truth > 0).to(torch.int8)[:, None]
        labels[:200] = -1
        z[:200] += 100  # would ruin the fit
        found = fit(["it"], z, labels, z[1000:], labels[1000:])
        cosine = torch.cosine_similarity(found.weight[0], truth, dim=0)
        assert cosine > 0.99 and found.facts["it"]["auroc"] > 0.99
        assert found.facts["it"]["train_with"] + found.facts["it"]["train_without"] == 1800

    def test_groups_dont_bend_the_direction(self) -> None:
        """A group that goes with the label shifts z along its own axis; balancing cancels it."""
        draws = generator(8)
        group = (torch.rand(4000, generator=draws) < 0.5).long()
        chance = torch.where(group == 1, 0.9, 0.1)
        label = (torch.rand(4000, generator=draws) < chance).to(torch.int8)
        z = torch.randn(4000, 2, generator=draws)
        z[:, 0] += 2 * label
        z[:, 1] += 2 * group
        balanced = fit(["it"], z, label[:, None], z, label[:, None], group)
        mixed = fit(["it"], z, label[:, None], z, label[:, None])
        lean = [abs(one.weight[0, 1] / one.weight[0, 0]).item() for one in (balanced, mixed)]
        assert lean[0] < 0.1 < lean[1]

    def test_every_cell_weighs_the_same(self) -> None:
        labels = torch.tensor([[1], [1], [1], [0], [1], [0], [-1]], dtype=torch.int8)
        groups = torch.tensor([0, 0, 0, 0, 1, 1, 1])
        weights = cell_weights(labels, groups)[:, 0]
        assert weights.tolist() == pytest.approx([1 / 12] * 3 + [0.25] * 3 + [0])

    def test_merge_replaces_and_remove_removes(self) -> None:
        other = Attributes(["smiling"], torch.full((1, 2), 7.0), torch.ones(1))
        merged = self.attributes().merged(other)
        assert merged.names == ["5_o_Clock_Shadow", "smiling"]
        assert merged.weight[1].tolist() == [7.0, 7.0]
        assert merged.without(["SMILING"]).names == ["5_o_Clock_Shadow"]
