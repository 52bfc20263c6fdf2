"""Measured: from pictures to the quality table, every mean with its interval and every comparison paired.

Pictures of one prompt and seed are compared across configurations, so the luck of a prompt cancels: a difference of
means is bootstrapped over per-prompt differences. The same is done between full precision and itself with another
seed, which is the noise floor: a PSNR near that row's means another picture of the same prompt.

Prompts that are sentences of the scene grammar, drawn at its size, have a ground truth; of any others there is PSNR and
SSIM, to full precision, and what an experiment's `metrics` add. Of videos there is how they go on from frame to frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from analysis.plan import NOISE_FLOOR, REFERENCE, Plan, Row
from analysis.scoring.rows import EQUAL_DB as EQUAL_DB
from analysis.scoring.rows import METRICS as METRICS
from analysis.scoring.rows import Asked as Asked
from analysis.scoring.rows import PromptRow as PromptRow
from analysis.scoring.rows import QualityRow as QualityRow
from analysis.scoring.rows import Values, interval_row, plain_row
from analysis.scoring.rows import numbers as numbers
from analysis.scoring.verdicts import Verdict as Verdict
from analysis.scoring.verdicts import unseen as unseen
from analysis.scoring.verdicts import verdicts as verdicts

if TYPE_CHECKING:
    import torch

    from analysis.scenes import Scenes
    from analysis.scoring.extra import Metric
    from analysis.store import Images

#: per-prompt metrics of one configuration alone, whose change against full precision is bootstrapped too
ALONE = ("correct", "residual", "flicker")
#: per-prompt metrics to full precision
PAIRED = ("psnr", "ssim", "temporal_psnr")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The quality table, what it is made of, and the further metrics that were asked for."""

    rows: tuple[QualityRow, ...]
    prompts: tuple[PromptRow, ...]
    extra: tuple[Asked, ...] = ()


def score(plan: Plan, images: Mapping[str, Images], progress: Callable[[], None] = lambda: None) -> Scores:
    """Score the pictures of a plan.

    images: row label -> float32 (N, 3, H, W), or videos (N, F, 3, H, W), in [0, 1]; `progress` is called after each row
    """
    import torch

    from analysis.metrics import evaluate, features, frechet_distance, psnr
    from analysis.scenes import render
    from analysis.scoring.extra import find

    everything = plan.experiment.quality.prompts
    truth = scenes_of(plan, images[REFERENCE])
    clean = None if truth is None else render(truth)
    asked = [find(name) for name in plan.experiment.quality.metrics]

    def pictures(label: str, count: int | None = None) -> torch.Tensor:
        return torch.from_numpy(images[label][:count]).to(plan.device)  # scored where they were made

    qualities: dict[str, dict[str, Values]] = {}
    sets: dict[str, dict[tuple[str, str], float]] = {}  # label -> (metric, against what) -> number
    original = features(pictures(REFERENCE)) if truth is not None and everything > 1 else None
    for row in plan.rows:
        reference = None if row.label == REFERENCE else pictures(REFERENCE, row.prompts)
        made, whole = pictures(row.label), row.prompts == everything > 1
        # The bias of a Fréchet distance depends on how many pictures there are: only equal numbers compare.
        scenes = None if truth is None else truth[: row.prompts]
        found = evaluate(made, scenes, reference=reference, clean=clean if whole else None)
        values = {one.name: getattr(found, one.name) for one in fields(found) if one.name in ALONE + PAIRED}
        qualities[row.label] = {name: numbers(value) for name, value in values.items() if value is not None}
        sets[row.label] = {} if found.frechet is None else {("frechet", "clean scenes"): float(found.frechet)}
        if original is not None and reference is not None and whole:
            sets[row.label]["frechet_full", REFERENCE] = frechet_distance(features(made), original)
        _ask(asked, plan, row, made, reference, qualities[row.label], sets[row.label])
        progress()
    extra = _asked(asked, qualities)
    units = {name: unit for name, (_, unit, _) in METRICS.items()} | {one.name: one.unit for one in extra}
    table: list[QualityRow] = []
    for row in plan.rows:
        table += _rows(plan, row, qualities, units, [one.name for one in extra])
        for (metric, against), number in sets[row.label].items():
            table.append(plain_row(row, metric, units[metric], number, against))
        twin = twin_of(plan, row)
        if twin is not None:
            near = psnr(pictures(row.label), pictures(twin.label, row.prompts)).cpu()
            table.append(_interval(plan, row, "psnr_to_shortcut", units, near, twin.label))
    prompts = [entry for row in plan.rows for entry in _prompts(plan, row, qualities[row.label], extra)]
    return Scores(rows=tuple(table), prompts=tuple(prompts), extra=extra)


