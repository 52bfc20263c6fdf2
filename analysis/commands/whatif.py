"""Quantize a pipeline in several arithmetics, look at its pictures, and project
the cost on several devices: one page to decide from.

Without a file the shipped default experiment runs; with a diffusers directory
it runs on that pipeline. Stop it whenever you like: the same command goes on
where it was.

  fpsim whatif ./my-sd3 --prompts drawbench.csv --images pictures
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from analysis.commands._text import paragraph, say, say_json, table

HELP = "measure quality, project cost, write the report"
WHAT = "a .toml file, a shipped experiment's name, or a pipeline's directory"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", nargs="?", default="default", help=WHAT)
    shared_arguments(parser)


def shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that measures."""
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run directories go (default: runs)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core, one on a GPU)")
    parser.add_argument("--device", default="cpu", help="what makes the pictures: cpu (default), cuda, cuda:N")
    for name, kind, words in OVERRIDES:
        parser.add_argument(f"--{name}", type=kind, help=f"{words}, in place of the file's")
    parser.add_argument("--backend", default="local", help="whose workers: local (default), dask or ray")
    parser.add_argument("--address", help="of a Dask scheduler or a Ray cluster (default: one is started here)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="write every picture as PNG, a folder for each row")
    parser.add_argument("--finished", action="store_true", help="measure nothing, show what is finished so far")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def count_or_file(text: str) -> int | str:
    """A number of prompts, or a file of them."""
    return int(text) if text.removeprefix("-").isdecimal() else text


#: keys of [quality] that the command line may change: name, type, help
OVERRIDES: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("pipeline", str, "pipeline to measure"),
    ("prompts", count_or_file, "number of prompts, or a file of them (text, CSV, Parquet)"),
    ("steps", int, "denoising steps"),
    ("height", int, "pixels"),
    ("width", int, "pixels"),
    ("frames", int, "frames of a video"),
)


def overridden(experiment: Any, options: argparse.Namespace) -> Any:
    """The experiment with what the command line says about [quality]; a sweep keeps to that value too."""
    from dataclasses import replace

    from analysis.experiment.prompts import with_other_prompts

    given = {name: getattr(options, name) for name, _, _ in OVERRIDES}
    changed = {name: value for name, value in given.items() if value is not None}
    if not changed:
        return experiment
    sweep = []
    for row in experiment.sweep:
        fixed = {name: (value,) for name, value in changed.items() if getattr(row, name, ())}
        sweep.append(replace(row, **fixed))
    prompts = changed.pop("prompts", None)
    quality = experiment.quality if prompts is None else with_other_prompts(experiment.quality, prompts)
    return replace(experiment, quality=replace(quality, **changed), sweep=tuple(sweep))


def run(options: argparse.Namespace) -> None:
    from analysis import launch

    if not launch.launched():
        _run(options)
        return
    from analysis.workers import quiet

    quiet()
    if launch.is_first(options.device):
        with launch.leading(options.device):
            _run(options)
    else:
        launch.following(options.device)


def _run(options: argparse.Namespace) -> None:
    command = "fpsim " + shlex.join(sys.argv[1:])
    try:
        from analysis import launch
        from analysis.cluster import Where
        from analysis.experiment import Experiment

        experiment = overridden(Experiment.load(options.experiment), options)
        from analysis.sweep import run as run_experiment
        from analysis.workers import quiet

        quiet()
        with Bars(quiet=options.quiet or options.json) as bars:
            found = run_experiment(
                experiment,
                runs=options.runs,
                workers=options.workers,
                device=options.device,
                progress=bars.tell,
                command=command,
                where=Where(backend=options.backend, address=options.address, launched=launch.launched()),
                finished=options.finished,
                images=options.images,
            )
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"what is measured is kept, go on with: {command}") from interrupt
    if options.json:
        frame = found.table()
        rows = [{key: value for key, value in row.items() if value == value} for row in frame.to_dict("records")]
        runs = [str(cell.path) for cell in found.cells]
        say_json({"run": str(found.path), "page": str(found.page), "runs": runs, "results": rows})
        return
    for cell in found.cells:
        if len(found.cells) > 1:
            say(f"\n{cell.experiment.name}")
        summary(cell)
    say(f"\npage: {found.page}")


class Bars:
    """A bar with the remaining time for each stage, on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._stage = ""
        self._bar: Any = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def tell(self, stage: str, done: float, total: float) -> None:
        """Show that `done` of `total` is done."""
        if self._quiet:
            return
        if stage != self._stage:
            from tqdm import tqdm

            self.__exit__()
            self._stage = stage
            self._bar = tqdm(
                desc=stage,
                total=total,
                initial=done,
                bar_format="{desc:<10}{percentage:3.0f}% |{bar:30}| {elapsed} gone, {remaining} to go",
                mininterval=0.2 if sys.stderr.isatty() else 10,
                ascii=None if (sys.stderr.encoding or "").lower().startswith("utf") else True,
            )
        self._bar.update(done - self._bar.n)


def summary(found: Any) -> None:
    """The page's two tables, small enough for a terminal."""
    from analysis.report import cost_cell, interval_cell, silicon_words

    quality = {(row.configuration, row.metric): row for row in found.quality if row.against in ("", "fp32")}
    labels = list(dict.fromkeys(row.configuration for row in found.quality))
    shown = [("correct", "prompts obeyed, %"), ("psnr", "PSNR, dB"), *((one.name, one.name) for one in found.extra)]
    shown = [(metric, head) for metric, head in shown if any((label, metric) in quality for label in labels)]
    rows = [
        (label, *(interval_cell(quality.get((label, metric)), short=True) for metric, _ in shown)) for label in labels
    ]
    say()
    say(table(rows, ("measured", *(head for _, head in shown))))
    cost = found.experiment.cost
    for model in cost.models:
        listed = list(dict.fromkeys(row.configuration for row in found.costs))
        cells = {(row.configuration, row.device): cost_cell(row) for row in found.costs if row.model == model}
        say()
        say(
            table(
                [(label, *(cells[label, device] for device in cost.devices)) for label in listed],
                (f"projected: {model}", *cost.devices),
            )
        )
        for device in cost.devices:
            arrays = [row for row in found.costs if (row.model, row.device) == (model, device) and silicon_words(row)]
            if arrays:
                say()
                heads = (f"{model} on {device}", "cycles, energy, gates of a multiply-accumulate")
                say(table([(row.configuration, ", ".join(silicon_words(row))) for row in arrays], heads))
    say()
    words = f"Times are per image, denoiser only; in parentheses the speed-up over {cost.baseline}."
    say(paragraph(f"{words} * marks a fallback. The page names each, and the model behind each projection."))
