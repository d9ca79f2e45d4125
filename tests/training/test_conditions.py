"""Training on labels: of a G_psi that takes them, and of classifiers of noisy pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import picture, tiny_model
from PIL import Image
from safetensors.torch import load_file

from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.errors import UsageError
from pdae_cli.networks.classifier import Classes
from pdae_cli.training.classifier import ClassifierLoss, classifier_stage, new_classifier
from pdae_cli.training.conditional import Condition, condition, conditional_stage, with_labels
from pdae_cli.training.data import Task, open_pictures
from pdae_cli.training.labels import Labels, read_labels
from pdae_cli.training.loop import Training, TrainOptions, draw_batch

KINDS = Classes(("dark", "bright"), exclusive=True)
OPTIONS = TrainOptions(
    images=48, batch_size=8, accumulate=1, lr=1e-3, warmup=2, grad_clip=1.0, ema_images=1000,
    precision="no", channels_last=False, compile=False, flip=True, seed=5, log_every=1,
    save_every=100,
)  # fmt: skip


def quiet(record: dict[str, object]) -> None:
    pass


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
                stage = conditional_stage(model, Task(*parts, tmp_path / name), labels)
                Training(stage, replace(OPTIONS, images=images), tmp_path / name).train(quiet)
            states.append(load_file(tmp_path / name / "training" / "autoencoder.safetensors"))
        assert any("encoder.vectors" in name for name in states[0])
        assert not any(".dpm." in name for name in states[0])
        for name, tensor in states[0].items():
            assert torch.equal(tensor, states[1][name]), name

    def test_labels_go_with_their_pictures(self, data: Path, tmp_path: Path) -> None:
        labels = condition(read_labels(data / "labels.csv", data), ["bright"])
        pictures = open_pictures(data, 32)
        model = with_labels(tiny_model(), labels.classes, 6, seed=0)
        stage = conditional_stage(model, Task(pictures, pictures, tmp_path), labels)
        batch = draw_batch(stage, OPTIONS, 5, 0, 8)
        assert batch.y is not None
        assert (batch.x_0.mean((1, 2, 3)) > 0).tolist() == (batch.y[:, 0] == 1).tolist()


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
            stage = classifier_stage(model, classifier, Task(*parts, folder), labels)
            Training(stage, replace(OPTIONS, images=images), folder).train(quiet)
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
