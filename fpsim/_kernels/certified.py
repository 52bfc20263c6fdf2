"""Fused dot products that provably drop nothing, at the speed of float32 arithmetic.

A fused dot product (T-FDPA) truncates its terms at 2**(e - F), e the largest exponent among the products and c. Where
no term has a bit down there, the step is c + (exact sum of products), rounded once, and any exact way to form the sum
gives the same bits. A certificate says so, from bounds that cost one pass over each operand. Take row i of a and a tile
of columns of b, and let

    u  = (lowest set bit of any a[i, k]) * (lowest set bit of any b[k, j] of the tile) = 2**U,
    E  = (largest exponent in a[i, :]) + (largest exponent in the tile).

Every product, hence every sum of products, is a multiple of u. If E <= U + F, and so is the exponent that a zero
counts with, then a step whose c is a multiple of u below 2**(U + F + 1) drops nothing: c's exponent is at most U + F,
so the largest exponent e is, the truncation unit 2**(e - F) is at most u, and products and c are multiples of it. The
result is c + sum, rounded toward zero; that keeps it or makes it a multiple of a larger power of two, so it is a
multiple of u as the next step needs. Its size is looked at: where it reaches 2**(U + F + 1), the certificate of the row
and tile ends there, and the steps to come are truncated as usual.

The sum of a step is formed in float32 fused multiply-adds, in any order. By Cauchy-Schwarz no partial sum exceeds
|a[i, step]| * |b[step, j]| (Euclidean norms over the k of the step); where that is below 2**(U + 24), partial sums are
multiples of u below 2**24 * u, which float32 holds. A step where it is not is taken as usual, without ending anything
(or in float64, where the usual way is slow: block-scaled FP4).
Then c + sum is rounded toward zero by TwoSum: its error term says whether rounding to nearest went away from zero, and
the bit pattern less one is the neighbour toward zero.

What certifies: FP6 and FP4 operands always; E4M3 with F = 25 while the products stay below 2**8 and |c| below 256,
standard normal values in any number; values scaled up to 448 do not, since E4M3 then reaches from 2**-9 to 2**8 and
products of subnormals do lose bits.
"""

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.intrinsics import bits_of, float_of
from fpsim._kernels.lanes import LANES
from fpsim._kernels.panels import PANEL, exact_of_16, exact_of_64
from fpsim._kernels.vector import COLUMNS, add_products, begin_step, end_truncate, largest_exponents, start_sum


@kernel
def sum_products(x, i, k, y, first, count, total):
    """total[j] = sum over t < count of x[i, k + t] * y[k + t, first + j], exact by certificate."""
    at, stop = 0, total.size
    while at < stop:
        row = (first + at) // PANEL * x.shape[1] + k
        if stop - at >= PANEL:
            exact_of_64(x, i, k, y, row, 0, count, total, at)
            at += PANEL
        else:
            exact_of_16(x, i, k, y, row, (first + at) % PANEL, count, total, at)
            at += LANES


@kernel
def add_toward_zero(c, total):
    """c + total into c, float32, toward zero: TwoSum, and one step back where the rounding went outward.

    Returns the bits of the largest magnitude.
    """
    one, none, most, all_but_sign = np.int32(1), np.int32(0), np.int32(0), np.int32(0x7FFFFFFF)
    for j in range(c.size):
        x, y = c[j], total[j]
        near = np.float32(x + y)
        part = np.float32(near - x)
        error = np.float32(np.float32(x - np.float32(near - part)) + np.float32(y - part))
        word = bits_of(near)
        outward = (np.int32(bits_of(error) ^ word) < none) & (error != np.float32(0))
        word = np.int32(word - (one if outward else none))
        c[j] = float_of(word)
        most = max(most, np.int32(word & all_but_sign))
    return most


@kernel
def add_widely_toward_zero(c, total, words):
    """The same with exact float64 sums (`words`: their bits): c + total is exact too, and is cut to 24 bits."""
    most, all_but_sign, keep = np.int32(0), np.int32(0x7FFFFFFF), np.int64(-(1 << 29))
    for j in range(c.size):
        total[j] += np.float64(c[j])
    for j in range(c.size):
        words[j] &= keep
    for j in range(c.size):
        c[j] = np.float32(total[j])
    for j in range(c.size):
        most = max(most, np.int32(bits_of(c[j]) & all_but_sign))
    return most


@kernel
def largest_of(c):
    """Bits of the largest magnitude."""
    most, all_but_sign = np.int32(0), np.int32(0x7FFFFFFF)
    for j in range(c.size):
        most = max(most, np.int32(bits_of(c[j]) & all_but_sign))
    return most


@kernel
def starts_certified(c, unit, limit):
    """Whether every value is a multiple of `unit` below `limit`; false for Inf and NaN."""
    good = np.int32(0)
    for j in range(c.size):
        whole = np.float32(c[j] / unit)
        good += np.int32(1) if (abs(c[j]) < limit) & (whole == np.rint(whole)) else np.int32(0)
    return good == c.size


