"""What a multiply-accumulate costs with an accumulator, and what it saves beside a 32-bit one: gates and joules.

Gates come from `hwmodels.rtl`, which generates the unit and counts it (the table that ships, or Yosys where it is
installed). Energy follows gates, from the published energy of an int8 product and an int32 addition at 7 nm. A unit
that cannot be counted here has no cost, and a note says why.
"""

from dataclasses import dataclass, replace

from analysis.accumulators import Candidate, Row
from analysis.silicon import counted
from fpsim.accumulators import IntegerAccumulator, Promoted
from fpsim.formats import scalar_format

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
    kind, notes = candidate.kind, []
    if isinstance(kind, Promoted):
        kind = kind.inner
        notes.append("tiles: gates are those of the inner accumulator; the outer adder works once per tile")
    whole = all(scalar_format(name).kind == "int" for name in (a, b))
    try:
        gates, energy = counted(a, b, kind)
        wide = counted(a, b, WIDE) if whole else (None, None)
    except ValueError as error:
        return UnitCost(notes=(*notes, f"{candidate.words}: no gate count, {error}"))
    return UnitCost(gates=gates, energy=energy, wide_gates=wide[0], wide_energy=wide[1], notes=tuple(notes))
