"""Image quality on scenes with known ground truth, without a downloaded network.

Three questions, three families, never mixed:
- *is it what was asked?*  `correct`: every attribute of the caption, read by the closed-form decoder;
- *is it a valid picture?*  `residual`: mean squared distance to the nearest legal scene, which sees noise, banding and
  washed-out texture while all attributes are still right; `frechet`: distance between feature distributions;
- *is it the same picture?*  `psnr` and `ssim` against the full-precision image of the same seed. They measure fidelity,
  not quality, and saturate where trajectories part: a full-precision image of another seed is the floor to print.

Every mean comes with a bootstrap interval over prompts. Compare configurations on the same prompts and seeds, and
bootstrap the per-prompt differences: the spread between prompts is larger than that between configurations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from analysis import decoder, judge
from analysis.scenes import Scenes

RESAMPLES = 2000
LARGEST_KEPT = 8192  # prompts whose draws are kept in memory: 2,000 x 8,192 x 2 bytes


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its percentile-bootstrap interval. low <= estimate <= high up to resampling noise."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Per-prompt measurements of N images; arrays are float32 or bool [N] on the CPU.

    psnr, ssim : None without a reference.  PSNR in dB for a peak of 1; equal images give inf.
    frechet    : None without clean images; biased upwards by order 1/N, so compare equal N only.
    attributes : share right per attribute name.
    """

    correct: Tensor
    residual: Tensor
    psnr: Tensor | None
    ssim: Tensor | None
    frechet: float | None
    attributes: dict[str, float]


def evaluate(images: Tensor, scenes: Scenes, reference: Tensor | None = None, clean: Tensor | None = None) -> Quality:
    """Everything there is to measure about `images`, float [N, 3, 64, 64] in [0, 1], asked for by `scenes` (N of them).

    reference : the full-precision images of the same prompts and seeds, same shape
    clean     : renders to compare the feature distribution with, [M, 3, 64, 64]
    Raises ValueError when the numbers of images, scenes and references differ.
    """
    if len(images) != len(scenes):
        raise ValueError(f"{len(images)} images for {len(scenes)} scenes; every image needs the scene it was asked for")
    if reference is not None and reference.shape != images.shape:
        raise ValueError(f"images {list(images.shape)} and reference {list(reference.shape)} differ in shape")
    read = decoder.decode(images)
    return Quality(
        correct=decoder.all_correct(read, scenes).cpu(),
        residual=(images.float() - read.nearest_legal()).square().mean((1, 2, 3)).cpu(),
        psnr=None if reference is None else psnr(images, reference).cpu(),
        ssim=None if reference is None else ssim(images, reference).cpu(),
        frechet=None if clean is None else frechet_distance(features(images), features(clean.to(images.device))),
        attributes=decoder.attribute_accuracy(read, scenes),
    )


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """float32 [N]: peak signal-to-noise ratio in dB of every image, for a peak of 1; inf where equal."""
    return -10 * (images.float() - reference.float()).square().mean((1, 2, 3)).log10()


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """float32 [N]: structural similarity (Wang et al. 2004, Gaussian window 11, sigma 1.5) of every image."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(images.float(), reference.float(), data_range=1.0, reduction="none")
    if not isinstance(values, Tensor):
        raise TypeError("torchmetrics returned the SSIM map although it was not asked for")
    return values.reshape(len(images))


def features(images: Tensor, batch: int = 256) -> Tensor:
    """float64 [N, 64]: the judge's features."""
    model = judge.load(str(images.device))
    with torch.no_grad():
        parts = [model.features(part.float()) for part in images.split(batch)]
    return torch.cat(parts).double()


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance between Gaussians fitted to two feature sets, [N, D] and [M, D]:

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the trace of the root taken from the eigenvalues of the symmetric
    C1^(1/2) C2 C1^(1/2) (Heusel et al. 2017, equation 6). Raises ValueError for fewer than two images in a set.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"a covariance needs at least two images, not {min(len(first), len(second))}")
    mean = (first.mean(0) - second.mean(0)).square().sum()
    c1, c2 = torch.cov(first.T), torch.cov(second.T)
    values, vectors = torch.linalg.eigh(c1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ c2 @ root).clamp(min=0).sqrt().sum()
    return float(mean + c1.trace() + c2.trace() - 2 * cross)


def bootstrap(
    values: Tensor | npt.ArrayLike, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Mean of per-prompt `values` [N] and its percentile-bootstrap interval over prompts.

    For a comparison, pass per-prompt differences. Raises ValueError for no values or a confidence outside (0, 1).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"values must be one number per prompt, at least one; got shape {list(array.shape)}")
    return _percentiles(array.mean(), _resampled(array, resamples, seed), confidence)


def bootstrap_ratio(
    above: Tensor | npt.ArrayLike,
    below: Tensor | npt.ArrayLike,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """mean(above) / mean(below) of per-prompt values [N] of the same prompts, which are drawn together.

    Raises ValueError for lengths that differ and for a denominator of zero.
    """
    one, other = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if one.ndim != 1 or one.shape != other.shape or not len(one):
        raise ValueError(f"one number per prompt in both, at least one; got {list(one.shape)} and {list(other.shape)}")
    if not other.mean():
        raise ValueError("the denominator's mean is zero; a ratio to it says nothing")
    tops, bottoms = _resampled(one, resamples, seed), _resampled(other, resamples, seed)
    whole = bottoms != 0
    return _percentiles(one.mean() / other.mean(), tops[whole] / bottoms[whole], confidence)


def _resampled(array: npt.NDArray[np.float64], resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Means of `resamples` draws with replacement; the same draws for the same length and seed."""
    return np.concatenate([draws @ array for draws in _draws(len(array), resamples, seed)]) / len(array)


def _draws(count: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.float64]]:
    """How often each of `count` prompts is drawn, float64 [100, count] at a time.

    Hundreds of means are bootstrapped over the same prompts, so the draws of usual sizes are kept.
    """
    if count > LARGEST_KEPT:
        yield from _drawn(count, resamples, seed)
    else:
        yield from (part.astype(np.float64) for part in _kept_draws(count, resamples, seed))


def _drawn(count: int, resamples: int, seed: int) -> Iterator[npt.NDArray[np.float64]]:
    generator = np.random.default_rng(seed)
    rows = np.arange(100)[:, None] * count
    for _ in range(resamples // 100):
        places = generator.integers(count, size=(100, count)) + rows
        yield np.bincount(places.ravel(), minlength=100 * count).reshape(100, count).astype(np.float64)


@lru_cache(maxsize=8)
def _kept_draws(count: int, resamples: int, seed: int) -> tuple[npt.NDArray[np.uint16], ...]:
    return tuple(part.astype(np.uint16) for part in _drawn(count, resamples, seed))


def _percentiles(estimate: float, means: npt.NDArray[np.float64], confidence: float) -> Interval:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate=float(estimate), low=float(low), high=float(high))
