"""Reconstruction, stages and semantics: closed forms and exact cases; progress of them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import tiny_model
from labelled import FAST, draw, faces, zero

from pdae_cli.engine.model import Model
from pdae_cli.errors import UsageError
from pdae_cli.evaluation import metrics
from pdae_cli.evaluation.figures import Finding, Track
from pdae_cli.evaluation.gap import gap
from pdae_cli.evaluation.judge import Judge
from pdae_cli.evaluation.probes import attributes
from pdae_cli.evaluation.reconstruction import compared, reconstruction
from pdae_cli.evaluation.samples import samples
from pdae_cli.evaluation.semantics import semantics, shares
from pdae_cli.evaluation.stages import _words, stages


class TestReconstruction:
    def test_an_exact_solver_gives_back_all_and_z_alone_does_not(self, model: Model) -> None:
        rows = reconstruction(model, faces(2), solvers=("leapfrog",), steps=(4,)).rows
        both, z, neither = rows
        assert [row["from"] for row in rows] == ["z and x_T", "z", "neither"]
        assert both["equal"] > 0.99 and both["mse"] < 1e-6 < z["mse"]
        assert (both["nfe"], z["nfe"], neither["nfe"]) == (6 + 5, 5, 5)  # an eps at x_T each

    def test_neither_knows_nothing_of_the_picture(self, model: Model) -> None:
        """eps_theta alone decodes the same noise to the same picture, whatever z is."""
        x_0 = faces(1).expand(2, -1, -1, -1)
        rows = reconstruction(model, x_0, solvers=("ddim",), steps=(3,)).rows
        other = tiny_model()
        zero(other.encoder)
        changed = reconstruction(other, x_0, solvers=("ddim",), steps=(3,)).rows
        assert rows[2] == changed[2] and rows[1] != changed[1]

    def test_all_ways_start_from_the_same_noise(self, model: Model) -> None:
        """A way that comes twice gives the same twice; without a shift z changes nothing."""
        for solver in ("ddim", "ddpm"):
            rows = reconstruction(model, faces(2), solvers=(solver, solver), steps=(3,)).rows
            assert rows[:3] == rows[3:]
        zero(model.gradient_estimator)
        _, z, neither = reconstruction(model, faces(2), solvers=("ddim",), steps=(3,)).rows
        assert z["mse"] == pytest.approx(neither["mse"], rel=1e-6)

    def test_measures(self) -> None:
        a = torch.zeros(2, 3, 16, 16)
        found = compared(a, a + 0.2)  # 0.1 on [0, 1]
        assert found["mse"] == pytest.approx(0.01) and found["psnr"] == pytest.approx(20, abs=1e-4)
        assert found["equal"] == 0 and compared(a, a)["ssim"] == pytest.approx(1)


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

    def test_numbers_agree_with_nothing(self, model: Model) -> None:
        """An age is above 0 whatever the picture: only logits have two sides."""
        assert model.attributes is not None
        model.attributes.facts = {name: {"unit": "years"} for name in model.attributes.names}
        assert "agreement" not in stages(model, faces(2), edges=(0, 999), sampling=FAST).rows[0]
        rows = semantics(model, faces(2), noises=2, sampling=FAST).rows
        assert "attribute scores" not in [row["of"] for row in rows]
        model.attributes.facts = {}
        rows = semantics(model, faces(2), noises=2, sampling=FAST).rows
        assert rows[-1]["of"] == "attribute scores"

    def test_every_pair_starts_from_the_same_x_T(self, model: Model) -> None:
        """What guidance can't change, as G_psi is 0, is the same to the bit in every row."""
        zero(model.gradient_estimator)
        finding = stages(model, faces(2), edges=(0, 500, 999), sampling=FAST)
        assert len({r["mse"] for r in finding.rows}) == 1 and len(finding.rows) == 4
        assert "takes nothing off the error" in finding.words

    def test_the_part_that_gains_most_is_named(self) -> None:
        """Of parts that take 1, 6 and 2 off an error of 10, of which the whole takes 8."""
        errors = {(None, None): 10, (999, 0): 2, (300, 0): 9, (600, 300): 4, (999, 600): 8}
        errors[600, 0] = 1  # no part: it holds an edge
        rows = [{"mse": mse, "guide_from": a, "guide_until": b} for (a, b), mse in errors.items()]
        assert "guiding at 600 >= t >= 300 alone takes 75%" in _words(rows, [0, 300, 600, 999])

    def test_edges_are_those_of_the_models_schedule(self, model: Model) -> None:
        config = replace(model.config, schedule=replace(model.config.schedule, timesteps=100))
        rows = stages(replace(model, config=config), faces(1), sampling=FAST).rows
        assert sorted({r["guide_from"] for r in rows[1:]}) == [20, 40, 59, 79, 99]

    @pytest.mark.parametrize("edges", [(), (500,), (500, 500), (-1, 500), (0, 1000)])
    def test_edges_that_make_no_pair(self, model: Model, edges: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match=r"two edges or more, of 0 … 999"):
            stages(model, faces(2), edges=edges)


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

    def test_without_a_shift_z_decides_nothing(self, model: Model) -> None:
        zero(model.gradient_estimator)
        finding = semantics(model, faces(3), noises=2, sampling=FAST)
        assert [r["block"] for r in finding.rows[:-1]] == [1, 2, 4, 8, 16, 32]
        for row in finding.rows:
            assert row["z"] == pytest.approx(0, abs=1e-6)
            assert row["x_T"] == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("noises", [0, 1])
    def test_one_x_T_tells_nothing_of_x_T(self, model: Model, noises: int) -> None:
        with pytest.raises(UsageError, match=f"noises is {noises}; .* give 2"):
            semantics(model, faces(2), noises=noises)

    def test_each_column_has_one_x_T(self, model: Model) -> None:
        """With one z for all pictures, whatever they are, rows are alike."""
        zero(model.encoder)
        row = semantics(model, faces(2), noises=3, sampling=FAST).rows[0]
        assert row["x_T"] == pytest.approx(1, abs=1e-6) and row["variance"] > 0


