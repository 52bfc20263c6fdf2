"""Area, energy and delay of a unit in a technology: cells times what a cell is.

- Area: cells in NAND2 equivalents (sizes in the Nangate library) times the node's NAND2. Cells alone: a placed block
  is larger by its wires, usually 1.3 to 1.7 times.
- Energy: the published energy of an int8 product and an int32 addition (`hwmodels/energies`), scaled by gates from the
  unit of that operation, as if every gate switched as often.
- Delay: gates on the longest path times a gate, where the node has one. Ripple-carry adders make paths long; a unit
  that is built for speed has perhaps a quarter of them and more gates.

Rules of thumb for comparing units with each other, not sign-off figures.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fpsim.accumulators import IntegerAccumulator
from fpsim.spec import MatmulSpec

from .._names import choose
from ..device import Quantity, Source
from ..device_file import Table, sources_of
from ..npu.energy import energies
from .counts import GateCount, gates

FOLDER = Path(__file__).parent / "nodes"

#: Areas in NAND2: AND2_X1 and OR2_X1 0.76 x 1.4 um, XOR2_X1 and XNOR2_X1 1.14 x 1.4, INV_X1 0.38 x 1.4, DFF_X1
#: 3.23 x 1.4, over 0.57 x 1.4 (NangateOpenCellLibrary.macro.lef, 2010). ANDNOT and ORNOT are no cells of it and are
#: taken as AND2.
EQUIVALENTS = {
    "nand2": 1.0,
    "nor2": 1.0,
    "and2": 0.76 / 0.57,
    "or2": 0.76 / 0.57,
    "andnot": 0.76 / 0.57,
    "ornot": 0.76 / 0.57,
    "xor2": 1.14 / 0.57,
    "xnor2": 1.14 / 0.57,
    "inverter": 0.38 / 0.57,
}
FLIP_FLOP = 3.23 / 0.57

#: the operation whose published energy the others are scaled from
REFERENCE = MatmulSpec("int8", "int8", IntegerAccumulator(32))


@dataclass(frozen=True, kw_only=True)
class Node:
    """A technology: the area of a NAND2 in square metres, and the delay of a gate in seconds if it is known."""

    name: str
    title: str
    nand2: Quantity
    delay: Quantity | None
    sources: dict[str, Source]


@dataclass(frozen=True, kw_only=True)
class Silicon:
    """One unit in one technology.

    area : square metres of cells, register and readout included. energy : joules per product. delay : seconds of the
    longest path of a step, None where no source says what a gate takes. equivalents : the area in NAND2.
    """

    node: str
    equivalents: float
    area: float
    energy: float
    delay: float | None
    notes: tuple[str, ...]


def nodes() -> tuple[str, ...]:
    """Names of the technologies there are."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


@lru_cache(maxsize=32)
def node(name: str) -> Node:
    """A technology by the name of its file; ValueError names the known ones, or what is wrong in the file."""
    choose("technology node", name, nodes())
    root = Table(f"{name}.toml", "", tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8")))
    sources = sources_of(root)
    cell = root.table("cell")
    if cell is None:
        raise root.error("cell", "missing; a table with nand2 and, if known, delay is required")
    out = Node(
        name=name,
        title=root.text("title"),
        nand2=cell.needed("nand2", "area", sources),
        delay=cell.quantity("delay", "time", sources),
        sources=sources,
    )
    cell.done()
    root.done()
    return out


def equivalents(count: GateCount) -> float:
    """The whole unit in NAND2: step, register and readout."""
    total = count.register_bits * FLIP_FLOP
    for cells in (count.step, count.readout):
        if cells is not None:
            total += sum(number * EQUIVALENTS[cell] for cell, number in cells.by_cell().items())
    return total


def silicon(count: GateCount, name: str) -> Silicon:
    """A unit in the technology called `name`."""
    found, constants = node(name), energies(name)
    size = equivalents(count)
    base = constants.multiply["int8"].value + constants.add["int32"].value
    reference = gates(REFERENCE).gates
    delay = None if found.delay is None else found.delay.value * count.depth
    notes = ["area: cells alone, without wires", "energy: derived from an int8 product and an int32 addition by gates"]
    notes.append(
        f"delay: no source says what a gate takes at {name}"
        if found.delay is None
        else f"delay: {found.delay.status}, {found.delay.note}; ripple-carry adders"
    )
    return Silicon(
        node=name,
        equivalents=size,
        area=size * found.nand2.value,
        energy=base * count.gates_per_product / reference,
        delay=delay,
        notes=tuple(notes),
    )
