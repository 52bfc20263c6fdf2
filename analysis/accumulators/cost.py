"""What a multiply-accumulate costs with an accumulator, and what it saves beside a 32-bit one: gates and joules.

Gates come from `hwmodels.rtl`, which generates the unit and counts it (the table that ships, or Yosys where it is
installed). Energy follows gates, from the published energy of an int8 product and an int32 addition at 7 nm. A unit
that cannot be counted here has no cost, and a note says why.

A register in two levels is two adders: the outer one is there once per unit and works once per tile. An integer one is
a ripple of full adders; a float one is counted as the unit that adds FP4 products (a multiplier of 19 gates) into that
format. Registers are counted on neither side.
"""

from dataclasses import dataclass, replace

from analysis.accumulators import Candidate, Row
from analysis.silicon import counted
from fpsim.accumulators import IntegerAccumulator, Promoted, SequentialFma
from fpsim.formats import scalar_format
from fpsim.spec import MatmulSpec

WIDE = IntegerAccumulator(32)


@dataclass(frozen=True, kw_only=True)
class UnitCost:
    """Gates and joules of one multiply-accumulate, beside the wide one's; None where unknown or not comparable."""

    gates: float | None = None
    energy: float | None = None
    wide_gates: float | None = None
    wide_energy: float | None = None
    notes: tuple[str, ...] = ()

    def added(self, row: Row) -> Row:
        """`row` with its costs."""
        return replace(
            row,
            gates=self.gates,
            gates_saved=_saved(self.gates, self.wide_gates),
            energy=None if self.energy is None else self.energy * row.macs,
            energy_saved=_saved(self.energy, self.wide_energy),
        )


def _saved(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else 1 - one / other


def costs(candidate: Candidate, a: str, b: str) -> UnitCost:
    """The unit of a candidate for codes in the formats a and b."""
    kind = candidate.kind
    whole = all(scalar_format(name).kind == "int" for name in (a, b))
    try:
        gates, energy = _two_levels(kind, a, b) if isinstance(kind, Promoted) else counted(a, b, kind)
        wide = counted(a, b, WIDE) if whole else (None, None)
    except ValueError as error:
        return UnitCost(notes=(f"{candidate.words}: no gate count, {error}",))
    return UnitCost(gates=gates, energy=energy, wide_gates=wide[0], wide_energy=wide[1])


def _two_levels(kind: Promoted, a: str, b: str) -> tuple[float, float]:
    """(gates, joules) per product of an inner accumulator and of the sum around it, which works once per tile."""
    from hwmodels import rtl
    from hwmodels.npu.gates import adder_gates

    gates, energy = counted(a, b, kind.inner)
    terms = rtl.gates(MatmulSpec(a, b, kind.inner)).terms  # products that share the outer adder
    if kind.outer is None:
        outer, _ = counted("e2m1", "e2m1", SequentialFma(kind.output))
    else:
        outer = adder_gates(kind.outer.bits, kind.outer.overflow == "saturate")
    return gates + outer / terms, energy * (1 + outer / gates / kind.every)
