"""Joules: operations, memories and leakage by technology node, and formats in equal silicon.

Each constant is a line of `hwmodels/energies/<node>.toml` with its source and whether it is published, derived or
assumed.  A multiply-accumulate whose multiplication and addition are listed costs their sum.  Any other is derived:
int8 into int32, scaled by the ratio of gate counts (`gates.toml`), as if energy followed area.  An access of the
scratchpad is interpolated between the listed sizes (log-log) and held at the largest beyond it; arrays of several MiB
are banks, and no source says what the way to a bank costs.  A vector operation is taken as one float32 addition.
Leakage is counted where the file has it; neither source does, and none is made up.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from fpsim.formats import BlockFormat
from fpsim.formats import format as format_row

from .._names import choose
from ..device import Quantity, Source

if TYPE_CHECKING:
    from ..device import Device
    from ..estimate import Estimate

FOLDER = Path(__file__).parent.parent / "energies"
GATES = Path(__file__).parent / "gates.toml"


@dataclass(frozen=True, kw_only=True, eq=False)
class Energy:
    """Constants of one technology node, in joules, joules per byte and bytes; leakage in watts per device, if known."""

    name: str
    title: str
    add: Mapping[str, Quantity]
    multiply: Mapping[str, Quantity]
    sram: tuple[tuple[Quantity, Quantity], ...]
    dram: Mapping[str, Quantity]
    sources: Mapping[str, Source]
    leakage: Quantity | None = None

    def mac(self, activation: str, weight: str, accumulator: str) -> tuple[float, str]:
        """(joules of one multiply-accumulate, how that is known).  ValueError if it cannot be derived either."""
        if activation == weight and activation in self.multiply and accumulator in self.add:
            return self.multiply[activation].value + self.add[accumulator].value, "published"
        ratio = gates(activation, weight, accumulator) / gates("int8", "int8", "int32")
        return (self.multiply["int8"].value + self.add["int32"].value) * ratio, "derived from gate counts"

    def sram_byte(self, capacity: float) -> float:
        """Joules per byte read or written in a memory of `capacity` bytes."""
        smallest, largest = self.sram[0], self.sram[-1]
        if capacity <= smallest[0].value:
            return smallest[1].value
        for (size, access), (next_size, next_access) in pairwise(self.sram):
            if capacity < next_size.value:
                share = math.log(capacity / size.value) / math.log(next_size.value / size.value)
                return access.value * (next_access.value / access.value) ** share
        return largest[1].value

    def dram_byte(self, technology: str) -> float:
        """Joules per byte of main memory; `technology` begins with one of the names listed ("HBM2e": HBM)."""
        for name in sorted(self.dram, key=len, reverse=True):
            if technology.upper().startswith(name.upper()):
                return self.dram[name].value
        raise ValueError(
            f"{self.name}: no energy for main memory {technology!r}; allowed: {', '.join(self.dram)}, given as dram="
        )


@dataclass(frozen=True, kw_only=True)
class Joules:
    """Where the energy of an estimate goes, in joules; notes say what is derived or unknown."""

    compute: float
    vector: float
    sram: float
    dram: float
    leakage: float
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        return self.compute + self.vector + self.sram + self.dram + self.leakage

    @property
    def movement(self) -> float:
        """Share of the energy that moves data instead of computing with it."""
        return (self.sram + self.dram) / self.total


def nodes() -> tuple[str, ...]:
    """Names of the technology nodes there are."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


@lru_cache(maxsize=32)
def energies(name: str) -> Energy:
    """The constants of a node, by the name of its file.  ValueError names the file and key of what is wrong in it."""
    choose("technology node", name, nodes())
    return parse_energy((FOLDER / f"{name}.toml").read_text(encoding="utf-8"), name)


