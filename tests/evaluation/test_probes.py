"""Linear probes, and what they are compared with."""

from __future__ import annotations

import pytest
import torch
from labelled import draw

from pdae_cli.diffusion.noise import generator
from pdae_cli.errors import UsageError
from pdae_cli.evaluation.probes import attributes, drawn_labels, pixels_and_components, standardised


class TestProbes:
    def test_pixels_in_fewer_numbers_have_the_same_products(self) -> None:
        """Inner products with training pictures are all that a linear probe with decay sees."""
        train, held_out = draw(6, 3, 4, 4), draw(3, 3, 4, 4, seed=1)
        x = train.flatten(1) - train.flatten(1).mean(0)
        y = held_out.flatten(1) - train.flatten(1).mean(0)
        found = pixels_and_components(train, held_out, 4)
        spanned, of_held_out = found["pixels"]
        scale = 4 * len(x) / x.square().sum()
        assert spanned.shape == (6, 5)  # centred pictures depend on each other
        assert torch.allclose(spanned.double() @ spanned.T.double(), scale * x @ x.T, atol=1e-5)
        products = of_held_out.double() @ spanned.T.double()
        assert torch.allclose(products, scale * y @ x.T, atol=1e-4)
        assert spanned.square().sum(1).mean() == pytest.approx(4, rel=1e-5)

    def test_components_are_the_leading_ones_with_their_variances(self) -> None:
        train = draw(30, 3, 4, 4) * torch.linspace(3, 0.1, 48).reshape(3, 4, 4)
        components, of_held_out = pixels_and_components(train, train[:5], 4)["PCA of 4"]
        x = train.flatten(1) - train.flatten(1).mean(0)
        found = torch.linalg.svd(x, full_matrices=False)
        expected = found.U[:, :4] * found.S[:4]
        expected = expected * (4 / expected.square().sum(1).mean()).sqrt()
        assert torch.allclose(components.double().abs(), expected.abs(), atol=1e-4)
        assert torch.allclose(of_held_out, components[:5], atol=1e-4)
        assert components.std(0)[0] > 1.2 * components.std(0)[3]

    def test_standardised_by_training_pictures_alone(self) -> None:
        train, held_out = standardised(draw(50, 3) * 4 + 2, torch.full((2, 3), 2.0).double())
        assert torch.allclose(train.mean(0), torch.zeros(3).double(), atol=1e-9)
        assert torch.allclose(train.std(0, correction=0), torch.ones(3).double())
        assert held_out.abs().max() < 1

    def test_a_number_that_is_the_label_tells_all_and_noise_nothing(self) -> None:
        labels = (draw(400, 2, seed=1) > 0).to(torch.int8)
        told = 2 * labels.float() - 1 + 0.1 * draw(400, 2).float()
        noise = draw(400, 5, seed=2).float()
        split = {"told": (told[:200], told[200:]), "noise": (noise[:200], noise[200:])}
        rows = attributes(["a", "b"], split, labels[:200], labels[200:]).rows
        means = {r["representation"]: r for r in rows if "decay" in r}
        assert means["told"]["auroc"] > 0.999 and means["told"]["average_precision"] > 0.999
        assert 0.4 < means["noise"]["auroc"] < 0.6
        few = [r for r in rows if "labels" in r and r["representation"] == "told"]
        assert [r["labels"] for r in few] == [4, 10, 20, 50, 100]
        assert all(r["auroc"] > 0.99 for r in few)

    def test_labels_of_one_kind_say_nothing(self) -> None:
        z, none = draw(20, 2).float(), torch.zeros(20, 1)
        with pytest.raises(UsageError, match="no label tells"):
            attributes(["a"], {"z": (z, z)}, none, none)

    def test_drawn_labels_are_half_of_each_kind(self) -> None:
        labels = (draw(100, 3) > 0.5).to(torch.int8)
        labels[0] = -1
        left = drawn_labels(labels, 10, generator(0, "few"))
        assert [int((left == k).sum()) for k in (1, 0)] == [15, 15]
        assert torch.equal(left[left >= 0], labels[left >= 0])
