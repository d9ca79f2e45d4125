"""Pictures of a label or like a few others: by a G_psi that takes labels, by the gradient of a
classifier, or by the z that the latent DPM draws and a classifier of z keeps.

The last is few-shot generation (PDAE sec. 4.7, after D2C: Sinha et al. 2021): z is kept with
probability p(y | z), learnt from 10 to 100 pictures and others that lack y, or any z that is drawn.
Of either classifier, p(y | .)^s may take the place of p(y | .): s is its scale.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..diffusion.noise import generator
from ..diffusion.schedule import Schedule
from ..diffusion.solvers import Predict
from ..diffusion.trajectory import Sampling
from ..errors import InputError, ModelError, UsageError, check_ranges, counted
from ..networks.classifier import ClassEmbedding, Classes, NoisyClassifier
from ..networks.layers import Side
from ..networks.unet import UNetConfig
from .attributes import Attributes, auroc, fit, simplified
from .computing import computing
from .config import ScheduleConfig
from .model import Model

FOLDS = 5
UNLABELLED = 512  # z that stand for all z of the latent DPM
FEW_DECAY = 0.1  # from 50 pictures tells more of the others than `DECAY`, which is for thousands
CALIBRATION_DECAY = 1e-4  # of the one slope that held-out scores are calibrated by
TRIES = 5000  # draws of z a sample
TOGETHER = 32  # of them at once, at most


def chosen(classes: Classes, labels: Sequence[str]) -> Tensor:
    """Read what `labels` say as y (1, A): NAME or NAME=1 with, NAME=0 without; the rest is unknown.
    Raises UsageError for a class that isn't there or is named twice, and for two that exclude each
    other."""
    plain = [simplified(name) for name in classes.names]
    y = torch.full((1, len(plain)), -1, dtype=torch.int8)
    for label in labels:
        name, _, value = label.partition("=")
        if simplified(name) not in plain:
            more = f" and {len(plain) - 12} more" if len(plain) > 12 else ""
            raise UsageError(f"no class {name!r}; known: {', '.join(classes.names[:12])}{more}")
        if value not in ("", "0", "1") or (classes.exclusive and value == "0"):
            wanted = "NAME" if classes.exclusive else "NAME, NAME=1 or NAME=0"
            raise UsageError(f"--label {label!r} isn't {wanted}")
        number = plain.index(simplified(name))
        if y[0, number] >= 0:
            raise UsageError(f"--label {label!r} names a class again; give each once")
        y[0, number] = 0 if value == "0" else 1
    if classes.exclusive and (y == 1).any():
        if (y == 1).sum() > 1:
            raise UsageError(f"{' and '.join(labels)} exclude each other; give one --label")
        y[y != 1] = 0
    return y


def embedding(model: Model) -> ClassEmbedding:
    """What embeds the labels that G_psi takes. Raises ModelError where it takes none."""
    if model.labels is None:
        no_labels = f"G_psi of {model.name} takes no labels"
        raise ModelError(f"{no_labels}; `pdae train autoencoder --condition` makes one")
    return model.labels


def labelled(
    model: Model, y: Tensor, numbers: Sequence[int], sampling: Sampling, seed: int
) -> Tensor:
    """Make pictures (N, C, H, W) of labels y (1, A) of 1, 0 and -1, guided by G_psi(x_t, y, t)
    (PDAE sec. 4.6). Picture i depends on (seed, i) only; without guidance it is the unconditional
    sample i. Raises ModelError where G_psi takes no labels."""
    with torch.no_grad():
        z = embedding(model)(y.to(model.device)).cpu().expand(len(numbers), -1)
    generators = [generator(seed, "sample", number) for number in numbers]
    return model.to_pictures(model.noise(generators), [z], generators, sampling)


@dataclass(frozen=True)
class ClassifierConfig:
    image_size: Side  # of the pictures; x_t is of their latents where the U-Net's is another
    unet: UNetConfig  # whose input half it has the shape of
    classes: Classes
    schedule: ScheduleConfig  # of the noise
    first_stage: str = ""  # see `Model.first_stage_sha`

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Classifier:
    """p(y | x_t): the network gives its logits."""

    config: ClassifierConfig
    network: NoisyClassifier
    weights_sha: str = ""  # SHA-256 of its file


def log_probability(classes: Classes, logits: Tensor, y: Tensor) -> Tensor:
    """log p(y) of each row, by logits (N, A), for y (N, A) or (1, A) of 1, 0 and -1: (N,). What is
    unknown counts for nothing; classes that don't exclude each other are independent."""
    if classes.exclusive:
        return (F.log_softmax(logits, 1) * (y == 1)).sum(1)
    return (F.logsigmoid(torch.where(y == 1, logits, -logits)) * (y >= 0)).sum(1)


