"""Compare the emulators with the instructions of the machine this runs on, bit
for bit: random bits, corner values, ordinary and cancelling values, huge starts.
Exits 1 if any output differs.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from analysis.commands._text import paragraph, say, say_json, table

HELP = "compare emulators with this machine's own instructions"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help="which engines (default: all with a probe)")
    parser.add_argument("--rounds", type=int, default=8, help="draws of every class of inputs (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default 0)")
    parser.add_argument("--capture", type=Path, metavar="FILE", help="write golden vectors (.npz) instead of comparing")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> int:
    from fpsim.silicon import golden
    from fpsim.silicon.verify import verify

    if options.rounds < 1:
        raise ValueError(f"--rounds must be at least 1, not {options.rounds}")
    engines = options.engines or None
    if options.capture is not None:
        done = golden.capture(options.capture, engines, options.seed, shlex.join(["fpsim", *sys.argv[1:]]))
        say(paragraph(f"captured {', '.join(done)} into {options.capture}"))
        return 0
    results = verify(engines, options.rounds, options.seed)
    if options.json:
        say_json([asdict(result) for result in results])
    else:
        compared = [(r.engine, r.operands, f"{r.compared:,}", f"{r.differences:,}") for r in results if not r.skipped]
        if compared:
            say(table(compared, ("engine", "operands", "outputs compared", "different"), right=(2, 3)))
        for reason in dict.fromkeys(r.skipped for r in results if r.skipped):
            names = dict.fromkeys(r.engine for r in results if r.skipped == reason)
            say(paragraph(f"not run: {', '.join(names)}: {reason}"))
        for result in results:
            if result.first is not None:
                say(paragraph(f"{result.engine} {result.operands}, first difference ({result.first.inputs}):"))
                for field, value in asdict(result.first).items():
                    say(paragraph(f"  {field}: {' '.join(value) if isinstance(value, tuple) else value}"))
    return int(any(result.differences for result in results))
