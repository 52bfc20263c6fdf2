"""Work beside the array: what the vector unit does for each kernel, in operations.

* what the operation itself counts: norms, softmax, pointwise functions, reductions, casts (`Op.flops`);
* one multiplication per result where operands carry scales outside the array: every quantized product;
* widening: a format the array lacks is stored narrow and widened on its way in, one operation per element and load;
* block scales (MX, NVFP4) are free where the device has a rate for the block format; otherwise they are part of the
  widening;
* partial sums: an accumulator of b bits holds K products for certain while K * max|a| * max|w| <= 2**(b-1) - 1.  A
  longer sum is cut, and its parts are added up outside, one operation per result and cut.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

from fpsim.formats import BlockFormat, Format
from fpsim.formats import format as format_row

from ..fallback import Execution
from ..ops import Attention, Conv, Gemm, Op
from ..precision import Precision, stored_bits

if TYPE_CHECKING:
    from ..device import ComputeRate


def _largest(row: Format) -> float:
    return max(row.max, -row.min)


@lru_cache(maxsize=256)
def sum_limit(activation: str, weight: str, accumulator: str) -> float:
    """How many products an integer accumulator adds up without overflow, whatever the data; infinity for floats.

    Raises ValueError if it does not hold even one.
    """
    found = re.fullmatch(r"int(\d+)", accumulator)
    a, w = format_row(activation), format_row(weight)
    if not found or isinstance(a, BlockFormat) or isinstance(w, BlockFormat) or a.kind != "int" or w.kind != "int":
        return math.inf
    limit = (2 ** (int(found[1]) - 1) - 1) // int(_largest(a) * _largest(w))
    if limit < 1:
        raise ValueError(
            f"an {accumulator} accumulator overflows on one product of {activation} and {weight}; allowed: wider ones"
        )
    return float(limit)


def cuts(length: float, rate: ComputeRate) -> float:
    """Additions outside the array that a sum of `length` products takes: one per part beyond the first."""
    limit = sum_limit(rate.activation, rate.weight, rate.accumulator)
    return max(math.ceil(length / limit), 1) - 1.0


def cut_notes(chosen: Iterable[tuple[Op, Execution | None]]) -> tuple[str, ...]:
    """One line per accumulator that is too narrow for some sum."""
    longest: dict[tuple[str, str, str], int] = {}
    for op, execution in chosen:
        if execution is not None:
            length = _longest_sum(op)
            if cuts(length, execution.rate):
                key = execution.rate.key
                longest[key] = max(longest.get(key, 0), length)
    return tuple(
        f"{a} x {w} into {accumulator}: sums of more than {sum_limit(a, w, accumulator):,.0f} products (here up to "
        f"{length:,}) are cut, and their parts added up on the vector unit"
        for (a, w, accumulator), length in longest.items()
    )


def _longest_sum(op: Op) -> int:
    if isinstance(op, Attention):
        return max(op.head_dim, op.keys)
    found = op.gemm() if isinstance(op, Conv) else op
    return found.k if isinstance(found, Gemm) else 0


def scaled(precision: Precision) -> bool:
    """Whether results must be multiplied by a scale on the way out."""
    return any(stored_bits(name) < 16 for name in (precision.activation, precision.weight))


def widened(precision: Precision, execution: Execution) -> tuple[bool, bool]:
    """Whether (activations, weights) are widened on their way into the array."""
    rate = execution.rate
    a, w = precision.operands()
    return (
        stored_bits(rate.activation) > stored_bits(a),
        stored_bits(rate.weight) > stored_bits(w),
    )
