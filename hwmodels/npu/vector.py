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
from functools import lru_cache

from fpsim.formats import BlockFormat, Format
from fpsim.formats import format as format_row

from ..fallback import Execution
from ..precision import Precision, stored_bits


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
