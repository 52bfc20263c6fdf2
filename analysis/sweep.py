"""All the runs that one experiment file asks for, and one table and page over them.

Every run has a directory of its own and resumes on its own; pictures that two runs share are made once. The sweep's
directory holds what is only seen from above: `results.csv`, tidy, a row per run, configuration and metric, and
`index.html`, which puts the runs side by side and links to their pages.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.artifacts import Run
from analysis.cluster import HERE, Where
from analysis.experiment import Experiment
from analysis.report import interval_cell
from analysis.store import digest, write_atomic
from analysis.templates import page
from analysis.whatif import finished_part
from analysis.whatif import run as run_cell

if TYPE_CHECKING:
    import pandas as pd

    from analysis.gather import Progress

TEMPLATE = "sweep.html.j2"
SHOWN = (("correct", "Prompts obeyed, %"), ("psnr", "PSNR to full precision, dB"))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Finished runs of one file; `path` is where their common table is, the run itself if there is only one."""

    path: Path
    cells: tuple[Run, ...]

    @property
    def page(self) -> Path:
        return self.path / "index.html"

    def table(self) -> pd.DataFrame:
        """Everything in one tidy frame; columns pipeline, steps and seed tell the runs apart."""
        import pandas as pd

        frame = pd.concat([cell.table() for cell in self.cells], ignore_index=True)
        frame.attrs["run"] = str(self.path)
        return frame


def run(
    experiment: Experiment,
    *,
    runs: str | Path = "runs",
    workers: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    command: str = "",
    where: Where = HERE,
    finished: bool = False,
    images: str | Path | None = None,
) -> Sweep:
    """Run every cell of an experiment, one after the other; arguments as of `analysis.whatif.run`.

    finished: measure nothing, score what is there; the run itself may be going on meanwhile.
    Stopped and started again, it goes on where it was. Raises ValueError if nothing is finished.
    """
    cells = experiment.cells()
    if finished:
        cells = tuple(part for cell in cells if (part := finished_part(cell, runs, device)) is not None)
        if not cells:
            raise ValueError(f"no configuration of {experiment.name!r} is finished under {runs}; leave --finished out")
    found: list[Run] = []

    def tell(stage: str, done: float, total: float) -> None:
        if progress is not None:
            progress(stage if len(cells) == 1 else f"{len(found) + 1}/{len(cells)} {stage}", done, total)

    for cell in cells:
        options: dict[str, Any] = {"workers": workers, "device": device, "command": command, "where": where}
        found.append(run_cell(cell, runs=runs, progress=tell, images=images, **options))
    if len(found) == 1:
        return Sweep(path=found[0].path, cells=tuple(found))
    key = digest([cell.key for cell in found])
    made = Sweep(path=Path(runs) / f"{experiment.name}-sweep-{key[:12]}", cells=tuple(found))
    write_atomic(made.path / "results.csv", made.table().to_csv(index=False).encode())
    write_atomic(made.page, _page(experiment, made).encode())
    return made


def _page(experiment: Experiment, sweep: Sweep) -> str:
    cells = [
        {
            "name": cell.experiment.name,
            "page": os.path.relpath(cell.page, sweep.path),
            "prompts": cell.experiment.quality.prompts,
        }
        for cell in sweep.cells
    ]
    tables = [{"title": title, "rows": rows} for metric, title in SHOWN if (rows := _side_by_side(sweep.cells, metric))]
    return page(TEMPLATE, experiment=experiment, cells=cells, tables=tables)


def _side_by_side(cells: Sequence[Run], metric: str) -> list[dict[str, Any]]:
    """A row per configuration, a cell per run; empty where a run does not have it."""
    found = [
        {row.configuration: row for row in cell.quality if row.metric == metric and row.against in ("", "fp32")}
        for cell in cells
    ]
    labels = dict.fromkeys(label for rows in found for label in rows)
    return [{"label": label, "cells": [interval_cell(rows.get(label)) for rows in found]} for label in labels]
