"""Means over prompts with their percentile-bootstrap intervals, and ratios of means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch import Tensor

RESAMPLES = 2000
LARGEST_KEPT = 8192  # prompts whose draws are kept in memory: 2,000 x 8,192 x 2 bytes


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its percentile-bootstrap interval. low <= estimate <= high up to resampling noise."""

    estimate: float
    low: float
    high: float


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