@kernel
def fused_certified(
    x, ex, y, ey, plan, none, c, word, redo, certified, units_x, units_y, norms_x, norms_y, begin, end, start, stop
):
    """`vector.fused_wide` to a full float32, with certificates; returns how many row-tile-steps used one.

    certified : bool (M, tiles), cleared where a certificate ends. units : float32 (M,) and (tiles,), lowest set bits.
    norms : float32 (M, steps) and (steps, tiles), rounded up.
    """
    largest_row = np.empty(COLUMNS, ex.dtype)
    total_row, near_row = np.empty(COLUMNS, np.int64), np.empty(COLUMNS, np.float32)
    scale_bits, inverse_bits = np.empty(COLUMNS, np.int32), np.empty(COLUMNS, np.int32)
    result_bits = np.empty(COLUMNS, np.int64)
    reach = np.float32(2.0 ** (plan.fraction_bits + 1))
    used = 0
    for tile in range(certified.shape[1]):
        first, last = tile * COLUMNS, min((tile + 1) * COLUMNS, c.shape[1])
        n = last - first
        largest, total, scale_word, inverse_word = largest_row[:n], total_row[:n], scale_bits[:n], inverse_bits[:n]
        scale, inverse = scale_word.view(np.float32), inverse_word.view(np.float32)
        result_word, near = result_bits[:n], near_row[:n]
        result = result_word.view(np.float64)
        for i in range(start, stop):
            unit = np.float32(units_x[i] * units_y[tile])
            certified[i, tile] &= starts_certified(c[i, first:last], unit, np.float32(unit * reach))
        for k in range(begin, end, plan.step):
            step = k // plan.step
            for i in range(start, stop):
                out = c[i, first:last]
                unit = np.float32(units_x[i] * units_y[tile])
                bound = np.float32(norms_x[i, step] * norms_y[step, tile])
                if certified[i, tile] and bound < unit * np.float32(16777216):
                    sum_products(x, i, k, y, first, plan.step, near)
                    most = float_of(add_toward_zero(out, near))
                    certified[i, tile] = most < np.float32(unit * reach)
                    used += 1
                    continue
                largest_exponents(ex, i, k, ey, first, plan.step, none, largest)
                begin_step(largest, plan, out, word[i, first:last], scale_word, inverse_word, redo[i, first:last])
                start_sum(out, scale, total)
                add_products(x, i, k, y, first, plan.step, scale, total)
                end_truncate(total, inverse, plan.keep, result, result_word, out)
                if certified[i, tile]:
                    certified[i, tile] = float_of(largest_of(out)) < np.float32(unit * reach)
    return used


@kernel
def chained_certified(x, y, step, fraction_bits, c, certified, units_x, units_y, norms_x, norms_y, start, stop):
    """The same for engines without a truncating vector kernel: a row and tile whose certificate fails is left as it is
    (garbage), its entry in `certified` cleared. Steps too large for float32 are summed in float64, where partial sums
    below 2**50 * u, and c below 2**(U + F + 1), add exactly. x, y : float32 values with scales, y in panels."""
    near_row, wide_row = np.empty(COLUMNS, np.float32), np.empty(COLUMNS, np.int64)
    reach = np.float32(2.0 ** (fraction_bits + 1))
    for tile in range(certified.shape[1]):
        first, last = tile * COLUMNS, min((tile + 1) * COLUMNS, c.shape[1])
        near, wide_words = near_row[: last - first], wide_row[: last - first]
        wide = wide_words.view(np.float64)
        for i in range(start, stop):
            unit = np.float32(units_x[i] * units_y[tile])
            certified[i, tile] &= starts_certified(c[i, first:last], unit, np.float32(unit * reach))
        for k in range(0, x.shape[1], step):
            for i in range(start, stop):
                if not certified[i, tile]:
                    continue
                unit = np.float32(units_x[i] * units_y[tile])
                bound = np.float32(norms_x[i, k // step] * norms_y[k // step, tile])
                if bound < unit * np.float32(16777216):
                    sum_products(x, i, k, y, first, step, near)
                    most = float_of(add_toward_zero(c[i, first:last], near))
                    certified[i, tile] = most < np.float32(unit * reach)
                elif bound < unit * np.float32(2.0**50):
                    sum_products(x, i, k, y, first, step, wide)
                    most = float_of(add_widely_toward_zero(c[i, first:last], wide, wide_words))
                    certified[i, tile] = most < np.float32(unit * reach)
                else:
                    certified[i, tile] = False


@kernel
def row_bounds(x, step, fixed, units, norms, start, stop):
    """For rows of x: the lowest set bit of any value, and the norm of each step, squared.

    fixed : a power of two that makes int32 of every value.
    """
    for i in range(start, stop):
        bits = np.int32(0)
        for k in range(x.shape[1]):
            bits |= np.int32(x[i, k] * fixed)
        units[i] = np.int32(bits & np.int32(-bits)) if bits != 0 else np.int32(1)
        for s in range(norms.shape[1]):
            total = np.float32(0)
            for k in range(s * step, (s + 1) * step):
                total += np.float32(x[i, k] * x[i, k])
            norms[i, s] = total


@kernel
def panel_bounds(y, depth, step, fixed, units, norms, start, stop):
    """The same for panels start .. stop of b, each as a whole: the norm is the largest of its columns'."""
    width = y.shape[1]
    squares, seen = np.empty(width, np.float32), np.empty(width, np.int32)
    for p in range(start, stop):
        seen[:] = np.int32(0)
        for s in range(depth // step):
            squares[:] = np.float32(0)
            for k in range(s * step, (s + 1) * step):
                for j in range(width):
                    value = y[p * depth + k, j]
                    squares[j] += np.float32(value * value)
                    seen[j] |= np.int32(value * fixed)
            norms[s, p] = squares.max()
        bits = np.int32(0)
        for j in range(width):
            bits |= seen[j]
        units[p] = np.int32(bits & np.int32(-bits)) if bits != 0 else np.int32(1)
