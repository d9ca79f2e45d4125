"""A G_psi that takes labels: what they mean, training on them, sampling of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Command, picture, randomise, tiny_model
from PIL import Image
from safetensors.torch import load_file
from test_training import OPTIONS, quiet

from pdae_cli.checkpoints import read_model, write_model
from pdae_cli.diffusion.sampling import Sampling
from pdae_cli.engine.classes import chosen, log_probability
from pdae_cli.engine.conditional import labelled
from pdae_cli.engine.config import from_json, to_json
from pdae_cli.engine.model import Model
from pdae_cli.errors import ModelError, UsageError
from pdae_cli.networks.classes import ClassEmbedding, Classes, EmbeddingConfig
from pdae_cli.training.conditional import condition, conditional_stage, with_labels
from pdae_cli.training.data import Labels, open_pictures, read_labels
from pdae_cli.training.loop import Run

COLOURS = Classes(("red", "green", "blue"), exclusive=True)
TRAITS = Classes(("Smiling", "Big_Hat"), exclusive=False)
FAST = Sampling(inference_steps=2)


def conditional_model(classes: Classes = TRAITS) -> Model:
    """A tiny model whose G_psi takes labels, with random weights."""
    model = with_labels(tiny_model(), classes, 6, seed=0)
    assert model.gradient_estimator is not None
    randomise(model.gradient_estimator, 0.1)
    return replace(model, name="labelled")


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

    def test_training_hides_some(self) -> None:
        network = ClassEmbedding(EmbeddingConfig(TRAITS, 4)).train()
        torch.manual_seed(0)
        z = network(torch.ones(4000, 2, dtype=torch.int8)).detach()
        seen = (z == network.eval()(torch.ones(1, 2))).all(1).float().mean().item()
        assert seen == pytest.approx(0.9**2, abs=0.03)


def table(**texts: dict[str, str]) -> Labels:
    return Labels(["A", "B"], {"1": [1, 0], "2": [0, -1]}, set(), {}, texts)


class TestCondition:
    def test_attributes(self) -> None:
        found = condition(table(), ["B", "A"])
        assert found.classes == Classes(("B", "A"), exclusive=False)
        assert found.matrix(["2", "1", "3"]).tolist() == [[-1, 0], [0, 1], [-1, -1]]

    def test_words(self) -> None:
        found = condition(table(kind={"1": "dog", "2": "cat"}), ["kind"])
        assert found.classes == Classes(("cat", "dog"), exclusive=True)
        assert found.matrix(["1", "2", "3"]).tolist() == [[0, 1], [1, 0], [-1, -1]]

    def test_words_are_read_from_a_csv(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.csv"
        path.write_text(
            "file,kind,split,hat\na.png,dog,train,1\nb.png,cat,test,0\nc.png,,train,0\n"
        )
        read = read_labels(path, tmp_path)
        assert read.attributes == ["hat"] and read.held_out == {"b.png"}
        assert read.texts == {"kind": {"a.png": "dog", "b.png": "cat"}}

    @pytest.mark.parametrize(
        ("columns", "said"),
        [(["C"], "no column C; known: A, B, kind"), (["A", "kind"], "only columns of"), ([], "no")],
    )
    def test_what_cannot_be(self, columns: list[str], said: str) -> None:
        with pytest.raises(UsageError, match=said):
            condition(table(kind={"1": "dog", "2": "cat"}), columns)

    def test_one_word_tells_nothing(self) -> None:
        with pytest.raises(UsageError, match="tells none apart"):
            condition(table(kind={"1": "dog"}), ["kind"])
        with pytest.raises(UsageError, match="--labels"):
            condition(None, ["kind"])


class TestSampling:
    def test_without_guidance_it_is_the_unconditional_sample_to_the_bit(self) -> None:
        model = conditional_model()
        y = chosen(TRAITS, ["smiling"])
        of_label = labelled(model, y, [3, 4], replace(FAST, guidance=0.0), seed=1)
        plain, _ = model.sample([3, 4], FAST, seed=1, unconditional=True)
        assert torch.equal(of_label, plain)

    def test_labels_and_strength_count(self) -> None:
        model = conditional_model()
        made = [
            labelled(model, chosen(TRAITS, [label]), [0], replace(FAST, guidance=w), seed=1)
            for label in ("smiling", "big hat")
            for w in (1.0, 2.0)
        ]
        assert len({one.numpy().tobytes() for one in made}) == 4

    def test_a_picture_depends_on_seed_and_number_alone(self) -> None:
        model = conditional_model()
        y = chosen(TRAITS, ["smiling"])
        together, alone = (labelled(model, y, numbers, FAST, 1) for numbers in ([0, 1, 2], [2]))
        assert torch.equal(together[2:], alone)

    def test_a_model_that_takes_no_labels(self, model: Model) -> None:
        with pytest.raises(ModelError, match="takes no labels"):
            labelled(model, torch.ones(1, 2), [0], FAST, 0)


class TestModel:
    @pytest.mark.parametrize("classes", [TRAITS, COLOURS])
    def test_it_comes_back_from_disk(self, classes: Classes, tmp_path: Path) -> None:
        model = conditional_model(classes)
        write_model(tmp_path, model)
        again = read_model(tmp_path, "again")
        assert (
            again.config == model.config == from_json(json.loads(json.dumps(to_json(again.config))))
        )
        y = torch.eye(len(classes.names))[:1]
        assert torch.equal(labelled(again, y, [0], FAST, 0), labelled(model, y, [0], FAST, 0))

    def test_it_has_no_encoder(self) -> None:
        with pytest.raises(ModelError, match="lacks an encoder"):
            conditional_model().encode(torch.zeros(1, 3, 32, 32))

    def test_labels_or_an_encoder(self) -> None:
        config = tiny_model().config
        with pytest.raises(ValueError, match="not both"):
            replace(config, labels=EmbeddingConfig(TRAITS, 6))

    @pytest.mark.parametrize(
        "wrong",
        [{"names": [], "exclusive": False}, {"names": ["a", "a"], "exclusive": False},
         {"names": ["a"], "exclusive": True}],
    )  # fmt: skip
    def test_classes_that_cannot_be(self, wrong: dict[str, object]) -> None:
        facts = to_json(conditional_model().config)
        facts["labels"]["classes"] = wrong
        with pytest.raises(ValueError, match="class"):
            from_json(json.loads(json.dumps(facts)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    lines = ["file,split,bright,kind"]
    for number in range(12):
        bright = number % 2
        image = Image.blend(
            Image.new("RGB", (32, 32), (240,) * 3 if bright else (10,) * 3),
            picture(number, (32, 32)),
            0.3,
        )
        image.save(folder / f"{number}.png")
        split = "test" if number >= 8 else "train"
        lines.append(f"{number}.png,{split},{bright},{'dog' if number % 3 else 'cat'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


class TestTraining:
    def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
        self, data: Path, tmp_path: Path
    ) -> None:
        labels = condition(read_labels(data / "labels.csv", data), ["bright"])
        pictures = open_pictures(data, 32)
        parts = pictures.subset(pictures.names[:8]), pictures.subset(pictures.names[8:])
        states = []
        for name, stops in (("whole", [32]), ("broken", [16, 32])):
            for images in stops:
                model = with_labels(tiny_model(dropout=0.2), labels.classes, 6, seed=0)
                stage = conditional_stage(model, *parts, labels, tmp_path / name, torch.float32)
                Run(stage, replace(OPTIONS, images=images), tmp_path / name).train(quiet)
            states.append(load_file(tmp_path / name / "training" / "autoencoder.safetensors"))
        assert any("encoder.vectors" in name for name in states[0])
        assert not any(".dpm." in name for name in states[0])
        for name, tensor in states[0].items():
            assert torch.equal(tensor, states[1][name]), name

    def test_labels_go_with_their_pictures(self, data: Path) -> None:
        from pdae_cli.training.loop import draw_batch

        labels = condition(read_labels(data / "labels.csv", data), ["bright"])
        pictures = open_pictures(data, 32)
        y, even = labels.matrix(pictures.names), torch.full((1000,), 1e-3, dtype=torch.float64)
        batch = draw_batch(pictures, even, (3, 32, 32), OPTIONS, 5, 0, 8, y)
        assert batch.y is not None
        assert (batch.x_0.mean((1, 2, 3)) > 0).tolist() == (batch.y[:, 0] == 1).tolist()


ARGS = ("--images", 16, "--batch-size", 8, "--z-dim", 6, "--device", "cpu")


class TestCommands:
    @pytest.mark.parametrize(
        ("columns", "label", "other"),
        [("bright", "bright", "bright=0"), ("kind", "dog", "cat")],
    )
    def test_train_and_sample(
        self,
        pdae: Command,
        data: Path,
        tiny_folder: Path,
        tmp_path: Path,
        columns: str,
        label: str,
        other: str,
    ) -> None:
        run = tmp_path / "run"
        train = ("train", "autoencoder", data, "-o", run, "--condition", columns, *ARGS)
        result = pdae(*train, "--dpm", tiny_folder)
        assert result.code == 0, result.err
        assert "gap_closed_shuffled" in result.err
        assert list((run / "training").glob("autoencoder-*.png"))
        info = json.loads(pdae("info", run, "--json").text)
        assert label in info["labels"]["classes"]["names"] and info["parameters"]["labels"] > 0
        args = ("-n", 2, "--inference-steps", 2, "--label", label)
        row = pdae("sample", *args, "--guidance", "0,1,2.5", "-o", tmp_path / "r.png", model=run)
        assert row.code == 0, row.err
        with Image.open(tmp_path / "r.png") as sheet:
            assert sheet.size == (2 * 32 + 2, 3 * 32)
            top = sheet.crop((0, 0, 32, 32)).tobytes()
        plain = pdae(
            "sample", "-n", 1, "--inference-steps", 2, "--unconditional",
            "-o", tmp_path / "p.png", model=run,
        )  # fmt: skip
        assert plain.code == 0 and Image.open(tmp_path / "p.png").tobytes() == top
        assert (
            pdae("sample", "-n", 1, "--label", other, "-o", tmp_path / "q.png", model=run).code == 0
        )
        assert pdae("redo", tmp_path / "r.png", "--model", run).code == 0

    def test_going_on_with_other_labels(
        self, pdae: Command, data: Path, tiny_folder: Path, tmp_path: Path
    ) -> None:
        first = pdae(
            "train", "autoencoder", data, "-o", tmp_path / "a", "--condition", "bright", *ARGS,
            "--dpm", tiny_folder,
        )  # fmt: skip
        assert first.code == 0, first.err
        args = ("train", "autoencoder", data, "-o", tmp_path / "b", *ARGS)
        init = ("--init-from", tmp_path / "a")
        assert pdae(*args, "--condition", "bright", *init).code == 0
        other = pdae(*args, "--condition", "kind", *init)
        assert other.code == 2 and "no G_psi that takes these labels" in other.err

    @pytest.mark.parametrize(
        ("args", "code", "said"),
        [
            (("--label", "x"), 4, "takes no labels"),
            (("--label", "x", "--unconditional"), 2, "exclude each other"),
            (("--guidance", "1,much"), 2, "isn't a number"),
        ],
    )
    def test_failures(
        self, pdae: Command, tmp_path: Path, args: tuple[str, ...], code: int, said: str
    ) -> None:
        result = pdae("sample", *args, "-o", tmp_path / "x.png")
        assert result.code == code and said in result.err
