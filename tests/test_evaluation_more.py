"""Probes, stages, samples and semantics: closed forms and exact cases."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from torch import Tensor

from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.sampling import Sampling
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError, UsageError
from pdae_cli.evaluation import metrics
from pdae_cli.evaluation.judge import Judge, read_judge, write_judge
from pdae_cli.evaluation.probes import attributes, drawn_labels, pixels_and_components, standardised
from pdae_cli.evaluation.reconstruction import reconstruction
from pdae_cli.evaluation.samples import samples
from pdae_cli.evaluation.semantics import semantics, shares
from pdae_cli.evaluation.stages import stages

FAST = Sampling(inference_steps=3, solver="ddim")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "test"), dtype=torch.float64)


def faces(count: int = 4) -> Tensor:
    return draw(count, 3, 32, 32).float().tanh()


class TestSets:
    """Distances of sets of features."""

    def test_frechet_of_normal_sets_with_diagonal_covariances(self) -> None:
        """|m|^2 + sum (s_a - s_b)^2, of sets made to have exactly these moments."""
        a = draw(500, 4)
        a = a - a.mean(0)
        lengths, axes = torch.linalg.eigh(torch.cov(a.T))
        a = a @ axes / lengths.sqrt()  # covariance: the identity
        s_a, s_b = torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([2.0, 2, 1, 0]).double()
        move = torch.tensor([0.5, -1, 0, 2]).double()
        expected = move.square().sum() + (s_a - s_b).square().sum()
        assert metrics.frechet(a * s_a, a * s_b + move) == pytest.approx(expected.item(), rel=1e-6)
        assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-9)

    def test_frechet_is_the_papers_formula(self) -> None:
        """tr (A B)^1/2 by the eigenvalues of A B, which needn't be symmetric."""
        a, b = draw(50, 3) @ draw(3, 3, seed=1), draw(60, 3, seed=2) @ draw(3, 3, seed=3)
        A, B = torch.cov(a.T), torch.cov(b.T)
        root = torch.linalg.eigvals(A @ B).sqrt().real.sum()
        expected = (a.mean(0) - b.mean(0)).square().sum() + A.trace() + B.trace() - 2 * root
        assert metrics.frechet(a, b) == pytest.approx(expected.item(), rel=1e-6)

    def test_kernel_distance_is_the_double_sum_without_the_diagonal(self) -> None:
        a, b = draw(5, 3), draw(4, 3, seed=1) + 1

        def k(x: Tensor, y: Tensor) -> float:
            return ((x @ y).item() / 3 + 1) ** 3

        within = [
            sum(k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j)
            / (len(x) * (len(x) - 1))
            for x in (a, b)
        ]
        between = sum(k(x, y) for x in a for y in b) / 20
        assert metrics.kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between)

    def test_kernel_distance_of_one_distribution_is_none_on_average(self) -> None:
        found = [
            metrics.kernel_distance(draw(20, 3, seed=k), draw(20, 3, seed=1000 + k))
            for k in range(300)
        ]
        assert abs(sum(found) / 300) < 0.1 < max(found) and min(found) < 0

    @pytest.mark.parametrize(("move", "most"), [(1.0, 1.15), (0.0, 1.7)])
    def test_kernel_parts_tell_how_sure_the_distance_is(self, move: float, most: float) -> None:
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

    def test_precision_and_recall(self) -> None:
        """All of one mode of two: everything made is real, half of what is real is made."""
        modes = torch.cat([draw(40, 2), draw(40, 2, seed=1) + 100])
        assert metrics.precision_recall(modes, modes) == (1, 1)
        precision, recall = metrics.precision_recall(modes, draw(40, 2, seed=2) * 0.5)
        assert precision == 1 and 0.2 < recall <= 0.5
        assert metrics.precision_recall(modes, modes + 1000) == (0, 0)

    def test_precision_and_recall_by_counting(self) -> None:
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

    def test_average_precision(self) -> None:
        """By hand: positives at ranks 1 and 3 of 4; ties as one; chance is the share."""
        truth = torch.tensor([1, 0, 1, 0])
        scores = torch.tensor([4.0, 3, 2, 1])
        assert metrics.average_precision(scores, truth) == pytest.approx((1 + 2 / 3) / 2)
        assert metrics.average_precision(torch.zeros(4), truth) == pytest.approx(0.5)
        assert metrics.average_precision(truth.float(), truth) == 1
        assert math.isnan(metrics.average_precision(scores, torch.zeros(4)))


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


