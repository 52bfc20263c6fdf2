"""Keeps the origin study's results: small tables, a few pictures, and where they come from.

    fpsim run experiments/origin.toml --device cuda && python docs/update_origin.py runs/origin-*

Writes experiments/origin/: `results.csv` (one row per pipeline, steps, configuration and metric), `pairs.csv`
(differences between two configurations on the same prompts and seeds), `provenance.toml` and `pictures-*.png`; and the
tables of docs/origin.md and README.md between their markers. Numbers are copied, never typed. Several runs of one
pipeline and number of steps are joined if their full-precision pictures are the same.
"""

import base64
import io
import json
import re
import sys
from dataclasses import dataclass
from itertools import groupby, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from analysis import plots
from analysis.experiment import Experiment
from analysis.metrics import bootstrap

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "experiments" / "origin"

METRICS = ("correct", "correct_change", "recovery", "psnr", "ssim", "residual", "frechet", "frechet_full", "zeros")
COLUMNS = ("configuration", "metric", "value", "low", "high", "prompts")

#: compared although their names do not say so: the best of floats against the best of integers, at each width
RIVALS = (
    ("fp8-w8a8+per-tensor+asymmetric fp-search", "int8-w8a8+asymmetric q-diffusion"),
    ("fp8-w8a8+per-tensor+asymmetric fp-search", "int8-w8a8+dynamic"),
    ("fp8-w8a8+asymmetric fp-search", "int8-w8a8+dynamic"),
    ("fp4-w4a8+asymmetric fp-ptq", "int4-w4a8+asymmetric q-diffusion"),
    ("fp4-w4a8+asymmetric fp-ptq", "int4-w4a8+dynamic q-diffusion"),
    ("fp4-w4a8+dynamic fp-ptq", "int4-w4a8+dynamic q-diffusion"),
    ("fp4-w4a4+asymmetric+dynamic fp-ptq", "int4-w4a4+asymmetric+dynamic q-diffusion"),
)

