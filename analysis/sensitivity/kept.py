"""Finished studies in a runs directory, and what an experiment's page shows of them beside the layers' times."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.plan import Plan, Row
from analysis.sensitivity import Sensitivity, Study, Tell, run
from analysis.store import DamagedFile, read_json, write_json

LOG = logging.getLogger(__name__)

FILE = "sensitivity.json"


@dataclass(frozen=True, kw_only=True)
class Alone:
    """Each layer of a configuration quantized alone: path -> (quality, content or None), means over the trajectory.

    images, steps, trajectory : judged on so many captions at `steps` of `trajectory` timesteps
    """

    layers: Mapping[str, tuple[float, float | None]]
    images: int
    steps: int
    trajectory: int


def keep(folder: Path, found: Sensitivity) -> None:
    """Write a study's scores, sealed by their hash."""
    write_json(folder / FILE, json.loads(found.to_json()))


def studies(plan: Plan, runs: Path) -> Iterator[tuple[Mapping[str, Any], Sensitivity]]:
    """(settings, scores) of the finished studies of a plan's pipeline, as it is now, by the sources there are now."""
    for path in sorted(runs.glob(f"sensitivity-*/{FILE}")):
        try:
            manifest = read_json(path.parent / "experiment.json")
            study, around = manifest["study"], dict(manifest["surroundings"])
            same = {name: value for name, value in around.items() if name != "device"}
            ours = {name: value for name, value in plan.surroundings.items() if name != "device"}
            if study["pipeline"] == plan.experiment.quality.pipeline and same == ours:
                yield study, Sensitivity.from_json(json.dumps(read_json(path)))
        except (DamagedFile, FileNotFoundError, KeyError, ValueError) as error:
            LOG.warning("%s is left out: %s", path, error)


def alone(plan: Plan, runs: Path) -> dict[str, Alone]:
    """Configuration -> its layers, each alone, where a study of that scheme and method lies under `runs`.

    Of several the one that judged on most captions and timesteps.
    """
    found: dict[str, Alone] = {}
    rows = [row for row in plan.rows if judged(row)]
    for study, scores in studies(plan, runs) if rows else ():
        names = {_rules(one): name for name, one in scores.candidates.items()}
        for row in rows:
            name = names.get(_rules(row.scheme)) if study["method"] == row.configuration.method else None
            if name is None:
                continue
            made = _means(scores, name, study)
            before = found.get(row.label)
            if before is None or made.images * made.steps > before.images * before.steps:
                found[row.label] = made
    return found


def judged(row: Row) -> bool:
    """Whether layers of a row can be judged one by one: quantized, sums in float32, no attention, no options."""
    quantizes = any(rule.quantizes for rule in row.scheme.rules) and row.scheme.attention is None
    plain = row.configuration.engine is None and not row.configuration.options
    return row.role == "configuration" and quantizes and plain


def study_all(plan: Plan, runs: Path, device: str, tell: Tell) -> None:
    """Judge the layers of every configuration that can be, a study per method; what is measured is kept."""
    quality = plan.experiment.quality
    methods: dict[str, dict[str, Any]] = {}
    for row in plan.rows:
        if judged(row):
            methods.setdefault(row.configuration.method, {})[row.scheme.name] = row.scheme
    for method, schemes in methods.items():
        study = Study(
            pipeline=quality.pipeline,
            candidates=tuple(schemes.values()),
            images=min(2, quality.calibration),
            steps=min(10, quality.steps),
            method=method,
            captions=quality.calibration,
            trajectory=quality.steps,
            guidance=quality.guidance,
            seed=quality.seed,
        )
        run(study, runs, device, tell)


def _rules(scheme: Any) -> str:
    """A scheme's content without its name."""
    tree = scheme.to_dict()
    del tree["name"]
    return json.dumps(tree, sort_keys=True)


def _means(scores: Sensitivity, name: str, study: Mapping[str, Any]) -> Alone:
    index = list(scores.candidates).index(name)
    quality = scores.scores("quality")[:, index].tolist()
    content = [None] * len(quality) if scores.content is None else scores.scores("content")[:, index].tolist()
    layers = dict(zip(scores.layers, zip(quality, content, strict=True), strict=True))
    return Alone(layers=layers, images=study["images"], steps=len(scores.timesteps), trajectory=study["trajectory"])
