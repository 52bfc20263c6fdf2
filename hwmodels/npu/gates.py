"""Gates of multiply-accumulate units: formats in equal silicon, adders around them, cells that leak.

Counts come from the circuits `hwmodels.rtl` generates where its table has them (registers and readouts aside), and
otherwise from `gates.toml`, counts of another description of the same units by the same tool; the tests hold the two
within 20 % of each other.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from fpsim.formats import BlockFormat
from fpsim.formats import format as format_row

if TYPE_CHECKING:
    from ..device import ComputeRate

GATES = Path(__file__).with_name("gates.toml")
FULL_ADDER = 5  #: two XOR, two AND, one OR; also what a bit of accumulator adds to every integer unit of the table


@lru_cache(maxsize=1)
def gate_counts() -> Mapping[str, float]:
    """`gates.toml`: "operand/accumulator" or "activation x weight/accumulator" -> gates of one multiply-accumulate."""
    data = tomllib.loads(GATES.read_text(encoding="utf-8"))
    return {
        key: float(value)
        for table in ("integer", "fixed", "float")
        for key, value in data[table].items()
        if key != "source"
    }


@lru_cache(maxsize=1)
def known_counts() -> Mapping[str, float]:
    """The same of all units: generated ones, and for the others those of `gates.toml`."""
    from ..rtl import mac_counts

    return {**gate_counts(), **mac_counts()}


def _element(name: str) -> str:
    row = format_row(name)
    return row.element.name if isinstance(row, BlockFormat) else row.name


def gates(activation: str, weight: str, accumulator: str, counts: Mapping[str, float] | None = None) -> float:
    """Gates of one multiply-accumulate; block formats count as their elements.  ValueError lists what is known."""
    known = known_counts() if counts is None else counts
    a, w = _element(activation), _element(weight)
    for pair in [a] if a == w else [f"{a} x {w}", f"{w} x {a}"]:
        if f"{pair}/{accumulator}" in known:
            return known[f"{pair}/{accumulator}"]
    raise ValueError(f"no gate count for {a} x {w} into {accumulator} (known: {', '.join(sorted(known))})")


def in_equal_area(
    reference: tuple[str, str, str], units: Sequence[tuple[str, str, str]], counts: Mapping[str, float] | None = None
) -> dict[tuple[str, str, str], float]:
    """How many units of each kind fit in the area of one `reference`: (activation, weight, accumulator) each.

    counts: gate counts of your own, keyed as in `gate_counts`; by default `known_counts`.
    """
    area = gates(*reference, counts)
    return {unit: area / gates(*unit, counts) for unit in units}


def adder_gates(bits: int, saturate: bool = False) -> float:
    """Gates of an integer adder of `bits` bits, as around a narrower register whose sums are added up in a wider one.

    A ripple of full adders, the first without a carry in and the last without a carry out.  Clamping costs per bit
    what it costs the int8 unit with 16 bits.  Raises ValueError for fewer than two bits.
    """
    if bits < 2:
        raise ValueError(f"an adder of {bits} bits; allowed: at least 2")
    clamp = gates("int8", "int8", "int16-saturate") - gates("int8", "int8", "int16") if saturate else 0.0
    return FULL_ADDER * bits - 6 + clamp / 16 * bits


def element_gates(rates: Sequence[ComputeRate], packing: Sequence[float]) -> float | None:
    """Gates of one processing element that runs any one of `rates`, `packing` products of each per cycle.

    As if all modes shared their gates: the largest of them, which is the least the element can have.  None if no rate
    has a gate count.
    """
    sizes = []
    for rate, products in zip(rates, packing, strict=True):
        try:
            each = gates(rate.activation, rate.weight, rate.accumulator)
        except ValueError:
            continue
        sizes.append(each * max(math.floor(products + 0.5), 1))
    return max(sizes, default=None)
