"""Joules: operations, memories and leakage by technology node.

Each constant is a line of `hwmodels/energies/<node>.toml` with its source and whether it is published, derived or
assumed.  A multiply-accumulate whose multiplication and addition are listed costs their sum.  Any other is derived:
int8 into int32, scaled by the ratio of gate counts (`gates.py`), as if energy followed area.  An access of the
scratchpad is interpolated between the listed sizes (log-log) and held at the largest beyond it; arrays of several MiB
are banks, and no source says what the way to a bank costs.  A vector operation is taken as one float32 addition.

Leakage is watts times the time an estimate takes: those of the whole device if the file has them; otherwise the cells
of the array (a gate counts as one NAND2 of the node's library, the element as its largest mode) and the bytes of the
memories, each where the node has a constant.  What it has none for is not known, and said so: nothing is made up.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from .._names import choose
from ..device import Quantity, Source
from .gates import element_gates, gates
from .gates import gate_counts as gate_counts
from .gates import in_equal_area as in_equal_area

if TYPE_CHECKING:
    from ..device import Device
    from ..device_file import Table
    from ..estimate import Estimate

FOLDER = Path(__file__).parent.parent / "energies"


@dataclass(frozen=True, kw_only=True)
class Leakage:
    """Watts of a whole device, of a gate (a NAND2) and of a byte of SRAM; None where no source has one."""

    device: Quantity | None = None
    gate: Quantity | None = None
    sram: Quantity | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Energy:
    """Constants of one technology node, in joules, joules per byte and bytes; leakage in watts, where known."""

    name: str
    title: str
    add: Mapping[str, Quantity]
    multiply: Mapping[str, Quantity]
    sram: tuple[tuple[Quantity, Quantity], ...]
    dram: Mapping[str, Quantity]
    sources: Mapping[str, Source]
    leakage: Leakage = Leakage()

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
    """Where the energy of an estimate goes, in joules; notes say what is derived or unknown.

    leakage: of what has a constant, None if nothing has; the total then goes without.
    """

    compute: float
    vector: float
    sram: float
    dram: float
    leakage: float | None
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> float:
        return self.compute + self.vector + self.sram + self.dram + (self.leakage or 0.0)

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
        leakage=_leakage(root, sources),
    )
    for group, needed in (("multiply", "int8"), ("add", "int32"), ("add", "f32")):
        if needed not in getattr(out, group):
            raise root.error(f"{group}.{needed}", "missing; other operations are derived from it")
    root.done()
    return out


def _leakage(root: Table, sources: Mapping[str, Source]) -> Leakage:
    table = root.table("leakage")
    if table is None:
        return Leakage()
    found = Leakage(
        device=table.quantity("device", "power", sources),
        gate=table.quantity("gate", "power", sources),
        sram=table.quantity("sram", "power per byte", sources),
    )
    table.done()
    return found


def leaking(constants: Energy, device: Device) -> tuple[float | None, str]:
    """(watts that `device` leaks, how that is known and what is not); None if nothing is known."""
    from .array import systolic

    known = constants.leakage
    if known.device is not None:
        return known.device.value, f"leakage: {known.device.value:.3g} W, as the device states"
    array, rates = systolic(device), tuple(device.rates.values())
    element = element_gates(rates, [array.packing(rate) for rate in rates])
    parts: list[float] = []
    said: list[str] = []
    if known.gate is None or element is None:
        said.append(f"that of the array is not known at {constants.name}")
    else:
        parts.append(array.elements * element * known.gate.value)
        said.append(f"the array {parts[-1]:.3g} W ({array.elements:,} elements of {element:,.0f} gates)")
    if known.sram is None:
        said.append(f"that of the memories is not known at {constants.name}")
    else:
        parts.append((array.scratchpad + array.accumulators) * known.sram.value)
        said.append(f"the memories {parts[-1]:.3g} W")
    return (sum(parts) if parts else None), "leakage: " + ", ".join(said)


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
    watts, note = leaking(constants, dev)
    notes.append(note)
    return Joules(
        compute=compute,
        vector=found.vector_ops * constants.add["f32"].value,
        sram=found.sram_bytes * constants.sram_byte(systolic(dev).scratchpad),
        dram=found.dram_bytes * constants.dram_byte(dram or dev.dram.technology),
        leakage=None if watts is None else watts * estimate.time_s,
        notes=tuple(notes),
    )
