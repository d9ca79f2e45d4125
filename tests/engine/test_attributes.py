"""Attributes: how far an edit goes, what it leaves alone, and directions found without labels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from torch import Tensor

from pdae_cli.checkpoints import read_attributes, write_attributes
from pdae_cli.diffusion.noise import generator
from pdae_cli.engine.attributes import (
    Attributes,
    Scale,
    both_kinds,
    cell_weights,
    correlations,
    fit,
    fit_numbers,
    principal,
    variation,
)
from pdae_cli.engine.codes import Codes
from pdae_cli.errors import UsageError

NAMES = ["Smiling", "Male", "Young", "Hat"]
SCALES = [0.3, -1.0, Scale(1.5, "sd"), Scale(-3, "sd")]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def attributes(z: Tensor | None = None) -> Attributes:
    """Four correlated attributes of 8 dimensions, with their scores' variation over z."""
    weight = normal(4, 8) + 2 * normal(1, 8, seed=1)
    made = Attributes(list(NAMES), weight, normal(4, seed=2))
    scores = made.scores(normal(500, 8, seed=3) if z is None else z)
    made.facts = {name: variation(scores[:, row]) for row, name in enumerate(NAMES)}
    return made


class TestScales:
    def test_a_number_is_the_papers(self) -> None:
        known, z = attributes(), normal(5, 8)
        w = known.weight[2]
        expected = z + 0.3 * math.sqrt(8) * w / w.norm()
        assert torch.allclose(known.move(z, "young", 0.3), expected, atol=1e-6)
        expected = z + 0.3 * math.sqrt(512) * w / w.norm()
        assert torch.allclose(known.move(z, "young", 0.3, 512), expected, atol=1e-5)

    @pytest.mark.parametrize("count", [-2.0, 0.0, 1.0, 1.5])
    @pytest.mark.parametrize("keep", [[], ["Male"], ["Male", "Young"]])
    def test_deviations_move_the_score_by_just_as_many(self, count: float, keep: list[str]) -> None:
        """Also where other scores are kept, whatever length other programs take."""
        z = normal(500, 8, seed=4)
        known = attributes(z)
        moved = known.move(z, "smiling", Scale(count, "sd"), 512, keep)
        change = (known.scores(moved) - known.scores(z))[:, 0]
        sd = known.scores(z)[:, 0].double().std(correction=0).item()
        assert change.tolist() == pytest.approx([count * sd] * 500, abs=1e-5)

    def test_deviations_need_to_know_them(self) -> None:
        known, z = attributes(), normal(1, 8)
        for facts in ({}, {"Smiling": None}, {"Smiling": {"auroc": 0.9}}, *(
            {"Smiling": {"score_mean": 0.0, "score_sd": sd}} for sd in (0, -1, "1", math.inf, None)
        )):  # fmt: skip
            known.facts = facts  # type: ignore[assignment]
            assert known.spread("smiling") is None
            with pytest.raises(UsageError, match="attributes fit"):
                known.move(z, "smiling", Scale(1, "sd"))
            assert known.move(z, "smiling", 1.0).isfinite().all()
        with pytest.raises(UsageError, match="unknown unit 'years'"):
            Scale(10, "years")  # type: ignore[arg-type]

    @pytest.mark.parametrize("scale", [1e39, -1e38, Scale(1e39, "sd"), Scale(1e308, "sd")], ids=str)
    def test_none_leaves_what_cant_be_a_number(self, scale: float | Scale) -> None:
        """Whatever is written can be read again."""
        known, z = attributes(), normal(2, 8)
        with pytest.raises(UsageError, match="choose a smaller scale"):
            known.move(z, "smiling", scale)
        assert known.move(z, "smiling", 1e6).isfinite().all()

    def test_weights_of_0_have_no_direction(self) -> None:
        known = attributes()
        known.weight[0] = 0
        for keep in ([], ["Male"]):
            with pytest.raises(UsageError, match="Smiling has no direction"):
                known.move(normal(1, 8), "Smiling", 0.3, keep=keep)
        assert known.move(normal(1, 8), "Young", 0.3, keep=["Smiling"]).isfinite().all()