class TestStages:
    def test_the_whole_is_plain_decoding_and_nothing_is_eps_theta(self, model: Model) -> None:
        x_0 = faces(2)
        rows = stages(model, x_0, edges=(0, 500, 999), sampling=FAST).rows
        named = {(r["guide_from"], r["guide_until"]): r for r in rows}
        assert set(named) == {(None, None), (500, 0), (999, 0), (999, 500)}
        codes = model.encode(x_0, FAST)
        back = model.decode(codes)
        assert named[999, 0]["mse_inferred"] == metrics.mse(back, x_0).mean().item()
        alone = metrics.mse(model.decode(codes, guidance=0.0), x_0).mean().item()
        assert named[None, None]["mse_inferred"] == alone
        assert len({r["mse"] for r in rows}) == 4

    def test_agreement_is_whole_where_scores_dont_depend_on_pictures(self, model: Model) -> None:
        assert model.attributes is not None
        model.attributes.weight.zero_()
        rows = stages(model, faces(2), edges=(0, 999), sampling=FAST).rows
        assert {r["agreement"] for r in rows} == {1.0}
        model.attributes = None
        assert "agreement" not in stages(model, faces(2), edges=(0, 999), sampling=FAST).rows[0]

    def test_every_pair_starts_from_the_same_x_T(self, model: Model) -> None:
        """What guidance can't change, as G_psi is 0, is the same to the bit in every row."""
        assert model.gradient_estimator is not None
        for parameter in model.gradient_estimator.parameters():
            parameter.zero_()
        finding = stages(model, faces(2), edges=(0, 500, 999), sampling=FAST)
        assert len({r["mse"] for r in finding.rows}) == 1 and len(finding.rows) == 4
        assert "takes nothing off the error" in finding.words

    def test_the_part_that_gains_most_is_named(self, model: Model) -> None:
        """Of parts that take 1, 6 and 2 off an error of 10, of which the whole takes 8."""
        from pdae_cli.evaluation.stages import _words

        errors = {None: 10, (999, 0): 2, (300, 0): 9, (600, 300): 4, (999, 600): 8, (600, 0): 1}
        rows = [
            {"mse": error, "guide_from": pair and pair[0], "guide_until": pair and pair[1]}
            for pair, error in errors.items()
        ]
        assert "guiding at 600 >= t >= 300 alone takes 75%" in _words(rows, [0, 300, 600, 999])

    def test_edges_are_those_of_the_models_schedule(self, model: Model) -> None:
        config = replace(model.config, schedule=replace(model.config.schedule, timesteps=100))
        rows = stages(replace(model, config=config), faces(1), sampling=FAST).rows
        assert sorted({r["guide_from"] for r in rows[1:]}) == [20, 40, 59, 79, 99]

    @pytest.mark.parametrize("edges", [(), (500,), (500, 500), (-1, 500), (0, 1000)])
    def test_edges_that_make_no_pair(self, model: Model, edges: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match=r"two edges or more, of 0 … 999"):
            stages(model, faces(2), edges=edges)

    def test_without_a_gradient_estimator_it_is_refused(self, model: Model) -> None:
        model.gradient_estimator = None
        with pytest.raises(ModelError, match="no G_psi"):
            stages(model, faces(2))


def judge(size: int = 32) -> Judge:
    torch.manual_seed(0)
    return Judge(["a", "b"], size).eval().requires_grad_(False)


