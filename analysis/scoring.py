"""Measured: from pictures to the quality table, every mean with its interval and every comparison paired.

Pictures of one prompt and seed are compared across configurations, so the luck of a prompt cancels: a difference of
means is bootstrapped over per-prompt differences. The same is done between full precision and itself with another
seed, which is the noise floor: a PSNR near that row's means another picture of the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.plan import NOISE_FLOOR, REFERENCE, Plan, Row

if TYPE_CHECKING:
    from analysis.store import Images

Values = npt.NDArray[np.float64]

#: PSNR of equal pictures is infinite; float32 pictures in [0, 1] differ by 2**-24 at least, which is 144 dB.
EQUAL_DB = 144.0

#: metric -> (what a reader calls it, unit, +1 if more is better)
METRICS: Mapping[str, tuple[str, str, int]] = {
    "correct": ("prompts obeyed", "fraction", 1),
    "residual": ("residual to the nearest legal scene", "mean squared error", -1),
    "psnr": ("PSNR to full precision, same seed", "dB", 1),
    "ssim": ("SSIM to full precision, same seed", "", 1),
    "psnr_to_shortcut": ("PSNR to the same scheme summed in float32", "dB", 1),
    "frechet": ("Fréchet distance to clean scenes", "", -1),
    "correct_change": ("change of prompts obeyed", "fraction", 1),
    "residual_change": ("change of residual", "mean squared error", -1),
    "recovery": ("prompts obeyed, as a share of full precision's", "fraction", 1),
    "frechet_full": ("Fréchet distance to full precision's pictures", "", -1),
    "zeros": ("exact zeros among the quantized layers' weights", "fraction", 0),
}

#: what decides whether a configuration can be told from full precision, with the direction that is worse
DECISIVE = {"correct_change": -1, "residual_change": 1}


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One configuration and one metric. low, high: the bootstrap interval over prompts (None: no interval)."""

    configuration: str
    role: str
    scheme: str
    method: str
    engine: str
    metric: str
    unit: str
    against: str
    value: float
    low: float | None
    high: float | None
    prompts: int
    kind: str = "measured"


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One picture's scores; psnr and ssim are to full precision, None for full precision itself."""

    configuration: str
    prompt: int
    caption: str
    seed: int
    correct: bool
    residual: float
    psnr: float | None
    ssim: float | None


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The quality table, and what it is made of."""

    rows: tuple[QualityRow, ...]
    prompts: tuple[PromptRow, ...]


def score(plan: Plan, images: Mapping[str, Images], progress: Callable[[], None] = lambda: None) -> Scores:
    """Score the pictures of a plan.

    images: row label -> float32 (N, 3, H, W) in [0, 1]; `progress` is called after each row.
    """
    import torch

    from analysis.metrics import evaluate, features, frechet_distance, psnr
    from analysis.scenes import render

    everything = plan.experiment.quality.prompts
    clean = render(plan.scenes)

    def pictures(label: str, count: int | None = None) -> torch.Tensor:
        return torch.from_numpy(images[label][:count]).to(plan.device)  # scored where they were made

    qualities: dict[str, Any] = {}
    distances: dict[str, float] = {}
    original = features(pictures(REFERENCE)) if everything > 1 else None
    for row in plan.rows:
        reference = None if row.label == REFERENCE else pictures(REFERENCE, row.prompts)
        made = pictures(row.label)
        if original is not None and reference is not None and row.prompts == everything:
            distances[row.label] = frechet_distance(features(made), original)
        qualities[row.label] = evaluate(
            made,
            plan.scenes[: row.prompts],
            reference=reference,
            # The bias of a Fréchet distance depends on how many pictures there are: only equal numbers compare.
            clean=clean if row.prompts == everything > 1 else None,
        )
        progress()
    found: list[QualityRow] = []
    for row in plan.rows:
        found += _rows(plan, row, qualities)
        if row.label in distances:
            found.append(_row(row, "frechet_full", REFERENCE, distances[row.label], None, None, row.prompts))
        twin = twin_of(plan, row)
        if twin is not None:
            values = psnr(pictures(row.label), pictures(twin.label, row.prompts)).cpu()
            found.append(_interval(plan, row, "psnr_to_shortcut", values, twin.label))
    prompts = [entry for row in plan.rows for entry in _prompts(plan, row, qualities[row.label])]
    return Scores(rows=tuple(found), prompts=tuple(prompts))


def _prompts(plan: Plan, row: Row, quality: Any) -> list[PromptRow]:
    correct, residual = numbers(quality.correct), numbers(quality.residual)
    pairs = [(None, None)] * row.prompts
    if quality.psnr is not None:
        pairs = list(zip(numbers(quality.psnr).tolist(), numbers(quality.ssim).tolist(), strict=True))
    return [
        PromptRow(
            configuration=row.label,
            prompt=index,
            caption=plan.captions[index],
            seed=seed,
            correct=bool(correct[index]),
            residual=float(residual[index]),
            psnr=psnr,
            ssim=ssim,
        )
        for index, (seed, (psnr, ssim)) in enumerate(zip(plan.seeds(row), pairs, strict=True))
    ]


def twin_of(plan: Plan, row: Row) -> Row | None:
    """For a row on an engine, the row of the same scheme and method that sums in float32."""
    if row.configuration.engine is None:
        return None
    wanted = (row.configuration.scheme, row.configuration.method, None)
    return next(
        (
            other
            for other in plan.rows
            if other.role == "configuration"
            and (other.configuration.scheme, other.configuration.method, other.configuration.engine) == wanted
            and other.prompts >= row.prompts
        ),
        None,
    )


def _rows(plan: Plan, row: Row, qualities: Mapping[str, Any]) -> list[QualityRow]:
    quality = qualities[row.label]
    found = [_interval(plan, row, metric, getattr(quality, metric)) for metric in ("correct", "residual")]
    if quality.frechet is not None:
        found.append(_row(row, "frechet", "clean scenes", float(quality.frechet), None, None, row.prompts))
    if row.label == REFERENCE:
        return found
    found += [_interval(plan, row, metric, getattr(quality, metric), REFERENCE) for metric in ("psnr", "ssim")]
    for metric in ("correct", "residual"):
        ours = numbers(getattr(quality, metric))
        full = numbers(getattr(qualities[REFERENCE], metric))[: row.prompts]
        found.append(_interval(plan, row, f"{metric}_change", ours - full, REFERENCE))
    if numbers(qualities[REFERENCE].correct)[: row.prompts].any():
        found.append(_recovery(plan, row, qualities))
    return found


def _recovery(plan: Plan, row: Row, qualities: Mapping[str, Any]) -> QualityRow:
    """Prompts obeyed over those that full precision obeys, prompts drawn together so that their luck cancels."""
    from analysis.metrics import bootstrap_ratio

    ours, full = numbers(qualities[row.label].correct), numbers(qualities[REFERENCE].correct)[: row.prompts]
    interval = bootstrap_ratio(ours, full, confidence=plan.experiment.quality.confidence)
    return _row(row, "recovery", REFERENCE, interval.estimate, interval.low, interval.high, row.prompts)


def sparsity(plan: Plan, layers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[QualityRow]:
    """Exact zeros among the weights of the quantized layers, a row per configuration whose layers are known.

    layers: row label -> `LayerReport`s as tables. Counted, not sampled, so without an interval.
    """
    found = []
    for row in plan.rows:
        if row.label in layers:
            sizes = numbers([layer["weights"] for layer in layers[row.label]])
            shares = numbers([layer["zeros_after"] for layer in layers[row.label]])
            found.append(_row(row, "zeros", "", float(sizes @ shares / sizes.sum()), None, None, row.prompts))
    return found


def _interval(plan: Plan, row: Row, metric: str, values: Any, against: str = "") -> QualityRow:
    from analysis.metrics import bootstrap

    found = np.minimum(numbers(values), EQUAL_DB) if metric.startswith("psnr") else numbers(values)
    interval = bootstrap(found, confidence=plan.experiment.quality.confidence)
    return _row(row, metric, against, float(interval.estimate), float(interval.low), float(interval.high), len(found))


def _row(
    row: Row, metric: str, against: str, value: float, low: float | None, high: float | None, prompts: int
) -> QualityRow:
    return QualityRow(
        configuration=row.label,
        role=row.role,
        scheme=row.configuration.scheme,
        method=row.configuration.method,
        engine=row.configuration.engine or "",
        metric=metric,
        unit=METRICS[metric][1],
        against=against,
        value=value,
        low=low,
        high=high,
        prompts=prompts,
    )


def numbers(values: Any) -> Values:
    """Per-prompt values, however they are stored, as float64 (N,)."""
    return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a configuration can be told from full precision on the same prompts and seeds.

    told_apart: metrics whose interval of paired differences leaves out zero, in the worse direction;
    better: those that leave it out in the other direction.
    resolution: the change of prompts obeyed that this many prompts cannot rule out (95 %: a loss this large may hide).
    """

    configuration: str
    prompts: int
    told_apart: tuple[str, ...]
    better: tuple[str, ...]
    resolution: float

    @property
    def indistinguishable(self) -> bool:
        return not self.told_apart and not self.better


