"""A classifier of noisy pictures, for classifier guidance (Dhariwal & Nichol 2021, sec. 4)."""

from __future__ import annotations

from dataclasses import astuple, replace

import torch
from torch import Tensor, nn

from ..checkpoints import write_classifier
from ..diffusion.schedule import Schedule
from ..diffusion.trajectory import Latents, Sampling, unchanged
from ..engine.guidance import Classifier, ClassifierConfig, by_classifier, log_probability
from ..engine.model import Model
from ..errors import UsageError
from ..networks.classifier import Classes, NoisyClassifier
from ..networks.layers import groups_of
from .conditional import PREVIEWED, Condition, preview, recorded
from .data import Task
from .dpm import (
    check_plain,
    first_stage_sha,
    held_out_loss,
    held_out_noise,
    held_out_rows,
    uniform,
)
from .folder import check_classifier
from .stage import Stage


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
    """Make an untrained classifier of the model's noisy pictures, of the shape of its U-Net's input
    half but for the width. Raises UsageError for a width that can't be, and where eps_theta takes
    z itself, which the sample sheets have none of."""
    check_plain(model)
    theirs = model.config
    try:
        unet = replace(
            theirs.unet,
            base_channels=base_channels,
            embedding_channels=0,
            groups=1,
            learn_sigma=False,
            z_channels=0,
        )
        unet = replace(unet, groups=groups_of(unet.widths))
        config = ClassifierConfig(
            theirs.image_size, unet, classes, theirs.schedule, model.first_stage_sha
        )
        torch.manual_seed(seed)
        return Classifier(config, NoisyClassifier(unet, classes))
    except ValueError as error:
        raise UsageError(str(error)) from error


def classifier_stage(model: Model, classifier: Classifier, task: Task, labels: Condition) -> Stage:
    """Train the classifier; the model only makes sample sheets with it."""
    network = classifier.network.to(model.device).requires_grad_(True).train()
    schedule = model.schedule.to(model.device)
    objective = ClassifierLoss(network, schedule, model.latents)
    x_0, t, eps = held_out_noise(model, task.held_out, 0, schedule.timesteps - 1)
    y = labels.matrix(task.held_out.names)[held_out_rows(len(task.held_out))]

    def paint(of: Tensor) -> Tensor:
        return by_classifier(model, classifier, of, 1.0, range(PREVIEWED), Sampling(), 0)

    return Stage(
        "classifier",
        objective,
        task.train,
        uniform(schedule),
        lambda: held_out_loss(model, objective, x_0, t, eps, y),
        lambda: preview(labels.classes, paint),
        lambda summary: write_classifier(task.folder, classifier, summary, task.dtype),
        model.config.state_shape,
        labels.matrix(task.train.names),
        recorded(labels.classes)
        | {"schedule": " ".join(map(str, astuple(model.config.schedule)))}
        | first_stage_sha(model),
        lambda: check_classifier(task.folder, classifier.config.unet),
    )
