"""Gates of a module: Yosys' generic synthesis into two-input gates, for area, with ripple-carry adders.

    synth -flatten -noalumacc -noshare -extra-map ripple.v; abc -g gates; opt_clean

The library is AND, NAND, OR, NOR, XOR, XNOR, ANDNOT (a & ~b), ORNOT (a | ~b) and NOT, all of unit delay. Counts of
two-input gates leave inverters out, as is the custom; a multiplexer is about three gates. Counts move by some per cent
with the version of Yosys, and by up to 20 % with the way a circuit is written down.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

from .yosys import run_yosys

ADDER = Path(__file__).with_name("ripple.v")

#: the cells of `Cells`, as Yosys calls them
YOSYS = {
    "$_AND_": "and2",
    "$_NAND_": "nand2",
    "$_OR_": "or2",
    "$_NOR_": "nor2",
    "$_XOR_": "xor2",
    "$_XNOR_": "xnor2",
    "$_ANDNOT_": "andnot",
    "$_ORNOT_": "ornot",
    "$_NOT_": "inverter",
}

SCRIPT = (
    "read_verilog unit.v; synth -flatten -noalumacc -noshare -extra-map ripple.v -top {top}; abc -g gates; opt_clean; "
    "delete t:$scopeinfo; tee -o report.txt stat -json; tee -a report.txt ltp -noff"
)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Cells of a combinational module, and its depth: cells on the longest path."""

    and2: int = 0
    nand2: int = 0
    or2: int = 0
    nor2: int = 0
    xor2: int = 0
    xnor2: int = 0
    andnot: int = 0
    ornot: int = 0
    inverter: int = 0
    depth: int = 0

    @property
    def gates(self) -> int:
        """Two-input gates: all cells but inverters."""
        return sum(count for name, count in self.by_cell().items() if name != "inverter")

    def by_cell(self) -> dict[str, int]:
        """Counts by name of cell."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "depth"}


def synthesized(verilog: str, top: str) -> Cells:
    """The cells of module `top` of a file, and of all it instantiates. Raises NoYosys where it is not installed."""
    files = {"unit.v": verilog, "ripple.v": ADDER.read_text(encoding="utf-8")}
    report = run_yosys(SCRIPT.format(top=top), files, "report.txt")
    stat, _, depth = report.partition("Longest topological path")
    counts = json.loads(stat[stat.index("{") : stat.rindex("}") + 1])["design"]["num_cells_by_type"]
    unknown = sorted(set(counts) - set(YOSYS))
    if unknown:
        raise ValueError(f"synthesis of {top} left cells that are no gates: {', '.join(unknown)}")
    length = re.search(r"length=(\d+)", depth)
    cells = {YOSYS[name]: int(count) for name, count in counts.items()}
    return Cells(**cells, depth=int(length.group(1)) if length else 0)
