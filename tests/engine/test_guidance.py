"""Guidance: by labels that G_psi takes, by a classifier's gradient, by likeness to pictures."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import cast

import mixture
import pytest
import torch
from conftest import randomise, tiny_model
from torch import Generator, Tensor

from pdae_cli.checkpoints import read_model, write_model
from pdae_cli.diffusion.noise import generator, normal
from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.diffusion.trajectory import Sampling
from pdae_cli.engine import guidance
from pdae_cli.engine.config import ScheduleConfig, from_json
from pdae_cli.engine.guidance import (
    Classifier,
    FewShot,
    by_classifier,
    chosen,
    draw,
    labelled,
    learn,
    log_probability,
    share_with,
    steered,
)
from pdae_cli.engine.model import Model
from pdae_cli.errors import InputError, ModelError, UsageError
from pdae_cli.networks.classifier import ClassEmbedding, Classes, EmbeddingConfig
from pdae_cli.training.classifier import new_classifier
from pdae_cli.training.conditional import with_labels

COLOURS = Classes(("red", "green", "blue"), exclusive=True)
TRAITS = Classes(("Smiling", "Big_Hat"), exclusive=False)
FAST = Sampling(inference_steps=2)
KINDS = Classes(("dark", "bright"), exclusive=True)
AXIS = torch.tensor([0.0, 1.0, 0.0])
LOGISTIC = FewShot(3 * AXIS, -3.0, False, 0.0, 0.0)


def conditional_model(classes: Classes = TRAITS) -> Model:
    """A tiny model whose G_psi takes labels, with random weights."""
    model = with_labels(tiny_model(), classes, 6, seed=0)
    assert model.gradient_estimator is not None
    randomise(model.gradient_estimator, 0.1)
    return replace(model, name="labelled")


def tiny_classifier(model: Model) -> Classifier:
    """With random weights."""
    classifier = new_classifier(model, KINDS, 8, seed=0)
    randomise(classifier.network, 0.1)
    classifier.network.requires_grad_(False).eval()
    return classifier


class TestLabels:
    def test_names_say_what_is_with_and_without(self) -> None:
        assert chosen(TRAITS, ["smiling"]).tolist() == [[1, -1]]
        assert chosen(TRAITS, ["Smiling=0", "big hat=1"]).tolist() == [[0, 1]]
        assert chosen(COLOURS, ["Green"]).tolist() == [[0, 1, 0]]
        assert chosen(TRAITS, []).tolist() == [[-1, -1]]

    @pytest.mark.parametrize(
        ("classes", "labels", "said"),
        [
            (TRAITS, ["frown"], "known: Smiling, Big_Hat"),
            (TRAITS, ["Smiling=2"], "NAME=0"),
            (COLOURS, ["red=0"], "isn't NAME"),
            (COLOURS, ["red", "blue"], "exclude each other"),
            (COLOURS, ["red", "Red"], "'Red' names a class again"),
            (TRAITS, ["Smiling", "smiling=0"], "'smiling=0' names a class again"),
            (TRAITS, ["big hat=0", "Big_Hat=0"], "'Big_Hat=0' names a class again"),
        ],
    )
    def test_what_they_cannot_say(self, classes: Classes, labels: list[str], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            chosen(classes, labels)

    def test_probabilities_of_exclusive_classes_sum_to_one(self) -> None:
        logits = torch.randn(5, 3, dtype=torch.float64)
        every = [log_probability(COLOURS, logits, one[None]).exp() for one in torch.eye(3)]
        assert torch.stack(every).sum(0) == pytest.approx([1.0] * 5)

    def test_independent_ones_multiply_and_unknown_ones_count_for_nothing(self) -> None:
        logits = torch.randn(5, 2, dtype=torch.float64)
        p = logits.sigmoid()
        both = log_probability(TRAITS, logits, torch.tensor([[1, 0]])).exp()
        assert both.tolist() == pytest.approx((p[:, 0] * (1 - p[:, 1])).tolist())
        one = log_probability(TRAITS, logits, torch.tensor([[-1, 1]])).exp()
        assert one.tolist() == pytest.approx(p[:, 1].tolist())

    def test_the_embedding(self) -> None:
        """Each class has a vector; with and without are opposite, unknown is nothing."""
        network = ClassEmbedding(EmbeddingConfig(TRAITS, 4)).eval()
        with torch.no_grad():
            z = network(torch.tensor([[1, -1], [0, -1], [-1, -1], [1, 1], [-1, 1]]))
        with_, without, nothing, both, hat = z
        assert torch.allclose(with_ + without, 2 * nothing, atol=1e-6)
        assert torch.allclose(both - nothing, (with_ - nothing) + (hat - nothing), atol=1e-6)


def by_label(way: str, label: str, strength: float) -> Tensor:
    """Picture 3 of a label, by G_psi or by a classifier."""
    if way == "labelled":
        model, y = conditional_model(), chosen(TRAITS, [label])
        return labelled(model, y, [3], replace(FAST, guidance=strength), seed=1)
    model, y = tiny_model(), chosen(KINDS, [label])
    return by_classifier(model, tiny_classifier(model), y, 50 * strength, [3], FAST, 1)


@pytest.mark.parametrize(
    ("way", "labels"), [("labelled", ("smiling", "big hat")), ("by_classifier", KINDS.names)]
)
def test_label_and_strength_count_and_without_it_is_the_unconditional_sample(
    way: str, labels: tuple[str, ...]
) -> None:
    """To the bit."""
    made = [by_label(way, label, strength) for label in labels for strength in (0.02, 1.0)]
    assert len({one.numpy().tobytes() for one in made}) == 4
    model = conditional_model() if way == "labelled" else tiny_model()
    plain, _ = model.sample([3], FAST, seed=1, unconditional=True)
    assert torch.equal(by_label(way, labels[0], 0.0), plain)


class TestLabelled:
    def test_a_picture_depends_on_seed_and_number_alone(self) -> None:
        model = conditional_model()
        y = chosen(TRAITS, ["smiling"])
        together, alone = (labelled(model, y, numbers, FAST, 1) for numbers in ([0, 1, 2], [2]))
        assert torch.equal(together[2:], alone)

    def test_a_model_that_takes_no_labels(self, model: Model) -> None:
        with pytest.raises(ModelError, match="takes no labels"):
            labelled(model, torch.ones(1, 2), [0], FAST, 0)


class TestLabelledModel:
    @pytest.mark.parametrize("classes", [TRAITS, COLOURS])
    def test_it_comes_back_from_disk(self, classes: Classes, tmp_path: Path) -> None:
        model = conditional_model(classes)
        write_model(tmp_path, model)
        again = read_model(tmp_path, "again")
        facts = json.loads(json.dumps(asdict(again.config)))
        assert again.config == model.config == from_json(facts)
        y = torch.eye(len(classes.names))[:1]
        assert torch.equal(labelled(again, y, [0], FAST, 0), labelled(model, y, [0], FAST, 0))
        with pytest.raises(ModelError, match="lacks an encoder"):
            model.encode(torch.zeros(1, 3, 32, 32))
        with pytest.raises(ValueError, match="not both"):
            replace(tiny_model().config, labels=EmbeddingConfig(classes, 6))

    @pytest.mark.parametrize(
        "wrong",
        [{"names": [], "exclusive": False}, {"names": ["a", "a"], "exclusive": False},
         {"names": ["a"], "exclusive": True}],
    )  # fmt: skip
    def test_classes_that_cannot_be(self, wrong: dict[str, object]) -> None:
        facts = asdict(conditional_model().config)
        facts["labels"]["classes"] = wrong
        with pytest.raises(ValueError, match="class"):
            from_json(json.loads(json.dumps(facts)))


def component(kind: int, means: Tensor, variance: float, x_t: Tensor, t: int) -> Tensor:
    """log p(k | x_t) of the mixture's component k."""
    weights = torch.tensor(mixture.WEIGHTS, dtype=torch.float64).log()
    logits = weights - (x_t[..., None] - means).square() / (2 * variance)
    return logits.log_softmax(-1)[..., kind].sum((1, 2, 3))


