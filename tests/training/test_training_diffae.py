"""Diff-AE as a baseline: its objective, that z is used, resuming, and the model that comes out."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Command, randomise
from labelled import labelled
from small_runs import OPTIONS as LONG
from small_runs import SHAPE, quiet, state, task_of, untrained_diffae

from pdae_cli import checkpoints
from pdae_cli.checkpoints import read_model
from pdae_cli.diffusion.noise import generator
from pdae_cli.diffusion.schedule import gather
from pdae_cli.engine.model import Model
from pdae_cli.errors import UsageError
from pdae_cli.evaluation.likeness import Likeness
from pdae_cli.pictures.images import to_float
from pdae_cli.training.data import Task
from pdae_cli.training.diffae import DiffAELoss, diffae_stage, held_out_losses, new_diffae
from pdae_cli.training.dpm import DPMLoss
from pdae_cli.training.loop import Training

TINY = (
    "--image-size", 32, "--base-channels", 8, "--multipliers", "1,2", "--blocks", 1,
    "--attention", 16, "--head-channels", 8, "--z-dim", 6, "--batch-size", 4, "--quiet",
    "--device", "cpu",
)  # fmt: skip
OPTIONS = replace(LONG, images=32, lr=3e-3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(tmp_path_factory.mktemp("data") / "photos", 24, 16)


@pytest.fixture
def task(photos: Path, tmp_path: Path) -> Task:
    return task_of(photos, tmp_path)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_objective_is_the_papers(prediction: str, task: Task) -> None:
    """E |eps - eps_theta(x_t, t, E_phi(x_0))|^2 (Diff-AE eq. 8), from the networks' own outputs;
    with v, the error of v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0."""
    model = untrained_diffae(prediction)
    assert model.encoder is not None
    randomise(model.dpm)
    x_0, t = to_float(task.train.stack(range(3))), torch.tensor([10, 400, 990])
    eps = torch.randn(x_0.shape)
    loss = DiffAELoss(DPMLoss(model.heads, model.schedule), model.encoder).eval()
    alpha_bar = gather(model.schedule.alpha_bar, t, x_0)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    output = model.dpm(x_t, t, model.encoder(x_0))
    target = eps if prediction == "eps" else alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0
    expected = (target - output).square().mean()
    assert torch.allclose(loss(x_0, t, eps), expected, rtol=1e-4)


def test_losses_go_down_and_both_networks_are_trained(task: Task, tmp_path: Path) -> None:
    model = untrained_diffae()
    before, fresh = weights(model), held_out_losses(model, task.held_out)
    assert fresh["held_out_loss"] == fresh["held_out_loss_shuffled"]  # blocks begin as nothing
    options, records = replace(OPTIONS, images=320, lr=1e-3), list[dict[str, object]]()
    Training(diffae_stage(model, task), options, tmp_path).train(records.append)
    assert float(str(records[-1]["held_out_loss"])) < 0.9 * fresh["held_out_loss"]
    changed = [name for name, value in weights(model).items() if not value.equal(before[name])]
    assert {name.split(".")[0] for name in changed} == {"dpm", "encoder"}
    assert list((tmp_path / "training").glob("diffae-*.png"))


def weights(model: Model) -> dict[str, torch.Tensor]:
    assert model.encoder is not None
    parts = torch.nn.ModuleDict({"dpm": model.dpm, "encoder": model.encoder})
    return {name: value.clone() for name, value in parts.state_dict().items()}


def test_z_comes_to_matter() -> None:
    """Where x_t is nearly noise, only z tells which of four waves it was: another's is worse."""
    model = untrained_diffae()
    assert model.encoder is not None
    wave = torch.linspace(0, 4 * torch.pi, 32).sin().expand(3, 32, 32)
    x_0, t = torch.stack([wave, -wave, wave.mT, -wave.mT]), torch.full((4,), 900)
    alone = DPMLoss(model.heads, model.schedule)
    objective = DiffAELoss(alone, model.encoder)
    adam = torch.optim.Adam(objective.parameters(), lr=1e-3)
    draws = generator(0)
    for _ in range(45):
        adam.zero_grad()
        objective(x_0, t, torch.randn(x_0.shape, generator=draws)).backward()
        adam.step()
    eps, z = torch.randn(x_0.shape, generator=draws), model.encoder(x_0)
    own, others = alone(x_0, t, eps, z), alone(x_0, t, eps, z.roll(1, 0))
    assert own < 0.2 and others > 3 * own