class TestJudge:
    """Its distance of pictures, in the features of all of its layers."""

    def test_layers_are_what_each_stage_hands_to_the_next(self) -> None:
        found = judge().layers(faces(2))
        assert [tuple(one.shape[1:]) for one in found] == [
            (32, 16, 16), (64, 8, 8), (128, 4, 4), (192, 2, 2)
        ]  # fmt: skip
        assert torch.equal(found[-1].mean((2, 3)).double(), judge().features(faces(2)))

    def test_a_network_by_hand(self) -> None:
        """One layer that adds up a picture's channels, and takes the same from a second one: at
        each place its features are (s, 0) or (0, -s), so pictures of one sign are at no distance
        and those of two signs at 2."""
        it = judge()
        it.body = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.ReLU())
        with torch.no_grad():
            it.body[0].weight[0], it.body[0].weight[1] = 1.0, -1.0
        light, dark = torch.full((1, 3, 32, 32), 0.5), torch.full((1, 3, 32, 32), -0.3)
        half = torch.cat([light[..., :16], dark[..., :16]], dim=3)
        assert it.distance(light, 0.4 * light).item() == pytest.approx(0, abs=1e-12)
        assert it.distance(light, dark).item() == pytest.approx(2)
        assert it.distance(light, half).item() == pytest.approx(1)

    def test_more_noise_is_farther(self) -> None:
        x, noise = 0.5 * faces(), draw(4, 3, 32, 32, seed=5).float()
        found = [judge().distance(x, x + much * noise).mean() for much in (0, 0.05, 0.2, 0.8)]
        assert found[0] == 0 and found == sorted(found) and len(set(found)) == 4

    def test_what_8_bits_dont_show_is_no_distance(self) -> None:
        x = torch.full((1, 3, 32, 32), 0.5)
        assert judge().distance(x, x + 1e-4).item() == 0
        assert judge().distance(x + 1, x + 2).item() == 0  # both are white

    def test_parts_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        a, b = faces(5), faces(5).flip(0)
        whole = judge().distance(a, b)
        monkeypatch.setattr("pdae_cli.evaluation.judge.CHUNK", 2)
        assert torch.allclose(judge().distance(a, b), whole, rtol=1e-5)

    def test_reconstruction_has_it_where_a_judge_is_given(self, model: Model) -> None:
        x_0 = faces(2)
        finding = reconstruction(model, x_0, solvers=("leapfrog",), steps=(4,), judge=judge())
        both, z, _ = finding.rows
        assert both["judge_distance"] < 0.1 * z["judge_distance"]
        assert both["features"].startswith("judge untrained") and "not LPIPS" in finding.words
        back = model.decode(model.encode(x_0, solver="leapfrog", inference_steps=4))
        assert both["judge_distance"] == judge().distance(back, x_0).mean().item()
        with pytest.raises(UsageError, match="3x64x64 pictures, the model makes 3x32x32"):
            reconstruction(model, x_0, solvers=("ddim",), steps=(2,), judge=judge(64))


