"""Few-shot conditional generation: of all z that the latent DPM draws, those like a few pictures.

p(z | y) is p(z) p(y | z) / p(y): z is drawn from the latent DPM and kept with probability p(y | z),
which a logistic regression on z learns from 10 to 100 pictures (PDAE sec. 4.7, after D2C: Sinha
et al. 2021). Pictures without y are given, or z that the latent DPM draws stand for pictures of
which nothing is known.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from ..diffusion.noise import generator
from ..diffusion.sampling import Sampling
from ..errors import InputError, UsageError
from .attributes import Attributes, auroc, fit
from .conditional import decoded
from .model import Model

FOLDS = 5
UNLABELLED = 512  # z that stand for all z of the latent DPM
CALIBRATION_DECAY = 1e-4  # of the one slope that held-out scores are calibrated by
TRIES = 5000  # draws of z a sample


@dataclass(frozen=True)
class Likeness:
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

    def fingerprint(self) -> str:
        """SHA-256 of its numbers: names what it was learnt from."""
        numbers = torch.cat([self.weight, torch.tensor([self.bias])])
        return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


def learn(like: Tensor, unlike: Tensor | None, drawn: Tensor) -> Likeness:
    """p(y | z) from z with y (P, D), z without (N, D) or None, and the latent DPM's own (M, D), all
    normalised.

    The odds between the two kinds are a logistic regression's, calibrated on folds held out. With
    both kinds they are p(z | y) / p(z | not y), and the share of y among the latent DPM's z is what
    makes p(y | z) its own mean over them (Saerens et al. 2002). Without, they are p(z | y) / p(z),
    which is p(y | z) but for a constant: that which makes p(y | z) 1 over z with y held out (Elkan
    & Noto 2008), by the mean of the logarithm, which one lucky z doesn't bend. Raises UsageError
    for less than two of a kind.
    """
    others = drawn if unlike is None else unlike
    for z, kind in ((like, "like"), (others, "unlike")):
        if len(z) < 2:
            raise UsageError(f"{len(z)} pictures to be {kind}; give two at least, better fifty")
    z, labels = torch.cat([like, others]), torch.ones(len(like) + len(others), 1, dtype=torch.int8)
    labels[len(like) :] = 0
    held_out = _held_out_scores(z, labels)
    slope = _logistic(held_out, labels, CALIBRATION_DECAY)
    whole = _logistic(z, labels)
    weight = slope.weight[0, 0] * whole.weight[0]
    bias = (slope.weight[0, 0] * whole.bias[0] + slope.bias[0]).item()
    if unlike is None:
        bias -= slope.scores(held_out[: len(like)]).mean().item()
        share = (drawn @ weight + bias).clamp(max=0).exp().mean().item()
    else:
        share = share_with(drawn @ weight + bias)
        bias += math.log(share / (1 - share))
    return Likeness(weight, bias, unlike is None, share, auroc(held_out[:, 0], labels[:, 0]))


def _logistic(z: Tensor, labels: Tensor, decay: float | None = None) -> Attributes:
    return fit(["like"], z, labels, z, labels, decay=decay)


def _held_out_scores(z: Tensor, labels: Tensor) -> Tensor:
    """Scores (N, 1), of each fold by what is learnt from the others."""
    scores = torch.empty(len(z), 1)
    fold = torch.cat([torch.arange(int((labels == value).sum())) % FOLDS for value in (1, 0)])
    for number in range(FOLDS):
        here = fold == number
        scores[here] = _logistic(z[~here], labels[~here]).scores(z[here])
    return scores


def share_with(log_odds: Tensor) -> float:
    """The share p(y) at which p(y | z) is p(y) on average over z whose log p(z | y) / p(z | not y)
    is given (M,): maximum likelihood, by expectation and maximisation (Saerens et al. 2002)."""
    share, least = 0.5, 1 / len(log_odds)
    for _ in range(1000):
        share = (log_odds.double() + math.log(share / (1 - share))).sigmoid().mean().item()
        share = min(max(share, least), 1 - least)
    return share


def unlabelled(model: Model) -> Tensor:
    """Normalised z (UNLABELLED, D) of the latent DPM: always the same ones."""
    return model.normalise(model.sample_z([generator(0, "any", n) for n in range(UNLABELLED)]))


def draw(
    model: Model, likeness: Likeness, generators: Sequence[Generator], sampling: Sampling
) -> Tensor:
    """z (N, D), each of its own generator: drawn from the latent DPM until one is kept.

    Raises InputError where TRIES draws aren't enough.
    """
    kept: dict[int, Tensor] = {}
    for _ in range(TRIES):
        waiting = [row for row in range(len(generators)) if row not in kept]
        if not waiting:
            return torch.stack([kept[row] for row in range(len(generators))])
        own = [generators[row] for row in waiting]
        z = model.sample_z(own, sampling)
        chance = torch.stack([torch.rand((), generator=one) for one in own])
        found = (chance < likeness(model.normalise(z))).tolist()
        kept |= {row: one for row, one, good in zip(waiting, z, found, strict=True) if good}
    raise InputError(f"of {TRIES} draws of z none is like these pictures; give more, or others")


def pictures(
    model: Model, likeness: Likeness, numbers: Sequence[int], sampling: Sampling, seed: int
) -> Tensor:
    """New pictures (N, C, H, W) like those that the likeness was learnt from. Picture i depends on
    (seed, i) only; as in `Model.sample`, G_psi guides the first 70 % of the trajectory."""
    generators = [generator(seed, "like", number) for number in numbers]
    if sampling.guide_until == 0:
        sampling = replace(sampling, guide_until=model.trajectory(sampling).unguided_below())
    return decoded(model, draw(model, likeness, generators, sampling), generators, sampling)
