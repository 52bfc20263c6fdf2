"""Compare the emulators with the instructions and libraries of the machine this
runs on, bit for bit: random bits, corner values, ordinary, cancelling and wide
ranges, huge starts. Exits 1 if any output differs, or if a library's result is
one that no number of splits of K explains.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands._text import paragraph, say, say_json, table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fpsim.silicon.results import Verification

HELP = "compare emulators with this machine's own instructions"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help="which engines (default: all with a probe)")
    parser.add_argument(
        "--outputs",
        type=float,
        default=2e5,
        metavar="N",
        help="dot products to compare per instruction, such as 1e9 on a GPU (default 2e5)",
    )
    parser.add_argument(
        "--shapes",
        type=_shape,
        nargs="+",
        metavar="MxNxK",
        help="products to ask of libraries (default: a grid of 21 shapes, 7 of them below 1e7 outputs)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default 0)")
    parser.add_argument("--capture", type=Path, metavar="FILE", help="write golden vectors (.npz) instead of comparing")
    parser.add_argument("--record", type=Path, metavar="FILE", help="add the result to a record (verified.json)")
    parser.add_argument(
        "--compile", action="store_true", help="compile the probes of every GPU architecture instead (needs NVRTC)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def _shape(text: str) -> tuple[int, int, int]:
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"a shape is MxNxK, such as 64x128x4096, not {text!r}")
    m, n, k = map(int, sizes)
    return m, n, k


def run(options: argparse.Namespace) -> int:
    from fpsim.silicon import golden, record
    from fpsim.silicon.library import QUICK, SHAPES
    from fpsim.silicon.verify import names, verify

    if not 1 <= options.outputs <= 1e12:
        raise ValueError(f"--outputs must be 1 to 1e12, not {options.outputs:g}")
    command = shlex.join(["fpsim", "verify", *options.engines])
    if options.compile:
        return _compile(options)
    if options.capture is not None:
        ran = f"{command} --capture {options.capture.name} --seed {options.seed}"
        done = golden.capture(options.capture, names(options.engines or None), options.seed, ran)
        say(paragraph(f"captured into {options.capture}: {', '.join(done)}"))
        return 0

    def progress(text: str) -> None:
        if not options.quiet:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()

    shapes = options.shapes or (SHAPES if options.outputs >= 1e7 else QUICK)
    results = verify(options.engines or None, int(options.outputs), options.seed, progress, shapes)
    if options.record is not None:
        ran = f"{command} --outputs {options.outputs:g} --seed {options.seed}"
        rows = record.merge(options.record, results, record.about(ran, options.seed))
        progress(f"recorded {rows} rows in {options.record}")
    if options.json:
        say_json([asdict(result) for result in results])
    else:
        _print(results)
    return int(not all(result.passed for result in results))


def _compile(options: argparse.Namespace) -> int:
    from fpsim.silicon.instructions import instructions
    from fpsim.silicon.nvrtc import build

    engines = options.engines or dict.fromkeys(row.engine for row in instructions().values())
    built = [build(engine) for engine in engines]
    if options.json:
        say_json([asdict(row) for row in built])
        return 0
    rows = [
        (row.engine, row.target, f"{row.instructions}", f"{row.bytes:,}", f"NVRTC {row.compiler}")
        if not row.skipped
        else (row.engine, row.target, "", "", row.skipped)
        for row in built
    ]
    say(table(rows, ("engine", "target", "probes", "bytes", "compiled by"), right=(2, 3)))
    for row in built:
        if row.left_out:
            say(paragraph(f"{row.engine}: NVRTC {row.compiler} is too old for {', '.join(row.left_out)}"))
    return 0


def _print(results: Iterable[Verification]) -> None:
    compared = [result for result in results if not result.skipped]
    if compared:
        rows = [
            (r.name, f"{r.compared:,}", f"{r.differences:,}" if r.passed or r.differences else "?") for r in compared
        ]
        say(table(rows, ("instruction", "outputs compared", "different"), right=(1, 2)))
        say(f"{len(compared)} instructions, {sum(result.compared for result in compared):,} outputs")
    for note in dict.fromkeys(result.note for result in compared if result.note):
        listed = [result.name for result in compared if result.note == note]
        say(paragraph(f"{listed[0]}{f' and {len(listed) - 1} more' if len(listed) > 1 else ''}: {note}"))
    skipped = [result for result in results if result.skipped]
    for reason in dict.fromkeys(result.skipped for result in skipped):
        listed = list(dict.fromkeys(result.engine for result in skipped if result.skipped == reason))
        say(paragraph(f"not run: {', '.join(listed)}: {reason}"))
    for result in compared:
        for shape in result.unmatched:
            say(paragraph(f"unmatched: {result.engine} {shape}: no number of splits of K gives this result"))
        if result.first is not None:
            say(paragraph(f"{result.name}, first difference:"))
            for field, value in asdict(result.first).items():
                if value == ():
                    continue
                say(paragraph(f"  {field}: {' '.join(value) if isinstance(value, tuple) else value}"))
