"""What an allocation promised beside what its scheme does: predicted and measured, uniform schemes included.

A prediction adds up what layers do alone. Measured, all of them are quantized at once: on the visits that the
sensitivities came from, where the difference is what a sum leaves out (errors that agree or cancel), and on other
captions, where it is also chance of the captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from analysis.allocation import Allocation
from analysis.allocation.costs import Costs
from analysis.allocation.mixture import mixture
from analysis.sensitivity import Sensitivity, Studied, decibel

if TYPE_CHECKING:
    import pandas as pd

    from analysis.scheme import Scheme


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One scheme: `cost` in the costs' unit, `relative` to nothing quantized.

    quality, content : predicted, sums over layers (see `analysis.sensitivity.visits`)
    measured_quality, measured_content : of the whole on the same visits
    other_quality, other_content : of the whole on other captions; None where not asked for, as all of these
    share            : of the budget that content layers got, for decoupled allocations
    """

    name: str
    scheme: Scheme
    counts: dict[str, int]
    cost: float
    relative: float
    quality: float
    content: float | None
    measured_quality: float | None = None
    measured_content: float | None = None
    other_quality: float | None = None
    other_content: float | None = None
    share: float | None = None


def uniform(sensitivity: Sensitivity, costs: Costs) -> tuple[Outcome, ...]:
    """Every layer in one candidate, for each of them."""
    made = []
    for i, (name, one) in enumerate(sensitivity.candidates.items()):
        choice = dict.fromkeys(sensitivity.layers, name)
        content = None if sensitivity.content is None else float(sensitivity.scores("content")[:, i].sum())
        made.append(
            Outcome(
                name=name,
                scheme=replace(mixture(name, choice, sensitivity.layers, sensitivity.candidates), name=one.name),
                counts={name: len(choice)},
                cost=costs.total(choice),
                relative=costs.total(choice) / costs.unquantized,
                quality=float(sensitivity.scores("quality")[:, i].sum()),
                content=content,
            )
        )
    return tuple(made)


def mixed(allocations: Sequence[Allocation], costs: Costs) -> tuple[Outcome, ...]:
    """The same of allocations."""
    return tuple(
        Outcome(
            name=one.scheme.name,
            scheme=one.scheme,
            counts=one.counts(),
            cost=one.cost,
            relative=one.cost / costs.unquantized,
            quality=one.quality,
            content=one.content,
            share=one.share,
        )
        for one in allocations
    )


def measured(
    outcomes: Sequence[Outcome], studied: Studied, progress: Callable[[int, int], None] | None = None, others: int = 4
) -> tuple[Outcome, ...]:
    """The outcomes with what their schemes do; others: captions of the calibration that nothing was judged on, at most.

    Without any left, the other captions' scores stay None.
    """
    from analysis.runner.quantize import quantize
    from analysis.sensitivity.one_layer import judges, whole
    from analysis.sensitivity.visits import Clean, visits

    study, calibration = studied.study, studied.calibration
    sets = []
    for start, stop in ((0, study.images), (study.images, study.images + others)):
        part = replace(calibration, captions=calibration.captions[start:stop], seeds=calibration.seeds[start:stop])
        images = len(part.captions)
        if images:
            clean = Clean(studied.pipe, images, calibration.guidance) if study.content else None
            sets.append(judges(studied.pipe, visits(studied.pipe, part, images, study.steps), clean))
    made = []
    for i, one in enumerate(outcomes):
        pipe = quantize(studied.pipe, one.scheme, study.method, calibration)
        found: list[float | None] = []
        for asked in sets:
            quality, content = whole(pipe, asked).mean(axis=0).tolist()
            found += [quality, content if study.content else None]
        names = ("measured_quality", "measured_content", "other_quality", "other_content")
        made.append(replace(one, **dict(zip(names, found, strict=False))))  # type: ignore[arg-type]
        if progress is not None:
            progress(i + 1, len(outcomes))
    return tuple(made)


def table(outcomes: Sequence[Outcome], costs: Costs) -> pd.DataFrame:
    """One row per scheme: the cost, predicted and measured SQNR in dB and 1 - SSIM, layers in each candidate."""
    import pandas as pd

    rows = []
    for one in outcomes:
        row: dict[str, object] = {
            "scheme": one.name,
            "kind": "uniform" if len(one.counts) == 1 else "mixed",
            f"{costs.what}{f'_{costs.unit}' if costs.unit else ''}": one.cost,
            "relative": one.relative,
            "sqnr_db": float(decibel(one.quality)),
            "measured_sqnr_db": None if one.measured_quality is None else float(decibel(one.measured_quality)),
            "other_sqnr_db": None if one.other_quality is None else float(decibel(one.other_quality)),
            "content": one.content,
            "measured_content": one.measured_content,
            "other_content": one.other_content,
            "share": one.share,
        }
        rows.append(row | {f"layers in {name}": one.counts.get(name, 0) for name in costs.candidates})
    return pd.DataFrame(rows)


def best(outcomes: Sequence[Outcome]) -> Outcome:
    """Of measured outcomes, the one that changes pictures least (by SQNR where content was left out)."""

    def badness(one: Outcome) -> float:
        value = one.measured_content if one.measured_content is not None else one.measured_quality
        return np.inf if value is None else value

    return min(outcomes, key=badness)
