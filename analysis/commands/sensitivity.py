"""Judge every layer of a pipeline alone in each candidate arithmetic: how large the
denoiser's error is (SQNR) and how much the predicted clean picture changes (SSIM).

  fpsim sensitivity shapes-sd --candidates bf16 fp8-w8a8 nvfp4
  fpsim sensitivity shapes-dit --candidates int8-w8a8 mine.toml --csv layers.csv

Inputs are those of the full-precision trajectory. Minutes on two cores; stop it
whenever you like, the same command goes on where it was. The run directory keeps
sensitivity.csv: a row per layer, candidate and timestep.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis.commands._text import paragraph, say, say_json, table

HELP = "how much each layer minds each arithmetic"

CANDIDATES = ("bf16", "fp8-w8a8", "nvfp4")


def arguments(parser: argparse.ArgumentParser) -> None:
    study_arguments(parser)
    parser.add_argument("--top", type=int, default=12, metavar="N", help="print the N most sensitive layers (12)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row per layer, candidate and timestep")


def study_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that needs sensitivities."""
    parser.add_argument("model", help="an embedded pipeline's name, or a diffusers directory")
    words = "schemes, or .toml files of schemes (default: %(default)s)"
    parser.add_argument("--candidates", nargs="+", default=CANDIDATES, metavar="SCHEME", help=words)
    parser.add_argument("--method", default="rtn", help="what makes quantized layers (default: rtn)")
    parser.add_argument("--images", type=int, default=2, metavar="N", help="captions to judge on (default: 2)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="timesteps to judge at (default: 10)")
    parser.add_argument("--trajectory", type=int, default=20, metavar="N", help="denoising steps (default: 20)")
    parser.add_argument("--calibration", type=int, default=16, metavar="N", help="calibration captions (default: 16)")
    parser.add_argument("--no-content", action="store_true", help="leave pictures out: faster, and SQNR alone")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run directories go (default: runs)")
    parser.add_argument("--torch-device", default="cpu", help="what runs the pipeline: cpu (default), cuda, cuda:N")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def studied(options: argparse.Namespace, bars: Any) -> Any:
    """The study that the options ask for, measured now or before."""
    from analysis.experiment import unknown
    from analysis.registry import methods
    from analysis.sensitivity import Study
    from analysis.sensitivity import run as run_study

    if options.method not in methods():
        raise ValueError(unknown("method", options.method, methods()))
    study = Study(
        pipeline=options.model,
        candidates=tuple(candidate(name) for name in options.candidates),
        images=options.images,
        steps=options.steps,
        content=not options.no_content,
        method=options.method,
        captions=options.calibration,
        trajectory=options.trajectory,
    )
    return run_study(study, runs=options.runs, device=options.torch_device, progress=bars.tell)


def candidate(name: str) -> Any:
    """A preset, or the scheme in a .toml file, called after the file if it has no name."""
    from analysis.scheme import Scheme, scheme

    if not name.endswith(".toml"):
        return scheme(name)
    path = Path(name)
    text = path.read_text(encoding="utf-8")
    try:
        return Scheme.from_toml(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def run(options: argparse.Namespace) -> None:
    from analysis.commands.whatif import Bars
    from analysis.store import write_output
    from analysis.workers import quiet

    quiet()
    try:
        with Bars(quiet=options.quiet or options.json) as bars:
            found = studied(options, bars)
    except KeyboardInterrupt as interrupt:
        command = "fpsim " + shlex.join(sys.argv[1:])
        raise KeyboardInterrupt(f"what is measured is kept, go on with: {command}") from interrupt
    if options.csv is not None:
        write_output(options.csv, found.sensitivity.table().to_csv(index=False))
    if options.json:
        say_json({"run": str(found.folder), "layers": finite(found.sensitivity.table().to_dict("records"))})
    else:
        _print(options, found)


def finite(rows: Iterable[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """Records without their values that JSON has no word for: nothing measured, or an SQNR without any noise."""
    return [
        {str(key): value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
        for row in rows
    ]


def _print(options: argparse.Namespace, found: Any) -> None:
    import numpy as np

    from analysis.sensitivity import decibel

    result = found.sensitivity
    names = list(result.candidates)
    quality = result.scores("quality")
    content = None if result.content is None else result.scores("content")
    say()
    rows = [
        (
            name,
            int((quality[:, i] > 0).sum()),
            f"{decibel(quality[:, i].sum()):.1f}",
            "" if content is None else f"{content[:, i].sum():.4f}",
        )
        for i, name in enumerate(names)
    ]
    say(table(rows, ("every layer in", "layers", "SQNR, dB", "1 - SSIM"), right=(1, 2, 3)))
    say(paragraph("Sums over layers, each judged alone; `fpsim allocate` holds them against the whole."))
    paths = list(result.layers)
    order = np.argsort(-quality.max(axis=1), kind="stable")[: max(options.top, 0)]
    if len(order):
        say()
        lines = [(*(f"{decibel(value):.1f}" for value in quality[i]), paths[i]) for i in order]
        say(table(lines, (*names, "SQNR in dB with one layer in it"), right=range(len(names))))
    times = result.by_timestep().pivot(index="timestep", columns="candidate", values="sqnr_db")
    say()
    lines = [(f"{time:g}", *(f"{times.loc[time, name]:.1f}" for name in names)) for time in times.index[::-1]]
    say(table(lines, ("timestep", *names), right=range(len(names) + 1)))
    say(f"\nrun: {found.folder}")