class TestKeep:
    @pytest.mark.parametrize("scale", SCALES, ids=str)
    @pytest.mark.parametrize("keep", [["Male"], ["Male", "hat"], ["Male", "Young", "Hat"]])
    def test_kept_scores_stay(self, scale: float, keep: list[str]) -> None:
        known, z = attributes(), normal(20, 8, seed=5)
        moved = known.move(z, "Smiling", scale, keep=keep)
        change = (known.scores(moved) - known.scores(z)).abs()
        assert change[:, [known.index(name) for name in keep]].max() < 1e-5
        assert change[:, 0].min() > 0.01

    def test_what_is_left_is_the_nearest_such_direction(self) -> None:
        """Along the least squares' residual: of all unit vectors that keep the scores, nearest to
        w/|w|."""
        known = attributes()
        direction = known.direction("Smiling", ["Male", "Hat"])
        unit = (known.weight[0] / known.weight[0].norm()).double()
        kept = known.weight[[1, 3]].double().T
        solution = torch.linalg.lstsq(kept, unit[:, None]).solution
        left = unit - (kept @ solution)[:, 0]
        assert left.norm() < 0.99
        assert torch.allclose(direction, left / left.norm(), atol=1e-12)
        twice = known.direction("Smiling", ["Male", "Hat", "male"])
        assert torch.allclose(twice, direction, atol=1e-12)

    def test_a_number_goes_as_far_as_without(self) -> None:
        known, z = attributes(), normal(5, 8)
        for keep in ([], ["Male"], ["Male", "Hat"]):
            step = known.move(z, "Smiling", 0.3, keep=keep) - z
            assert step.norm(dim=1).tolist() == pytest.approx([0.3 * math.sqrt(8)] * 5, abs=1e-5)

    @pytest.mark.parametrize("keep", [["Smiling"], ["Male", "smiling"]])
    def test_what_is_kept_cant_move(self, keep: list[str]) -> None:
        with pytest.raises(UsageError, match="can't move"):
            attributes().move(normal(1, 8), "Smiling", 0.3, keep=keep)

    def test_nor_what_the_kept_ones_make_up(self) -> None:
        known = attributes()
        known.weight[0] = 2 * known.weight[1] - 0.5 * known.weight[2]
        assert known.move(normal(1, 8), "Smiling", 0.3, keep=["Male"]).isfinite().all()
        with pytest.raises(UsageError, match="Male, Young"):
            known.move(normal(1, 8), "Smiling", 0.3, keep=["Male", "Young"])

    def test_through_the_model(self) -> None:
        model = tiny_model()
        assert model.attributes is not None
        codes = Codes(z=normal(4, 6), x_T=normal(4, 3, 32, 32), picture_shas=("",) * 4)
        changes = [("smiling", 0.4), ("blond hair", -0.3)]
        before = model.scores(codes)
        kept = (model.scores(model.manipulate(codes, changes, ["5_o_Clock_Shadow"])) - before).abs()
        free = (model.scores(model.manipulate(codes, changes)) - before).abs()
        assert kept[:, 2].max() < 1e-5 < 0.01 < free[:, 2].min()
        model.attributes.facts["Smiling"] = {"score_mean": 0, "score_sd": 2.0}
        moved = model.scores(model.manipulate(codes, [("smiling", Scale(1.5, "sd"))]))
        assert torch.allclose(moved[:, 0] - before[:, 0], torch.full((4,), 3.0), atol=1e-5)


