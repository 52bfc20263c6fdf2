"""Two runs side by side: what changed, and whether the prompts can tell.

Where both runs made the same prompts from the same seeds, the difference of each metric is bootstrapped over per-prompt
differences; otherwise the two means stand beside each other and no interval is claimed for their difference.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.artifacts import SCORES
from analysis.report import stored_results
from analysis.scoring import EQUAL_DB, numbers

METRICS = ("correct", "residual", "psnr")
NOT_METRICS = ("configuration", "prompt", "caption", "seed", "ssim")  # columns of scores.csv that are not compared


@dataclass(frozen=True, kw_only=True)
class Change:
    """One configuration and metric in two runs. low, high: the interval of second - first, None if not paired."""

    configuration: str
    metric: str
    first: float
    second: float
    low: float | None
    high: float | None
    prompts: int
    paired: bool

    @property
    def difference(self) -> float:
        return self.second - self.first


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two runs share, what only one has, and what they ran with that differs."""

    changes: tuple[Change, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    surroundings: Mapping[str, tuple[str, str]]


def compare(first: Path, second: Path) -> Comparison:
    """Compare two finished run directories. Raises ValueError for an unfinished or damaged one."""
    a, b = stored_results(first), stored_results(second)
    x, y = _scores(first, a), _scores(second, b)
    confidence = a["experiment"]["quality"]["confidence"]
    shared = [label for label in x if label in y]
    changes = [
        change
        for label in shared
        for metric in dict.fromkeys([*METRICS, *x[label][0]])
        if metric not in NOT_METRICS
        and metric in y[label][0]
        and (change := _change(label, metric, x[label], y[label], confidence)) is not None
    ]
    names = sorted({*a["surroundings"], *b["surroundings"]})
    differing = {name: (a["surroundings"].get(name, ""), b["surroundings"].get(name, "")) for name in names}
    return Comparison(
        changes=tuple(changes),
        only_first=tuple(label for label in x if label not in y),
        only_second=tuple(label for label in y if label not in x),
        surroundings={name: pair for name, pair in differing.items() if pair[0] != pair[1]},
    )


def _scores(directory: Path, results: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    """scores.csv by configuration."""
    path = directory / SCORES
    again = "run `fpsim whatif` again (what is measured is kept)"
    if not path.is_file():
        raise ValueError(f"{path} is gone; {again}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != results["scores"]:
        raise ValueError(f"{path} is damaged: its content does not match its hash; {again}")
    found: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(io.StringIO(data.decode())):
        found.setdefault(row["configuration"], []).append(row)
    return found


def _change(
    label: str, metric: str, first: list[dict[str, str]], second: list[dict[str, str]], confidence: float
) -> Change | None:
    from analysis.metrics import bootstrap

    if not first[0][metric] or not second[0][metric]:
        return None
    a, b = (numbers([_number(row[metric]) for row in rows]) for rows in (first, second))
    paired = [(row["caption"], row["seed"]) for row in first] == [(row["caption"], row["seed"]) for row in second]
    interval = bootstrap(b - a, confidence=confidence) if paired else None
    return Change(
        configuration=label,
        metric=metric,
        first=float(a.mean()),
        second=float(b.mean()),
        low=None if interval is None else float(interval.low),
        high=None if interval is None else float(interval.high),
        prompts=min(len(a), len(b)),
        paired=paired,
    )


def _number(text: str) -> float:
    return {"True": 1.0, "False": 0.0}[text] if text in ("True", "False") else min(float(text), EQUAL_DB)
