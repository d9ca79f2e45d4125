"""Classifier guidance: the gradient, what it does to a known mixture, training, sampling."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import mixture
import pytest
import torch
from conftest import Command, picture, randomise, tiny_model
from PIL import Image
from safetensors.torch import load_file
from test_training import OPTIONS, quiet
from torch import Tensor

from pdae_cli.checkpoints import read_classifier, write_classifier
from pdae_cli.diffusion.sampling import Sampling
from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.engine.classes import chosen, log_probability
from pdae_cli.engine.conditional import Classifier, by_classifier, steered
from pdae_cli.engine.config import ScheduleConfig
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError, UsageError
from pdae_cli.networks.classes import Classes
from pdae_cli.training.classifier import ClassifierLoss, classifier_stage, new_classifier
from pdae_cli.training.conditional import Condition
from pdae_cli.training.data import open_pictures
from pdae_cli.training.loop import Run

KINDS = Classes(("dark", "bright"), exclusive=True)
FAST = Sampling(inference_steps=2)


def tiny_classifier(model: Model) -> Classifier:
    """With random weights."""
    classifier = new_classifier(model, KINDS, 8, seed=0)
    randomise(classifier.network, 0.1)
    classifier.network.requires_grad_(False).eval()
    return classifier


class TestSteering:
    def test_the_exact_classifier_gives_the_exact_conditional_score(self) -> None:
        """Of a mixture, p(x_t) and p(k | x_t) lead to the noise of its component k alone."""
        x = mixture.pictures()
        for t in (10, 20_000, 60_000, 99_000):
            alpha_bar = mixture.SCHEDULE.alpha_bar[t].item()
            means = math.sqrt(alpha_bar) * torch.tensor(mixture.MEANS, dtype=torch.float64)
            variance = alpha_bar * mixture.SPREAD**2 + 1 - alpha_bar
            for kind in (0, 1):

                def log_p(
                    x_t: Tensor,
                    t: int,
                    kind: int = kind,
                    means: Tensor = means,
                    variance: float = variance,
                ) -> Tensor:
                    weights = torch.tensor(mixture.WEIGHTS, dtype=torch.float64).log()
                    logits = weights - (x_t[..., None] - means).square() / (2 * variance)
                    return logits.log_softmax(-1)[..., kind].sum((1, 2, 3))

                found = steered(mixture.eps, log_p, 1.0, mixture.SCHEDULE)(x, t)
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

    def test_it_leaves_no_gradient_behind(self) -> None:
        x = torch.randn(1, 3, 4, 4)
        found = steered(lambda x, t: x, lambda x, t: -x.square().sum((1, 2, 3)), 1.0, Schedule())
        assert not found(x, 10).requires_grad and not x.requires_grad


class TestSampling:
    def test_scale_0_is_the_unconditional_sample_to_the_bit(self, model: Model) -> None:
        y = chosen(KINDS, ["dark"])
        made = by_classifier(model, tiny_classifier(model), y, 0.0, [3, 4], FAST, 1)
        plain, _ = model.sample([3, 4], FAST, seed=1, unconditional=True)
        assert torch.equal(made, plain)

    def test_label_and_scale_count(self, model: Model) -> None:
        classifier = tiny_classifier(model)
        made = [
            by_classifier(model, classifier, chosen(KINDS, [label]), scale, [0], FAST, 1)
            for label in KINDS.names
            for scale in (1.0, 50.0)
        ]
        assert len({one.numpy().tobytes() for one in made}) == 4

    def test_another_model_s_classifier(self, model: Model) -> None:
        classifier = tiny_classifier(model)
        other = replace(classifier.config, schedule=ScheduleConfig(betas="cosine"))
        with pytest.raises(UsageError, match="other pictures or noise"):
            by_classifier(
                model, Classifier(other, classifier.network), torch.eye(2)[:1], 1.0, [0], FAST, 0
            )


class TestFile:
    def test_it_comes_back(self, model: Model, tmp_path: Path) -> None:
        classifier = tiny_classifier(model)
        write_classifier(tmp_path, classifier, {}, torch.float32)
        again = read_classifier(tmp_path)
        assert again.config == classifier.config and len(again.digest) == 64
        x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
        with torch.no_grad():
            assert torch.equal(again.network(x, t), classifier.network(x, t))

    def test_damage_is_found(self, model: Model, tmp_path: Path) -> None:
        write_classifier(tmp_path, tiny_classifier(model), {}, torch.float32)
        path = tmp_path / "classifier.safetensors"
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(ModelError, match=r"classifier\.safetensors can't be read"):
            read_classifier(tmp_path)

    def test_a_folder_without(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="is no classifier"):
            read_classifier(tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    lines = ["file,split,kind"]
    for number in range(12):
        kind = KINDS.names[number % 2]
        colour = (240,) * 3 if kind == "bright" else (10,) * 3
        Image.blend(Image.new("RGB", (32, 32), colour), picture(number, (32, 32)), 0.2).save(
            folder / f"{number}.png"
        )
        lines.append(f"{number}.png,{'test' if number >= 8 else 'train'},{kind}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(data: Path, tmp_path: Path) -> None:
    pictures, states = open_pictures(data, 32), []
    rows = {name: [int(name) % 2, 1 - int(name) % 2] for name in map(str, range(12))}
    labels = Condition(KINDS, {f"{name}.png": row for name, row in rows.items()})
    parts = pictures.subset(pictures.names[:8]), pictures.subset(pictures.names[8:])
    for name, stops in (("whole", [32]), ("broken", [16, 32])):
        for images in stops:
            model = tiny_model()
            classifier = new_classifier(model, KINDS, 8, seed=0)
            folder = tmp_path / name
            stage = classifier_stage(model, classifier, *parts, labels, folder, torch.float32)
            Run(stage, replace(OPTIONS, images=images), folder).train(quiet)
        states.append(load_file(folder / "training" / "classifier.safetensors"))
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_it_learns_what_is_easy() -> None:
    """White pictures and black ones: after 40 steps its loss is well below that of guessing."""
    classifier = new_classifier(tiny_model(), KINDS, 8, seed=0)
    objective = ClassifierLoss(classifier.network, Schedule())
    optimizer = torch.optim.Adam(objective.parameters(), lr=5e-3)
    y = torch.eye(2, dtype=torch.int8).repeat(8, 1)
    x_0 = (2 * y[:, 1].float() - 1)[:, None, None, None].expand(16, 3, 32, 32)
    torch.manual_seed(0)
    losses = []
    for _ in range(40):
        loss = objective(x_0, torch.randint(0, 600, (16,)), torch.randn(x_0.shape), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.3 < math.log(2) < losses[0] + 0.3


class TestCommands:
    def test_train_and_sample(
        self, pdae: Command, data: Path, tiny_folder: Path, tmp_path: Path
    ) -> None:
        run = tmp_path / "run"
        result = pdae(
            "train", "classifier", data, "-o", run, "--condition", "kind", "--dpm", tiny_folder,
            "--base-channels", 8, "--images", 16, "--batch-size", 8, "--device", "cpu",
        )  # fmt: skip
        assert result.code == 0, result.err
        assert "held_out_loss" in result.err
        assert list((run / "training").glob("classifier-*.png"))
        args = ("sample", "-n", 2, "--inference-steps", 2)
        of = (*args, "--label", "bright", "--classifier", run)
        for scale in ("0", "5", "0,5"):
            out = tmp_path / f"{scale}.png"
            made = pdae(*of, "--classifier-scale", scale, "-o", out)
            assert made.code == 0, made.err
        plain = tmp_path / "plain.png"
        assert pdae(*args, "--unconditional", "-o", plain).code == 0
        pixels = [Image.open(tmp_path / name).tobytes() for name in ("0.png", "5.png", "plain.png")]
        assert pixels[0] == pixels[2] != pixels[1]
        with Image.open(tmp_path / "0,5.png") as both:  # one strength below the other
            assert both.size == (2 * 32 + 2, 2 * 32)
            rows = [both.crop((0, top, 2 * 32 + 2, top + 32)).tobytes() for top in (0, 32)]
        assert rows == pixels[:2]
        for name in ("5.png", "0,5.png"):
            assert pdae("redo", tmp_path / name).code == 0

    @pytest.mark.parametrize(
        ("args", "code", "said"),
        [
            (("--classifier", "x"), 2, "--label"),
            (("--classifier", "x", "--label", "a", "--like", "y"), 2, "exclude each other"),
            (("--classifier", "nowhere", "--label", "a"), 4, "is no classifier"),
            (("--classifier", "x", "--label", "a", "--guidance", 2), 2, "--classifier-scale"),
            (("--classifier", "x", "--label", "a", "--classifier-scale", "1,x"), 2, "'1,x' isn't"),
            (("--label", "a", "--classifier-scale", 2), 2, "a --classifier guides"),
        ],
    )
    def test_failures(
        self, pdae: Command, tmp_path: Path, args: tuple[str, ...], code: int, said: str
    ) -> None:
        result = pdae("sample", *args, "-o", tmp_path / "x.png")
        assert result.code == code and said in result.err

    def test_labels_that_are_not_there(self, pdae: Command, data: Path, tmp_path: Path) -> None:
        result = pdae(
            "train", "classifier", data, "-o", tmp_path / "x", "--condition", "shape",
            "--dpm", "faces64",
        )  # fmt: skip
        assert result.code == 2 and "no column shape; known: kind" in result.err
