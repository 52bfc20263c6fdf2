"""What the interactive plot of a page needs, and the choices it offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.experiment import Experiment
from analysis.plan import NOISE_FLOOR, REFERENCE
from analysis.pricing import CostRow
from analysis.scoring import QualityRow

#: What the plot offers on its axes: metric -> (name, factor, +1 if more is better); cost -> (name, factor)
_VERTICAL = {
    "psnr": ("PSNR to full precision, dB", 1, 1),
    "correct": ("prompts obeyed, %", 100, 1),
    "residual": ("residual, 10⁻³", 1000, -1),
    "ssim": ("SSIM to full precision", 1, 1),
}
_HORIZONTAL: Mapping[str, dict[str, Any]] = {
    "time_per_image": {
        "name": "seconds per image",
        "factor": 1,
        "small": {"below": 0.1, "name": "milliseconds per image", "factor": 1000},
    },
    "weights": {
        "name": "weights, GB",
        "factor": 1e-9,
        "small": {"below": 1e8, "name": "weights, MB", "factor": 1e-6},
    },
}


def explore(experiment: Experiment, quality: Sequence[QualityRow], costs: Sequence[CostRow]) -> dict[str, Any]:
    """What the interactive plot needs, and the choices it offers."""
    measured: dict[str, dict[str, Any]] = {}
    for row in quality:
        if row.metric in _VERTICAL and row.against in ("", REFERENCE):
            values = {"value": row.value, "low": row.low, "high": row.high, "prompts": row.prompts}
            measured.setdefault(row.configuration, {})[row.metric] = values
    priced: dict[str, dict[str, dict[str, Any]]] = {}
    for cost in costs:
        fields = ("time_per_image", "weights", "speedup", "support", "note")
        values = {field: getattr(cost, field) for field in fields}
        priced.setdefault(cost.configuration, {}).setdefault(cost.model, {})[cost.device] = values
    labels = [label for label in measured if label in priced]
    vertical = {key: row for key, row in _VERTICAL.items() if any(key in measured[label] for label in labels)}
    data = {
        "configurations": [{"label": label, "quality": measured[label], "cost": priced[label]} for label in labels],
        "baseline": {"label": experiment.cost.baseline, "cost": priced.get(experiment.cost.baseline, {})},
        "reference": REFERENCE,
        "floor": measured[NOISE_FLOOR],
        "qualities": {key: {"name": row[0], "factor": row[1], "sign": row[2]} for key, row in vertical.items()},
        "costs": _HORIZONTAL,
    }
    choices = [
        ("model", "model", [(name, name) for name in experiment.cost.models]),
        ("device", "device", [(name, name) for name in experiment.cost.devices]),
        ("quality", "up", [(key, row[0]) for key, row in vertical.items()]),
        ("cost", "across", [("time_per_image", "time per image"), ("weights", "weights")]),
    ]
    return {"data": data, "choices": choices}
