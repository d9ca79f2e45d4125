"""What training held out is held out by later commands, or they say that it isn't."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, tiny_model
from labelled import labelled

from pdae_cli.checkpoints import write_model
from pdae_cli.training.data import Task, open_pictures, split
from pdae_cli.training.labels import read_labels

WARNS = "was trained on photos with others held out"
COMMANDS: dict[str, tuple[Any, ...]] = {
    "evaluate": ("evaluate", "gap", "photos", "--pictures", 2),
    "attributes": ("attributes", "fit", "photos", "--overwrite"),
    "latent": ("train", "latent", "photos", "--dry-run", "--batch-size", 4),
    "dpm": ("train", "dpm", "photos", "--dry-run", "--batch-size", 4, "-o", "out"),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures with tables beside them, of which one has a split."""
    monkeypatch.chdir(tmp_path)
    table = (labelled(Path("photos"), 24, 16) / "labels.csv").rename("split.csv")
    rows = (line.split(",") for line in table.read_text().splitlines())
    Path("plain.csv").write_text("\n".join(",".join([row[0], *row[2:]]) for row in rows))


def trained(name: str, *runs: dict[str, Any]) -> Path:
    """A model that says so of its runs."""
    model = tiny_model()
    model.latent_dpm = None
    model.config = replace(model.config, training=runs)
    write_model(Path(name), model)
    return Path(name)


def names_sha() -> str:
    pictures = open_pictures(Path("photos"), 32)
    labels = read_labels(Path("split.csv"), Path("photos")).of(pictures.names)
    return Task(*split(pictures, labels), Path()).names_sha


@pytest.mark.parametrize("command", COMMANDS)
def test_another_split_than_that_of_training_is_said(pdae: Command, command: str) -> None:
    """Once; and nothing is said of the same one."""
    run = {"stage": "dpm", "images": 8, "data": "photos", "options": {"names_sha": names_sha()}}
    model = trained("model", run)
    line = (*COMMANDS[command], "--init-from" if command == "dpm" else "-m", model)
    told = pdae(*line, "--labels", "plain.csv")
    assert told.code == 0 and told.err.count(WARNS) == 1, told.err
    same = pdae(*line, "--labels", "split.csv")
    assert same.code == 0 and WARNS not in same.err


@pytest.mark.parametrize(
    "runs",
    [
        (),
        ({"data": "photos"},),
        ({"data": "photos", "options": "none"},),
        ({"data": "others", "options": {"names_sha": "0123456789ab"}},),
    ],
    ids=str,
)
def test_of_other_data_and_of_older_runs_nothing_is_said(
    pdae: Command, runs: tuple[dict[str, Any], ...]
) -> None:
    result = pdae(*COMMANDS["evaluate"], "-m", trained("model", *runs))
    assert result.code == 0 and "warning" not in result.err
