"""What the page says first: which configurations pass for full precision, what each buys, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.experiment import Experiment
from analysis.plan import NOISE_FLOOR, REFERENCE
from analysis.pricing import FALLBACK, NOT_SUPPORTED, CostRow
from analysis.report.cells import interval_cell
from analysis.scoring import QualityRow

DECISIVE_NAMES = {"correct_change": "prompts obeyed", "residual_change": "residual"}


def headline(
    experiment: Experiment,
    results: Mapping[str, Any],
    quality: Sequence[QualityRow],
    costs: Sequence[CostRow],
    judged: Mapping[str, Any],
) -> dict[str, Any]:
    """What the page says first: which configurations pass for full precision, what each buys, and how sure that is."""
    configurations = [row["label"] for row in results["rows"] if row["role"] == "configuration"]
    whole = [label for label in configurations if judged[label]["prompts"] == experiment.quality.prompts]
    changes = {(row.configuration, row.metric): row for row in quality}
    model = experiment.cost.models[-1] if experiment.cost.models else ""
    same: list[dict[str, Any]] = []
    detail: list[dict[str, Any]] = []
    apart: list[dict[str, Any]] = []
    unjudged: list[dict[str, Any]] = []
    titles = {f"{one['name']}_change": one["title"] for one in results.get("metrics", [])} | DECISIVE_NAMES
    for label in whole:
        change, psnr = changes.get((label, "correct_change")), changes[label, "psnr"]
        row = {
            "label": label,
            "change": "" if change is None else interval_cell(change),
            "residual": ""
            if change is None
            else _relative(changes[label, "residual_change"], changes[REFERENCE, "residual"]),
            "psnr": interval_cell(psnr, short=True),
            "buys": [_buys(cost) for cost in costs if (cost.configuration, cost.model) == (label, model)],
            "why": [titles[metric] for metric in judged[label]["told_apart"]],
            "other": [titles[metric] for metric in judged[label]["better"]],
        }
        if not judged[label].get("asked", True):
            unjudged.append(row)
            continue
        only_detail = judged[label]["told_apart"] == ["residual_change"] and not judged[label]["better"]
        (same if judged[label]["indistinguishable"] else detail if only_detail else apart).append(row)
    hidden = [row["label"] for row in same + detail] or [NOISE_FLOOR]
    resolutions = [value for label in hidden if (value := judged[label]["resolution"]) is not None]
    return {
        "same": same,
        "detail": detail,
        "apart": apart,
        "unjudged": unjudged,
        "model": model,
        "resolution": f"{100 * max(resolutions):.1f}" if resolutions else "",
        "floor": interval_cell(changes[NOISE_FLOOR, "psnr"], short=True),
    }


def _relative(change: QualityRow, reference: QualityRow) -> str:
    """A change in per cent of full precision's own mean, with its interval."""
    values = [100 * value / reference.value for value in (change.value, change.low, change.high) if value is not None]
    return "{:+.1f} % ({:+.1f} to {:+.1f})".format(*values) if len(values) == 3 else f"{values[0]:+.1f} %"


def _buys(row: CostRow) -> dict[str, str]:
    if row.time_per_call is None or row.speedup is None:
        return {"device": row.device, "speedup": NOT_SUPPORTED, "remark": ""}
    remark = "by fallback" if row.support == FALLBACK else ""
    return {"device": row.device, "speedup": f"{row.speedup:.2f}×", "remark": remark}
