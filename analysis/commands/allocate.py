"""Choose an arithmetic for each layer so that the picture suffers least under a
budget of latency, energy or memory, as the device would really cost it.

  fpsim allocate shapes-sd --device rtx-5090 --batch 64 --points 8
  fpsim allocate shapes-sd --device rtx-5090 --batch 64 --budget 2.1ms --out mixed.toml
  fpsim allocate shapes-dit --device my-npu --cost energy --node 7nm --budget 80%

Needs what `fpsim sensitivity` measures, and measures it if it is not there. Without
--budget it prints the front from the cheapest mixture to the least sensitive one.
Every scheme is then run whole, to check. --out writes an experiment file.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from analysis.commands import sensitivity
from analysis.commands._text import paragraph, say, say_json, table

HELP = "mixed precision under a budget, with the device's own costs"

#: unit -> (cost it belongs to, SI units in one)
UNITS = {
    **{unit: ("latency", size) for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6))},
    **{unit: ("energy", size) for unit, size in (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6), ("µJ", 1e-6))},
    **{unit: ("memory", size) for unit, size in (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9))},
    **{unit: ("memory", size) for unit, size in (("KiB", 2.0**10), ("MiB", 2.0**20), ("GiB", 2.0**30))},
}


def arguments(parser: argparse.ArgumentParser) -> None:
    sensitivity.study_arguments(parser)
    parser.add_argument("--device", required=True, help="a name that `fpsim list devices` prints, or a TOML file")
    parser.add_argument("--batch", type=int, default=2, help="rows per call to price (default 2: one guided image)")
    parser.add_argument("--mode", default="graph", choices=("eager", "graph", "compiled"), help="default: graph")
    parser.add_argument("--estimator", default="auto", help="auto (default: the best there is), gpu or roofline")
    parser.add_argument("--cost", default="latency", help="latency (default), energy, memory or bitops")
    parser.add_argument("--node", help="technology node, for the energy of an NPU: 7nm, 45nm, ...")
    parser.add_argument("--budget", help="1.4ms, 30mJ, 2MB, or 80%% of what the model costs unquantized")
    parser.add_argument("--points", type=int, default=8, metavar="N", help="budgets of the front (default 8)")
    words = "what to keep: content (default, as it drew better pictures at equal cost), or quality, the output's SQNR"
    parser.add_argument("--metric", choices=("content", "quality"), help=words)
    parser.add_argument("--decoupled", action="store_true", help="a program per metric, several shares of the budget")
    parser.add_argument("--no-check", action="store_true", help="predict only; do not run the schemes")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write an experiment file (.toml) of all schemes")


def run(options: argparse.Namespace) -> None:
    from analysis.allocation import outcomes
    from analysis.commands.whatif import Bars
    from analysis.store import write_output
    from analysis.workers import quiet

    check(options)
    quiet()
    try:
        with Bars(quiet=options.quiet or options.json) as bars:
            found = sensitivity.studied(options, bars)
            costs = price(options, found.sensitivity)
            made = allocations(options, found.sensitivity, costs)
            rows = (*outcomes.uniform(found.sensitivity, costs), *outcomes.mixed(made, costs))
            if not options.no_check:
                rows = outcomes.measured(rows, found, lambda done, total: bars.tell("check", done, total))
    except KeyboardInterrupt as interrupt:
        command = "fpsim " + shlex.join(sys.argv[1:])
        raise KeyboardInterrupt(f"what is measured is kept, go on with: {command}") from interrupt
    frame = outcomes.table(rows, costs)
    if options.csv is not None:
        write_output(options.csv, frame.to_csv(index=False))
    if options.out is not None:
        write_output(options.out, _experiment(options, rows, costs))
    if options.json:
        listed = sensitivity.finite(frame.to_dict("records"))
        schemes = {one.name: one.scheme.to_dict() for one in rows if len(one.counts) > 1}
        about = {"run": str(found.folder), "priced": costs.about, "unquantized": costs.unquantized}
        say_json({**about, "notes": list(costs.notes), "results": listed, "schemes": schemes})
    else:
        _print(options, rows, costs)


def check(options: argparse.Namespace) -> None:
    """What can be wrong with the options, before the long part. Raises ValueError."""
    import hwmodels
    from analysis.allocation.costs import UNITS as COSTS
    from analysis.experiment import unknown

    hwmodels.device(options.device)
    if options.cost not in COSTS:
        raise ValueError(unknown("cost", options.cost, COSTS))
    if options.batch < 1:
        raise ValueError(f"--batch must be at least 1, not {options.batch}")
    if options.decoupled and options.budget is None:
        raise ValueError("--decoupled divides one budget between two groups of layers: give it with --budget")
    if options.out is not None and options.out.suffix != ".toml":
        raise ValueError(f"--out {options.out}: an experiment is a .toml file")
    if options.no_content and (options.decoupled or options.metric == "content"):
        raise ValueError("--no-content leaves out what --decoupled and --metric content judge by")
    if options.budget is not None:
        budget(options.budget, options.cost, 1.0)


def price(options: argparse.Namespace, found: Any) -> Any:
    """What each layer costs in each candidate on the device asked for."""
    from analysis.allocation.costs import costs
    from analysis.registry import workload

    return costs(
        workload(options.model, options.batch),
        tuple(found.layers),
        found.candidates,
        options.device,
        options.cost,
        options.mode,
        options.estimator,
        options.node,
    )


def allocations(options: argparse.Namespace, found: Any, costs: Any) -> Any:
    """One for the budget, one per share of it if decoupled, or the front."""
    from analysis.allocation import allocate, decoupled, front

    if options.budget is None:
        return front(found, costs, options.points, options.metric)
    allowed = budget(options.budget, options.cost, costs.unquantized)
    if options.decoupled:
        return decoupled(found, costs, allowed)
    return (allocate(found, costs, allowed, options.metric),)


def budget(text: str, cost: str, whole: float) -> float:
    """A budget in SI units: a number, perhaps with a unit, or per cent of `whole`."""
    parts = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([%A-Za-zµ]*)\s*", text)
    units = {unit: size for unit, (what, size) in UNITS.items() if what == cost}
    known = f"a number with one of {', '.join(['%', *units])}, as in {'80%' if not units else f'3{next(iter(units))}'}"
    if parts is None or (parts[2] and parts[2] not in (*units, "%")):
        raise ValueError(f"--budget {text!r} is no {cost}; give {known}")
    try:
        value = float(parts[1])
    except ValueError as error:
        raise ValueError(f"--budget {text!r} is no number; give {known}") from error
    return value * whole / 100 if parts[2] == "%" else value * units.get(parts[2], 1.0)


def _experiment(options: argparse.Namespace, rows: Any, costs: Any) -> str:
    from analysis.allocation.mixture import experiment_text

    name = f"mixed-{Path(options.model).name}-{Path(options.device).stem}"
    return experiment_text(
        re.sub(r"[^A-Za-z0-9._-]", "-", name)[:64],
        options.model,
        [one.scheme for one in rows],
        [options.device],
        options.mode,
        options.method,
        f"Mixed precision by {options.cost}: {costs.about}.",
    )


def _print(options: argparse.Namespace, rows: Any, costs: Any) -> None:
    from analysis.allocation import in_units
    from analysis.allocation.outcomes import best
    from analysis.sensitivity import decibel
    from analysis.units import digits

    say(f"\n{costs.what}: {costs.about}; unquantized {in_units(costs, costs.unquantized)}\n")
    factor, unit = {"latency": (1e3, "ms"), "energy": (1e3, "mJ"), "memory": (1e-6, "MB")}.get(options.cost, (1.0, ""))

    def numbers(one: Any) -> tuple[str, ...]:
        noise = (one.quality, one.measured_quality, one.other_quality)
        return (
            *("" if value is None else f"{decibel(value):.1f}" for value in noise),
            *("" if value is None else f"{value:.4f}" for value in (one.content, one.measured_content)),
        )

    lines = [
        (
            one.name,
            digits(one.cost * factor, 4),
            f"{one.relative - 1:+.1%}",
            *numbers(one),
            ", ".join(f"{count} {name}" for name, count in one.counts.items()),
        )
        for one in rows
    ]
    header = ("scheme", f"{costs.what} {unit}".rstrip(), "", "dB", "is", "other", "1-SSIM", "is", "layers")
    say(table(lines, header, right=range(1, 8)))
    words = "dB: SQNR of the denoiser's output, predicted by layers alone, then of the whole, then on other captions."
    say(paragraph(f"{words} 1 - SSIM: of predicted clean pictures, likewise."))
    if options.decoupled and not options.no_check:
        say(paragraph(f"pictures changed least: {best([one for one in rows if one.share is not None]).name}"))
    for note in costs.notes:
        say(paragraph(f"note: {note}"))
    if options.out is not None:
        say(f"experiment: {options.out} (give it to fpsim run)")