class TestSteering:
    def test_the_exact_classifier_gives_the_exact_conditional_score(self) -> None:
        """Of a mixture, p(x_t) and p(k | x_t) lead to the noise of its component k alone."""
        x = mixture.pictures()
        for t in (10, 20_000, 60_000, 99_000):
            alpha_bar = mixture.SCHEDULE.alpha_bar[t].item()
            means = math.sqrt(alpha_bar) * torch.tensor(mixture.MEANS, dtype=torch.float64)
            variance = alpha_bar * mixture.SPREAD**2 + 1 - alpha_bar
            for kind in (0, 1):
                log_p = partial(component, kind, means, variance)
                found = steered(mixture.eps, log_p, 1.0, mixture.SCHEDULE)(x, t)
                assert not found.requires_grad and not x.requires_grad
                exact = math.sqrt(1 - alpha_bar) * (x - means[kind]) / variance
                assert torch.allclose(found, exact, rtol=0, atol=1e-12)

    def test_the_gradient_is_that_of_finite_differences(self) -> None:
        """Of a network in float64, along random directions."""
        network = tiny_classifier(tiny_model()).network.double()
        network.time[0].register_forward_pre_hook(lambda module, given: (given[0].double(),))
        schedule, y = Schedule(), torch.tensor([[0, 1]])

        def log_p(x_t: Tensor, t: int) -> Tensor:
            return log_probability(KINDS, network(x_t, torch.full((len(x_t),), t)), y)

        torch.manual_seed(0)
        x, way = torch.randn(2, 2, 3, 32, 32, dtype=torch.float64)
        eps = torch.zeros_like(x)
        gradient = (eps - steered(lambda x, t: eps, log_p, 2.0, schedule)(x, 500)) / (
            2 * math.sqrt(1 - schedule.alpha_bar[500].item())
        )
        step = 1e-5
        differences = (log_p(x + step * way, 500) - log_p(x - step * way, 500)) / (2 * step)
        along = (gradient * way).sum((1, 2, 3))
        assert differences.abs().min() > 1e-4
        assert torch.allclose(along, differences, rtol=1e-6, atol=0)


