"""The fused dot product as vector code: whole rows of outputs at a time, same bits as `accumulate.fused_step`.

Why this is exact. Let a step have largest exponent e. The scalar kernel drops the bits of each product below 2**(e - F)
and adds integers. Here the product a*b is formed in float32, where it is exact (at most 24 significant bits, exponents
checked beforehand), multiplied by the power of two 2**(F - e), and converted to int32, which truncates toward zero in
one instruction. Eight such integers fit an int32 (F <= 26), whole steps fit an int64. The sum goes back through an
exact conversion, one multiplication by 2**(e - F), and a mask (toward zero) or a rounding addition (to nearest even).

What does not fit is left to the scalar kernel, output by output: rows and columns with Inf or NaN or extreme exponents
(marked by the caller) and sums that become tiny (marked in `redo` here).

Exponents are int8 or int16 with a mark for zeros so low that no sum with it reaches a real one.
"""

from typing import NamedTuple

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.lanes import LANES
from fpsim._kernels.panels import (
    GROUP,
    PANEL,
    largest_of_16,
    largest_of_64,
    truncated_of_16,
    truncated_of_64,
)

__all__ = ["COLUMNS", "GROUP", "VectorPlan", "fused_narrow", "fused_wide"]

COLUMNS = 2 * PANEL  #: outputs of a row handled together: a step of b (32 x 128 floats and exponents) stays in cache


class VectorPlan(NamedTuple):
    """A fused dot product for these kernels."""

    step: int  #: products per step, padded to a multiple of GROUP
    fraction_bits: int
    zero_exponent: int
    lowest: int  #: smallest exponent of a product
    low: int  #: smallest step exponent whose scales are normal float32
    keep: int  #: mask of the result bits kept: of a float32 if narrow, else of a float64
    narrow: bool  #: sums stay below 2**24
    half: bool  #: results are float16, to nearest even


@kernel
def largest_exponents(ex, i, k, ey, first, count, none, largest):
    """largest[j] = the largest ex[i, k + t] + ey[k + t, first + j] over t < count."""
    at, stop = 0, largest.size
    while at < stop:
        row = (first + at) // PANEL * ex.shape[1] + k
        if stop - at >= PANEL:
            largest_of_64(ex, i, k, ey, row, 0, count, none, largest, at)
            at += PANEL
        else:
            largest_of_16(ex, i, k, ey, row, (first + at) % PANEL, count, none, largest, at)
            at += LANES


@kernel
def add_products(x, i, k, y, first, count, scale, total):
    """total[j] += sum over t < count of trunc(x[i, k + t] * y[k + t, first + j] * scale[j])."""
    at, stop = 0, scale.size
    while at < stop:
        row = (first + at) // PANEL * x.shape[1] + k
        if stop - at >= PANEL:
            truncated_of_64(x, i, k, y, row, 0, count, scale, total, at)
            at += PANEL
        else:
            truncated_of_16(x, i, k, y, row, (first + at) % PANEL, count, scale, total, at)
            at += LANES


@kernel
def begin_step(largest, plan, c, word, scale_word, inverse_word, redo):
    """The step's exponent e with c in it, as the bits of the powers of two 2**(F - e) and 2**(e - F).

    A largest product exponent below `plan.lowest` is the mark of "all products are zero". A step exponent below
    `plan.low`, where the powers would not be normal float32, is noted in `redo` unless c is zero too.
    """
    up, down = np.int32(127 + plan.fraction_bits), np.int32(127 - plan.fraction_bits)
    lowest, floor, low = np.int32(plan.lowest), np.int32(plan.zero_exponent), np.int32(plan.low)
    smallest = np.int32(-14 if plan.half else -126)
    bias, fields, mask, none = np.int32(127), np.int32(23), np.int32(255), np.int32(-1000)
    for j in range(c.size):
        e = np.int32(largest[j])
        e = none if e < lowest else e
        field = np.int32(np.int32(word[j] >> fields) & mask)
        of_c = np.int32(field - bias)
        of_c = of_c if of_c > smallest else smallest
        of_c = of_c if c[j] != 0 else none
        e = of_c if of_c > e else e
        e = floor if floor > e else e
        redo[j] |= np.int8(1) if (e < low) and (c[j] != 0) else np.int8(0)
        e = low if e < low else e
        scale_word[j] = np.int32(np.int32(up - e) << fields)
        inverse_word[j] = np.int32(np.int32(down + e) << fields)


@kernel
def start_sum(c, scale, total):
    """c's share of the sum, truncated like the products'."""
    for j in range(c.size):
        total[j] = np.int32(c[j] * scale[j])


@kernel
def end_narrow(total, inverse, keep, result, result_word, word):
    """Sums below 2**24, toward zero to `keep` (a mask) of a float32; an Inf or NaN in c (`word`) stays."""
    keep, top = np.int32(keep), np.int32(0x7F800000)
    for j in range(word.size):
        result[j] = np.float32(total[j]) * inverse[j]
    for j in range(word.size):
        w = word[j]
        word[j] = w if np.int32(w & top) == top else np.int32(result_word[j] & keep)


