"""Pictures of a label: by a G_psi that takes labels, or by the gradient of a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..diffusion.noise import generator
from ..diffusion.sampling import Sampling
from ..diffusion.schedule import Schedule
from ..diffusion.solvers import Predict
from ..errors import ModelError, UsageError
from ..networks.blocks import UNetConfig
from ..networks.classes import ClassEmbedding, Classes
from ..networks.classifier import NoisyClassifier
from .classes import log_probability
from .codes import Codes
from .computing import computing, joined
from .config import ScheduleConfig
from .model import Model


@dataclass(frozen=True)
class ClassifierConfig:
    """What fixes a classifier of noisy pictures."""

    image_size: int  # of the pictures; x_t is of their latents where the U-Net's is another
    unet: UNetConfig  # whose input half it has the shape of
    classes: Classes
    schedule: ScheduleConfig  # of the noise


@dataclass(frozen=True)
class Classifier:
    """p(y | x_t): the network gives its logits."""

    config: ClassifierConfig
    network: NoisyClassifier
    digest: str = ""  # SHA-256 of its file


LogProbability = Callable[[Tensor, int], Tensor]  # x_t (N, C, H, W), t → log p(y | x_t) (N,)


def decoded(model: Model, z: Tensor, generators: Sequence[Generator], sampling: Sampling) -> Tensor:
    """Pictures (N, C, H, W) of z (N, D), with x_T ~ N(0, I) of each one's generator."""
    codes = Codes(z, model.noise(generators), model=model.name, digest=model.digest)
    return model.decode(codes, sampling, generators=generators)


def labelled(
    model: Model, y: Tensor, numbers: Sequence[int], sampling: Sampling, seed: int
) -> Tensor:
    """Pictures (N, C, H, W) of labels y (1, A), see `networks.classes`; G_psi(x_t, y, t) guides.

    Picture i depends on (seed, i) only; without guidance it is the unconditional sample i. Raises
    ModelError where G_psi takes no labels.
    """
    with torch.no_grad():
        z = embedding(model)(y.to(model.device)).cpu().expand(len(numbers), -1)
    return decoded(model, z, [generator(seed, "sample", n) for n in numbers], sampling)


def embedding(model: Model) -> ClassEmbedding:
    """What embeds the labels that G_psi takes. Raises ModelError where it takes none."""
    if model.labels is None:
        raise ModelError(
            f"G_psi of {model.name} takes no labels; `pdae train autoencoder --condition` makes one"
        )
    return model.labels


def by_classifier(
    model: Model,
    classifier: Classifier,
    y: Tensor,
    scale: float,
    numbers: Sequence[int],
    sampling: Sampling,
    seed: int,
) -> Tensor:
    """Pictures (N, C, H, W) of labels y (1, A), see `networks.classes`, by eps_theta alone and the
    classifier's gradient, `scale` times.

    Picture i depends on (seed, i); with scale 0 it is the unconditional sample i. Raises UsageError
    for a classifier of other pictures or other noise.
    """
    theirs, ours = classifier.config, model.config
    frames = [
        (one.image_size, one.unet.image_size, one.unet.channels, one.schedule)
        for one in (theirs, ours)
    ]
    if frames[0] != frames[1]:
        raise UsageError(
            f"the classifier is of other pictures or noise than {model.name}'s; train one --dpm "
            f"{model.name}"
        )
    network, y = classifier.network.to(model.device), y.to(model.device)

    def log_p(x_t: Tensor, t: int) -> Tensor:
        with computing(model.device, model.dtype, differentiable=True):
            logits = network(x_t, torch.full((len(x_t),), t, device=x_t.device))
            return log_probability(theirs.classes, logits.float(), y)

    predict = steered(model.guided(sampling), log_p, scale, model.schedule)
    generators = [generator(seed, "sample", number) for number in numbers]
    x_T, trajectory = model.noise(generators), model.trajectory(sampling)

    def work(rows: slice) -> Tensor:
        return trajectory.to_picture(predict, x_T[rows].to(model.device), generators[rows])

    return joined(model.by_batches(work, len(numbers)))


def steered(predict: Predict, log_p: LogProbability, scale: float, schedule: Schedule) -> Predict:
    """Classifier guidance, eps^ = eps - sqrt(1 - alpha_bar_t) s grad log p(y | x_t) (Dhariwal &
    Nichol 2021, algorithm 2; Score SDE, sec. 5). With s = 1 and both exact, p(x | y)'s own."""

    def steered_predict(x: Tensor, t: int) -> Tensor:
        eps = predict(x, t)
        with torch.enable_grad():
            x_t = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_p(x_t, t).sum(), x_t)
        return eps - math.sqrt(1 - schedule.alpha_bar[t].item()) * scale * gradient

    return steered_predict if scale else predict
