"""Write a quantized pipeline in a layout that plain diffusers loads.

  fpsim export shapes-sd --scheme fp8-w8a8+dynamic --layout torchao-fp8 --rest values --out exported
  fpsim export my/quantized-pipeline --layout bfl-fp8r --out exported

`fpsim list layouts` names them, `fpsim show LAYOUT` says what one holds. What a
layout does not hold is refused; with --rest values it is written as the values
of its codes, in full size. A pipeline saved quantized needs no --scheme.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.commands._text import say, say_json

if TYPE_CHECKING:
    from analysis.scheme import Scheme

HELP = "write a quantized pipeline for others to load"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pipeline", help="an embedded pipeline's name, a diffusers directory or a hub id")
    parser.add_argument("--layout", required=True, help="see `fpsim list layouts`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIRECTORY", help="written whole or not at all")
    parser.add_argument("--scheme", help="quantize first: a scheme's name, or a .toml file")
    parser.add_argument("--method", default="rtn", help="how to quantize (default: rtn)")
    parser.add_argument("--rest", choices=("refuse", "values"), default="refuse", help="layers that the layout lacks")
    parser.add_argument("--calibration", type=int, default=64, metavar="N", help="calibration captions (default: 64)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="of calibration (default: 20)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    from analysis.exports import LAYOUTS
    from fpsim._names import unknown

    if options.layout not in LAYOUTS:  # before anything takes time
        raise unknown("layout", options.layout, LAYOUTS)
    from analysis.exports import export
    from analysis.runner import calibrate, load, quantize
    from analysis.scenes import held_out
    from analysis.workers import quiet

    quiet()
    pipe = load(options.pipeline)
    ranges = None
    if options.scheme is not None:
        captions = held_out(options.calibration, None, 1_000_003).captions()
        ranges = calibrate(pipe, captions, steps=options.steps)
        pipe = quantize(pipe, _scheme(options.scheme), method=options.method, calibration=ranges)
    made = export(pipe, options.out, options.layout, calibration=ranges, rest=options.rest)
    if options.json:
        about = {"layout": made.layout, "file": str(made.file), "bytes": made.bytes}
        say_json({**about, "held": list(made.held), "values": list(made.values), "loading": made.loading})
        return
    others = f", {len(made.values)} as values" if made.values else ""
    say(str(made.file))
    say(f"{made.bytes:,} bytes, {len(made.held)} layers as codes{others}")
    say()
    say(made.loading.rstrip())


def _scheme(name: str) -> Scheme | str:
    from analysis.scheme import Scheme

    return Scheme.from_toml(Path(name).read_text(encoding="utf-8")) if name.endswith(".toml") else name
