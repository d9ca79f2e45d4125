"""The latent DPM's training: what a run that goes on must have been begun with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import tiny_model
from small_runs import OPTIONS, folder_of, quiet, task_of

from pdae_cli.errors import UsageError
from pdae_cli.training.latent import latent_stage
from pdae_cli.training.loop import Training
from pdae_cli.training.state import locked


def test_a_network_of_another_width_is_refused_by_name(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos")

    def run_of(width: int, layers: int) -> Training:
        stage = latent_stage(tiny_model(), task_of(photos, tmp_path), width, layers, 0.1, 0)
        return Training(stage, replace(OPTIONS, images=8), tmp_path)

    run_of(16, 3).train(quiet)
    with pytest.raises(UsageError, match="width 16 → 24, layers 3 → 2"):
        run_of(24, 2)


@pytest.mark.parametrize(
    ("runs", "flip"),
    [
        ([], True),
        ([("dpm", False)], True),
        ([("autoencoder", True), ("dpm", False)], True),
        ([("autoencoder", True), ("autoencoder", False)], False),
        ([("diffae", False)], False),
        ([("autoencoder", None)], True),
    ],
)
def test_mirrored_pictures_are_learnt_where_z_was_learnt_from_such(
    tmp_path: Path, runs: list[tuple[str, bool | None]], flip: bool
) -> None:
    """As the last training of z says; else samples of what has a left and a right had either."""
    model, task = tiny_model(), task_of(folder_of(tmp_path / "photos"), tmp_path)
    said = [{} if one is None else {"options": {"flip": one}} for _, one in runs]
    training = tuple({"stage": of} | one for (of, _), one in zip(runs, said, strict=True))
    model.config = replace(model.config, training=training)
    stage = latent_stage(model, task, 16, 3, 0.1, 0)
    assert stage.recorded()["flip"] == flip
    count = (1 + flip) * len(task.train)
    assert len(stage.source) == count and stage.source.stack(range(count)).shape == (count, 6)


def test_what_refuses_a_run_comes_before_the_pictures_are_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which takes as long as the pictures are many; a run that is at its end needs none of it."""
    photos, run = folder_of(tmp_path / "photos"), tmp_path / "run"
    model = tiny_model()

    def training(width: int, images: int) -> Training:
        stage = latent_stage(model, task_of(photos, run), width, 3, 0.1, 0)
        return Training(stage, replace(OPTIONS, images=images), run)

    training(16, 8).train(quiet)
    monkeypatch.setattr("pdae_cli.training.latent.encode_all", None)
    training(16, 8).train(quiet)
    with pytest.raises(UsageError, match="width 16 → 24"):
        training(24, 8)
    shutil.rmtree(run / "training")
    with pytest.raises(UsageError, match="has a latent DPM"):
        training(16, 8)
    (run / "latent_dpm.safetensors").unlink()
    with locked(run / "training"), pytest.raises(UsageError, match="is being trained in by"):
        training(16, 8).train(quiet)
    with pytest.raises(TypeError):  # it is encoded once the run may begin
        training(16, 8).train(quiet)