class TestSamples:
    def test_each_row_has_its_protocol(self, model: Model) -> None:
        finding = samples(model, judge(), faces(14), count=6, steps=(2, 3), sampling=FAST)
        kinds = [(r["samples"], r.get("inference_steps")) for r in finding.rows]
        assert kinds[0] == ("held-out pictures", None) and len(kinds) == 5
        assert [(r["count"], r["real"]) for r in finding.rows] == [(6, 8)] + 4 * [(6, 14)]
        for row in finding.rows:
            assert "judge" in row["features"]
            assert row["judge_frechet"] >= -1e-9 and 0 <= row["precision"] <= 1
        assert "Not comparable with KID and FID" in finding.words
        assert "it has 192 dimensions" in finding.words  # of 6 samples

    @pytest.mark.parametrize(("count", "some"), [(5, 5), (6, 6), (50, 6)])
    def test_real_pictures_are_measured_beside_other_real_ones(
        self, model: Model, monkeypatch: pytest.MonkeyPatch, count: int, some: int
    ) -> None:
        """As many as there are samples, or half of them: as those themselves would be."""
        real = faces(12)
        monkeypatch.setattr(Model, "sample", lambda *args, **how: (real[:count], None))
        finding = samples(model, judge(), real, count=count, steps=(2,), sampling=FAST)
        row, features = finding.rows[0], judge().features(real)
        assert (row["count"], row["real"]) == (some, 12 - some)
        a, b = features[:some], features[some:]
        assert row["judge_frechet"] == metrics.frechet(a, b)
        assert row["judge_kid"] == metrics.kernel_distance(a, b)
        assert (row["precision"], row["recall"]) == metrics.precision_recall(b, a)

    def test_samples_that_are_the_real_pictures_are_at_no_distance(
        self, model: Model, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = faces(10)
        monkeypatch.setattr(Model, "sample", lambda *args, **how: (real, None))
        row = samples(model, judge(), real, count=10, steps=(2,), sampling=FAST).rows[1]
        assert row["judge_frechet"] == pytest.approx(0, abs=1e-6)
        assert (row["precision"], row["recall"]) == (1, 1)

    def test_fewer_real_pictures_than_make_two_sets_are_refused(self, model: Model) -> None:
        with pytest.raises(UsageError, match="at least 10 pictures, not 9"):
            samples(model, judge(), faces(9), count=5)

    def test_without_a_latent_dpm_eps_theta_alone_is_measured(self, model: Model) -> None:
        model.latent_dpm = None
        found = samples(model, judge(), faces(10), count=5, steps=(2,), sampling=FAST)
        assert [r["samples"] for r in found.rows[1:]] == ["eps_theta alone"]

    def test_a_judge_of_another_size_is_refused(self, model: Model) -> None:
        with pytest.raises(UsageError, match="3x64x64"):
            samples(model, judge(64), faces(10))

    def test_a_judge_comes_back_from_its_file(self, tmp_path: Path) -> None:
        path = tmp_path / "judge.safetensors"
        write_judge(path, judge(), {"a": 0.5, "b": None})
        read, quality = read_judge(path)
        assert torch.equal(read.features(faces()), judge().features(faces()))
        assert (read.size, read.names, quality) == (32, ["a", "b"], {"a": 0.5, "b": None})
        assert len(read.digest) == 64 and read.auroc == 0.5
        assert read.protocol == f"judge {read.digest[:12]} of AUROC 0.500, of 8-bit pictures"

    @pytest.mark.parametrize(
        "facts",
        [
            {},
            {"names": ["a"], "size": 32, "channels": 3},
            {"names": ["a", "b"], "size": 32, "channels": 3, "auroc": {"a": "good"}},
            {"names": ["a", "b"], "size": 32, "channels": 3, "auroc": 0.9},
            {"names": 3},
            "x",
        ],
    )
    def test_files_that_are_no_judges(self, tmp_path: Path, facts: object) -> None:
        from pdae_cli.engine.tensors import sealed

        path = tmp_path / "judge.safetensors"
        state = {k: v.contiguous() for k, v in judge().state_dict().items()}
        path.write_bytes(sealed(state, {"judge": json.dumps(facts)}))
        with pytest.raises(ModelError, match="can't be read"):
            read_judge(path)


class TestSemantics:
    def test_shares_of_sums_and_of_products(self) -> None:
        """y = a_i + b_j has nothing together; y = a_i b_j of mean-free a and b nothing else."""
        a, b = draw(5), draw(7, seed=1)
        found = shares(a[:, None] + b)
        of_a, of_b = a.var().item(), b.var().item()
        assert found["variance"] == pytest.approx(of_a + of_b)
        assert found["z"] == pytest.approx(of_a / (of_a + of_b))
        assert found["x_T"] == pytest.approx(of_b / (of_a + of_b))
        assert found["together"] == pytest.approx(0, abs=1e-12)
        product = (a - a.mean())[:, None] * (b - b.mean())
        assert shares(product)["together"] == 1
        assert shares(torch.ones(2, 3))["z"] == 0

    @pytest.mark.parametrize(("i", "j"), [(2, 2), (4, 6), (6, 3)])
    def test_they_are_of_the_population_however_few_are_seen(self, i: int, j: int) -> None:
        """Many values a_i + b_j + c_ij of variances 1, 2 and 3; sums of squares would give a_i two
        fifths of it, and not a sixth, for 2 and 2."""
        a, b, c = draw(i, 1, 90_000), draw(1, j, 90_000, seed=1), draw(i, j, 90_000, seed=2)
        found = shares(a + math.sqrt(2) * b + math.sqrt(3) * c)
        assert found["variance"] == pytest.approx(6, rel=0.03)
        assert [found[name] for name in ("z", "x_T", "together")] == pytest.approx(
            [1 / 6, 2 / 6, 3 / 6], abs=0.015
        )

    def test_they_add_up(self) -> None:
        found = shares(draw(4, 3, 2, 5))
        assert found["z"] + found["x_T"] + found["together"] == pytest.approx(1)

    def test_without_a_shift_z_decides_nothing(self) -> None:
        model = tiny_model()
        assert model.gradient_estimator is not None
        for parameter in model.gradient_estimator.parameters():
            parameter.zero_()
        finding = semantics(model, faces(3), noises=2, sampling=FAST)
        assert [r["block"] for r in finding.rows[:-1]] == [1, 2, 4, 8, 16, 32]
        for row in finding.rows:
            assert row["z"] == pytest.approx(0, abs=1e-6)
            assert row["x_T"] == pytest.approx(1, abs=1e-6)

    def test_each_column_has_one_x_T(self, model: Model) -> None:
        """With one z for all pictures, whatever they are, rows are alike."""
        assert model.encoder_network is not None
        for parameter in model.encoder_network.parameters():
            parameter.zero_()
        row = semantics(model, faces(2), noises=3, sampling=FAST).rows[0]
        assert row["x_T"] == pytest.approx(1, abs=1e-6) and row["variance"] > 0
