"""Measures of pictures and classifiers. Pictures are float in [-1, 1], compared on [0, 1]."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pictures.images import to_pixels


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
    """Structural similarity (Wang et al. 2004) of each picture: (N,). Gaussian window 11x11, sigma
    1.5, zero padding, K = (0.01, 0.03), range 1: what the authors of PDAE report."""
    a, b = (a + 1) / 2, (b + 1) / 2
    channels = a.shape[1]
    line = torch.exp(-(torch.arange(-5.0, 6).to(a).square()) / (2 * 1.5**2))
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


def feature_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Distance of two sets of pictures in a network's layers: (N,), each in 0 … 4 a layer.

    a, b: a layer's features each, (N, C, H, W), as many layers and of the same shapes. The vector
    at each place is brought to length 1; squared distances are averaged over places and summed
    over layers. LPIPS's formula with all of its learned weights 1 (Zhang et al. 2018, eq. 1).
    """
    apart = (F.normalize(x, dim=1) - F.normalize(y, dim=1) for x, y in zip(a, b, strict=True))
    return torch.stack([one.square().sum(1).mean(dim=(1, 2)) for one in apart]).sum(0)


def average_precision(scores: Tensor, truth: Tensor) -> float:
    """Precision at each positive's score, averaged over the positives: the area under the
    precision-recall curve in steps, tied scores as one.

    scores: (N,); truth: (N,) of 1 and 0. NaN without positives.
    """
    _, inverse, counts = scores.unique(return_inverse=True, return_counts=True)
    hits = torch.zeros(len(counts), dtype=torch.float64)
    hits.index_add_(0, inverse, (truth == 1).double())
    hits, counts = hits.flip(0), counts.flip(0)  # from the highest score down
    if not hits.sum():
        return math.nan
    precision = hits.cumsum(0) / counts.cumsum(0)
    return ((hits * precision).sum() / hits.sum()).item()


# Sets of features: (N, F) and (M, F) float64.


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of the normal distributions with the sets' means and covariances:
    |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2) (Heusel et al. 2017, eq. 6). With fewer pictures than
    features it is far too large: the covariances lack rank."""
    covariance_a, covariance_b = torch.cov(a.T), torch.cov(b.T)
    lengths, axes = torch.linalg.eigh(covariance_a)
    root = (axes * lengths.clamp(min=0).sqrt()) @ axes.T
    # (A B)^1/2 has the trace of (A^1/2 B A^1/2)^1/2, which is symmetric.
    inner = torch.linalg.eigvalsh(root @ covariance_b @ root).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return (means + covariance_a.trace() + covariance_b.trace() - 2 * inner).item()


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel (x·y / F + 1)^3, unbiased, so that it can be
    below 0 (KID of Binkowski et al. 2018, over all pictures at once). At least two of each."""
    return sum(part.mean().item() for part in kernel_parts(a, b))


def kernel_parts(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What each picture of a and of b adds to their kernel distance: (N,) and (M,).

    Their means add up to it. To first order a picture's absence moves the distance by twice its
    part's difference from the mean, so that their spread tells how sure the distance is (the
    projection of a U-statistic, Serfling 1980, sec. 5.3).
    """

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        table = kernel(x, x)
        return (table.sum(1) - table.diagonal()) / (len(x) - 1)

    across = kernel(a, b)
    return within(a) - across.mean(1), within(b) - across.mean(0)


def precision_recall(real: Tensor, made: Tensor, nearest: int = 3) -> tuple[float, float]:
    """Share of made pictures among the real ones, and of real ones among the made: within the
    distance of some picture of the other set to its `nearest`-th neighbour there
    (Kynkäänniemi et al. 2019). Each set holds more than `nearest`."""

    def covered(by: Tensor, ones: Tensor) -> float:
        radius = torch.cdist(by, by).kthvalue(nearest + 1, dim=1).values  # the first is itself
        return (torch.cdist(ones, by) <= radius).any(dim=1).double().mean().item()

    return covered(real, made), covered(made, real)
