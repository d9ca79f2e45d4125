"""Pictures of a label: by a G_psi that takes labels, or by the gradient of a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from .codes import Codes
from .engine import Model
from .errors import ModelError
from .networks.classes import ClassEmbedding
from .noise import generator
from .sampling import Sampling
from .schedule import Schedule
from .solvers import Predict

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
