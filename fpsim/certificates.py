"""When an integer accumulator cannot overflow, so that any order, any tiling and plain GEMM give the exact answer.

A saturating accumulator is not associative: its result depends on the order of k. It does not matter where no partial
sum can leave the range, and that follows from bounds on the operands alone.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim.accumulators import IntegerAccumulator
from fpsim.formats import Format, scalar_format

Array = npt.NDArray[Any]


def largest_magnitude(fmt: str | Format) -> int:
    """Largest magnitude of an integer format; ValueError for other kinds."""
    row = scalar_format(fmt)
    if row.kind != "int" or row.bias:
        raise ValueError(f"certificates are for integer formats, got {row.name!r}")
    return int(max(abs(row.min), row.max))


def weight_bound(activation: str | Format, accumulator: IntegerAccumulator) -> int:
    """Largest sum of weight magnitudes per output that no activations of that format can make overflow.

    max |x| * sum |w| <= 2**(P-1) - 1 (A2Q, arXiv:2301.13376, with the format's own largest magnitude).
    """
    return ((1 << (accumulator.bits - 1)) - 1) // largest_magnitude(activation)


def cannot_overflow(w: npt.ArrayLike, activation: str | Format, accumulator: IntegerAccumulator) -> Array:
    """Per output (column of w, shape (K, N)), whether no activations of that format can overflow. Starts from zero."""
    array = np.asarray(w)
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise ValueError(f"w must be an integer matrix (K, N), got {array.dtype}{array.shape}")
    result: Array = np.abs(array.astype(np.int64)).sum(axis=0) <= weight_bound(activation, accumulator)
    return result


def bits_needed(k: int, a: str | Format, b: str | Format) -> int:
    """Accumulator bits that hold every sum of k products of the two formats: the data-type bound, from the ranges."""
    if k < 0:
        raise ValueError(f"k is {k}; allowed: 0 or more")
    return (k * largest_magnitude(a) * largest_magnitude(b)).bit_length() + 1


def holds(a: Array, b: Array, c: Array, accumulator: IntegerAccumulator) -> bool:
    """Whether these very operands cannot overflow: max |c| + max |a| * max sum |b| stays in range, or the reverse."""
    limit = (1 << (accumulator.bits - 1)) - 1 - int(np.abs(c.astype(np.int64)).max(initial=0))
    left, right = np.abs(a.astype(np.int64)), np.abs(b.astype(np.int64))
    by_columns = int(left.max(initial=0)) * int(right.sum(axis=0).max(initial=0))
    by_rows = int(right.max(initial=0)) * int(left.sum(axis=1).max(initial=0))
    return min(by_columns, by_rows) <= limit
