"""Measured denoise steps beside projected ones: trace, estimate, divide."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import hwmodels
from hwmodels.measured import FOLDER

STEPS = FOLDER / "h200" / "steps.csv"


@dataclass(frozen=True, kw_only=True)
class StepError:
    """One measured step: seconds measured and projected; ratio: projected over measured."""

    model: str
    part: str
    rows: int
    format: str
    mode: str
    measured: float
    projected: float

    @property
    def ratio(self) -> float:
        return self.projected / self.measured


def step_errors(path: Path = STEPS, device: str = "h200-sxm", modes: Iterable[str] = ()) -> list[StepError]:
    """Every step of a steps.csv that has a time, beside the estimate for `device`; modes: only these (none: all)."""
    import analysis

    wanted = set(modes)
    works: dict[tuple[str, str, int], hwmodels.Workload] = {}
    out = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if not row["seconds"] or (wanted and row["mode"] not in wanted):
                continue
            call = (row["model"], row["part"], int(row["rows"]))
            if call not in works:
                works[call] = analysis.trace(call[0], part=call[1], batch=call[2])
            estimate = hwmodels.estimate(works[call], row["format"], device=device, mode=row["mode"])  # type: ignore[arg-type]
            out.append(
                StepError(
                    model=call[0],
                    part=call[1],
                    rows=call[2],
                    format=row["format"],
                    mode=row["mode"],
                    measured=float(row["seconds"]),
                    projected=estimate.time_s,
                )
            )
    return out
