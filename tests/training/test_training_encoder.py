"""What E_phi is taught before stage 2: features' principal components, and another model's z."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Command, tiny_model
from small_runs import OPTIONS, assert_equal, folder_of, quiet, state, task_of

from pdae_cli.checkpoints import read_model
from pdae_cli.checkpoints.find import going_on, terms
from pdae_cli.engine.model import Model
from pdae_cli.errors import UsageError
from pdae_cli.pictures.images import to_float
from pdae_cli.training.autoencoder import with_autoencoder
from pdae_cli.training.data import Task
from pdae_cli.training.encoder import components, encoder_stage, features, teacher_of
from pdae_cli.training.loop import Training


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("task")
    return task_of(folder_of(folder / "faces"), folder / "run")


def untrained(z_dim: int = 8) -> Model:
    return with_autoencoder(tiny_model(), z_dim, seed=1)


def test_features_are_of_the_output_halfs_first_block(model: Model) -> None:
    """Of a pass through the whole network at t = T / 20, that a hook listens to."""
    x_0, seen = torch.rand(2, 3, 32, 32) * 2 - 1, []
    hook = model.dpm.output.layers[0].register_forward_hook(lambda *of: seen.append(of[2]))
    with torch.no_grad():
        model.dpm(x_0, torch.tensor([50, 50]))
        hook.remove()
        torch.testing.assert_close(features(model, x_0), F.avg_pool2d(seen[0], 4).flatten(1))


def test_components_are_a_half_whitened_pca() -> None:
    """Of standardised values, by their covariance's eigenvectors; a constant counts nothing."""
    values = torch.randn(400, 6, generator=torch.Generator().manual_seed(3)).double()
    values = torch.cat([values @ torch.randn(6, 12).double().tril(), torch.ones(400, 1)], 1) + 3
    mean, axes = components(values, 4)
    found = (values - mean) @ axes.double()
    standard = (values - values.mean(0)) / values.std(0, correction=0).clamp(min=1e-6)
    eigenvalues, vectors = torch.linalg.eigh(standard.T @ standard / 400)
    deviations = eigenvalues[-4:].flip(0).sqrt()
    own = standard @ vectors[:, -4:].flip(1)
    expected = own / (deviations * deviations.mean()).sqrt()
    torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.var(0, correction=0), deviations / deviations.mean())
    again = components(-values, 4)[1]
    torch.testing.assert_close(again, axes, rtol=1e-4, atol=1e-4)  # the same side of zero


def test_another_models_z_comes_first(task: Task) -> None:
    other, model = tiny_model(seed=4), untrained(8)
    x_0 = to_float(task.train.stack(range(16)))
    taught = teacher_of(model, task.train, other, 8)[0](x_0)
    with torch.no_grad():
        torch.testing.assert_close(taught[:, :6], other.normalise(other.encode_z(x_0)))
        mean, axes = components(features(model, x_0), 2)
        torch.testing.assert_close(taught[:, 6:], (features(model, x_0) - mean) @ axes)


def test_e_phi_learns_it_and_nothing_else_changes(task: Task, tmp_path: Path) -> None:
    model, fresh = untrained(), untrained()
    stage = encoder_stage(model, replace(task, folder=tmp_path), tiny_model(seed=4))
    before = stage.measure()["explained"]
    Training(stage, replace(OPTIONS, images=640, lr=1e-2), tmp_path).train(quiet)
    assert stage.measure()["explained"] > before
    written = read_model(tmp_path, "written")
    assert written.config.normalisation is not None
    for part in ("dpm", "gradient_estimator"):
        pairs = (vars(one)[part].state_dict() for one in (written, fresh))
        assert_equal(*pairs)
    pictures, columns = stage.preview()
    assert len(pictures) == 2 * columns and torch.equal(
        pictures[:columns], to_float(task.held_out.stack(range(columns)))
    )


