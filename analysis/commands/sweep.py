"""Project every combination of models, arithmetics, devices, batches and modes:
no weights, no pictures, ten thousand of them in less than a minute.

  fpsim sweep --models sdxl-base flux1-dev --schemes bf16 fp8 nvfp4 --devices 'rtx-*' h200-sxm
  fpsim sweep --models '*' --schemes '*' --devices '*' --batch 1 4 --mode graph compiled
  fpsim sweep which-card.toml --parquet

A * stands for any part of a name. A file has the same lists: models = [...],
schemes = [...], devices = [...], batch = [...], mode = [...]. Results: a row per
combination in projections.csv, and a page of what nobody beats.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from analysis.commands._text import paragraph, say, say_json, table

HELP = "project every combination of models, arithmetics, devices and batches"

LISTS = (
    ("models", str, "names that `fpsim list models` prints, or pipeline directories"),
    ("schemes", str, "shorthands (fp8, nvfp4, w4a16), schemes, or .toml files of schemes"),
    ("devices", str, "names that `fpsim list devices` prints, or device files"),
    ("batch", int, "images made at once (default 1)"),
    ("mode", str, "eager, graph, compiled (default graph)"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, help="a .toml file of these lists")
    for name, kind, words in LISTS:
        parser.add_argument(f"--{name}", nargs="+", type=kind, metavar=name.upper().removesuffix("S"), help=words)
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: each model's own)")
    parser.add_argument("--estimator", help="auto (default: the best there is), gpu or roofline")
    parser.add_argument("--baseline", help="what speed-ups refer to (default bf16)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--backend", default="local", help="whose workers: local (default), dask or ray")
    parser.add_argument("--address", help="of a Dask scheduler or a Ray cluster (default: one is started here)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: runs/NAME)")
    parser.add_argument("--parquet", action="store_true", help="write projections.parquet too")
    parser.add_argument("--top", type=int, default=12, metavar="N", help="print the N fastest (default 12)")
    parser.add_argument("--json", action="store_true", help="print all rows as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from analysis.cluster import Where
    from analysis.commands.whatif import Bars
    from analysis.projection.page import check_parquet, write
    from analysis.projection.rows import project
    from analysis.workers import quiet

    asked = question(options).named()
    if options.parquet:
        check_parquet()
    quiet()
    with Bars(quiet=options.quiet or options.json) as bars:
        where = Where(backend=options.backend, address=options.address)
        rows = project(asked, workers=options.workers, progress=bars.tell, where=where)
    folder = options.out or Path("runs") / asked.name
    written = write(folder, asked, rows, "fpsim " + shlex.join(sys.argv[1:]), parquet=options.parquet)
    if options.json:
        say_json({"page": str(written.page), "csv": str(written.csv), "results": [asdict(row) for row in rows]})
        return
    _print(options, rows)
    for name in ("csv", "parquet", "page"):
        if getattr(written, name) is not None:
            say(f"{name}: {getattr(written, name)}")


def question(options: argparse.Namespace) -> Any:
    """The file with what the command line says instead, or the command line alone. Raises ValueError."""
    from dataclasses import replace

    from analysis.projection import Projection

    given = {name: getattr(options, name) for name in ("steps", "estimator", "baseline")}
    given |= {name: None if (words := getattr(options, name)) is None else tuple(words) for name, _, _ in LISTS}
    changed = {name: value for name, value in given.items() if value is not None}
    if options.file is not None:
        return replace(Projection.load(options.file), **changed)
    for name in ("models", "schemes", "devices"):
        if name not in changed:
            example = "fpsim sweep --models sdxl-base --schemes fp8 --devices l4"
            raise ValueError(f"give --{name}, or a .toml file: {example}")
    return Projection(**changed)


def _print(options: argparse.Namespace, rows: Any) -> None:
    from analysis.projection.page import counts, fastest, is_bound
    from analysis.units import seconds, size

    found = counts(rows)
    say()
    first = fastest(rows, max(options.top, 0))
    lines = [
        (
            f"{'>= ' if is_bound(row) else ''}{seconds(row.time_per_image or 0)}",
            "" if row.speedup is None else f"{row.speedup:.2f}x",
            size(row.memory or 0),
            f"{row.batch}",
            f"{row.model} {row.scheme} {row.device} {row.mode}",
        )
        for row in first
    ]
    if lines:
        say(table(lines, ("per image", "speed", "memory", "batch", "what"), right=(0, 1, 2, 3)))
        say()
    words = f"{len(rows)} configurations: {found['priced']} priced, {found['fallback']} of them by fallback"
    say(
        paragraph(
            f"{words}; {found['unsupported']} not supported; {found['too_large']} need more memory than there is."
        )
    )
    if any(map(is_bound, first)):
        say(paragraph(">= marks lower bounds, from peak rates alone: no estimate, not to be compared with one."))
