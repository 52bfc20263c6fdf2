"""Measure kernels, or with --steps whole denoise steps, on this machine's GPU.

  fpsim measure --out mine                       # every kind, a few minutes
  fpsim measure --kinds gemm --formats bf16 fp8 --time-budget 60
  fpsim measure --steps --models sd15 flux1-dev

Rows are saved as they finish and the same command goes on where it stopped;
`fpsim calibrate mine/kernels.csv` makes a device of them.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from analysis.commands._text import say, say_json

HELP = "measure kernels or denoise steps on this machine's GPU"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("measured"), help="directory of the results (default measured)"
    )
    parser.add_argument("--kinds", type=_names, help="gemm,conv,attention,norm,elementwise,quantize (default all)")
    parser.add_argument("--formats", type=_names, default=[], help="bf16,fp16,fp8,int8 (default all)")
    parser.add_argument("--suite", default="all", choices=("diffusion", "ragged", "all"), help="default: all")
    parser.add_argument("--time-budget", type=float, default=math.inf, metavar="S", help="stop after S seconds")
    parser.add_argument("--on", default="cuda", choices=("cuda", "cpu"), help="cpu: try it out (default cuda)")
    parser.add_argument("--steps", action="store_true", help="whole denoise steps with random weights")
    parser.add_argument("--models", type=_names, default=[], help="with --steps: only these")
    parser.add_argument("--modes", type=_names, default=[], help="with --steps: eager,graph,compiled (default all)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def run(options: argparse.Namespace) -> None:
    from analysis.measure import KINDS, SUITES, measure, measure_steps

    if not options.time_budget > 0:
        raise ValueError(f"--time-budget must be a positive number of seconds, not {options.time_budget:g}")
    command = shlex.join(["fpsim", "measure", *(["--steps"] if options.steps else []), "--suite", options.suite])

    def progress(text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    if options.steps:
        from analysis.measure.steps import FORMATS, MODES

        done = measure_steps(
            options.out,
            models=options.models,
            formats=options.formats or FORMATS,
            modes=options.modes or MODES,
            budget=options.time_budget,
            command=command,
            progress=progress,
        )
    else:
        done = measure(
            options.out,
            kinds=options.kinds or KINDS,
            suites=SUITES if options.suite == "all" else (options.suite,),
            formats=options.formats,
            budget=options.time_budget,
            device=options.on,
            command=command,
            progress=progress,
        )
    if options.json:
        say_json(asdict(done))
        return
    say(f"{done.written} rows in {done.seconds:.0f} s into {options.out}; {done.failed} refused by their library")
    if done.left:
        say(f"{done.left} left over by the time budget: the same command goes on with them")