#: rows of the picture strips
SHOWN = (
    "fp32",
    "fp32, another seed",
    "fp8-w8a8+per-tensor",
    "int8-w8a8+per-tensor",
    "fp4-w4a8+per-tensor",
    "int4-w4a8+per-tensor",
    "fp4-w4a8+asymmetric fp-ptq",
    "int4-w4a8+asymmetric q-diffusion",
    "mxfp4",
    "mxfp4+keep-edges low-rank",
    "nvfp4",
    "nvfp4+keep-edges low-rank",
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """All that was measured of one pipeline at one number of steps, by one run or by several that share references.

    quality : the quality table; scores : one row per configuration and prompt; grid : rows of pictures by label
    """

    pipeline: str
    steps: int
    quality: pd.DataFrame
    scores: pd.DataFrame
    grid: dict[str, dict[str, Any]]
    captions: list[str]

    def keyed(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame with this cell's pipeline and steps in front."""
        frame.insert(0, "steps", self.steps)
        frame.insert(0, "pipeline", self.pipeline)
        return frame


def main(runs: list[Path]) -> None:
    found = [(run, json.loads((run / "results.json").read_text())) for run in runs]
    found.sort(key=lambda pair: (*_order(_quality(pair[1])), pair[1]["date"]))
    cells = [joined(key, list(group)) for key, group in groupby(found, key=_cell_of)]
    KEPT.mkdir(exist_ok=True)
    pd.concat([results(cell) for cell in cells]).to_csv(KEPT / "results.csv", index=False, float_format="%.6g")
    pd.concat([pairs(cell) for cell in cells]).to_csv(KEPT / "pairs.csv", index=False, float_format="%.6g")
    (KEPT / "provenance.toml").write_text(provenance([result for _, result in found]))
    for cell in cells:
        if cell.steps == 20:
            (KEPT / f"pictures-{cell.pipeline}.png").write_bytes(pictures(cell))
    write_tables()


def _order(quality: dict[str, Any]) -> tuple[Any, ...]:
    """20 steps before others, plain before outliers, U-Net before transformer."""
    pipeline, steps = quality["pipeline"], quality["steps"]
    return steps != 20, "outlier" in pipeline, "dit" in pipeline, steps


def _quality(result: dict[str, Any]) -> dict[str, Any]:
    quality: dict[str, Any] = result["experiment"]["quality"]
    return quality


def _cell_of(pair: tuple[Path, dict[str, Any]]) -> tuple[str, int]:
    return _quality(pair[1])["pipeline"], _quality(pair[1])["steps"]


def joined(key: tuple[str, int], runs: list[tuple[Path, dict[str, Any]]]) -> Cell:
    """Runs of one cell as one, a configuration's newest measurement before older ones.

    Pairs over runs need equal references: the scores of fp32 must be the same for every prompt, to the last bit.
    """
    scores = [pd.read_csv(run / "scores.csv") for run, _ in runs]
    references = [frame[frame.configuration == "fp32"].drop(columns="configuration") for frame in scores]
    for (run, _), reference in zip(runs, references, strict=True):
        if not references[0].reset_index(drop=True).equals(reference.reset_index(drop=True)):
            sys.exit(f"{run.name}: its full-precision pictures are not those of {runs[0][0].name}; give one of them")
    newest: dict[str, int] = {label: index for index, frame in enumerate(scores) for label in frame.configuration}
    qualities = [pd.DataFrame(result["quality"]) for _, result in runs]
    pick = [
        pd.concat(frame[frame.configuration.map(newest) == index] for index, frame in enumerate(frames))
        for frames in (qualities, scores)
    ]
    listed = {label: place for place, label in enumerate(_labels())}
    pick = [frame.sort_values("configuration", kind="stable", key=lambda names: names.map(listed)) for frame in pick]
    return Cell(
        pipeline=key[0], steps=key[1], quality=pick[0], scores=pick[1],
        grid={row["label"]: row for _, result in runs for row in result["grid"]["rows"]},
        captions=runs[0][1]["grid"]["captions"],
    )  # fmt: skip


def _labels() -> list[str]:
    """Configurations in the order of the experiment file, references before them."""
    experiment = Experiment.load(ROOT / "experiments" / "origin.toml")
    return ["fp32", "fp32, another seed", *(row.label for row in experiment.configuration)]


def results(cell: Cell) -> pd.DataFrame:
    """The quality table without what can be looked up elsewhere."""
    return cell.keyed(cell.quality[cell.quality.metric.isin(METRICS)][list(COLUMNS)])


def pairs(cell: Cell) -> pd.DataFrame:
    """second - first on equal prompts and seeds, with the bootstrap interval of the difference."""
    by_label = dict(iter(cell.scores.groupby("configuration", sort=False)))
    rows = []
    for first, second in rivals(list(by_label)):
        a, b = by_label[first], by_label[second]
        for metric in ("correct", "residual", "psnr"):
            if a[metric].isna().any() or len(a) != len(b):
                continue
            difference = b[metric].to_numpy(float) - a[metric].to_numpy(float)
            interval = bootstrap(difference[np.isfinite(difference)])
            rows.append((first, second, metric, interval.estimate, interval.low, interval.high, len(a)))
    columns = ["first", "second", "metric", "difference", "low", "high", "prompts"]
    return cell.keyed(pd.DataFrame(rows, columns=columns))


def rivals(labels: list[str]) -> list[tuple[str, str]]:
    """Which configurations to compare: floats with integers in the same recipe, every method with nearest, RIVALS."""
    found = []
    for first, second in permutations(labels, 2):
        twin = re.sub(r"^int(\d)", r"fp\1", second)
        nearest = second.split(" ")[0]
        if (second.startswith("int") and first == twin) or (first == nearest and " " in second):
            found.append((first, second))
    return found + [pair for pair in RIVALS if set(pair) <= set(labels)]


def provenance(found: list[dict[str, Any]]) -> str:
    """Where the numbers come from, as TOML."""
    lines = [
        "# Written by docs/update_origin.py. The experiment file may list more than was measured.",
        'kind = "measured"',
        'command = "fpsim run experiments/origin.toml --device cuda"',
    ]
    for result in found:
        surroundings = result["surroundings"]
        lines += ["", "[[run]]"]
        fields = {
            "pipeline": _quality(result)["pipeline"],
            "steps": _quality(result)["steps"],
            "prompts": _quality(result)["prompts"],
            "key": result["key"],
            "date": result["date"],
            "machine": result["machine"],
            **{name: surroundings[name] for name in ("device", "torch", "diffusers", "sources", "checkpoint")},
        }
        lines += [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(lines) + "\n"


def pictures(cell: Cell, columns: int = 6) -> bytes:
    """The same prompts and seeds through a choice of configurations."""
    grid = [
        plots.GridRow(
            label=label,
            remark=cell.grid[label]["remark"],
            images=[None if code is None else _decoded(code) for code in cell.grid[label]["images"][:columns]],
        )
        for label in SHOWN
        if label in cell.grid
    ]
    return plots.image_grid(grid, cell.captions[:columns])


def _decoded(code: str) -> "np.ndarray[Any, np.dtype[np.float32]]":
    data = base64.b64decode(code)
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float32) / 255
    return image.transpose(2, 0, 1)


#: README's rows: what a reader looks for first
SHORT = (
    "fp32, another seed",
    "fp8-w8a8",
    "int8-w8a8",
    "int8-w8a8+dynamic",
    "fp4-w4a8",
    "int4-w4a8",
    "fp4-w4a8 gptq",
    "int4-w4a8 gptq",
    "fp4-w4a8+asymmetric fp-ptq",
    "int4-w4a8+asymmetric q-diffusion",
    "fp4-w4a4+dynamic",
    "int4-w4a4+dynamic",
    "nvfp4",
    "mxfp4+keep-edges low-rank",
    "nvfp4+keep-edges low-rank",
)


def write_tables() -> None:
    """The generated blocks of docs/origin.md and README.md, and the figure that both show."""
    frame = pd.read_csv(KEPT / "results.csv")
    at_20, outlier = frame.steps == 20, frame.pipeline.str.contains("outlier")
    labels = list(dict.fromkeys(frame.configuration))
    (ROOT / "docs" / "images" / "origin.png").write_bytes(figure([frame[at_20 & ~outlier], frame[at_20 & outlier]]))
    _replace(ROOT / "docs" / "origin.md", "table", table(frame[at_20 & ~outlier], labels))
    _replace(ROOT / "docs" / "origin.md", "outliers", table(frame[at_20 & outlier], labels))
    _replace(ROOT / "docs" / "origin.md", "steps", few_steps(frame))
    _replace(ROOT / "README.md", "origin", table(frame[at_20 & ~outlier], list(SHORT)))


def _replace(path: Path, name: str, block: str) -> None:
    marker = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    text, count = marker.subn(lambda found: f"{found[1]}{block}{found[2]}", path.read_text())
    if count != 1:
        sys.exit(f"{path.name} must hold the markers <!-- {name} --> and <!-- /{name} --> once")
    path.write_text(text)


def table(frame: pd.DataFrame, labels: list[str]) -> str:
    """Change of prompts obeyed in points with its interval, then PSNR, for every pipeline."""
    cells = frame.set_index(["pipeline", "configuration", "metric"])
    pipelines = list(dict.fromkeys(frame.pipeline))
    lines = ["| configuration | " + " | ".join(pipelines) + " |", "|---" * (1 + len(pipelines)) + "|"]
    for label in labels:
        row = [_cell(cells, pipeline, label) for pipeline in pipelines]
        if any(row) and label != "fp32":
            lines.append(f"| {label} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _cell(cells: pd.DataFrame, pipeline: str, label: str) -> str:
    if (pipeline, label, "correct_change") not in cells.index:
        return ""
    change, psnr = (cells.loc[(pipeline, label, metric)] for metric in ("correct_change", "psnr"))
    points = [round(100 * value, 1) + 0.0 for value in (change.value, change.low, change.high)]  # no minus before zero
    return "{:+.1f} ({:+.1f} to {:+.1f}), ".format(*points) + f"{psnr.value:.1f} dB"


def few_steps(frame: pd.DataFrame) -> str:
    """Prompts obeyed at every number of steps, of what was measured at more than one."""
    correct = frame[frame.metric == "correct"]
    several = correct.groupby(["pipeline", "configuration"]).steps.transform("nunique") > 1
    wide = correct[several].pivot(index=["pipeline", "configuration"], columns="steps", values="value")
    order = [
        key for key in dict.fromkeys(zip(correct.pipeline, correct.configuration, strict=True)) if key in wide.index
    ]
    heads = [f"{steps} step{'s' * (steps > 1)}" for steps in wide.columns]
    lines = ["| pipeline | configuration | " + " | ".join(heads) + " |", "|---" * (2 + len(heads)) + "|"]
    for pipeline, label in order:
        values = ["" if np.isnan(value) else f"{100 * value:.1f}" for value in wide.loc[(pipeline, label)]]
        lines.append(f"| {pipeline} | {label} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def figure(groups: list[pd.DataFrame]) -> bytes:
    """Floats beside integers in equal recipes: PSNR to full precision, a panel per pipeline, a row per group."""
    from matplotlib.figure import Figure

    groups = [group[group.metric == "psnr"] for group in groups if len(group)]
    recipes = [_recipes(list(dict.fromkeys(group.configuration))) for group in groups]
    width = max(group.pipeline.nunique() for group in groups)
    height = 0.24 * sum(map(len, recipes)) + 1.1 * len(groups)
    drawn = Figure(figsize=(3.1 * width + 2.4, height), dpi=144, facecolor="white", layout="constrained")
    shape = {"squeeze": False, "gridspec_kw": {"height_ratios": [len(pairs) + 2 for pairs in recipes]}}
    for panels, group, twins in zip(
        drawn.subplots(len(groups), width, sharey="row", **shape), groups, recipes, strict=True
    ):
        for panel, (pipeline, rows) in zip(panels, group.groupby("pipeline", sort=False), strict=True):
            _panel(panel, rows.set_index("configuration"), twins)
            panel.set_title(pipeline, fontsize=9)
        panels[0].set_yticks(range(len(twins)), [label.replace("fp", "fp|int", 1) for label, _ in twins])
        panels[0].invert_yaxis()
    drawn.axes[0].legend(fontsize=7.5, frameon=False, loc="lower right")
    for panel in drawn.axes[-width:]:
        panel.set_xlabel("PSNR to full precision, dB", fontsize=8)
    out = io.BytesIO()
    drawn.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _recipes(labels: list[str]) -> list[tuple[str, str]]:
    """(float, integer) configurations that differ in nothing else."""
    twins = [(label, label.replace("fp", "int", 1)) for label in labels if re.match(r"fp\d-", label)]
    return [pair for pair in twins if pair[1] in labels]


def _panel(panel: Any, psnr: pd.DataFrame, twins: list[tuple[str, str]]) -> None:
    for line, pair in enumerate(twins):
        values = [psnr.loc[label] for label in pair]
        panel.plot([row.value for row in values], [line, line], color="#bbb", lw=1.5, zorder=1)
        for row, colour, name in zip(values, ("#1b6ca8", "#c8553d"), ("floating point", "integers"), strict=True):
            panel.errorbar(
                row.value, line, xerr=[[row.value - row.low], [row.high - row.value]], fmt="o", ms=4.5,
                color=colour, lw=1, label=name if line == 0 else None, zorder=2,
            )  # fmt: skip
    panel.axvline(psnr.loc["fp32, another seed"].value, color="#999", lw=0.8, ls=":")
    panel.tick_params(labelsize=7.5)
    panel.grid(axis="y", lw=0.3)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:]]
    finished = [path for path in given if (path / "results.json").is_file()]
    if not finished:
        sys.exit("usage: python docs/update_origin.py RUN_DIRECTORY... (finished runs, with results.json)")
    main(finished)
