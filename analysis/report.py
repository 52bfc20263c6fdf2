"""The page: one HTML file with everything in it, from what a run stored.

It reads `results.json` and the PNGs of a run directory and nothing else, so it can be written again at any time. No
script, font, style or picture comes from outside; it opens from a mail attachment and prints.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.experiment import Experiment
from analysis.plan import NOISE_FLOOR, REFERENCE
from analysis.pricing import FALLBACK, NOT_SUPPORTED, CostRow
from analysis.scoring import QualityRow
from analysis.store import DamagedFile, RunDirectory, read_json, write_atomic
from analysis.units import count, digits, duration, seconds

PAGE = "index.html"
TEMPLATE = "report.html.j2"

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

#: what stands in place of an interval where the number is no estimate from a sample
_WITHOUT = {"zeros": "counted"}

DECISIVE_NAMES = {"correct_change": "prompts obeyed", "residual_change": "residual"}

#: metric -> (factor, digits after the point, sign shown)
_SHOWN: Mapping[str, tuple[float, int, bool]] = {
    "correct": (100, 1, False),
    "correct_change": (100, 1, True),
    "residual": (1000, 2, False),
    "residual_change": (1000, 2, True),
    "psnr": (1, 1, False),
    "psnr_to_shortcut": (1, 1, False),
    "ssim": (1, 3, False),
    "temporal_psnr": (1, 1, False),
    "flicker_change": (1, 4, True),
    "frechet": (1, 2, False),
    "frechet_full": (1, 2, False),
    "zeros": (100, 1, False),
    "recovery": (100, 1, False),
}


#: metrics that others bring
_SHOWN_OTHERWISE = (1, 3, False)


def columns_of(quality: Sequence[QualityRow], extra: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What the quality table shows of a run: `COLUMNS` as far as they were measured, then further metrics.

    extra: `analysis.scoring.Asked` as tables
    """
    known = {(row.metric, row.against) for row in quality}
    further = [(one["title"], one["name"], against) for one in extra for against in ("", REFERENCE)]
    return [(head, metric, against) for head, metric, against in (*COLUMNS, *further) if (metric, against) in known]


def write_page(directory: Path) -> Path:
    """Write DIRECTORY/index.html; its path. Raises ValueError when the run is unfinished or a file is damaged."""
    results = stored_results(directory)
    pictures = {name: _picture(directory / name) for name in results["figures"]}
    page = render(results, pictures)
    write_atomic(directory / PAGE, page.encode())
    return directory / PAGE


def stored_results(directory: Path) -> dict[str, Any]:
    """results.json of a run. Raises ValueError, saying what to do, when there is none or it is damaged."""
    run = RunDirectory.existing(directory)
    path = run.path / "results.json"
    again = f"run `fpsim whatif` again (what is measured is kept), or delete {directory} to start over"
    if not path.is_file():
        raise ValueError(f"the run in {directory} is not finished; {again}")
    try:
        return read_json(path)
    except DamagedFile as error:
        raise ValueError(f"{error}; {again}") from error