class TestClassifier:
    def test_another_model_s_classifier(self, model: Model) -> None:
        classifier = tiny_classifier(model)
        other = replace(classifier.config, schedule=ScheduleConfig(betas="cosine"))
        with pytest.raises(UsageError, match="other pictures or noise"):
            by_classifier(
                model, Classifier(other, classifier.network), torch.eye(2)[:1], 1.0, [0], FAST, 0
            )


class Normal:
    """Stands for a model whose z are N(0, I) in three dimensions, and normalised already."""

    def sample_z(self, generators: list[Generator], sampling: Sampling) -> Tensor:
        return normal(generators, (3,))

    def normalise(self, z: Tensor) -> Tensor:
        return z


NORMAL = cast(Model, Normal())


def drawn(likeness: FewShot, count: int, scale: float = 1.0) -> Tensor:
    return draw(NORMAL, likeness, [generator(0, n) for n in range(count)], Sampling(), scale)


def z_of(count: int, mean: float, key: str) -> Tensor:
    """Draws of N(mean AXIS, I)."""
    return normal([generator(1, key, n) for n in range(count)], (3,)) + mean * AXIS


class TestRejection:
    @pytest.mark.parametrize("scale", [0.0, 1.0, 1.5])
    @pytest.mark.parametrize("likeness", [FewShot(AXIS, -4.0, True, 0.0, 0.0), LOGISTIC], ids=str)
    def test_z_are_those_of_the_tilted_density(self, likeness: FewShot, scale: float) -> None:
        """p(z) p(y | z)^s / Z with p = N(0, 1) along the axis, its moments by quadrature."""
        grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        density = (-grid.square() / 2).exp() * likeness(grid[:, None].float() * AXIS) ** scale
        density /= density.sum()
        mean = (density * grid).sum().item()
        sd = (density * (grid - mean).square()).sum().sqrt().item()
        z = drawn(likeness, 2000, scale)
        assert z.mean(0) == pytest.approx([0, mean, 0], abs=4 / math.sqrt(2000))
        assert z.std(0) == pytest.approx([1, sd, 1], abs=4 / math.sqrt(4000))

    def test_each_sample_depends_on_its_generator_alone(self) -> None:
        """And what all are like is its first draw."""
        alone = draw(NORMAL, LOGISTIC, [generator(0, 7)], Sampling())
        assert torch.equal(drawn(LOGISTIC, 12)[7:8], alone)
        several = drawn(LOGISTIC, 12, 6.0)  # of which most take more than one draw
        assert (several != drawn(LOGISTIC, 12)).any(1).sum() > 6
        for n in range(12):
            alone = draw(NORMAL, LOGISTIC, [generator(0, n)], Sampling(), 6.0)
            assert torch.equal(several[n : n + 1], alone)
        certain = FewShot(0 * AXIS, 1.0, True, 0.0, 0.0)
        assert torch.equal(drawn(certain, 5), normal([generator(0, n) for n in range(5)], (3,)))

    def test_how_far_it_is_is_told(self) -> None:
        """By rounds, in which those that have none yet draw twice as many."""
        told: list[tuple[int, int]] = []
        some = [generator(0, n) for n in range(12)]
        draw(NORMAL, LOGISTIC, some, Sampling(), 6.0, lambda *so_far: told.append(so_far))
        tried, kept = zip(*told, strict=True)
        assert tried[:3] == (1, 3, 7) and list(kept) == sorted(kept) and kept[-1] == 12 > kept[0]

    def test_what_none_is_like_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(guidance, "TRIES", 20)
        with pytest.raises(InputError, match=r"of 31 draws.* at scale 2; .*--classifier-scale"):
            drawn(FewShot(0 * AXIS, -100.0, True, 0.0, 0.0), 2, 2.0)


