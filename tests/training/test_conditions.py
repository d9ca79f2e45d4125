"""Training on labels: of a G_psi that takes them, and of classifiers of noisy pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from labelled import labelled
from small_runs import KINDS, OPTIONS, folder_of, quiet

from pdae_cli.diffusion.schedule import Schedule
from pdae_cli.engine.guidance import Classifier
from pdae_cli.errors import UsageError
from pdae_cli.networks.classifier import Classes, NoisyClassifier
from pdae_cli.training.autoencoder import with_autoencoder
from pdae_cli.training.classifier import ClassifierLoss, classifier_stage, new_classifier
from pdae_cli.training.conditional import Condition, condition, conditional_stage, with_labels
from pdae_cli.training.data import Task, open_pictures
from pdae_cli.training.labels import Labels, read_labels
from pdae_cli.training.loop import Training, draw_batch


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

    def test_numbers_are_no_classes(self) -> None:
        """And where there is nothing else, nothing is known."""
        labels = Labels([], {"1": [], "2": []}, set(), {}, {}, {"digit": {"1": 3.0, "2": 7.0}})
        with pytest.raises(UsageError, match="digit: holds numbers, which are no classes"):
            condition(labels, ["digit"])
        with pytest.raises(UsageError, match="no column kind; known: none"):
            condition(labels, ["kind"])

    def test_words_of_other_pictures_say_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.csv"
        path.write_text("file,kind\na.png,\nb.png,cat\nc.png,dog\n")
        labels = read_labels(path, tmp_path).of(["a.png"])
        with pytest.raises(UsageError, match="kind: says nothing of these pictures"):
            condition(labels, ["kind"])

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("C", "C++", "D"), "can't tell the classes 'C' and 'C++' apart"),
            (("plain", "a=1"), "'a=1' can't be a class's name"),
            (("+", "plain"), "'+' can't be a class's name: letters"),
        ],
    )
    def test_names_are_such_that_a_label_can_tell(self, words: tuple[str, ...], said: str) -> None:
        """Words, as the names of folders, and columns alike."""
        texts = {str(number): word for number, word in enumerate(words)}
        columns = Labels(list(words), {"1": [1] * len(words)}, set(), {}, {})
        for labels, wanted in ((table(kind=texts), ["kind"]), (columns, list(words))):
            with pytest.raises(UsageError) as caught:
                condition(labels, wanted)
            assert said in str(caught.value)

    def test_one_word_tells_nothing(self) -> None:
        with pytest.raises(UsageError, match="tells none apart"):
            condition(table(kind={"1": "dog"}), ["kind"])
        with pytest.raises(UsageError, match="--labels"):
            condition(None, ["kind"])


def test_labels_go_with_their_pictures(tmp_path: Path) -> None:
    """And of the networks G_psi and what embeds them are trained, eps_theta isn't."""
    data = labelled(tmp_path / "data", 12, 8)
    labels = condition(read_labels(data / "labels.csv", data), ["red"])
    pictures = open_pictures(data, 32)
    model = with_labels(tiny_model(), labels.classes, 6, seed=0)
    stage = conditional_stage(model, Task(pictures, pictures, tmp_path), labels)
    batch = draw_batch(stage, OPTIONS, 5, 0, 8)
    assert batch.y is not None
    red, _, blue = batch.x_0.mean((2, 3)).T
    known = batch.y[:, 0] != -1
    assert known.sum() > 4 and (red > blue)[known].tolist() == (batch.y[known, 0] == 1).tolist()
    trained = [name for name, one in stage.objective.named_parameters() if one.requires_grad]
    assert any("encoder.vectors" in name for name in trained)
    assert not any(".dpm." in name for name in trained)


@pytest.mark.parametrize("exclusive", [False, True])
def test_some_labels_are_hidden_row_by_row(tmp_path: Path, exclusive: bool) -> None:
    """However a step is cut into micro-batches; of classes that exclude each other all at once."""
    pictures = open_pictures(folder_of(tmp_path / "photos"), 32)
    rows = {name: [1, 0, 0] for name in pictures.names}
    labels = Condition(Classes(("a", "b", "c"), exclusive), rows)
    model = with_labels(tiny_model(), labels.classes, 6, seed=0)
    stage = conditional_stage(model, Task(pictures, pictures, tmp_path), labels)
    many = replace(OPTIONS, batch_size=64)
    whole = [draw_batch(stage, many, step, 0, 64).y for step in range(4)]
    parts = [
        draw_batch(stage, many, step, at, 16).y for step in range(4) for at in range(0, 64, 16)
    ]
    hidden = torch.cat(whole) == -1
    assert torch.equal(torch.cat(whole), torch.cat(parts))
    assert hidden.float().mean().item() == pytest.approx(0.1, abs=0.03)
    assert bool((hidden == hidden[:, :1]).all()) == exclusive


@pytest.mark.parametrize("base", [4, 8, 32, 48])
def test_each_group_has_four_channels_at_least(base: int) -> None:
    unet = new_classifier(tiny_model(), KINDS, base, seed=0).config.unet
    assert min(unet.widths) // unet.groups >= 4 or unet.groups == 1


def test_a_network_is_the_one_it_began_with(tmp_path: Path) -> None:
    """Also one of other groups, whose weights have the same shapes."""
    data = labelled(tmp_path / "data", 12, 8)
    labels = condition(read_labels(data / "labels.csv", data), ["red"])
    pictures = open_pictures(data, 32)
    model, task = tiny_model(), Task(pictures, pictures, tmp_path)
    now = new_classifier(model, labels.classes, 8, seed=0)
    unet = replace(now.config.unet, groups=8)
    before = Classifier(replace(now.config, unet=unet), NoisyClassifier(unet, labels.classes))

    def run_of(classifier: Classifier) -> Training:
        stage = classifier_stage(model, classifier, task, labels)
        return Training(stage, replace(OPTIONS, images=8 + 8 * (classifier is now)), tmp_path)

    run_of(before).train(quiet)
    with pytest.raises(UsageError, match=r"begun with another network \(groups 8 → 2\)"):
        run_of(now)
    (tmp_path / "training" / "classifier.safetensors").unlink()
    assert run_of(now).step == 0


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


def test_networks_begun_anew_leave_the_old_ones_records_behind() -> None:
    """Whatever the model had on its eps_theta: E_phi, or a G_psi that takes labels."""
    classes = condition(table(), ["A"]).classes
    trained = tiny_model()
    runs = tuple({"stage": stage, "images": 10} for stage in ("dpm", "autoencoder", "dpm"))
    trained.config = replace(trained.config, training=runs)
    conditional = with_labels(trained, classes, 200, seed=0)
    for begun in (trained, conditional):
        for made in (with_autoencoder(begun, 200, 0), with_labels(begun, classes, 200, 0)):
            assert [one["stage"] for one in made.config.training] == ["dpm", "dpm"]
            assert made.config.normalisation is None and made.config.z_dim == 200
            assert (made.encoder is None) != (made.labels is None)
            z = made.gradient_estimator.z  # type: ignore[union-attr]
            assert z.out_features == made.config.unet.z_conditioning.channels