def render(results: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """The page as text. pictures: file name -> data address."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    experiment = Experiment.from_dict(results["experiment"])
    quality = [QualityRow(**row) for row in results["quality"]]
    costs = [CostRow(**row) for row in results["costs"]]
    judged = {row["configuration"]: row for row in results["verdicts"]}
    notes = list(dict.fromkeys(_note(row) for row in costs if row.note))
    columns = columns_of(quality, results.get("metrics", []))  # runs of older versions have none
    page = environment.get_template(TEMPLATE).render(
        results=results,
        experiment=experiment,
        pictures=pictures,
        columns=columns,
        quality=_quality_table(results, quality, judged, columns),
        headline=headline(experiment, results, quality, costs, judged),
        twins=_twins(quality),
        tables=_cost_tables(experiment, costs, notes),
        layers=[_layer_tables(entry) for entry in results.get("layer_times", [])],  # older runs have none
        notes=notes,
        bases=_bases(costs),
        explore=_explore(experiment, quality, costs),
        duration=duration,
        floor=NOISE_FLOOR,
        total=sum(results["seconds"].values()),
    )
    return str(page)


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


def _quality_table(
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
                "cells": [_cell(found.get((label, metric, against))) for _, metric, against in columns],
                "verdict": "" if verdict is None or entry["role"] != "configuration" else _verdict(verdict),
            }
        )
    return rows


def _cell(row: QualityRow | None) -> dict[str, Any]:
    """Main number, interval under it, and the number itself for sorting."""
    if row is None:
        return {"main": "—", "interval": "", "value": ""}
    factor, places, sign = _SHOWN.get(row.metric, _SHOWN_OTHERWISE)
    form = f"{{:{'+' if sign else ''}.{places}f}}"
    shown = [
        form.format(_unsigned(value * factor, places)) for value in (row.value, row.low, row.high) if value is not None
    ]
    return {
        "main": shown[0],
        "interval": f"{shown[1]} to {shown[2]}" if len(shown) == 3 else _WITHOUT.get(row.metric, "no interval"),
        "value": row.value,
    }


def _unsigned(value: float, places: int) -> float:
    """No minus sign before a zero."""
    return 0.0 if round(value, places) == 0 else value


def interval_cell(row: QualityRow | None, *, short: bool = False) -> str:
    """`98.4 (95.3 to 100.0)`; short: `98.4 [95.3, 100.0]`."""
    if row is None:
        return "—"
    cell = _cell(row)
    if row.low is None:
        return str(cell["main"])
    return (
        f"{cell['main']} [{cell['interval'].replace(' to ', ', ')}]"
        if short
        else f"{cell['main']} ({cell['interval']})"
    )


def _verdict(judged: Mapping[str, Any]) -> str:
    if not judged.get("asked", True):
        return "not judged"
    if judged["indistinguishable"]:
        return "not told apart"
    return "worse" if judged["told_apart"] else "different"


def _twins(quality: Iterable[QualityRow]) -> list[dict[str, str]]:
    """Rows on an engine beside the same scheme summed in float32."""
    return [
        {"label": row.configuration, "twin": row.against, "psnr": interval_cell(row), "prompts": str(row.prompts)}
        for row in quality
        if row.metric == "psnr_to_shortcut"
    ]


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


def _explore(experiment: Experiment, quality: Sequence[QualityRow], costs: Sequence[CostRow]) -> dict[str, Any]:
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


def _bases(costs: Iterable[CostRow]) -> dict[str, list[str]]:
    """What projections rest on -> devices."""
    found: dict[str, list[str]] = {}
    for row in costs:
        if row.basis and row.device not in found.setdefault(row.basis, []):
            found[row.basis].append(row.device)
    return found


def _note(row: CostRow) -> str:
    return f"{row.device}: {row.note.removeprefix(f'{row.device} ')}"


def _cost_tables(experiment: Experiment, costs: Sequence[CostRow], notes: Sequence[str]) -> list[dict[str, Any]]:
    tables = []
    for model in experiment.cost.models:
        ours = [row for row in costs if row.model == model]
        labels = list(dict.fromkeys(row.configuration for row in ours))
        lines = []
        for label in labels:
            cells = []
            for device in experiment.cost.devices:
                row = next(row for row in ours if (row.configuration, row.device) == (label, device))
                cells.append(
                    {
                        "main": NOT_SUPPORTED if row.time_per_image is None else _seconds(row.time_per_image),
                        "speedup": "" if row.speedup is None else f"{row.speedup:.2f}×",
                        "bound": ", ".join([row.bound, *silicon_words(row)]),
                        "note": notes.index(_note(row)) + 1 if row.note else 0,
                        "value": row.time_per_image or "",
                        "support": row.support.replace(" ", "-"),
                    }
                )
            weights = next(
                (row.weights for row in ours if row.configuration == label and row.weights is not None), None
            )
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


def _layer_tables(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Cells of one configuration's layers and of its totals by kind; shares are of one call on that device."""
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
        "longest": [
            {
                **layer,
                "formats": (layer["weight"] or "—", layer["activation"] or "not quantized"),
                "count": count(layer["weights"]),
                "zeros": f"{100 * layer['zeros_after']:.1f}",
                "zeros_before": f"{100 * layer['zeros_before']:.1f} before",
                "cells": cells(layer["times"]),
            }
            for layer in entry["longest"]
        ],
        "kinds": [{"kind": row["kind"], "cells": cells(row["times"])} for row in entry["kinds"]],
    }


def _seconds(value: float) -> str:
    return f"{digits(value)} s" if value >= 0.1 else f"{digits(value * 1000)} ms"


def cost_cell(row: CostRow) -> str:
    """`1.23 s (1.80x) *` for a terminal; the star marks a fallback."""
    if row.time_per_image is None:
        return NOT_SUPPORTED
    speedup = "" if row.speedup is None else f" ({row.speedup:.2f}x)"
    return f"{_seconds(row.time_per_image)}{speedup}{' *' if row.support == FALLBACK else ''}"


def silicon_words(row: CostRow) -> list[str]:
    """`12.3 Mcycles`, `0.12 J`, `586 gates`: what is known of an array."""
    return [
        *([] if row.cycles_per_image is None else [f"{count(row.cycles_per_image)}cycles"]),
        *([] if row.energy_per_image is None else [f"{digits(row.energy_per_image)} J"]),
        *([] if row.gates is None else [f"{row.gates:.0f} gates"]),
    ]


def _picture(path: Path) -> str:
    try:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    except FileNotFoundError as error:
        raise ValueError(f"{path} is gone; run `fpsim whatif` again (what is measured is kept)") from error
