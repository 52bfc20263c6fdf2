"""The tables of a page: quality, cost on each device, and layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.experiment import Experiment
from analysis.plan import REFERENCE
from analysis.pricing import NOT_SUPPORTED, CostRow
from analysis.report.cells import cell, interval_cell, seconds_cell, silicon_words
from analysis.scoring import QualityRow
from analysis.sensitivity import decibel
from analysis.units import count, seconds

#: shown as (column head, metric, compared against what); a tick mark stands for "paired with full precision"
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("Prompts obeyed, %", "correct", ""),
    ("change, points", "correct_change", REFERENCE),
    ("PSNR, dB", "psnr", REFERENCE),
    ("SSIM", "ssim", REFERENCE),
    ("PSNR of motion, dB", "temporal_psnr", REFERENCE),
    ("Flicker, change", "flicker_change", REFERENCE),
    ("Residual, 10⁻³", "residual", ""),
    ("Fréchet to clean", "frechet", "clean scenes"),
    ("Fréchet to fp32", "frechet_full", REFERENCE),
    ("Zero weights, %", "zeros", ""),
)


def columns_of(quality: Sequence[QualityRow], extra: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What the quality table shows of a run: `COLUMNS` as far as they were measured, then further metrics.

    extra: `analysis.scoring.Asked` as tables
    """
    known = {(row.metric, row.against) for row in quality}
    further = [(one["title"], one["name"], against) for one in extra for against in ("", REFERENCE)]
    return [(head, metric, against) for head, metric, against in (*COLUMNS, *further) if (metric, against) in known]


def quality_table(
    results: Mapping[str, Any],
    quality: Iterable[QualityRow],
    judged: Mapping[str, Any],
    columns: Sequence[tuple[str, str, str]],
) -> list[dict[str, Any]]:
    found = {(row.configuration, row.metric, row.against): row for row in quality}
    rows = []
    for entry in results["rows"]:
        label = entry["label"]
        verdict = judged.get(label)
        rows.append(
            {
                **entry,
                "cells": [cell(found.get((label, metric, against))) for _, metric, against in columns],
                "verdict": "" if verdict is None or entry["role"] != "configuration" else _verdict(verdict),
            }
        )
    return rows


def _verdict(judged: Mapping[str, Any]) -> str:
    if not judged.get("asked", True):
        return "not judged"
    if judged["indistinguishable"]:
        return "not told apart"
    return "worse" if judged["told_apart"] else "different"


def twins(quality: Iterable[QualityRow]) -> list[dict[str, str]]:
    """Rows on an engine beside the same scheme summed in float32."""
    return [
        {"label": row.configuration, "twin": row.against, "psnr": interval_cell(row), "prompts": str(row.prompts)}
        for row in quality
        if row.metric == "psnr_to_shortcut"
    ]


def bases(costs: Iterable[CostRow]) -> dict[str, list[str]]:
    """What projections rest on -> devices."""
    found: dict[str, list[str]] = {}
    for row in costs:
        if row.basis and row.device not in found.setdefault(row.basis, []):
            found[row.basis].append(row.device)
    return found


def note(row: CostRow) -> str:
    return f"{row.device}: {row.note.removeprefix(f'{row.device} ')}"


def cost_tables(experiment: Experiment, costs: Sequence[CostRow], notes: Sequence[str]) -> list[dict[str, Any]]:
    tables = []
    for model in experiment.cost.models:
        ours = {(row.configuration, row.device): row for row in costs if row.model == model}
        labels = list(dict.fromkeys(label for label, _ in ours))
        lines = []
        for label in labels:
            cells = []
            for device in experiment.cost.devices:
                row = ours[label, device]
                cells.append(
                    {
                        "main": NOT_SUPPORTED if row.time_per_image is None else seconds_cell(row.time_per_image),
                        "speedup": "" if row.speedup is None else f"{row.speedup:.2f}×",
                        "bound": ", ".join([row.bound, *silicon_words(row)]),
                        "note": notes.index(note(row)) + 1 if row.note else 0,
                        "value": row.time_per_image or "",
                        "support": row.support.replace(" ", "-"),
                    }
                )
            known = [row.weights for (name, _), row in ours.items() if name == label and row.weights is not None]
            weights = known[0] if known else None
            lines.append(
                {
                    "label": label,
                    "baseline": label == experiment.cost.baseline,
                    "weights": "—" if weights is None else count(weights, "B"),
                    "weights_value": weights or "",
                    "cells": cells,
                }
            )
        tables.append({"model": model, "lines": lines})
    return tables


def layer_tables(entry: Mapping[str, Any], devices: Sequence[str]) -> dict[str, Any]:
    """Cells of one configuration's layers and of its totals by kind; shares are of one call on that device.

    devices: the experiment's, for runs that did not store which have times
    """
    totals = entry["totals"]

    def cells(times: Sequence[float | None]) -> list[dict[str, Any]]:
        return [
            {"main": NOT_SUPPORTED, "share": "", "value": ""}
            if time is None
            else {"main": seconds(time), "share": f"{100 * time / total:.1f} %", "value": time}
            for time, total in zip(times, totals, strict=True)
        ]

    return {
        "configuration": entry["configuration"],
        "layers": entry["layers"],
        "devices": entry.get("devices", devices),
        "judged": entry.get("judged"),
        "shown": [
            {
                **layer,
                "formats": (layer["weight"] or "—", layer["activation"] or "not quantized"),
                "count": count(layer["weights"]),
                "zeros": f"{100 * layer['zeros_after']:.1f}",
                "zeros_before": f"{100 * layer['zeros_before']:.1f} before",
                "cells": cells(layer["times"]),
                "alone": _alone(layer.get("alone")),
            }
            for layer in entry.get("shown", entry.get("longest", []))  # its name in older runs
        ],
        "kinds": [{"kind": row["kind"], "cells": cells(row["times"])} for row in entry["kinds"]],
    }


def _alone(scores: Sequence[float | None] | None) -> list[dict[str, Any]]:
    """SQNR and 1 - SSIM of a layer quantized alone; both sort by how much it minds."""
    noise, content = scores or (None, None)
    if noise is None:
        return [{"main": "—", "value": ""}] * 2
    return [
        {"main": "unchanged", "value": 1e9} if noise == 0 else {"main": f"{decibel(noise):.1f}", "value": -noise},
        {"main": "—", "value": ""} if content is None else {"main": f"{content:.5f}", "value": content},
    ]
