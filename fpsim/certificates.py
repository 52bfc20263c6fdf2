"""When an integer accumulator cannot overflow, so that any order, any tiling and plain GEMM give the exact answer.

A saturating accumulator is not associative: its result depends on the order of k. It does not matter where no partial
sum can leave the range, and that follows from bounds on the operands alone. From the least to the most that is known:

- only the formats: `bits_needed`, `outer_bits`;
- a bound on the weights of an output, before there are any: `weight_bound`, `zero_centred_bound`;
- the weights themselves: `partial_sums`, `cannot_overflow`;
- both operands: `holds`, which `fpsim.matmul` asks before it runs a saturating accumulator product by product.
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


def bits_needed(k: int, a: str | Format, b: str | Format) -> int:
    """Accumulator bits that hold every sum of k products of the two formats: the data-type bound, from the ranges."""
    if k < 0:
        raise ValueError(f"k is {k}; allowed: 0 or more")
    return (k * largest_magnitude(a) * largest_magnitude(b)).bit_length() + 1


def outer_bits(k: int, tile: int, inner: IntegerAccumulator) -> int:
    """Bits of the outer accumulator of two levels that hold every sum of the tiles of K, whatever the inner ones hold.

    ceil(k / tile) results of magnitude up to 2**(P - 1): P + ceil(log2(k / tile)) bits (AXE, arXiv:2409.17092, where
    the largest magnitude is counted as 2**(P - 1) - 1 and saves a bit for exact powers of two).
    """
    if k < 0 or tile < 1:
        raise ValueError(f"k is {k} and tile {tile}; allowed: 0 or more, and 1 or more")
    lowest = -(k // -tile) * inner.low
    return max(inner.bits, (-lowest - 1).bit_length() + 1 if lowest else 2)


def weight_bound(activation: str | Format, accumulator: IntegerAccumulator) -> int:
    """Largest sum of weight magnitudes per output that no activations of that format can make overflow.

    max |x| * sum |w| <= 2**(P-1) - 1 (A2Q, arXiv:2301.13376, with the format's own largest magnitude).
    """
    return accumulator.high // largest_magnitude(activation)


def zero_centred_bound(activation: str | Format, accumulator: IntegerAccumulator) -> int:
    """The same for weights that add up to zero, under activations that are never negative: about twice as large.

    Positive and negative weights each make half of the sum of magnitudes, and a partial sum is largest when only one
    kind has come: max x * sum |w| / 2 <= 2**(P-1) - 1 (A2Q+, arXiv:2401.10432). ValueError for a signed format.
    """
    if scalar_format(activation).min < 0:
        raise ValueError(f"zero-centred weights help activations that are never negative, got {activation!r}")
    return 2 * accumulator.high // largest_magnitude(activation)


def partial_sums(w: npt.ArrayLike, activation: str | Format) -> tuple[Array, Array]:
    """Lowest and highest value of any partial sum, in any order, per output (column of w, shape (K, N)).

    Every product takes its extreme of one sign, the others have not come yet or are zero; with activations from l <= 0
    to h >= 0 that is -(sum w+ * |l| + sum w- * h) and sum w+ * h + sum w- * |l|, reached by some activations.
    """
    row, array = scalar_format(activation), np.asarray(w)
    largest_magnitude(row)
    if array.dtype.kind not in "iu" or array.ndim != 2:
        raise ValueError(f"w must be an integer matrix (K, N), got {array.dtype}{array.shape}")
    wide, low, high = array.astype(np.int64), -int(row.min), int(row.max)
    positive, negative = np.maximum(wide, 0).sum(axis=0), np.maximum(-wide, 0).sum(axis=0)
    return -(positive * low + negative * high), positive * high + negative * low


def cannot_overflow(w: npt.ArrayLike, activation: str | Format, accumulator: IntegerAccumulator) -> Array:
    """Per output (column of w, shape (K, N)), whether no activations of that format, in any order, can overflow.

    Exactly so for sums that start from zero: where False, some activations in some order do.
    """
    lowest, highest = partial_sums(w, activation)
    result: Array = (lowest >= accumulator.low) & (highest <= accumulator.high)
    return result


def holds(a: Array, b: Array, c: Array, accumulator: IntegerAccumulator) -> bool:
    """Whether these very operands cannot overflow: max |c| + max |a| * max sum |b| stays in range, or the reverse."""
    limit = accumulator.high - int(np.abs(c.astype(np.int64)).max(initial=0))
    left, right = np.abs(a.astype(np.int64)), np.abs(b.astype(np.int64))
    by_columns = int(left.max(initial=0)) * int(right.sum(axis=0).max(initial=0))
    by_rows = int(right.max(initial=0)) * int(left.sum(axis=1).max(initial=0))
    return min(by_columns, by_rows) <= limit
