"""Projected: what each configuration would cost on each device, for every model asked for.

Nothing here is measured: times come from `hwmodels` and the figures of the device files. A device without a format
gets the named fallback or the words 'not supported', never an empty cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.experiment import Experiment
from analysis.plan import REFERENCE, Plan
from analysis.registry import place, workload

if TYPE_CHECKING:
    from hwmodels import Workload

NATIVE, FALLBACK, NOT_SUPPORTED = "native", "fallback", "not supported"


@dataclass(frozen=True, kw_only=True)
class CostRow:
    """One configuration, model and device. Times in seconds, weights in bytes; None where not supported.

    basis: what the projection rests on, in the cost model's own words.
    cycles_per_image, energy_per_image (joules), gates (of a multiply-accumulate): of arrays, see `analysis.silicon`.
    speedup: time of the baseline arithmetic over this one's, same model, device and mode.
    """

    configuration: str
    scheme: str
    model: str
    device: str
    mode: str
    support: str
    time_per_call: float | None
    time_per_image: float | None
    speedup: float | None
    weights: float | None
    bound: str
    note: str
    basis: str
    kind: str
    cycles_per_image: float | None = None
    energy_per_image: float | None = None
    gates: float | None = None


def price(plan: Plan, progress: Callable[[], None] = lambda: None) -> tuple[CostRow, ...]:
    """The cost table: baseline, full precision and every scheme, x models x devices.

    Raises ValueError for an unknown device or model.
    """
    experiment = plan.experiment
    schemes: dict[str, tuple[str, Any, str | None]] = {
        experiment.cost.baseline: (experiment.cost.baseline, experiment.cost.baseline, None)
    }
    for row in plan.rows:
        own = row.configuration.accumulator  # has costs of its own; those of an engine are its scheme's
        if row.role != "noise floor" and (row.configuration.engine is None or own is not None):
            schemes[row.label] = (row.configuration.scheme, row.scheme, own)
    for row in plan.rows:  # a scheme measured only on an engine is priced too
        if row.label not in schemes and row.role == "configuration" and row.configuration.scheme not in schemes:
            schemes[row.configuration.scheme] = (row.configuration.scheme, row.scheme, None)
    found: list[CostRow] = []
    for model in experiment.cost.models:
        operations = workload(model, rows_per_call(experiment, model), size_of(experiment, model))
        for device in experiment.cost.devices:
            base: float | None = None
            for label, (name, scheme, own) in schemes.items():
                priced = _price(experiment, model, operations, device, label, name, scheme, own, base)
                base = priced.time_per_call if label == experiment.cost.baseline else base
                found.append(priced)
            progress()
    return tuple(found)


def rows_per_call(experiment: Experiment, model: str) -> int:
    """Classifier-free guidance runs a caption's row and an empty one together, unless the model has it distilled in."""
    from analysis.models import MODELS
    from analysis.trace import guided

    doubles = MODELS[model].guided if model in MODELS else guided(place(model))
    return 2 if doubles and experiment.quality.guidance > 1 else 1


def size_of(experiment: Experiment, model: str) -> dict[str, int]:
    """Of the measured pipeline, the size that is measured; of others their own."""
    return experiment.quality.size if model == experiment.quality.pipeline else {}


def _price(
    experiment: Experiment,
    model: str,
    operations: Workload,
    device: str,
    label: str,
    name: str,
    scheme: Any,
    accumulator: str | None,
    base: float | None,
) -> CostRow:
    import hwmodels
    from analysis.silicon import silicon

    cost = experiment.cost
    try:
        estimate = hwmodels.estimate(operations, scheme, device=device, mode=cost.mode, model=cost.estimator)  # type: ignore[arg-type]
    except hwmodels.UnsupportedFormat as error:
        return CostRow(
            configuration=label,
            scheme=name,
            model=model,
            device=device,
            mode=cost.mode,
            support=NOT_SUPPORTED,
            time_per_call=None,
            time_per_image=None,
            speedup=None,
            weights=None,
            bound="",
            note=str(error),
            basis="",
            kind="projected",
        )
    fallbacks = dict.fromkeys(
        execution.note for execution in estimate.breakdown.executions if execution is not None and execution.note
    )
    made, calls = silicon(estimate, accumulator), experiment.quality.steps
    return CostRow(
        configuration=label,
        scheme=name,
        model=model,
        device=device,
        mode=cost.mode,
        support=FALLBACK if fallbacks else NATIVE,
        time_per_call=estimate.time_s,
        time_per_image=estimate.time_s * experiment.quality.steps,
        speedup=1.0 if label == cost.baseline else None if base is None else base / estimate.time_s,
        weights=estimate.footprint.weights,
        bound=estimate.bound,
        note="; ".join([*fallbacks, *([made.note] if made.note else [])]),
        basis=next((note for note in estimate.notes if note.startswith(f"{estimate.model}:")), estimate.model),
        kind=f"projected ({estimate.model})",
        cycles_per_image=None if made.cycles is None else made.cycles * calls,
        energy_per_image=None if made.energy is None else made.energy * calls,
        gates=made.gates,
    )


__all__ = ["FALLBACK", "NATIVE", "NOT_SUPPORTED", "REFERENCE", "CostRow", "price"]
