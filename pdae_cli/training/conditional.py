"""Stage 2 with labels in z's place: G_psi(x_t, y, t), eps_theta frozen (PDAE sec. 4.6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion.trajectory import Sampling
from ..engine.attributes import simplified
from ..engine.guidance import chosen, labelled
from ..engine.model import Model
from ..engine.tensors import networks_sha
from ..errors import UsageError
from ..networks.classifier import ClassEmbedding, Classes, EmbeddingConfig
from ..networks.gradient import GradientEstimator
from .autoencoder import LAMBDA, AutoencoderLoss, Weighting, gap_closed
from .data import Task
from .dpm import dpm_config, first_stage_sha
from .folder import check_model, saving
from .labels import Labels
from .stage import PREVIEWED, Stage


@dataclass(frozen=True)
class Condition:
    """Labels to train on."""

    classes: Classes
    rows: dict[str, list[int]]  # picture name → 1, 0 or -1 (unknown) for each class

    def matrix(self, names: Sequence[str]) -> Tensor:
        """Return y of pictures, int8 (N, A); -1 is unknown."""
        return Labels(list(self.classes.names), self.rows, set(), {}, {}).matrix(names)


def condition(table: Labels | None, columns: Sequence[str]) -> Condition:
    """Tell the classes that columns of labels mean: several attributes of 1 / 0 / -1, or the
    different words of one other column, which exclude each other. Raises UsageError, also for
    names that `--label` can't tell apart."""
    if table is None:
        raise UsageError("there are no labels to condition on; pass --labels CSV")
    unknown = set(columns) - set(table.attributes) - set(table.texts)
    if unknown or not columns:
        if numbers := sorted(unknown & table.numbers.keys()):
            how = "write words, such as class_3, or columns of 1 / 0"
            raise UsageError(f"{', '.join(numbers)}: holds numbers, which are no classes; {how}")
        known = ", ".join([*table.attributes, *table.texts]) or "none"
        raise UsageError(f"the labels have no column {', '.join(sorted(unknown))}; known: {known}")
    if set(columns) <= set(table.attributes):
        places = [table.attributes.index(one) for one in columns]
        rows = {name: [row[place] for place in places] for name, row in table.rows.items()}
        check_classes(columns)
        return Condition(Classes(tuple(columns), exclusive=False), rows)
    if len(columns) > 1:
        raise UsageError(f"{', '.join(columns)}: only columns of 1 / 0 labels go together")
    texts = table.texts[columns[0]]
    names = sorted(set(texts.values()))
    if not names:
        raise UsageError(f"{columns[0]}: says nothing of these pictures")
    if len(names) < 2:
        raise UsageError(f"{columns[0]}: all pictures are {names[0]}; it tells none apart")
    check_classes(names)
    rows = {name: [int(text == one) for one in names] for name, text in texts.items()}
    return Condition(Classes(tuple(names), exclusive=True), rows)


def check_classes(names: Sequence[str]) -> None:
    """Raise UsageError for names that `--label` can't tell: alike, empty, or with =."""
    known: dict[str, str] = {}
    for name in names:
        plain = simplified(name)
        if not plain or "=" in name:
            raise UsageError(f"{name!r} can't be a class's name: letters and digits, and no =")
        if plain in known:
            both = f"{known[plain]!r} and {name!r}"
            raise UsageError(f"--label can't tell the classes {both} apart; rename one")
        known[plain] = name


def recorded(classes: Classes) -> dict[str, str]:
    """Return the setting by which a run that goes on knows its classes again, in their order."""
    return {"classes": (" | " if classes.exclusive else ", ").join(classes.names)}


def preview(classes: Classes, paint: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """Make rows of a sheet, one for each class, of the first PREVIEWED; `paint`: labels y (1, A) →
    PREVIEWED pictures (N, C, H, W)."""
    rows = [paint(chosen(classes, [name])) for name in classes.names[:PREVIEWED]]
    return torch.cat(rows), PREVIEWED


def with_labels(model: Model, classes: Classes, z_dim: int, seed: int) -> Model:
    """Give the model's eps_theta an untrained gradient estimator that takes labels."""
    embedding, config = EmbeddingConfig(classes, z_dim), dpm_config(model)
    torch.manual_seed(seed)
    return Model(
        config=replace(config, labels=embedding),
        dpm=model.dpm,
        gradient_estimator=GradientEstimator(config.unet, z_dim),
        labels=ClassEmbedding(embedding),
        first_stage=model.first_stage,
        name=model.name,
    )


def conditional_stage(
    model: Model, task: Task, labels: Condition, weighting: Weighting = LAMBDA
) -> Stage:
    """Train the model's G_psi and what embeds its labels; its eps_theta stays as it is. Some labels
    are hidden, so that the others alone mean something too."""
    if model.gradient_estimator is None or model.labels is None:
        raise ValueError("the model has no gradient estimator that takes labels")
    embedding, schedule = model.labels, model.schedule.to(model.device)
    objective = AutoencoderLoss(model.heads, embedding, schedule, model.latents, weighting)
    y, y_held_out = labels.matrix(task.train.names), labels.matrix(task.held_out.names)
    return Stage(
        "autoencoder",
        objective,
        task.train,
        objective.density.cpu(),
        lambda: gap_closed(model, task.held_out, zs=embedding(y_held_out.to(model.device))),
        lambda: preview(
            labels.classes, lambda of: labelled(model, of, range(PREVIEWED), Sampling(), 0)
        ),
        saving(model, task, "autoencoder"),
        model.config.state_shape,
        y,
        weighting._asdict()
        | {"frozen_sha": networks_sha(model.dpm)}
        | recorded(labels.classes)
        | first_stage_sha(model),
        lambda: check_model(model, task.folder, "autoencoder"),
        1 if labels.classes.exclusive else len(labels.classes.names),
    )