def parse_energy(text: str, name: str) -> Energy:
    """Constants of your own, in the form of the files in `hwmodels/energies`."""
    from ..device_file import Table, sources_of

    file = f"{name}.toml"
    try:
        root = Table(file, "", tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: not TOML: {error}") from error
    sources = sources_of(root)

    def quantities(key: str, dimension: str) -> dict[str, Quantity]:
        table = root.table(key)
        if table is None:
            raise root.error(key, "missing; a table of quantities is required")
        return {item: table.needed(item, dimension, sources) for item in table.data}

    memories = []
    for table in root.tables("sram").values():
        memories.append((table.needed("capacity", "capacity", sources), table.needed("access", "energy", sources)))
        table.done()
    if not memories:
        raise root.error("sram", "missing; at least one [sram.<name>] with capacity and access is required")
    out = Energy(
        name=name,
        title=root.text("title"),
        add=quantities("add", "per-operation energy"),
        multiply=quantities("multiply", "per-operation energy"),
        sram=tuple(sorted(memories, key=lambda pair: pair[0].value)),
        dram=quantities("dram", "energy"),
        sources=sources,
        leakage=root.quantity("leakage", "power", sources),
    )
    for group, needed in (("multiply", "int8"), ("add", "int32"), ("add", "f32")):
        if needed not in getattr(out, group):
            raise root.error(f"{group}.{needed}", "missing; other operations are derived from it")
    root.done()
    return out


@lru_cache(maxsize=1)
def gate_counts() -> Mapping[str, float]:
    """Gates of one multiply-accumulate, "operand/accumulator" or "activation x weight/accumulator" -> count."""
    data = tomllib.loads(GATES.read_text(encoding="utf-8"))
    return {
        key: float(value)
        for table in ("integer", "fixed", "float")
        for key, value in data[table].items()
        if key != "source"
    }


def _element(name: str) -> str:
    row = format_row(name)
    return row.element.name if isinstance(row, BlockFormat) else row.name


def gates(activation: str, weight: str, accumulator: str, counts: Mapping[str, float] | None = None) -> float:
    """Gates of one multiply-accumulate; block formats count as their elements.  ValueError lists what is known."""
    known = counts or gate_counts()
    a, w = _element(activation), _element(weight)
    for pair in [a] if a == w else [f"{a} x {w}", f"{w} x {a}"]:
        if f"{pair}/{accumulator}" in known:
            return known[f"{pair}/{accumulator}"]
    raise ValueError(f"no gate count for {a} x {w} into {accumulator} (known: {', '.join(sorted(known))})")


def in_equal_area(
    reference: tuple[str, str, str], units: Sequence[tuple[str, str, str]], counts: Mapping[str, float] | None = None
) -> dict[tuple[str, str, str], float]:
    """How many units of each kind fit in the area of one `reference`: (activation, weight, accumulator) each.

    counts: gate counts of your own, keyed as in `gate_counts`; by default the shipped ones.
    """
    area = gates(*reference, counts)
    return {unit: area / gates(*unit, counts) for unit in units}


def joules(estimate: Estimate, node: str | Energy, device: Device | None = None, dram: str = "") -> Joules:
    """The energy of an estimate of the systolic model.

    node: a technology node or constants of your own; device: what it was estimated for, where that is not one of the
    shipped devices; dram: kind of main memory, by default the device's.
    Raises ValueError for another model's estimate, or where a constant is missing.
    """
    from ..device_file import device as find_device
    from .array import systolic
    from .model import explain

    constants = node if isinstance(node, Energy) else energies(node)
    dev = device or find_device(estimate.device)
    found = explain(estimate)
    run = estimate.breakdown.program
    notes, compute = [], 0.0
    counts = [0.0] * len(run.distinct)
    for which, times in zip(run.which.tolist(), run.count.tolist(), strict=True):
        counts[which] += times
    for kernel, execution, times in zip(run.distinct, estimate.breakdown.executions, counts, strict=True):
        if execution is not None:
            rate = execution.rate
            each, known = constants.mac(rate.activation, rate.weight, rate.accumulator)
            compute += each * kernel.macs * times
            note = f"{rate.activation} x {rate.weight} + {rate.accumulator}: {each * 1e12:.3g} pJ per MAC, {known}"
            if note not in notes:
                notes.append(note)
    leakage = constants.leakage.value * estimate.time_s if constants.leakage else 0.0
    if not constants.leakage:
        notes.append(f"{constants.name}: leakage is not in its sources and not counted")
    return Joules(
        compute=compute,
        vector=found.vector_ops * constants.add["f32"].value,
        sram=found.sram_bytes * constants.sram_byte(systolic(dev).scratchpad),
        dram=found.dram_bytes * constants.dram_byte(dram or dev.dram.technology),
        leakage=leakage,
        notes=tuple(notes),
    )
