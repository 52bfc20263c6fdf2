"""The page: one HTML file with everything in it, from what a run stored.

It reads `results.json` and the PNGs of a run directory and nothing else, so it can be written again at any time. No
script, font, style or picture comes from outside; it opens from a mail attachment and prints.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.experiment import Experiment
from analysis.plan import NOISE_FLOOR
from analysis.pricing import CostRow
from analysis.report.cells import cost_cell as cost_cell
from analysis.report.cells import interval_cell as interval_cell
from analysis.report.cells import silicon_words as silicon_words
from analysis.report.plot import explore
from analysis.report.short import headline
from analysis.report.tables import bases, columns_of, cost_tables, layer_tables, note, quality_table, twins
from analysis.scoring import QualityRow
from analysis.store import DamagedFile, RunDirectory, read_json, write_atomic
from analysis.templates import page
from analysis.units import duration

PAGE = "index.html"
TEMPLATE = "report.html.j2"


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
    experiment = Experiment.from_dict(results["experiment"])
    quality = [QualityRow(**row) for row in results["quality"]]
    costs = [CostRow(**row) for row in results["costs"]]
    judged = {row["configuration"]: row for row in results["verdicts"]}
    notes = list(dict.fromkeys(note(row) for row in costs if row.note))
    columns = columns_of(quality, results.get("metrics", []))  # runs of older versions have none
    return page(
        TEMPLATE,
        results=results,
        experiment=experiment,
        pictures=pictures,
        columns=columns,
        quality=quality_table(results, quality, judged, columns),
        headline=headline(experiment, results, quality, costs, judged),
        twins=twins(quality),
        tables=cost_tables(experiment, costs, notes),
        layers=[
            layer_tables(one, experiment.cost.devices) for one in results.get("layer_times", [])
        ],  # older runs: none
        notes=notes,
        bases=bases(costs),
        explore=explore(experiment, quality, costs),
        duration=duration,
        floor=NOISE_FLOOR,
        total=sum(results["seconds"].values()),
    )


def _picture(path: Path) -> str:
    try:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    except FileNotFoundError as error:
        raise ValueError(f"{path} is gone; run `fpsim whatif` again (what is measured is kept)") from error
