"""From an experiment file to a run directory: measure pictures, score them, price the arithmetic, write the report.

Measuring is the long part and the only one that is resumed; scores, prices and the page are made anew from the pictures
at every call, so a better report costs seconds.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.artifacts import Run, write_results
from analysis.cluster import HERE, Where
from analysis.experiment import Configuration, Experiment, unknown
from analysis.gather import Progress, measure
from analysis.pictures import Export
from analysis.plan import Plan, surroundings
from analysis.pricing import price
from analysis.scoring import METRICS, score, sparsity
from analysis.sensitivity.kept import study_all
from analysis.store import RunDirectory
from analysis.units import duration

if TYPE_CHECKING:
    import pandas as pd

LOG = logging.getLogger(__name__)


def whatif(
    source: str | Path = "default",
    *,
    runs: str | Path = "runs",
    workers: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Run an experiment file (or a shipped one by name), its whole sweep, and give its results as one tidy table.

    runs: where run directories go; workers: processes (by default one per core of a CPU, one on a GPU);
    device: what makes the pictures, "cpu" or "cuda"; progress: told how far it is.
    Stopped and started again, it goes on where it was. Raises ValueError for anything wrong with the input.
    """
    from analysis.sweep import run as run_all

    return run_all(Experiment.load(source), runs=runs, workers=workers, device=device, progress=progress).table()


def run(
    experiment: Experiment,
    *,
    runs: str | Path = "runs",
    workers: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    command: str = "",
    where: Where = HERE,
    images: str | Path | None = None,
) -> Run:
    """The same for an experiment made in Python; the result keeps its parts apart.

    images: a folder in which every picture becomes a PNG file, as soon as it is there
    """
    from analysis.report import write_page

    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    tell = progress or (lambda *_: None)
    began = time.monotonic()
    plan = make_plan(experiment, device)
    unused = check(plan)
    directory = RunDirectory.open(
        Path(runs),
        name=experiment.name,
        key=plan.key,
        manifest={"experiment": experiment.to_dict(), "surroundings": dict(plan.surroundings)},
    )
    seconds: dict[str, float] = {}
    with directory.lock(), log_to(directory.path / "run.log"):
        LOG.info("run %s", directory.path)
        each = None if images is None else Export(plan, Path(images) / directory.path.name)
        with timed(seconds, "measuring"):
            made = measure(plan, directory, workers, tell, where, each)
        if experiment.quality.sensitivity:
            with timed(seconds, "sensitivity"):
                study_all(plan, Path(runs), device, tell)
        with timed(seconds, "scoring"):
            done = Counter("scoring", len(plan.rows), tell)
            scores = score(plan, made, done)
            layers = layers_of_rows(plan, directory)
        with timed(seconds, "pricing"):
            done = Counter("pricing", len(experiment.cost.models) * len(experiment.cost.devices), tell)
            costs = price(plan, done)
        finished = Run(
            path=directory.path,
            experiment=experiment,
            key=plan.key,
            quality=(*scores.rows, *sparsity(plan, layers)),
            prompts=scores.prompts,
            costs=costs,
            layers=layers,
            unused_rules=unused,
            seconds=seconds,
            extra=scores.extra,
        )
        with timed(seconds, "writing"):
            tell("writing", 0, 1)
            write_results(finished, plan, made, command)
            write_page(directory.path)
            tell("writing", 1, 1)
        LOG.info("finished in %s: %s", duration(time.monotonic() - began), finished.page)
    return finished


def finished_part(experiment: Experiment, runs: str | Path, device: str = "cpu") -> Experiment | None:
    """The configurations whose pictures are all there, of a run that is going on or was stopped; None without any.

    As an experiment of its own it has a directory of its own, and takes the pictures over.
    """
    plan = make_plan(experiment, device)
    folder = RunDirectory(path=Path(runs) / f"{experiment.name}-{plan.key[:12]}")
    whole = {
        index: all(folder.batch_path(batch.identity).exists() for batch in plan.batches if batch.row == index)
        for index in range(len(plan.rows))
    }
    rows = [row.configuration for index, row in enumerate(plan.rows) if whole[index] and row.role == "configuration"]
    fixed = all(whole[index] for index, row in enumerate(plan.rows) if row.role != "configuration")
    return experiment.restricted(rows) if rows and fixed else None


def layers_of_rows(plan: Plan, directory: RunDirectory) -> dict[str, list[dict[str, Any]]]:
    """Row label -> what became of each layer; rows that some run before this one measured may lack it."""
    found = {row.label: directory.layers(plan.quantization(row)) for row in plan.rows if row.role == "configuration"}
    return {label: layers for label, layers in found.items() if layers}


