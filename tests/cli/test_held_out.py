"""What training held out, and its frame, later commands keep to, or say that they don't."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, tiny_model
from labelled import labelled

from pdae_cli.checkpoints import write_model
from pdae_cli.training.data import Task, names_sha, open_pictures, split
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
    table = (labelled(Path("photos"), 36, 24) / "labels.csv").rename("split.csv")
    rows = (line.split(",") for line in table.read_text().splitlines())
    Path("plain.csv").write_text("\n".join(",".join([row[0], *row[2:]]) for row in rows))


def trained(name: str, *runs: dict[str, Any]) -> Path:
    """A model that says so of its runs."""
    model = tiny_model()
    model.latent_dpm = None
    model.config = replace(model.config, training=runs)
    write_model(Path(name), model)
    return Path(name)


def learnt(table: str | None) -> dict[str, Any]:
    """A run's record, with what is held out by the table, by default by the names' hashes."""
    pictures = open_pictures(Path("photos"), 32)
    labels = read_labels(Path(table), Path("photos")).of(pictures.names) if table else None
    train, held_out = split(pictures, labels)
    task = Task(train.checked(), held_out.checked(), Path(), held_out_sha=names_sha(held_out))
    options = {"held_out_sha": task.held_out_sha, "least_share": task.least_share}
    return {"stage": "dpm", "images": 8, "data": "photos", "options": options}


@pytest.mark.parametrize("command", COMMANDS)
def test_another_frame_than_that_of_training_is_said(pdae: Command, command: str) -> None:
    """Of z, if it has one; `attributes`, which has no --fit, takes the model's own."""
    runs = [{"stage": one, "options": {"fit": "pad"}} for one in ("dpm", "autoencoder")]
    runs.append({"stage": "latent", "options": {"fit": "crop"}})
    model = trained("model", *runs)
    line = (*COMMANDS[command], "--init-from" if command == "dpm" else "-m", model)
    told = pdae(*line, "--labels", "plain.csv")
    said = "learnt pictures that aren't square by --fit pad, not crop; choose it"
    assert told.code == 0 and told.err.count(said) == (command != "attributes")
    if command != "attributes":
        assert said not in pdae(*line, "--labels", "plain.csv", "--fit", "pad").err


@pytest.mark.parametrize("command", COMMANDS)
def test_another_split_than_that_of_training_is_said(pdae: Command, command: str) -> None:
    """Once; and nothing is said of the same one."""
    model = trained("model", learnt("split.csv"))
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
        ({"data": "others", "options": {"held_out_sha": "0123456789ab"}},),
    ],
    ids=str,
)
def test_of_other_data_and_of_older_runs_nothing_is_said(
    pdae: Command, runs: tuple[dict[str, Any], ...]
) -> None:
    result = pdae(*COMMANDS["evaluate"], "-m", trained("model", *runs))
    assert result.code == 0 and "warning" not in result.err


@pytest.mark.parametrize("table", ["split.csv", None])
@pytest.mark.parametrize("part", [0, 1], ids=["learnt from", "held out"])
def test_of_a_picture_that_cant_be_read_nothing_is_said(
    pdae: Command, table: str | None, part: int
) -> None:
    """Training left it out, wherever it was, and nothing was learnt from it."""
    labels = read_labels(Path("split.csv"), Path("photos")) if table else None
    name = split(open_pictures(Path("photos"), 32), labels)[part].names[0]
    Path("photos", name).write_bytes(b"no picture")
    line = (*COMMANDS["evaluate"], "-m", trained("model", learnt(table)))
    result = pdae(*line, *(("--labels", table) if table else ()))
    assert result.code == 0 and WARNS not in result.err, result.err


def test_nor_of_pictures_that_were_added_unless_others_are_held_out_for_them(
    pdae: Command,
) -> None:
    """By the names' hashes; of a small set more are held out as it grows."""
    line = (*COMMANDS["evaluate"], "-m", trained("model", learnt(None)))
    for added, warned in ((6, False), (40, True)):
        for number in range(added):
            shutil.copy(Path("photos", "00.png"), Path("photos", f"more{number}.png"))
        result = pdae(*line)
        assert result.code == 0 and (WARNS in result.err) == warned, result.err


def test_training_records_what_it_held_out(pdae: Command) -> None:
    """Of all that there was, also where a picture can't be read."""
    labels = read_labels(Path("split.csv"), Path("photos"))
    name = split(open_pictures(Path("photos"), 32), labels)[1].names[0]
    Path("photos", name).write_bytes(b"no picture")
    line = ("train", "dpm", "photos", "--images", 4, "--batch-size", 4)
    shape = ("--image-size", 16, "--base-channels", 32, "--multipliers", 1, "--attention", "")
    made = pdae(*line, *shape, "--labels", "split.csv", "-o", "first")
    assert made.code == 0, made.err
    for table, warned in (("split.csv", False), ("plain.csv", True)):
        again = pdae(*line, "--dry-run", "--init-from", "first", "--labels", table, "-o", "next")
        assert again.code == 0 and (WARNS in again.err) == warned, again.err