class TestFit:
    def test_numpys_floats_are_taken(self) -> None:
        z, labels = normal(40, 3), (normal(40, 1, seed=1) > 0).long()
        for fitted, target in ((fit, labels), (fit_numbers, normal(40, 1).double())):
            plain, double = (fitted(["a"], one, target, one, target) for one in (z, z.double()))
            assert torch.equal(plain.weight, double.weight) and plain.facts == double.facts

    def test_facts(self) -> None:
        z, held = normal(800, 8, seed=6).split([600, 200])
        truth = torch.cat([z, held]) @ attributes().weight[:2].T
        labels = (truth + 0.5 * normal(800, 2, seed=7) > 0).to(torch.int8)
        found = fit(["a", "b"], z, labels[:600], held, labels[600:])
        scores = found.scores(z).double()
        for row, name in enumerate("ab"):
            facts = found.facts[name]
            assert facts["held_out"] == 200 and 60 < facts["held_out_with"] < 140
            assert 0.8 < facts["balanced_accuracy"] < facts["auroc"] < 1
            spread = (scores[:, row].mean().item(), scores[:, row].std(correction=0).item())
            assert found.spread(name) == pytest.approx(spread)

    def test_a_model_whose_held_out_pictures_are_of_one_kind_can_be_read(
        self, tmp_path: Path
    ) -> None:
        """Nothing is known of how it does then: JSON has no NaN."""
        z, labels = normal(10, 8), torch.tensor([[0], [1]] * 5, dtype=torch.int8)
        found = fit(["it"], z, labels, z[:1], labels[:1])
        assert found.facts["it"]["auroc"] is found.facts["it"]["balanced_accuracy"] is None
        write_attributes(tmp_path, found)
        assert read_attributes(tmp_path / "attributes.safetensors").facts == found.facts

    def test_what_nothing_in_z_tells_is_refused(self) -> None:
        """Its direction would be none, which only an edit would find out."""
        z, labels = torch.zeros(10, 8), torch.tensor([[0], [1]] * 5, dtype=torch.int8)
        with pytest.raises(UsageError, match="it has no direction"):
            fit(["it"], z, labels, z[:1], labels[:1])
        with pytest.raises(UsageError, match="it has no direction"):
            fit_numbers(["it"], z, labels.double(), z[:1], labels[:1].double())

    @pytest.mark.parametrize(("label", "kind"), [(0, "with"), (1, "without"), (-1, "with")])
    def test_both_kinds_are_needed(self, label: int, kind: str) -> None:
        """What all have, none, or nobody knows, teaches nothing."""
        labels = torch.full((5, 1), label, dtype=torch.int8)
        assert not both_kinds(labels).any()
        assert both_kinds(torch.tensor([[1, 1], [0, -1], [-1, 1]])).tolist() == [True, False]
        with pytest.raises(UsageError, match=f"it: no picture {kind} it"):
            fit(["it"], normal(5, 8), labels, normal(5, 8), labels)


def test_correlations_are_pearsons_of_the_scores() -> None:
    """One that doesn't vary goes with nothing."""
    known, z = attributes(), normal(50, 8)
    expected = torch.corrcoef(known.scores(z).double().T)
    assert torch.allclose(correlations(known, z), expected, atol=1e-9)
    assert correlations(known, z[:1]).tolist() == [[0.0] * 4] * 4


