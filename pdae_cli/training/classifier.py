"""A classifier of noisy pictures, for classifier guidance (Dhariwal & Nichol 2021, sec. 4)."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import write_classifier
from ..diffusion.sampling import Sampling
from ..diffusion.schedule import Schedule
from ..diffusion.trajectory import Latents, unchanged
from ..engine.classes import log_probability
from ..engine.conditional import Classifier, ClassifierConfig, by_classifier
from ..engine.model import Model
from ..errors import UsageError
from ..networks.classes import Classes
from ..networks.classifier import NoisyClassifier
from .conditional import PREVIEWED, Condition, sheet_of_classes
from .data import Pictures
from .dpm import held_out_loss, held_out_noise, uniform
from .loop import Stage


class ClassifierLoss(nn.Module):
    """E -log p(y | x_t, t), over all timesteps alike."""

    def __init__(
        self, network: NoisyClassifier, schedule: Schedule, latents: Latents = unchanged
    ) -> None:
        super().__init__()
        self.network, self.schedule, self.latents = network, schedule, latents

    def forward(self, x_0: Tensor, t: Tensor, eps: Tensor, y: Tensor) -> Tensor:
        logits = self.network(self.schedule.add_noise(self.latents(x_0), t, eps), t)
        return -log_probability(self.network.classes, logits.float(), y).mean()


def new_classifier(model: Model, classes: Classes, base_channels: int, seed: int) -> Classifier:
    """An untrained classifier of the model's noisy pictures, of the shape of its U-Net's input half
    but for the width. Raises UsageError for a width that can't be."""
    theirs = model.config
    try:
        unet = replace(
            theirs.unet,
            base_channels=base_channels,
            embedding_channels=0,
            groups=math.gcd(32, base_channels),
            learn_sigma=False,
            z_channels=0,
        )
        config = ClassifierConfig(theirs.image_size, unet, classes, theirs.schedule)
        torch.manual_seed(seed)
        return Classifier(config, NoisyClassifier(unet, classes))
    except ValueError as error:
        raise UsageError(str(error)) from error


def classifier_stage(
    model: Model,
    classifier: Classifier,
    train: Pictures,
    held_out: Pictures,
    labels: Condition,
    folder: Path,
    dtype: torch.dtype,
) -> Stage:
    """Train the classifier; the model only makes sample sheets with it."""
    network = classifier.network.to(model.device).requires_grad_(True).train()
    schedule = model.schedule.to(model.device)
    objective = ClassifierLoss(network, schedule, model.latents)
    x_0, t, eps = held_out_noise(model, held_out, 0, schedule.timesteps - 1)
    y = labels.matrix(held_out.names[: len(x_0)])

    def paint(of: Tensor) -> Tensor:
        return by_classifier(model, classifier, of, 1.0, range(PREVIEWED), Sampling(), 0)

    def save(summary: dict[str, Any]) -> None:
        write_classifier(folder, classifier, summary, dtype)

    return Stage(
        "classifier",
        objective,
        train,
        uniform(schedule),
        lambda: held_out_loss(model, objective, x_0, t, eps, y),
        sheet_of_classes(labels.classes, "train classifier", paint),
        save,
        model.config.state_shape,
        labels.matrix(train.names),
    )