def by_classifier(
    model: Model,
    classifier: Classifier,
    y: Tensor,
    scale: float,
    numbers: Sequence[int],
    sampling: Sampling,
    seed: int,
) -> Tensor:
    """Make pictures (N, C, H, W) of labels y (1, A) by eps_theta and `scale` times the classifier's
    gradient. Picture i depends on (seed, i), but for a float's last digits: gradients are rounded
    by torch's choice for the batch. With scale 0 it is the unconditional sample i. Raises
    UsageError for a classifier of other pictures, latents or noise."""
    ours, theirs = (
        (one.image_size, one.unet.image_size, one.unet.channels, one.schedule)
        for one in (model.config, classifier.config)
    )
    if ours != theirs or classifier.config.first_stage != model.first_stage_sha:
        what = "pictures or noise" if ours != theirs else "latents"
        other = f"the classifier is of other {what} than {model.name}'s"
        raise UsageError(f"{other}; train one --dpm {model.name}")
    network, y = classifier.network.to(model.device), y.to(model.device)

    def log_p(x_t: Tensor, t: int) -> Tensor:
        with computing(model.device, model.dtype, differentiable=True):
            logits = network(x_t, torch.full((len(x_t),), t, device=x_t.device))
            return log_probability(classifier.config.classes, logits.float(), y)

    predict = steered(model.guided(sampling), log_p, scale, model.schedule)
    generators = [generator(seed, "sample", number) for number in numbers]
    x_T, trajectory = model.noise(generators), model.trajectory(sampling)

    def make(rows: slice) -> Tensor:
        return trajectory.to_picture(predict, x_T[rows].to(model.device), generators[rows])

    return model.by_rows(len(x_T), make)


def steered(
    predict: Predict, log_p: Callable[[Tensor, int], Tensor], scale: float, schedule: Schedule
) -> Predict:
    """Classifier guidance, eps^ = eps - sqrt(1 - alpha_bar_t) s grad log p(y | x_t) (Dhariwal &
    Nichol 2021, algorithm 2). log_p: x_t (N, C, H, W), t → log p(y | x_t) (N,)."""

    def steered_predict(x: Tensor, t: int) -> Tensor:
        eps = predict(x, t)
        with torch.enable_grad():
            x_t = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_p(x_t, t).sum(), x_t)
        return schedule.level(t).guided(eps, gradient, scale)

    return steered_predict if scale else predict


@dataclass(frozen=True)
class FewShot:
    """p(y | z) of normalised z, with u = weight · z + bias: sigma(u), or, learnt without pictures
    that lack y, min(1, exp(u))."""

    weight: Tensor  # (D,) float32
    bias: float
    unlabelled: bool
    share: float  # of the latent DPM's z that have y, about
    auroc: float  # between the two kinds it was learnt from, each fifth by the rest

    def __call__(self, z: Tensor) -> Tensor:
        """p(y | z): (N, D) → (N,)."""
        u = z @ self.weight + self.bias
        return u.clamp(max=0).exp() if self.unlabelled else u.sigmoid()

    def sha(self) -> str:
        """SHA-256 of its numbers: names what it was learnt from."""
        numbers = torch.cat([self.weight, torch.tensor([self.bias])])
        return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