def probed(track: Track) -> Finding:
    z = draw(20, 3).float()
    labels = (z > 0).to(torch.int8)
    return attributes(list("abc"), {"z": (z, z), "other": (z, z)}, labels, labels, track=track)


JUDGE = Judge(["a"], 32).eval().requires_grad_(False)
EXPERIMENTS: dict[str, tuple[int, Callable[[Model, Track], Finding]]] = {  # with their parts
    "gap": (2, lambda m, track: gap(m, faces(2), timesteps=(5, 90), track=track)),
    "reconstruction": (3, lambda m, track: reconstruction(
        m, faces(2), solvers=("ddim",), steps=(1, 2, 3), track=track)),
    "stages": (4, lambda m, track: stages(
        m, faces(2), edges=(0, 500, 999), sampling=FAST, track=track)),
    "attributes": (2, lambda m, track: probed(track)),
    "samples": (4, lambda m, track: samples(
        m, JUDGE, faces(10), count=5, steps=(1, 2), sampling=FAST, track=track)),
    "semantics": (3, lambda m, track: semantics(
        m, faces(3), noises=2, sampling=FAST, track=track)),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_hands_on_all_of_its_parts(model: Model, name: str) -> None:
    """Once, as many as are said, and whoever watches changes nothing of what is found."""
    count, measure = EXPERIMENTS[name]
    begun: list[int] = []
    done: list[object] = []

    def track(parts: Sequence[Any]) -> Iterable[Any]:
        begun.append(len(parts))
        for part in parts:
            yield part
            done.append(part)

    watched = measure(model, track)
    assert begun == [count] and len(done) == count
    assert str(watched.rows) == str(measure(model, iter).rows)