class TestLearning:
    def test_the_share_is_found(self) -> None:
        """Of z from 0.2 N(2, 1) + 0.8 N(-1, 1), with the exact log-odds 3 u - 1.5 on the axis."""
        z = torch.cat([z_of(400, 2.0, "with"), z_of(1600, -1.0, "without")])
        assert share_with(3 * (z @ AXIS) - 1.5) == pytest.approx(0.2, abs=0.03)

    def test_two_kinds(self) -> None:
        """From 60 of each: the latent DPM's z, of which a fifth has it, become nearly all of it."""
        any_ = torch.cat([z_of(200, 2.0, "some"), z_of(800, -1.0, "others")])
        found = learn(z_of(60, 2.0, "like"), z_of(60, -1.0, "unlike"), any_)
        assert found.share == pytest.approx(0.2, abs=0.06) and found.auroc > 0.95
        truth = 3 * (any_ @ AXIS) - 1.5 + math.log(0.2 / 0.8)  # log-odds of having it
        assert (found(any_) - truth.sigmoid()).abs().mean() < 0.08

    def test_one_kind_and_the_unlabelled(self) -> None:
        """p(y | z) is the ratio p(z | y) / p(z) but for a constant, up to 1."""
        any_ = torch.cat([z_of(100, 3.0, "some"), z_of(900, -1.0, "others")])
        found = learn(z_of(60, 3.0, "like"), None, any_)
        kept = found(any_)
        assert kept.max() <= 1 and kept[:100].mean() > 0.5 and kept[100:].mean() < 0.03
        assert found.share == pytest.approx(0.1, abs=0.06)
        with pytest.raises(UsageError, match="two at least"):
            learn(z_of(1, 0.0, "one"), None, any_)

    @pytest.mark.parametrize("kind", ["those to be unlike", "what the model makes"])
    def test_what_nothing_tells_apart_is_refused(self, kind: str) -> None:
        """What is learnt from some then ranks the others the wrong way round."""
        like = torch.cat([AXIS, -AXIS]).reshape(2, 3)
        others, unlike = z_of(20, 0.0, "any"), kind.startswith("those")
        with pytest.raises(UsageError, match=rf"{kind} \(AUROC 0\.[0-4]\d+ on those held out"):
            learn(like, others if unlike else None, others)