def learn(like: Tensor, unlike: Tensor | None, drawn: Tensor) -> FewShot:
    """Learn p(y | z) from z with y (P, D), z without (N, D) or None, and the latent DPM's own
    (M, D), all normalised.

    The odds are a logistic regression's, calibrated on folds held out: with both kinds p(z | y) /
    p(z | not y), to which `share_with` adds the prior; without, p(z | y) / p(z), which is p(y | z)
    but for the constant that makes it 1 over z with y held out (Elkan & Noto 2008), by the mean of
    the logarithm, which one lucky z doesn't bend. Raises UsageError for less than two of a kind, or
    where nothing tells the kinds apart: odds that fall with likeness would keep what is unlike.
    """
    others = drawn if unlike is None else unlike
    for z, kind in ((like, "like"), (others, "unlike")):
        if len(z) < 2:
            raise UsageError(
                f"{counted(len(z), 'picture')} to be {kind}; give two at least, better fifty"
            )
    z = torch.cat([like, others])
    labels = (torch.arange(len(z)) < len(like)).to(torch.int8)[:, None]
    held_out = torch.empty(len(z), 1)  # scores of each fold by what is learnt from the others
    fold = torch.cat([torch.arange(len(kind)) % FOLDS for kind in (like, others)])
    for here in (fold == number for number in range(FOLDS)):
        held_out[here] = _logistic(z[~here], labels[~here]).scores(z[here])
    slope = _logistic(held_out, labels, CALIBRATION_DECAY)
    told = auroc(held_out[:, 0], labels[:, 0])
    if slope.weight[0, 0] <= 0:
        kind = "what the model makes" if unlike is None else "those to be unlike"
        raise UsageError(
            f"nothing tells the pictures to be like from {kind} (AUROC {told:.3f} on those held "
            "out); give more, or others"
        )
    whole = _logistic(z, labels)
    weight = slope.weight[0, 0] * whole.weight[0]
    bias = (slope.weight[0, 0] * whole.bias[0] + slope.bias[0]).item()
    if unlike is None:
        bias -= slope.scores(held_out[: len(like)]).mean().item()
        share = (drawn @ weight + bias).clamp(max=0).exp().mean().item()
    else:
        share = share_with(drawn @ weight + bias)
        bias += math.log(share / (1 - share))
    return FewShot(weight, bias, unlike is None, share, told)


def _logistic(z: Tensor, labels: Tensor, decay: float = FEW_DECAY) -> Attributes:
    return fit(["like"], z, labels, z, labels, decay=decay)


def share_with(log_odds: Tensor) -> float:
    """The share p(y) at which p(y | z) is p(y) on average over z whose log p(z | y) / p(z | not y)
    is given (M,): maximum likelihood, by expectation and maximisation (Saerens et al. 2002)."""
    share, least = 0.5, 1 / len(log_odds)
    for _ in range(1000):
        share = (log_odds.double() + math.log(share / (1 - share))).sigmoid().mean().item()
        share = min(max(share, least), 1 - least)
    return share


def unlabelled(model: Model) -> Tensor:
    """Draw normalised z (UNLABELLED, D) from the latent DPM: always the same ones."""
    return model.normalise(model.sample_z([generator(0, "any", n) for n in range(UNLABELLED)]))


def draw(
    model: Model,
    likeness: FewShot,
    generators: Sequence[Generator],
    sampling: Sampling,
    scale: float = 1.0,
    told: Callable[[int, int], None] = lambda tried, kept: None,
) -> Tensor:
    """Draw z (N, D) of p(z) p(y | z)^scale, p(z) being the latent DPM's: each by its own generator,
    more at once the longer none is kept, and the first that is. `told` how many each has tried, and
    how many z are kept, as they come. Raises InputError where TRIES draws aren't enough."""
    kept: dict[int, Tensor] = {}
    waiting, tried, together = list(range(len(generators))), 0, 1
    while waiting and tried < TRIES:
        own = [generators[row] for row in waiting for _ in range(together)]
        z = model.sample_z(own, sampling)
        chance = torch.stack([torch.rand((), generator=one) for one in own])
        found = chance < likeness(model.normalise(z)) ** scale
        for row, some, good in zip(waiting, z.split(together), found.split(together), strict=True):
            if good.any():
                kept[row] = some[good][0]
        waiting = [row for row in waiting if row not in kept]
        tried, together = tried + together, min(2 * together, TOGETHER)
        told(tried, len(kept))
    if waiting:
        raise InputError(
            f"of {tried} draws of z none is like these pictures at scale {scale:g}; give more, or "
            "others, or a smaller --classifier-scale"
        )
    return torch.stack([kept[row] for row in range(len(generators))])


def pictures_like(
    model: Model,
    likeness: FewShot,
    scale: float,
    numbers: Sequence[int],
    sampling: Sampling,
    seed: int,
    told: Callable[[int, int], None] = lambda tried, kept: None,
) -> Tensor:
    """Make pictures (N, C, H, W) like those that the likeness was learnt from, p(y | z) to the
    power of `scale`. Picture i depends on (seed, i) only, its x_T not on the scale; as in
    `Model.sample`, G_psi guides the first 70 % of the trajectory. `told`: see `draw`."""
    generators = [generator(seed, "like", number) for number in numbers]
    sampling = model.guided_in_part(sampling)
    x_T = model.noise(generators)  # before z, which takes more draws the greater the scale
    z = draw(model, likeness, generators, sampling, scale, told)
    return model.to_pictures(x_T, [z], generators, sampling)
