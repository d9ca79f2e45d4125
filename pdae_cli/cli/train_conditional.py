"""pdae train classifier, and pdae train autoencoder --condition: what learns from labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from .options import takes
from .output import Output
from .train import Data, Folder, TrainFlags, load_model, run


@takes(TrainFlags)
def classifier(
    data: Data,
    output: Folder,
    options: TrainFlags,
    dpm: Annotated[str, typer.Option(help="The model that it is to guide: name, folder, Hub id.")],
    condition: Annotated[str, typer.Option(help="Columns of the labels, a,b,….")],
    base_channels: Annotated[int, typer.Option(min=1, help="Width of the first level.")] = 64,
) -> None:
    """Train a classifier of noisy pictures, whose gradient guides `pdae sample --classifier`.

    Example: pdae train classifier photos/ --dpm runs/dpm --condition smiling -o runs/classifier
    """
    from ..checkpoints import load_dpm
    from ..training.classifier import classifier_stage, new_classifier
    from ..training.conditional import condition as conditioned
    from ..training.data import find_labels

    labels = conditioned(find_labels(data, options.labels), split_names(condition))
    model = options.placed(load_dpm(dpm, Output().say))
    network = new_classifier(model, labels.classes, base_channels, options.seed)
    train, held_out = options.data(data, model.config)
    stage = classifier_stage(model, network, train, held_out, labels, output, options.stored())
    run(stage, options, output)


def run_conditional(
    data: Path,
    output: Path,
    options: TrainFlags,
    dpm: str | None,
    init_from: str | None,
    z_dim: int,
    columns: str,
) -> None:
    """Train a G_psi that takes labels in z's place."""
    from ..checkpoints import load_dpm
    from ..training.conditional import condition, conditional_stage, with_labels
    from ..training.data import find_labels

    labels = condition(find_labels(data, options.labels), split_names(columns))
    if dpm is not None:
        model = with_labels(load_dpm(dpm, Output().say), labels.classes, z_dim, options.seed)
    else:
        model = load_model(str(init_from))
        if model.config.labels is None or model.config.labels.classes != labels.classes:
            raise UsageError(f"{init_from} has no G_psi that takes these labels; use --dpm")
    options.placed(model)
    train, held_out = options.data(data, model.config)
    stage = conditional_stage(model, train, held_out, labels, output, options.stored())
    run(stage, options, output)


def split_names(text: str) -> list[str]:
    """ "a, b" → ["a", "b"]."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