def verdicts(plan: Plan, table: tuple[QualityRow, ...]) -> dict[str, Verdict]:
    """One per configuration and for the noise floor."""
    found = {}
    for row in plan.rows:
        if row.label == REFERENCE:
            continue
        changes = {
            entry.metric: entry for entry in table if entry.configuration == row.label and entry.metric in DECISIVE
        }
        worse: list[str] = []
        better: list[str] = []
        for metric, direction in DECISIVE.items():
            entry = changes[metric]
            if entry.low is None or entry.high is None or entry.low <= 0 <= entry.high:
                continue
            (worse if entry.value * direction > 0 else better).append(metric)
        low = changes["correct_change"].low or 0.0
        found[row.label] = Verdict(
            configuration=row.label,
            prompts=row.prompts,
            told_apart=tuple(worse),
            better=tuple(better),
            resolution=max(-low, unseen(row.prompts, plan.experiment.quality.confidence)),
        )
    return found


def unseen(prompts: int, confidence: float) -> float:
    """The rate of an event that a sample without a single one cannot rule out: 1 - (1 - confidence)**(1/n).

    The exact binomial bound (Clopper and Pearson 1934) at zero successes; about 3/n at 95 %. A bootstrap of equal
    values has width zero, which would read as certainty.
    """
    return float(1 - (1 - confidence) ** (1 / prompts))


__all__ = ["METRICS", "NOISE_FLOOR", "REFERENCE", "QualityRow", "Verdict", "score", "twin_of", "unseen", "verdicts"]