def test_the_model_that_is_written_is_the_one_that_was_trained(task: Task, tmp_path: Path) -> None:
    model = untrained_diffae()
    Training(diffae_stage(model, task), OPTIONS, tmp_path).train(quiet)
    written = read_model(tmp_path, "written")
    assert written.takes_z and written.gradient_estimator is None
    assert written.config.unet.z_channels == 6 and written.config.training[0]["stage"] == "diffae"
    norm = written.config.normalisation
    z = written.encoder(to_float(task.train.stack(range(16)))).double()
    assert norm is not None
    assert torch.allclose(z.mean(0), torch.tensor(norm.mean, dtype=torch.float64), atol=1e-5)
    trained = state(tmp_path, "diffae").items()
    average = {key.removeprefix("ema/"): value for key, value in trained if "ema/" in key}
    for name, value in written.dpm.named_parameters():
        assert torch.equal(value, average[f"eps_theta.heads.dpm.{name}"])


def test_a_size_that_no_encoder_takes_is_one_line() -> None:
    with pytest.raises(UsageError):
        new_diffae(0, "linear", "v", 6, dropout=0.0, **SHAPE | {"image_size": 2})


def test_every_command_takes_it(pdae: Command, photos: Path, tmp_path: Path) -> None:
    """Trained, resumed, attributes fitted; encoded, decoded, edited, measured and sampled."""
    model, face = tmp_path / "diffae", photos / "03.png"
    for images in (8, 16):
        run = pdae("train", "diffae", photos, "-o", model, "--images", images, *TINY)
        assert run.code == 0, run.err
    fast = ("--inference-steps", 3, "-m", model, "--quiet")
    assert pdae("attributes", "fit", photos, "-m", model, "--quiet").code == 0
    for line in (
        ("encode", face, "-o", tmp_path / "z.safetensors", *fast),
        ("decode", tmp_path / "z.safetensors", "-o", tmp_path / "back.png", "-m", model),
        ("reconstruct", face, "-o", tmp_path / "both.png", "--compare", *fast),
        ("manipulate", face, "--attr", "red=0.5", "-o", tmp_path / "red.png", *fast),
        ("interpolate", face, photos / "04.png", "--steps", 3, "-o", tmp_path / "row.png", *fast),
        ("train", "latent", photos, "-m", model, "--images", 8, "--batch-size", 4, "--width", 16,
         "--layers", 3, "--quiet"),
        ("sample", "-n", 2, "-o", tmp_path / "new.png", *fast),
        ("info", model),
    ):  # fmt: skip
        run = pdae(*line)
        assert run.code == 0, (line, run.err)
    trained = checkpoints.load(str(model), "cpu")
    recorded, measured = Likeness.of(trained, trained.latent_training), Likeness.of(trained)
    assert "own_error" in trained.latent_training and recorded is not None and measured is not None
    assert recorded.mean == pytest.approx(measured.mean, rel=1e-3)
    assert recorded.spread == pytest.approx(measured.spread, rel=1e-2)
    again = pdae("train", "diffae", photos, "-o", tmp_path / "b", "--init-from", model, *TINY,
                 "--images", 4)  # fmt: skip
    assert again.code == 0, again.err
    stages = [one["stage"] for one in read_model(tmp_path / "b", "b").config.training]
    assert stages == ["diffae", "diffae"]


def test_it_goes_on_only_with_a_diffae(
    pdae: Command, photos: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    run = pdae("train", "diffae", photos, "-o", tmp_path / "x", "--init-from", tiny_folder, *TINY)
    assert run.code == 2 and "is no Diff-AE" in run.err


def test_the_comparison_trains_both_on_the_same(
    photos: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """benchmarks/baseline.py, small: a row a method and number of images, from runs that go on; in
    words, who is ahead, and from how many images on PDAE is."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr("pdae_cli.training.dpm.MOST_DRAWS", 1)  # each is measured once
    import baseline

    rows = baseline.compared(
        Namespace(data=photos, dpm=str(tiny_folder), images=[4, 8], z_dim=6, batch_size=4, lr=1e-3,
                  output=tmp_path / "runs", precision="no", optimizer="adam", gamma=0.1)
    )  # fmt: skip
    assert [(row["method"], row["images"]) for row in rows] == [
        ("PDAE", 4), ("PDAE", 8), ("Diff-AE", 4), ("Diff-AE", 8)
    ]  # fmt: skip
    assert all(math.isfinite(row[name]) for row in rows for name in baseline.COLUMNS)
    figures = {"MSE": 0.1, "SSIM": 0.5, "unexplained": 0.2, "AUROC": 0.7}
    better = {"MSE": 0.05, "SSIM": 0.6, "unexplained": 0.1, "AUROC": 0.8}
    text = baseline.words([
        {"method": "PDAE", "images": 1, **figures},
        {"method": "PDAE", "images": 2, **better},
        {"method": "Diff-AE", "images": 2, **figures | {"AUROC": 0.9}},
    ])  # fmt: skip
    assert "- MSE: PDAE is ahead at 2 images; PDAE is there after 1 images." in text
    assert "- AUROC: Diff-AE is ahead at 2 images." in text