def test_a_resumed_run_has_the_same_teacher(task: Task, tmp_path: Path) -> None:
    def run_of(folder: Path, images: int, other: Model | None, seed: int = 0) -> Training:
        model = with_autoencoder(tiny_model(seed), 8, seed=1)
        stage = encoder_stage(model, replace(task, folder=folder), other)
        return Training(stage, replace(OPTIONS, images=images), folder)

    teacher, renamed = tiny_model(seed=4), tiny_model(seed=4)
    teacher.weights_sha = renamed.weights_sha = "a" * 64
    renamed.name = "the same"
    for name, runs in (("whole", [(32, teacher)]), ("broken", [(16, teacher), (32, renamed)])):
        for images, other in runs:
            run_of(tmp_path / name, images, other).train(quiet)
    assert_equal(*(state(tmp_path / name, "encoder") for name in ("whole", "broken")))
    with pytest.raises(UsageError, match="another teacher"):
        run_of(tmp_path / "whole", 32, None)
    with pytest.raises(UsageError, match="frozen weights of another model"):
        run_of(tmp_path / "whole", 32, teacher, seed=9)


def test_what_differs_in_nothing_is_measured_as_far_as_it_goes(task: Task, tmp_path: Path) -> None:
    one = replace(task, held_out=task.held_out.subset([0]), folder=tmp_path)
    measured = encoder_stage(untrained(), one).measure()
    assert measured.keys() == {"held_out_loss"} and measured["held_out_loss"] > 0


@pytest.mark.parametrize(
    ("other", "z_dim", "why"),
    [
        (lambda: tiny_model(z_dim=9), 8, "z of tiny has 9 numbers, more than --z-dim 8"),
        (lambda: tiny_model(image_size=16, attention=(8,)), 8, "of 16 pixels and 3 channels"),
        (lambda: with_autoencoder(tiny_model(), 6, 0), 8, "doesn't say how its z is distributed"),
        (lambda: None, 16, "16 pictures of 256 features have 15 principal components, not 16"),
    ],
)
def test_what_cant_be_taught_is_refused(
    other: Callable[[], Model | None], z_dim: int, why: str, task: Task
) -> None:
    with pytest.raises(UsageError, match=why):
        encoder_stage(untrained(z_dim), task, other())


@pytest.mark.parametrize(
    ("ours", "theirs", "both"),
    [("mit", "mit", "mit"), ("unknown", "nc", "nc"), ("mit", "nc", "mit; nc"),
     ("unknown", "unknown", "unknown")],
)  # fmt: skip
def test_terms_are_those_of_both(ours: str, theirs: str, both: str) -> None:
    """Of a teacher and of data, too; each once."""
    assert terms(ours, theirs) == terms(both, ours) == both
    model = tiny_model()
    model.config = replace(model.config, licence=ours)
    assert going_on(model, theirs).licence == both
    assert going_on(model, None).licence == ours


def test_a_head_start_by_commands(pdae: Command, tiny_folder: Path, tmp_path: Path) -> None:
    data, begun = folder_of(tmp_path / "photos"), tmp_path / "begun"
    loop = ("--images", 16, "--batch-size", 8, "--log-every", 1)
    command = ("train", "encoder", data, "--dpm", tiny_folder, "-o", begun, "--z-dim", 8)
    done = pdae(*command, "--teacher", tiny_folder, *loop)
    assert done.code == 0 and done.out == b"" and "explained" in done.err
    needs = pdae(*command, "--teacher", tiny_folder, *loop, "--dry-run")
    assert needs.code == 0 and b"encoder on 1 x cpu" in needs.out
    assert b" for 0 steps" in needs.out  # as of any run that is done
    goes_on = ("train", "autoencoder", data, "--init-from", begun, "-o", tmp_path / "model")
    assert pdae(*goes_on, *loop, "--freeze-encoder").code == 0
    assert pdae(*goes_on, *loop).code == 2  # not frozen now
    for without in (("--dpm", begun), ("--init-from", begun, "--condition", "hat")):
        refused = pdae(*goes_on[:3], *without, "-o", tmp_path / "no", *loop, "--freeze-encoder")
        assert refused.code == 2 and "--freeze-encoder leaves the E_phi of" in refused.err
    stages = [run["stage"] for run in read_model(tmp_path / "model", "m").config.training]
    assert stages == ["encoder", "autoencoder"]
    assert pdae(*command, *loop).code == 2  # another teacher
    refused = pdae("train", "encoder", data, "-o", tmp_path / "no", *loop)
    assert refused.code == 2 and "--dpm" in refused.err
