"""Measures of pictures and classifiers. Pictures are float in [-1, 1], compared on [0, 1]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .images import to_pixels


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each picture on the [0, 1] scale: (N, C, H, W) → (N,)."""
    return ((a - b) / 2).square().mean(dim=(1, 2, 3))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB: (N,); infinite for equal pictures."""
    return -10 * mse(a, b).log10()


def equal_share(a: Tensor, b: Tensor) -> Tensor:
    """Share of 8-bit values that are exactly equal: (N,)."""
    return (to_pixels(a) == to_pixels(b)).float().mean(dim=(1, 2, 3))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each picture: (N,).

    Gaussian window 11x11, sigma 1.5, zero padding, K = (0.01, 0.03), range 1: what the authors of
    PDAE report.
    """
    a, b = (a + 1) / 2, (b + 1) / 2
    channels = a.shape[1]
    offsets = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    line = line / line.sum()
    window = (line[:, None] * line[None, :]).expand(channels, 1, 11, 11)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(x, window, padding=5, groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a.square()
    variance_b = blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / (mean_a.square() + mean_b.square() + c1)
    similarity = similarity / (variance_a + variance_b + c2)
    return similarity.mean(dim=(1, 2, 3))


def auroc(scores: Tensor, truth: Tensor) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    scores: (N,); truth: (N,) of 1 and 0. NaN where one of the classes is missing.
    """
    positives = int((truth == 1).sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks = (last - (counts - 1) / 2)[inverse]  # average rank of tied scores, from 1
    rank_sum = ranks[truth == 1].double().sum().item()
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def balanced_accuracy(scores: Tensor, truth: Tensor) -> float:
    """The mean of two shares: of positives with a score above 0, of negatives with one below.

    scores: (N,); truth: (N,) of 1 and 0. NaN where one of the classes is missing.
    """
    positives, negatives = scores[truth == 1] > 0, scores[truth != 1] <= 0
    return (positives.float().mean() + negatives.float().mean()).item() / 2