def scenes_of(plan: Plan, images: Images) -> Scenes | None:
    """The ground truth of a plan's pictures; None for other prompts, for videos, and for pictures of another size."""
    from analysis.metrics import SCENE_SIDE

    return plan.scenes if images.ndim == 4 and images.shape[-2:] == (SCENE_SIDE, SCENE_SIDE) else None


def _ask(
    asked: Sequence[Metric],
    plan: Plan,
    row: Row,
    made: torch.Tensor,
    reference: torch.Tensor | None,
    quality: dict[str, Values],
    sets: dict[tuple[str, str], float],
) -> None:
    """Put what further metrics say of one row into `quality` and `sets`."""
    from analysis.scoring.extra import one_value, values

    for metric in asked:
        if metric.per_image is not None:
            found = values(metric, made, reference, plan.captions[: row.prompts])
            if found is not None:
                quality[metric.name] = found
        elif reference is not None and row.prompts == plan.experiment.quality.prompts > 1:
            sets[metric.name, REFERENCE] = one_value(metric, made, reference)


def _asked(asked: Sequence[Metric], qualities: Mapping[str, Mapping[str, Values]]) -> tuple[Asked, ...]:
    return tuple(
        Asked(
            name=one.name,
            title=one.title,
            unit=one.unit,
            better=one.better,
            package=one.package,
            paired=one.name not in qualities[REFERENCE],
        )
        for one in asked
    )


def _prompts(plan: Plan, row: Row, quality: Mapping[str, Values], extra: Sequence[Asked]) -> list[PromptRow]:
    def of(metric: str, index: int) -> float | None:
        return float(quality[metric][index]) if metric in quality else None

    further = ["flicker", "temporal_psnr"] if "flicker" in quality else []
    further += [one.name for one in extra]
    return [
        PromptRow(
            configuration=row.label,
            prompt=index,
            caption=plan.captions[index],
            seed=seed,
            correct=bool(quality["correct"][index]) if "correct" in quality else None,
            residual=of("residual", index),
            psnr=of("psnr", index),
            ssim=of("ssim", index),
            extra={name: of(name, index) for name in further},
        )
        for index, seed in enumerate(plan.seeds(row))
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


def _rows(
    plan: Plan, row: Row, qualities: Mapping[str, Mapping[str, Values]], units: Mapping[str, str], extra: Sequence[str]
) -> list[QualityRow]:
    """Means of one configuration, alone and to full precision, and their changes."""
    ours, full = qualities[row.label], qualities[REFERENCE]
    alone = [metric for metric in (*ALONE, *extra) if metric in full]
    found = [_interval(plan, row, metric, units, ours[metric]) for metric in alone]
    if row.label == REFERENCE:
        return found
    paired = [metric for metric in (*PAIRED, *extra) if metric in ours and metric not in full]
    found += [_interval(plan, row, metric, units, ours[metric], REFERENCE) for metric in paired]
    for metric in alone:
        change = ours[metric] - full[metric][: row.prompts]
        found.append(_interval(plan, row, f"{metric}_change", {f"{metric}_change": units[metric]}, change, REFERENCE))
    if "correct" in full and full["correct"][: row.prompts].any():
        found.append(_recovery(plan, row, ours["correct"], full["correct"][: row.prompts]))
    return found


def _interval(
    plan: Plan, row: Row, metric: str, units: Mapping[str, str], values: Any, against: str = ""
) -> QualityRow:
    return interval_row(row, metric, units[metric], values, against, plan.experiment.quality.confidence)


def _recovery(plan: Plan, row: Row, ours: Values, full: Values) -> QualityRow:
    """Prompts obeyed over those that full precision obeys, prompts drawn together so that their luck cancels."""
    from analysis.metrics import bootstrap_ratio

    made = bootstrap_ratio(ours, full, confidence=plan.experiment.quality.confidence)
    return plain_row(row, "recovery", METRICS["recovery"][1], made.estimate, REFERENCE, made.low, made.high)


def sparsity(plan: Plan, layers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[QualityRow]:
    """Exact zeros among the weights of the quantized layers, a row per configuration whose layers are known.

    layers: row label -> `LayerReport`s as tables. Counted, not sampled, so without an interval.
    """
    found = []
    for row in plan.rows:
        if row.label in layers:
            sizes = numbers([layer["weights"] for layer in layers[row.label]])
            shares = numbers([layer["zeros_after"] for layer in layers[row.label]])
            found.append(plain_row(row, "zeros", METRICS["zeros"][1], float(sizes @ shares / sizes.sum())))
    return found


__all__ = ["METRICS", "NOISE_FLOOR", "REFERENCE", "QualityRow", "Verdict", "score", "twin_of", "unseen", "verdicts"]
