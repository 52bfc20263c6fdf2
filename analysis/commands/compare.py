"""Compare two finished runs: the scores of what both have, and whether the
difference can be told from chance (paired, where prompts and seeds are equal).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from analysis.commands._text import paragraph, say, say_json, table

HELP = "compare two runs, configuration by configuration"

#: metric -> (name, factor, digits)
SHOWN = {"correct": ("prompts obeyed, %", 100, 1), "residual": ("residual, 1e-3", 1000, 3), "psnr": ("PSNR, dB", 1, 1)}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="RUN", help="a run directory")
    parser.add_argument("second", type=Path, metavar="RUN", help="another one")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    from analysis.compare import compare

    found = compare(options.first, options.second)
    if options.json:
        rows = [{**asdict(row), "difference": row.difference} for row in found.changes]
        say_json({**asdict(found), "changes": rows})
        return
    lines = []
    for row in found.changes:
        name, factor, digits = SHOWN.get(row.metric, (row.metric, 1, 4))
        first, second, change = (f"{value * factor:.{digits}f}" for value in (row.first, row.second, row.difference))
        interval = "not the same prompts"
        if row.low is not None and row.high is not None:
            interval = f"[{row.low * factor:+.{digits}f}, {row.high * factor:+.{digits}f}]"
            interval += "" if row.low <= 0 <= row.high else " *"
        lines.append((row.configuration, name, first, second, change if change[0] == "-" else f"+{change}", interval))
    say(table(lines, ("configuration", "metric", "first", "second", "change", "interval"), right=(2, 3, 4)))
    say("* the interval of the paired differences leaves out zero")
    for words, names in (("only in the first", found.only_first), ("only in the second", found.only_second)):
        if names:
            say(paragraph(f"{words}: {', '.join(names)}"))
    for name, (a, b) in found.surroundings.items():
        say(paragraph(f"ran with another {name}: {a[:16] or 'none'}, {b[:16] or 'none'}"))
