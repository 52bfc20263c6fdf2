"""Cycles, joules and gates of a configuration on an array that one designs: what the systolic model adds to a time.

Joules are those of `hwmodels.npu.joules` at 7 nm. Products of operands below 16 bits cost what their own unit costs,
generated and counted for exactly the accumulator that the configuration names (`hwmodels.rtl`), or else for the one
of the device's rate; gates are those of that unit, register aside. An accumulator of one's own takes the place of the
array's: same operands, same rate, no cuts of long sums, since it overflows as it was told to.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from fpsim.accumulators import Accumulator, IntegerAccumulator, SequentialFma
from fpsim.formats import BlockFormat, Format
from fpsim.formats import format as format_row
from fpsim.spec import MatmulSpec

if TYPE_CHECKING:
    from hwmodels import Estimate
    from hwmodels.device import ComputeRate
    from hwmodels.lower import Kernel

NODE = "7nm"


@dataclass(frozen=True, kw_only=True)
class Silicon:
    """Of one call; None where unknown, and `note` says why. gates: of the unit that most products run on."""

    cycles: float | None = None
    energy: float | None = None
    gates: float | None = None
    note: str = ""


def silicon(estimate: "Estimate", accumulator: str | None = None) -> Silicon:
    """What `estimate` means in silicon; nothing for an estimate that is not the systolic model's.

    accumulator : in words, in place of the array's own
    """
    if estimate.model != "systolic":
        return Silicon()
    import hwmodels
    from hwmodels.npu import energies, joules, systolic

    device = hwmodels.device(estimate.device)
    cycles = estimate.time_s * systolic(device).clock
    constants = energies(NODE)
    try:
        energy = joules(estimate, constants, device).total
        units: dict[tuple[bool, float], float] = {}  # (below 16 bits, gates) -> products
        for kernel, rate, products in _products(estimate):
            a, b = (_element(name) for name in kernel.precision.operands())
            narrow = max(a.bits, b.bits) < 16
            if accumulator is not None and narrow:
                gates, each = spelled(a.name, b.name, accumulator)
            else:
                gates, each = of_rate(rate.activation, rate.weight, rate.accumulator)
            if narrow:  # others cost what the sources say, or what `joules` derives
                energy += (each - constants.mac(rate.activation, rate.weight, rate.accumulator)[0]) * products
            units[narrow, gates] = units.get((narrow, gates), 0.0) + products
    except ValueError as error:
        return Silicon(cycles=cycles, note=f"joules and gates unknown: {error}")
    kinds = [key for key in units if key[0]] or list(units)
    most = max(kinds, key=lambda key: units[key])[1] if kinds else None
    return Silicon(cycles=cycles, energy=energy, gates=most)


def _products(estimate: "Estimate") -> "Iterator[tuple[Kernel, ComputeRate, float]]":
    """(kernel, the rate it runs at, its products in all) of every distinct kernel on the array."""
    run = estimate.breakdown.program
    counts = [0.0] * len(run.distinct)
    for which, times in zip(run.which.tolist(), run.count.tolist(), strict=True):
        counts[which] += times
    for kernel, execution, times in zip(run.distinct, estimate.breakdown.executions, counts, strict=True):
        if execution is not None:
            yield kernel, execution.rate, kernel.macs * times


def _element(name: str) -> Format:
    row = format_row(name)
    return row.element if isinstance(row, BlockFormat) else row


def spelled(a: str, b: str, words: str) -> tuple[float, float]:
    """(gates, joules) per product of the formats a and b into an accumulator in words.

    Raises ValueError for a unit that has no circuit or cannot be counted here.
    """
    from hwmodels import rtl

    return counted(a, b, rtl.accumulator(words))


def of_rate(a: str, b: str, accumulator: str) -> tuple[float, float]:
    """The same for the accumulator of a device's rate: integers that wrap, floats one product at a time."""
    found = re.fullmatch(r"int(\d+)", accumulator)
    kind: Accumulator = IntegerAccumulator(int(found[1])) if found else SequentialFma(accumulator)
    return counted(_element(a).name, _element(b).name, kind)


@lru_cache(maxsize=256)
def counted(a: str, b: str, kind: Accumulator) -> tuple[float, float]:
    """(gates, joules) per product. ValueError as in `spelled`."""
    from hwmodels import rtl

    count = rtl.gates(MatmulSpec(a, b, kind))
    return count.gates_per_product, rtl.silicon(count, NODE).energy