class TestPrincipal:
    def z(self, count: int = 400, size: int = 8) -> Tensor:
        """Codes that vary by another amount along each of some oblique directions."""
        axes, _ = torch.linalg.qr(normal(size, size, seed=8))
        return normal(count, size, seed=9) * torch.linspace(3, 0.5, size) @ axes + 2

    @pytest.mark.parametrize("count", [400, 5])
    def test_are_those_of_the_singular_value_decomposition(self, count: int) -> None:
        z = self.z(count)
        found = principal(z, 4)
        centred = z.double() - z.double().mean(dim=0)
        _, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
        cosines = (torch.nn.functional.normalize(found.weight.double(), dim=1) * axes[:4]).sum(1)
        assert cosines.abs().tolist() == pytest.approx([1] * 4, abs=1e-6)
        shares = (lengths.square() / lengths.square().sum())[:4].tolist()
        assert [found.facts[name]["explained"] for name in found.names] == pytest.approx(shares)

    def test_directions_are_orthonormal_and_scores_count_in_deviations(self) -> None:
        z = self.z()
        found = principal(z, 8)
        units = torch.stack([found.direction(name) for name in found.names])
        assert torch.allclose(units @ units.T, torch.eye(8, dtype=torch.float64), atol=1e-6)
        scores = found.scores(z)
        assert torch.allclose(scores.mean(dim=0), torch.zeros(8), atol=1e-5)
        assert torch.allclose(scores.std(dim=0, correction=0), torch.ones(8), atol=1e-5)
        moved = found.move(z, "pca_3", Scale(2, "sd"))
        change = torch.zeros(8).index_fill(0, torch.tensor(2), 2.0)
        assert torch.allclose(found.scores(moved) - scores, change.expand(400, 8), atol=1e-4)

    def test_are_no_classifiers(self) -> None:
        """Also under another name; experiments count sides of classifiers alone."""
        known = principal(self.z(), 2).renamed("pca_1", "light")
        known = known.merged(Attributes(["Hat", "age"], normal(2, 8), torch.zeros(2)))
        known.facts["age"] = {"unit": "years"}
        assert [known.names[row] for row in known.logits()] == ["Hat"]

    def test_signs_are_settled(self) -> None:
        """Neither order nor a mirror image of the codes turns a direction around."""
        z = self.z()
        for other in (z.flip(0), 2 * z.mean(0) - z):
            assert torch.allclose(principal(z, 4).weight, principal(other, 4).weight, atol=1e-4)

    @pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (5, 4), (400, 8)])
    def test_no_more_than_there_are(self, count: int, most: int) -> None:
        z = self.z(count)
        with pytest.raises(UsageError, match=f"vary in {most} directions"):
            principal(z, most + 1)
        if most:
            assert principal(z, most).weight.isfinite().all()


class TestNames:
    def test_they_match_without_case_and_signs(self) -> None:
        known = attributes().renamed("hat", "5_o_Clock_Shadow")
        for name in ("Smiling", "SMILING", "smil-ing"):
            assert known.index(name) == 0
        assert known.index("5 o clock shadow") == 3
        for wrong, hint in (("smilling", "did you mean Smiling"), ("zzz", "--list")):
            with pytest.raises(UsageError, match=hint):
                known.index(wrong)

    def test_merge_replaces_and_remove_removes(self) -> None:
        other = Attributes(["smiling"], torch.full((1, 8), 7.0), torch.ones(1))
        merged = attributes().merged(other)
        assert merged.names == ["Male", "Young", "Hat", "smiling"]
        assert merged.weight[3].tolist() == [7.0] * 8
        assert merged.without(["SMILING", "young"]).names == ["Male", "Hat"]

    def test_a_new_name_takes_the_facts_along(self) -> None:
        known = attributes()
        renamed = known.renamed("SMILING", "Joy")
        assert renamed.names == ["Joy", "Male", "Young", "Hat"]
        assert renamed.facts["Joy"] == known.facts["Smiling"]
        assert torch.equal(renamed.weight, known.weight)
        assert known.renamed("smiling", "smiling").names[0] == "smiling"

    @pytest.mark.parametrize("new", ["male", "MALE", "", "_", "a=b", "x" * 201, "a\nb", "\x1b[31m"])
    def test_names_that_options_cant_tell_are_refused(self, new: str) -> None:
        with pytest.raises(UsageError):
            attributes().renamed("smiling", new)
        with pytest.raises(UsageError):
            attributes().renamed("nobody", "fine")


def test_fit_finds_the_direction() -> None:
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


def test_groups_dont_bend_the_direction() -> None:
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


def test_every_cell_weighs_the_same() -> None:
    labels = torch.tensor([[1], [1], [1], [0], [1], [0], [-1]], dtype=torch.int8)
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    weights = cell_weights(labels, groups)[:, 0]
    assert weights.tolist() == pytest.approx([1 / 12] * 3 + [0.25] * 3 + [0])