@kernel
def end_truncate(total, inverse, keep, result, result_word, c):
    """Any sum, toward zero to `keep` (a mask on a float64 that leaves at most 24 bits); an Inf or NaN in c stays."""
    for j in range(c.size):
        result[j] = np.float64(total[j]) * np.float64(inverse[j])
    for j in range(c.size):
        result_word[j] = result_word[j] & keep
    for j in range(c.size):
        c[j] = np.float32(result[j]) if abs(c[j]) < np.float32(np.inf) else c[j]


@kernel
def end_half(total, inverse, result, result_word, magic, magic_word, c):
    """Any sum, nearest even to float16 (kept as a float32); beyond 65504 is Inf; an Inf or NaN in c stays.

    Adding and subtracting 1.5 * 2**52 float16 steps rounds a float64 to a multiple of that step, ties to even.
    """
    for j in range(c.size):
        result[j] = np.float64(total[j]) * np.float64(inverse[j])
    for j in range(c.size):
        field = (result_word[j] >> 52) & 2047
        field = max(field, 1009)  # float16's smallest exponent, -14
        magic_word[j] = ((field + 42) << 52) | (1 << 51)
    for j in range(c.size):
        v = (result[j] + magic[j]) - magic[j]
        v = v * np.inf if abs(v) > 65504 else v
        c[j] = np.float32(v) if abs(c[j]) < np.float32(np.inf) else c[j]


@kernel
def fused_narrow(x, ex, y, ey, plan, none, c, word, redo, begin, end, start, stop):
    """Rows start .. stop of c through the steps of k in begin .. end, sums in int32, results toward zero.

    x, ex : float32 values and exponents (M, K); y, ey : those of b, in panels. c : float32 (M, N), `word` its bits, in
    place, N a multiple of LANES. redo : int8 (M, N), set where the result is not to be trusted. none : exponent mark,
    of the type of ex.
    """
    largest_row = np.empty(COLUMNS, ex.dtype)
    total_row = np.empty(COLUMNS, np.int32)
    scale_bits, inverse_bits = np.empty(COLUMNS, np.int32), np.empty(COLUMNS, np.int32)
    result_bits = np.empty(COLUMNS, np.int32)
    for first in range(0, c.shape[1], COLUMNS):
        last = min(first + COLUMNS, c.shape[1])
        n = last - first
        largest, total, scale_word, inverse_word = largest_row[:n], total_row[:n], scale_bits[:n], inverse_bits[:n]
        scale, inverse = scale_word.view(np.float32), inverse_word.view(np.float32)
        result_word = result_bits[:n]
        result = result_word.view(np.float32)
        for k in range(begin, end, plan.step):
            for i in range(start, stop):
                out, out_word = c[i, first:last], word[i, first:last]
                largest_exponents(ex, i, k, ey, first, plan.step, none, largest)
                begin_step(largest, plan, out, out_word, scale_word, inverse_word, redo[i, first:last])
                start_sum(out, scale, total)
                add_products(x, i, k, y, first, plan.step, scale, total)
                end_narrow(total, inverse, plan.keep, result, result_word, out_word)


@kernel
def fused_wide(x, ex, y, ey, plan, none, c, word, redo, begin, end, start, stop):
    """The same with sums in int64; results toward zero to `plan.keep`, or to nearest float16 if `plan.half`."""
    largest_row = np.empty(COLUMNS, ex.dtype)
    total_row = np.empty(COLUMNS, np.int64)
    scale_bits, inverse_bits = np.empty(COLUMNS, np.int32), np.empty(COLUMNS, np.int32)
    result_bits, magic_bits = np.empty(COLUMNS, np.int64), np.empty(COLUMNS, np.int64)
    for first in range(0, c.shape[1], COLUMNS):
        last = min(first + COLUMNS, c.shape[1])
        n = last - first
        largest, total, scale_word, inverse_word = largest_row[:n], total_row[:n], scale_bits[:n], inverse_bits[:n]
        scale, inverse = scale_word.view(np.float32), inverse_word.view(np.float32)
        result_word, magic_word = result_bits[:n], magic_bits[:n]
        result, magic = result_word.view(np.float64), magic_word.view(np.float64)
        for k in range(begin, end, plan.step):
            for i in range(start, stop):
                out = c[i, first:last]
                largest_exponents(ex, i, k, ey, first, plan.step, none, largest)
                begin_step(largest, plan, out, word[i, first:last], scale_word, inverse_word, redo[i, first:last])
                start_sum(out, scale, total)
                add_products(x, i, k, y, first, plan.step, scale, total)
                if plan.half:
                    end_half(total, inverse, result, result_word, magic, magic_word, out)
                else:
                    end_truncate(total, inverse, plan.keep, result, result_word, out)