def make_plan(experiment: Experiment, device: str = "cpu") -> Plan:
    """The work, with the hashes of what it depends on.

    Raises ValueError for a missing or truncated checkpoint and for a device that is not there.
    """
    from analysis.models import embedded

    name = experiment.quality.pipeline
    row = embedded.PIPELINES.get(name)
    if row is None:
        from analysis.runner.load import located

        hub = name.count("/") == 1 and not name.startswith((".", "~")) and not Path(name).parent.exists()
        return Plan(experiment, surroundings(located(name) if hub else Path(name), device=device))
    return Plan(experiment, surroundings(row.directory, variant=name if row.outliers else "", device=device))


def check(plan: Plan) -> dict[str, list[str]]:
    """Find every mistake of the input before the long part starts: names, engines, layer patterns.

    Gives the patterns of preset schemes that decide no layer; in a scheme of the user's own that is an error.
    """
    import hwmodels
    from analysis.registry import methods, models
    from analysis.runner.quantize import engine_for

    known = methods()
    for row in plan.rows:
        if row.configuration.method not in known:
            raise ValueError(unknown("method", row.configuration.method, known))
        check_options(row.configuration)
        for rule in row.scheme.rules:
            if row.configuration.engine is not None and rule.weight is not None and rule.activation is not None:
                engine_for(row.configuration.engine, rule.activation, rule.weight)
    for device in plan.experiment.cost.devices:
        with contextlib.suppress(hwmodels.UnsupportedFormat):  # a cell of the table; what must be found here are names
            one, cost = hwmodels.Gemm(m=16, n=16, k=16), plan.experiment.cost
            hwmodels.estimate(one, "fp16", device=device, mode=cost.mode, model=cost.estimator)  # type: ignore[arg-type]
    for model in plan.experiment.cost.models:
        if model not in models() and "/" not in model and not (Path(model) / "model_index.json").is_file():
            raise ValueError(unknown("model", model, models()))
    if plan.experiment.cost.baseline not in hwmodels.SHORTHANDS:
        raise ValueError(unknown("baseline", plan.experiment.cost.baseline, hwmodels.SHORTHANDS))
    check_metrics(plan.experiment.quality.metrics)
    if plan.experiment.quality.sensitivity and plan.experiment.quality.size:
        raise ValueError("sensitivity = true judges at the pipeline's own size; leave out height, width and frames")
    used = {row.configuration.scheme for row in plan.rows}
    for name in plan.experiment.schemes:
        if name not in used:
            raise ValueError(f"scheme {name!r} is described but no [[configuration]] uses it")
    unused = unused_rules(plan)
    for name, found in unused.items():
        if name in plan.experiment.schemes:
            raise ValueError(
                f"scheme {name!r}: pattern {found[0]!r} decides no layer of {plan.experiment.quality.pipeline}; "
                f"layer paths look like {example_path(plan)!r}"
            )
    return unused


def check_metrics(names: Iterable[str]) -> None:
    """Raise ValueError for further metrics that are not known, not needed, or cannot work here."""
    from analysis.scoring.extra import find

    for name in names:
        if name in METRICS:
            raise ValueError(f"metric {name!r} is always measured where it can be; leave it out of metrics")
        find(name)


def check_options(configuration: Configuration) -> None:
    """Raise ValueError for options that a configuration's method does not have, or does not take together."""
    from analysis.methods import method

    if not configuration.options:
        return
    axes = getattr(method(configuration.method), "AXES", None)
    try:
        if axes is None:
            raise ValueError(f"method {configuration.method} has no options")
        axes.over(configuration.options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"configuration {configuration.label!r}: {error}") from None


@functools.lru_cache(maxsize=8)
def layers(pipeline: str) -> Mapping[str, str]:
    """Path -> kind of the layers of a pipeline's denoiser. Raises ValueError for a pipeline that cannot be loaded."""
    from analysis.runner import load
    from analysis.runner.calibrate import layers_of
    from analysis.runner.load import denoiser_name

    pipe = load(pipeline)
    return {path: type(layer).__name__ for path, layer in layers_of(getattr(pipe, denoiser_name(pipe))).items()}


def unused_rules(plan: Plan) -> dict[str, list[str]]:
    """Scheme name -> patterns that decide no layer of the measured pipeline."""
    paths = layers(plan.experiment.quality.pipeline)
    found = {
        row.configuration.scheme: [rule.pattern for rule in row.scheme.unused_rules(paths)]
        for row in plan.rows
        if row.role == "configuration"
    }
    return {name: patterns for name, patterns in found.items() if patterns}


def example_path(plan: Plan) -> str:
    """One layer path, to show what patterns are matched against."""
    paths = sorted(layers(plan.experiment.quality.pipeline))
    return paths[len(paths) // 2]


class Counter:
    """Counts calls as progress of a stage."""

    def __init__(self, stage: str, total: int, tell: Progress) -> None:
        self.stage, self.total, self.tell, self.done = stage, total, tell, 0
        tell(stage, 0, total)

    def __call__(self) -> None:
        self.done += 1
        self.tell(self.stage, self.done, self.total)


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall-clock time of a stage."""
    began = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - began, 1)


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append this package's log to a file while inside."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("analysis")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
