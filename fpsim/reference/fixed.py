"""A fixed-point register: products put on its grid, added, looked at for overflow, and rounded when it is read."""

from collections.abc import Sequence
from fractions import Fraction

from fpsim.accumulators import FixedPoint
from fpsim.formats import container
from fpsim.reference.numbers import Number, decode
from fpsim.reference.sums import round_sum, special_sum


def on_grid(value: Fraction, kind: FixedPoint) -> int:
    """A term in units of the register's last bit, what lies below it cut off. ValueError if nobody said where that is.

    kind : with its last bit in numbers (`FixedPoint.placed`).
    """
    if kind.lsb is None:
        raise ValueError(f"{kind} has no last bit: FixedPoint.placed(a, b) gives it that of its operands")
    return int(value / Fraction(2) ** kind.lsb)  # int() truncates toward zero


def settled(total: int, kind: FixedPoint) -> int:
    """What the register holds of a sum."""
    low, high = -(1 << (kind.bits - 1)), (1 << (kind.bits - 1)) - 1
    if kind.overflow == "saturate":
        return min(max(total, low), high)
    return (total - low) % (1 << kind.bits) + low


def fixed_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: FixedPoint) -> int:
    """The code that is read after all products; c itself where there is none."""
    if not pairs:
        return c
    start = decode(c, container(kind.output))
    special = special_sum(pairs, start, kind.output)
    if special is not None:
        return special
    total = settled(on_grid(start.value, kind), kind)
    for a, b in pairs:
        total = settled(total + on_grid(a.value * b.value, kind), kind)
    return round_sum(total * Fraction(2) ** (kind.lsb or 0), kind.rounding, kind.output)
