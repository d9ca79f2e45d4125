"""A run's folder: what is written there, and what is never replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..checkpoints import is_native, read_card, read_classifier, read_config, write_model
from ..checkpoints.native import ATTRIBUTES, CLASSIFIER, CONFIG, LATENT_DPM, WEIGHTS
from ..engine.model import Model
from ..errors import UsageError
from ..files import sha256
from ..networks.unet import UNetConfig
from .data import Task

MEANING = ("schedule", "prediction", "unet", "first_stage")  # what a config says of eps_theta


def saving(model: Model, task: Task, stage: str) -> Callable[[dict[str, object]], None]:
    """Return what writes the model with a run's summary, behind those of the runs before it.

    Raises UsageError where the folder holds a run whose weights mean something else, which their
    shapes don't always tell.
    """
    folder, before = task.folder, model.config.training
    read_card(folder)  # or the error, before the work
    if is_native(folder) and (folder / "training").is_dir():
        ours, theirs = asdict(model.config), asdict(read_config(folder))
        _check_same(folder, *({name: one[name] for name in MEANING} for one in (ours, theirs)))
    if _has_state(folder, stage) and _is_in(model, folder):
        last = before[-1].get("stage") if before else None
        before = before[:-1] if last == stage else before  # of this very run

    def save(summary: dict[str, object]) -> None:
        model.config = replace(model.config, training=(*before, summary | {"data": task.name}))
        write_model(folder, model, task.dtype)

    return save


def check_model(model: Model, folder: Path, stage: str, keeps_z: bool = False) -> None:
    """Raise UsageError where steps would replace a model that they don't go on with, or leave files
    beside it that are of another z than its."""
    in_place = _is_in(model, folder)
    if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
        theirs = read_config(folder).training if is_native(folder) else ()
        ours = _was_begun(folder, stage) and theirs and theirs[-1].get("stage") == stage
        if not (in_place or ours):
            raise UsageError(
                f"{folder} holds a model, which this run would replace; choose another -o (a model "
                "with all that is to be trained goes on by --init-from)"
            )
    stale = [one for one in (ATTRIBUTES, LATENT_DPM) if (folder / one).exists()]
    if stale and not (keeps_z and (in_place or _has_state(folder, stage))):
        raise UsageError(
            f"{folder} has {' and '.join(stale)}, made for a z that this run changes; move them "
            "away and make them again afterwards, or choose another -o"
        )


def check_latent(model: Model, folder: Path) -> None:
    """Raise UsageError where steps would replace a latent DPM that they don't go on with, or learn
    the z of a model that is another one by now."""
    if model.weights_sha and not _is_in(model, folder):
        raise UsageError(f"{folder} was trained on meanwhile; start again")
    if (folder / LATENT_DPM).exists() and not _was_begun(folder, "latent"):
        raise UsageError(
            f"{folder} has a latent DPM, which this run would replace; move {LATENT_DPM} away first"
        )


def check_classifier(folder: Path, unet: UNetConfig) -> None:
    """Raise UsageError where steps would replace a classifier that they don't go on with, or go on
    with another network, which the names and shapes of weights don't always tell."""
    if not (folder / CLASSIFIER).exists():
        return
    if not _was_begun(folder, "classifier"):
        raise UsageError(
            f"{folder} holds a classifier, which this run would replace; choose another -o"
        )
    if _has_state(folder, "classifier"):  # else it begins anew
        _check_same(folder, asdict(unet), asdict(read_classifier(folder).config.unet))


def is_made(folder: Path, stage: str) -> bool:
    """Whether what a run of this stage writes is there."""
    return (folder / {"latent": LATENT_DPM, "classifier": CLASSIFIER}.get(stage, WEIGHTS)).exists()


def _check_same(folder: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raise UsageError, which names each setting that differs, where a run would go on with another
    network or process."""
    if changed := list(_changes(ours, theirs)):
        raise UsageError(
            f"{folder} was begun with another network ({', '.join(changed)}); use the same again, "
            "or start in another folder"
        )


def _changes(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    for name in theirs | ours:
        now, old = ours.get(name), theirs.get(name)
        if isinstance(now, dict) and isinstance(old, dict):
            yield from _changes(now, old)
        elif now != old:  # of a first stage, or none, the name alone
            yield name if isinstance(now or old, dict) else f"{name} {old} → {now}"


def _is_in(model: Model, folder: Path) -> bool:
    """Whether the model is the very one that the folder holds."""
    weights = folder / WEIGHTS
    return weights.is_file() and model.weights_sha == sha256(weights)


def _has_state(folder: Path, stage: str) -> bool:
    return (folder / "training" / f"{stage}.safetensors").exists()


def _was_begun(folder: Path, stage: str) -> bool:
    """Whether a run of this stage has left anything: at least its log."""
    return any((folder / "training").glob(f"{stage}[.-]*"))
