"""List the operations of one denoiser call of a full-size model: no weights,
a few seconds. Classifier-free guidance runs two rows, so batch 2 is one step
of one image.
"""

from __future__ import annotations

import argparse
import csv
import sys

from analysis.commands._text import paragraph, say, table

HELP = "list the operations of a model, from its configuration alone"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a name that `fpsim list models` prints")
    parser.add_argument("--batch", type=int, default=1, help="rows per call (default 1)")
    parser.add_argument("--all", action="store_true", help="every operation, not only sums per kind")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print the workload as JSON")
    shape.add_argument("--csv", action="store_true", help="print one line per operation as CSV")


def run(options: argparse.Namespace) -> None:
    from analysis import registry
    from analysis.units import count

    if options.batch < 1:
        raise ValueError(f"--batch must be at least 1, not {options.batch}")
    workload = registry.workload(options.model, options.batch)
    if options.json:
        say(workload.to_json())
        return
    rows = workload.rows()
    if options.csv:
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return
    say(f"{workload.name}: {count(workload.macs, 'MAC')} per call, {count(workload.parameters)} parameters")
    say()
    if options.all:
        listed = [(row["kind"], count(row["macs"]), f"{row['shape']}  {row['path']}") for row in rows]
        say(table(listed, ("operation", "MAC", "shape, path"), right=(1,)))
    else:
        summed = [
            (kind, total.operations, count(total.macs), count(total.flops), count(total.parameters))
            for kind, total in workload.totals().items()
        ]
        say(table(summed, ("operation", "count", "MAC", "other ops", "parameters"), right=(1, 2, 3, 4)))
    for note in workload.notes:
        say(paragraph(f"note: {note}"))
