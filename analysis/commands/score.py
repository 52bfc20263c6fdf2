"""Judge folders of PNG files against another one: another tool's pictures, those
of `fpsim run --images`, or photographs. Files of one name belong together.

  fpsim score theirs ours --against reference
  fpsim score pictures/fp8-w8a8 --against pictures/fp32 --prompts study.toml
  fpsim score made --against photographs --unpaired --metrics fid precision
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.commands._text import paragraph, say, say_json, table

HELP = "judge folders of PNG files, with intervals"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a folder of PNG files")
    parser.add_argument("--against", type=Path, metavar="DIR", help="the reference's folder")
    parser.add_argument("--unpaired", action="store_true", help="pictures do not belong together by name: sets alone")
    words = "an experiment's, or of a file (text, CSV, Parquet); file 000012.png has number 12"
    parser.add_argument("--prompts", metavar="FILE", help=words)
    parser.add_argument("--metrics", nargs="+", default=(), metavar="NAME", help="further ones of `fpsim list metrics`")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default: 0.95)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row per folder and metric")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    from analysis.commands.whatif import Bars
    from analysis.folders import Asked, score
    from analysis.pictures import Folder
    from analysis.whatif import Counter, check_metrics
    from analysis.workers import quiet

    quiet()
    check_metrics(options.metrics)
    if not 0.5 <= options.confidence < 1:
        raise ValueError(f"--confidence must be between 0.5 and 1, not {options.confidence}")
    if options.unpaired and options.against is None:
        raise ValueError("--unpaired says how to compare with a folder: give it with --against")
    for folder in (*options.folders, *([] if options.against is None else [options.against])):
        Folder.open(folder)  # a mistake, before anything is drawn on the terminal
    asked = None if options.prompts is None else Asked.of(options.prompts)
    with Bars(quiet=options.quiet or options.json) as bars:
        found = score(
            options.folders,
            options.against,
            asked,
            options.metrics,
            paired=not options.unpaired,
            confidence=options.confidence,
            progress=Counter("scoring", len(options.folders), bars.tell),
        )
    rows = [_short(row) for row in found]
    if options.csv is not None:
        from analysis.artifacts import comma_separated
        from analysis.store import write_atomic

        write_atomic(options.csv, comma_separated(rows))
    if options.json:
        say_json(rows)
    else:
        _print(found)


def _short(row: Any) -> dict[str, Any]:
    """What is said of a folder: nothing about schemes, which it has none of."""
    made = asdict(row)
    made["folder"] = made.pop("configuration")
    made["pictures"] = made.pop("prompts")
    left_out = ("scheme", "method", "engine", "kind")
    return {"folder": made.pop("folder")} | {key: value for key, value in made.items() if key not in left_out}


def _print(found: Any) -> None:
    from analysis.report.cells import interval_cell
    from analysis.report.tables import COLUMNS
    from analysis.scoring import METRICS

    heads = {name: title for name, (title, _, _) in METRICS.items()} | {metric: head for head, metric, _ in COLUMNS}
    heads |= {"correct_change": "change of prompts obeyed, points", "residual_change": "change of residual, 10⁻³"}
    for folder in dict.fromkeys(row.configuration for row in found):
        ours = [row for row in found if row.configuration == folder]
        say(f"{folder}: {ours[0].prompts} pictures{', the reference' if ours[0].role == 'reference' else ''}")
        lines = [(heads.get(row.metric, row.metric), interval_cell(row, short=True)) for row in ours]
        say(table(lines, ("metric", "mean [interval]")))
        say()
    say(paragraph("Intervals are bootstrapped over pictures; changes are paired by name."))
