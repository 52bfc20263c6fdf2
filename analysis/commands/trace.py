"""List the operations of one call of a full-size model: no weights, a few
seconds. Classifier-free guidance runs two rows, so batch 2 is one step of one
image. MODEL is a name or a pipeline directory (with model_index.json).
"""

from __future__ import annotations

import argparse
import csv
import sys
from typing import TYPE_CHECKING

from analysis.commands._text import paragraph, say, table

if TYPE_CHECKING:
    from hwmodels import Workload

HELP = "list the operations of a model, from its configuration alone"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name that `fpsim list models` prints, or a pipeline directory")
    call_arguments(parser)
    parser.add_argument("--all", action="store_true", help="every operation, not only sums per kind")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print the workload as JSON")
    shape.add_argument("--csv", action="store_true", help="print one line per operation as CSV")


def call_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which call of a model is meant."""
    parser.add_argument("--batch", type=int, default=1, help="rows per call (default 1)")
    parser.add_argument("--part", default="denoiser", help="denoiser (default), vae-decode or text-encoder")
    for name, what in (("height", "pixels"), ("width", "pixels"), ("frames", "frames"), ("tokens", "text tokens")):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"{what} instead of the model's own")


def workload(options: argparse.Namespace, part: str = "") -> Workload:
    """The call that the options of `call_arguments` ask for; `part` overrides theirs."""
    import analysis

    if options.batch < 1:
        raise ValueError(f"--batch must be at least 1, not {options.batch}")
    sizes = {name: getattr(options, name) for name in ("height", "width", "frames", "tokens")}
    return analysis.trace(options.model, batch=options.batch, part=part or options.part, **sizes)


def run(options: argparse.Namespace) -> None:
    from analysis.units import count

    work = workload(options)
    if options.json:
        say(work.to_json())
        return
    rows = work.rows()
    if options.csv:
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return
    say(f"{work.name}: {count(work.macs, 'MAC')} per call, {count(work.parameters)} parameters")
    say()
    if options.all:
        listed = [(row["kind"], count(row["macs"]), f"{row['shape']}  {row['path']}") for row in rows]
        say(table(listed, ("operation", "MAC", "shape, path"), right=(1,)))
    else:
        summed = [
            (kind, total.operations, count(total.macs), count(total.flops), count(total.parameters))
            for kind, total in work.totals().items()
        ]
        say(table(summed, ("operation", "count", "MAC", "other ops", "parameters"), right=(1, 2, 3, 4)))
    for note in work.notes:
        say(paragraph(f"note: {note}"))
