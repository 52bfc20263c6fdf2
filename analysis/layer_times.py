"""Layer by layer: what became of each layer of the measured pipeline, what it does to the picture when it is the only
one quantized, and the time a device would spend there.

What became of a layer is known from quantizing it, its sensitivity from a study (`analysis.sensitivity`) if there is
one; its time is projected, like every time of the page. They meet in the layer's path, which a trace and a quantized
pipeline share. Only what a page can show is kept: the layers that take longest, those that mind most, and sums over
kinds of kernels for the rest; `layers.csv` has every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.plan import Plan
from analysis.pricing import rows_per_call, size_of
from analysis.registry import workload

if TYPE_CHECKING:
    from analysis.sensitivity.kept import Alone
    from hwmodels.estimate import Breakdown

LONGEST = 10
MINDING = 10
KEPT = ("path", "kind", "weight", "activation", "weights", "zeros_before", "zeros_after")


def layer_times(
    plan: Plan, layers: Mapping[str, Sequence[Mapping[str, Any]]], alone: Mapping[str, Alone] | None = None
) -> list[dict[str, Any]]:
    """Per configuration the layers worth showing and the totals by kind; empty without times and sensitivities.

    layers : configuration -> what became of each layer, as in `Run.layers`
    alone  : configuration -> its layers' sensitivities, where they are known

    Times are seconds of one denoiser call, one for each device of the experiment in its order, None where the device
    does not support the formats; none at all if the pipeline is not among the models to price. A layer's time is that
    of its product and of the conversion of its input; ranked by the largest share of a call that it takes on any
    device, then by how much the picture minds.
    """
    experiment = plan.experiment
    pipeline = experiment.quality.pipeline
    devices = experiment.cost.devices if pipeline in experiment.cost.models else ()
    known = alone or {}
    rows = [row for row in plan.rows if layers.get(row.label) and (devices or row.label in known)]
    if not rows:
        return []
    sizes = size_of(experiment, pipeline)
    operations = workload(pipeline, rows_per_call(experiment, pipeline), sizes) if devices else None
    found = []
    for row in rows:
        priced = [_breakdown(plan, operations, row.scheme, device) for device in devices]
        times = [None if one is None else _by_path(one) for one in priced]
        kinds = [None if one is None else one.by_kind() for one in priced]
        totals = [None if one is None else sum(one.values()) for one in kinds]
        mind = known.get(row.label)
        ours = [
            {
                **{name: layer[name] for name in KEPT},
                "times": [None if one is None else one.get(layer["path"], 0.0) for one in times],
                "alone": None if mind is None else mind.layers.get(layer["path"]),
            }
            for layer in layers[row.label]
        ]
        longest = sorted(ours, key=lambda layer: -max(_shares(layer["times"], totals), default=0.0))[:LONGEST]
        minding = sorted(ours, key=_minding)[:MINDING] if mind is not None else []
        names = dict.fromkeys(name for one in kinds if one is not None for name in one)
        found.append(
            {
                "configuration": row.label,
                "layers": len(ours),
                "devices": list(devices),
                "shown": list({layer["path"]: layer for layer in ((longest if devices else []) + minding)}.values()),
                "kinds": [
                    {"kind": name, "times": [None if one is None else one.get(name, 0.0) for one in kinds]}
                    for name in names
                ],
                "totals": totals,
                "judged": None if mind is None else [mind.images, mind.steps, mind.trajectory],
            }
        )
    return found


def _minding(layer: Mapping[str, Any]) -> tuple[float, float]:
    """The more the picture (or else the output) changes, the earlier."""
    quality, content = layer["alone"] or (0.0, None)
    return (-(content or 0.0), -quality)


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
