"""Layer by layer: what became of each layer of the measured pipeline, beside the time a device would spend there.

What became of a layer is known from quantizing it; its time is projected, like every time of the page. The two meet in
the layer's path, which a trace and a quantized pipeline share. Only what a page can show is kept: the layers that take
longest, and sums over kinds of kernels for the rest; `layers.csv` has every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.plan import Plan
from analysis.pricing import rows_per_call
from analysis.registry import workload

if TYPE_CHECKING:
    from hwmodels.estimate import Breakdown

LONGEST = 10
KEPT = ("path", "kind", "weight", "activation", "weights", "zeros_before", "zeros_after")


def layer_times(plan: Plan, layers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Per configuration the layers that take longest and the totals by kind; empty if the pipeline is not priced.

    layers : configuration -> what became of each layer, as in `Run.layers`

    Times are seconds of one denoiser call, one for each device of the experiment in its order, None where the device
    does not support the formats. A layer's time is that of its product and of the conversion of its input; ranked by
    the largest share of a call that it takes on any device.
    """
    experiment = plan.experiment
    pipeline = experiment.quality.pipeline
    rows = [row for row in plan.rows if layers.get(row.label)]
    if pipeline not in experiment.cost.models or not rows:
        return []
    operations = workload(pipeline, rows_per_call(experiment, pipeline))
    found = []
    for row in rows:
        priced = [_breakdown(plan, operations, row.scheme, device) for device in experiment.cost.devices]
        times = [None if one is None else _by_path(one) for one in priced]
        kinds = [None if one is None else one.by_kind() for one in priced]
        totals = [None if one is None else sum(one.values()) for one in kinds]
        ours = [
            {
                **{name: layer[name] for name in KEPT},
                "times": [None if one is None else one.get(layer["path"], 0.0) for one in times],
            }
            for layer in layers[row.label]
        ]
        ours.sort(key=lambda layer: -max(_shares(layer["times"], totals), default=0.0))
        names = dict.fromkeys(name for one in kinds if one is not None for name in one)
        found.append(
            {
                "configuration": row.label,
                "layers": len(ours),
                "longest": ours[:LONGEST],
                "kinds": [
                    {"kind": name, "times": [None if one is None else one.get(name, 0.0) for one in kinds]}
                    for name in names
                ],
                "totals": totals,
            }
        )
    return found


def _breakdown(plan: Plan, operations: Any, scheme: Any, device: str) -> Breakdown | None:
    import hwmodels

    cost = plan.experiment.cost
    try:
        return hwmodels.estimate(
            operations,
            scheme,
            device=device,
            mode=cost.mode,  # type: ignore[arg-type]
            model=cost.estimator,
        ).breakdown
    except hwmodels.UnsupportedFormat:
        return None


def _by_path(breakdown: Breakdown) -> dict[str, float]:
    """Seconds of all launches that belong to a path."""
    found: dict[str, float] = {}
    for row in breakdown.rows():
        found[row.path] = found.get(row.path, 0.0) + row.time_s
    return found


def _shares(times: Sequence[float | None], totals: Sequence[float | None]) -> list[float]:
    return [time / total for time, total in zip(times, totals, strict=True) if time is not None and total]
