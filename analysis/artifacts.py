"""What a finished run leaves behind: tables, pictures, and the JSON that its page is written from."""

from __future__ import annotations

import csv
import datetime
import hashlib
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import plots
from analysis.cards import device_card
from analysis.experiment import Experiment
from analysis.layer_times import layer_times
from analysis.plan import NOISE_FLOOR, REFERENCE, Plan
from analysis.pricing import FALLBACK, NOT_SUPPORTED, CostRow
from analysis.scoring import Asked, PromptRow, QualityRow, Verdict, verdicts
from analysis.sensitivity.kept import alone
from analysis.store import write_atomic, write_json

if TYPE_CHECKING:
    import pandas as pd

    from analysis.store import Images

SCORES = "scores.csv"
GRID_COLUMNS = 8
LARGEST_SHOWN = 256  # pixels of a picture on the page
FEW_PROMPTS = 512  # below it, differences that matter drown: 2,048 separated what 512 could not
FEW_FOR_FRECHET = 2048

#: what the tidy table has of a projection, with units; those beyond `ALWAYS` where they are known
COST_METRICS = (
    ("time_per_image", "s"),
    ("speedup", ""),
    ("weights", "B"),
    ("cycles_per_image", ""),
    ("energy_per_image", "J"),
    ("gates", ""),
)
ALWAYS = ("time_per_image", "speedup", "weights")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run: where it is and what it found."""

    path: Path
    experiment: Experiment
    key: str
    quality: tuple[QualityRow, ...]
    prompts: tuple[PromptRow, ...]
    costs: tuple[CostRow, ...]
    layers: Mapping[str, Sequence[Mapping[str, Any]]]
    unused_rules: Mapping[str, Sequence[str]]
    seconds: Mapping[str, float]
    extra: tuple[Asked, ...] = ()

    @property
    def page(self) -> Path:
        return self.path / "index.html"

    def table(self) -> pd.DataFrame:
        """Everything in one tidy frame: measured rows, then projected ones; `attrs["run"]` is the directory."""
        import pandas as pd

        measured = pd.DataFrame([asdict(row) for row in self.quality])
        projected = pd.DataFrame(
            [
                {
                    "configuration": row.configuration,
                    "scheme": row.scheme,
                    "model": row.model,
                    "device": row.device,
                    "metric": metric,
                    "unit": unit,
                    "value": getattr(row, metric),
                    "note": row.note or row.support,
                    "kind": row.kind,
                }
                for row in self.costs
                for metric, unit in COST_METRICS
                if metric in ALWAYS or getattr(row, metric) is not None
            ]
        )
        frame = pd.concat([measured, projected], ignore_index=True) if len(projected) else measured
        for column in ("pipeline", "steps", "seed"):
            frame[column] = getattr(self.experiment.quality, column)
        frame.attrs["run"] = str(self.path)
        return frame


def write_results(run: Run, plan: Plan, images: Mapping[str, Images], command: str) -> None:
    """The tables (results, scores, costs, layers), grid.png, pareto-*.png, and results.json, from which the page is."""
    write_atomic(run.path / "results.csv", comma_separated([asdict(row) for row in run.quality]))
    if find_spec("pyarrow") is not None:
        write_atomic(run.path / "results.parquet", run.table().to_parquet(index=False))
    scores = comma_separated([row.flat() for row in run.prompts])
    write_atomic(run.path / SCORES, scores)
    write_atomic(run.path / "costs.csv", comma_separated([asdict(row) for row in run.costs]))
    rows = [{"configuration": label, **layer} for label, layers in run.layers.items() for layer in layers]
    write_atomic(run.path / "layers.csv", comma_separated(rows))
    judged = verdicts(plan, run.quality, run.extra)
    grid = grid_rows(plan, images, run.quality)
    captions = plan.captions[:GRID_COLUMNS]
    side = next(image.shape[-1] for row in grid for image in row.images if image is not None)
    scale = max(1, 128 // side)
    write_atomic(run.path / "grid.png", plots.image_grid(grid, captions, scale=scale))
    figures = draw_fronts(run)
    for name, data in figures.items():
        write_atomic(run.path / name, data)
    results = {
        "experiment": run.experiment.to_dict(),
        "key": run.key,
        "unused_rules": {name: list(patterns) for name, patterns in run.unused_rules.items()},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "command": command,
        "machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "surroundings": dict(plan.surroundings),
        "seconds": dict(run.seconds),
        "rows": [
            {"label": row.label, "role": row.role, "summary": row.scheme.summary, "prompts": row.prompts}
            for row in plan.rows
        ],
        "scores": hashlib.sha256(scores).hexdigest(),
        "metrics": [asdict(one) for one in run.extra],
        "quality": [asdict(row) for row in run.quality],
        "verdicts": [
            {**asdict(verdict), "indistinguishable": verdict.indistinguishable} for verdict in judged.values()
        ],
        "costs": [asdict(row) for row in run.costs],
        "layer_times": layer_times(plan, run.layers, alone(plan, run.path.parent)),
        "devices": [device_card(name) for name in run.experiment.cost.devices],
        "warnings": warnings(plan, run, judged),
        "figures": list(figures),
        "grid": {
            "captions": captions,
            "rows": [
                {
                    "label": row.label,
                    "remark": row.remark,
                    "images": [None if image is None else plots.picture(image) for image in row.images],
                }
                for row in grid
            ],
        },
    }
    write_json(run.path / "results.json", results)


def warnings(plan: Plan, run: Run, judged: Mapping[str, Verdict]) -> list[str]:
    """What a reader must know before believing the page."""
    found = [
        f"scheme {name}: pattern {pattern!r} decides no layer of {run.experiment.quality.pipeline}"
        for name, patterns in run.unused_rules.items()
        for pattern in patterns
    ]
    prompts, resolution = run.experiment.quality.prompts, judged[NOISE_FLOOR].resolution
    if resolution is None:
        found.append(
            "these prompts have no ground truth here (they are no sentences of the scene grammar, or not drawn at its "
            "size): PSNR and SSIM say how far pictures are from full precision's, not whether they are worse"
        )
    elif prompts < FEW_PROMPTS:
        found.append(
            f"{prompts} prompts are few: a loss of up to {100 * resolution:.1f} points of prompts "
            f"obeyed can hide in this sample; use {FEW_PROMPTS} or more before a decision"
        )
    seen = set(run.experiment.quality.captions) & set(run.experiment.quality.calibration_captions)
    if seen:
        found.append(
            f"calibration saw {len(seen)} of the measured prompts, with other noise; give it prompts of its own "
            '(calibration = "file"), or measure fewer of the file (first)'
        )
    few = [row for row in plan.rows if row.prompts < prompts]
    found += [f"{row.label}: only {row.prompts} prompts (every product emulated)" for row in few]
    if any(row.metric == "frechet" for row in run.quality) and prompts < FEW_FOR_FRECHET:
        found.append(
            "Fréchet distances of so few pictures are biased upwards; compare them within this table, not with others"
        )
    for device in run.experiment.cost.devices:
        for support, says in (
            (NOT_SUPPORTED, "not supported"),
            (FALLBACK, "partly or wholly by fallback, see the notes"),
        ):
            names = dict.fromkeys(
                row.configuration for row in run.costs if (row.device, row.support) == (device, support)
            )
            if names:
                found.append(f"{device}: {', '.join(names)} {says}")
    return found


def grid_rows(plan: Plan, images: Mapping[str, Images], quality: Sequence[QualityRow]) -> list[plots.GridRow]:
    """The first prompts of every row, with their mean PSNR to full precision."""
    remark = {
        row.configuration: f"{row.value:.1f} dB to full precision"
        for row in quality
        if row.metric == "psnr" and row.against == REFERENCE
    }
    columns = min(GRID_COLUMNS, plan.experiment.quality.prompts)
    return [
        plots.GridRow(
            label=row.label,
            remark=remark.get(row.label, "full precision"),
            images=[still(images[row.label][index]) if index < row.prompts else None for index in range(columns)],
        )
        for row in plan.rows
    ]


def still(image: Images) -> Images:
    """(3, H, W) at most `LARGEST_SHOWN` pixels wide or high: an image, or the middle frame of a video (F, 3, H, W).

    Larger ones are shown reduced, each pixel the mean of a square of pixels.
    """
    frame = image if image.ndim == 3 else image[len(image) // 2]
    factor = -(-max(frame.shape[-2:]) // LARGEST_SHOWN)
    if factor == 1:
        return frame
    height, width = (side // factor for side in frame.shape[-2:])
    squares = frame[:, : height * factor, : width * factor].reshape(3, height, factor, width, factor)
    reduced: Images = squares.mean(axis=(2, 4))
    return reduced


def draw_fronts(run: Run) -> dict[str, bytes]:
    """One Pareto plot per device, of the last (largest) model: PSNR against projected time."""
    if not run.experiment.cost.models:
        return {}
    model = run.experiment.cost.models[-1]
    psnr = {row.configuration: row for row in run.quality if row.metric == "psnr" and row.against == REFERENCE}
    floor = psnr[NOISE_FLOOR].value
    labels = [label for label, row in psnr.items() if row.role == "configuration" and not row.engine]
    colours = {label: index for index, label in enumerate(labels)}
    baseline = {
        row.device: row.time_per_image
        for row in run.costs
        if (row.configuration, row.model) == (run.experiment.cost.baseline, model) and row.time_per_image is not None
    }
    figures = {}
    for device in run.experiment.cost.devices:
        times = [row.time_per_image for row in run.costs if (row.model, row.device) == (model, device)]
        unit, factor = ("milliseconds", 1000) if max(filter(None, times), default=1) < 0.1 else ("seconds", 1)
        points = [
            plots.Point(
                label=row.configuration,
                cost=row.time_per_image * factor,
                quality=psnr[row.configuration].value,
                low=psnr[row.configuration].low,
                high=psnr[row.configuration].high,
            )
            for row in run.costs
            if (row.model, row.device) == (model, device)
            and row.configuration in colours
            and row.time_per_image is not None
        ]
        if points:
            figures[f"pareto-{model}-{device}.png"] = plots.pareto(
                points,
                title=f"{model} on {device}",
                cost_name=f"{unit} per image (projected)",
                quality_name="PSNR to full precision, dB (measured)",
                floor=floor,
                floor_name="full precision, another seed",
                baseline=None if baseline.get(device) is None else baseline[device] * factor,
                baseline_name=f"{run.experiment.cost.baseline} (not measured)",
                colours=colours,
            )
    return figures


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Comma-separated values with a header; None is an empty field."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue().encode()
