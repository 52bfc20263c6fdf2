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

GROUP = 8  #: products per int32 partial sum; the loops below are written out for it
COLUMNS = 256  #: outputs of a row handled together: a step of b (32 x 256 floats and exponents) stays in cache


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
def largest_exponents(ea, eb, start, stop, first, last, largest):
    """Raise largest[j] to the largest ea[k] + eb[k, j] over k in start .. stop, for columns j of first .. last."""
    narrow = largest.dtype.type
    for k in range(start, stop, GROUP):
        a0, a1, a2, a3, a4, a5, a6, a7 = (
            ea[k],
            ea[k + 1],
            ea[k + 2],
            ea[k + 3],
            ea[k + 4],
            ea[k + 5],
            ea[k + 6],
            ea[k + 7],
        )
        b0, b1, b2, b3 = eb[k, first:last], eb[k + 1, first:last], eb[k + 2, first:last], eb[k + 3, first:last]
        b4, b5, b6, b7 = eb[k + 4, first:last], eb[k + 5, first:last], eb[k + 6, first:last], eb[k + 7, first:last]
        for j in range(largest.size):
            e = largest[j]
            e = max(e, narrow(a0 + b0[j]))
            e = max(e, narrow(a1 + b1[j]))
            e = max(e, narrow(a2 + b2[j]))
            e = max(e, narrow(a3 + b3[j]))
            e = max(e, narrow(a4 + b4[j]))
            e = max(e, narrow(a5 + b5[j]))
            e = max(e, narrow(a6 + b6[j]))
            largest[j] = max(e, narrow(a7 + b7[j]))


@kernel
def add_products(a, b, start, stop, first, last, scale, total):
    """total[j] += sum over k of trunc(a[k] * b[k, j] * scale[j])."""
    for k in range(start, stop, GROUP):
        a0, a1, a2, a3, a4, a5, a6, a7 = a[k], a[k + 1], a[k + 2], a[k + 3], a[k + 4], a[k + 5], a[k + 6], a[k + 7]
        b0, b1, b2, b3 = b[k, first:last], b[k + 1, first:last], b[k + 2, first:last], b[k + 3, first:last]
        b4, b5, b6, b7 = b[k + 4, first:last], b[k + 5, first:last], b[k + 6, first:last], b[k + 7, first:last]
        for j in range(scale.size):
            s = scale[j]
            t = np.int32(a0 * b0[j] * s)
            t = np.int32(t + np.int32(a1 * b1[j] * s))
            t = np.int32(t + np.int32(a2 * b2[j] * s))
            t = np.int32(t + np.int32(a3 * b3[j] * s))
            t = np.int32(t + np.int32(a4 * b4[j] * s))
            t = np.int32(t + np.int32(a5 * b5[j] * s))
            t = np.int32(t + np.int32(a6 * b6[j] * s))
            t = np.int32(t + np.int32(a7 * b7[j] * s))
            total[j] = total[j] + t


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
def fused_narrow(a, ea, b, eb, plan, none, c, word, redo, begin, end, start, stop):
    """Rows start .. stop of c through the steps of k in begin .. end, sums in int32, results toward zero.

    a, b : float32 values (M, K), (K, N); ea, eb : their exponents. c : float32 (M, N), `word` its bits, in place.
    redo : int8 (M, N), set where the result is not to be trusted. none : exponent mark, of the type of ea.
    """
    largest_row = np.empty(COLUMNS, ea.dtype)
    total_row = np.empty(COLUMNS, np.int32)
    scale_bits, inverse_bits = np.empty(COLUMNS, np.int32), np.empty(COLUMNS, np.int32)
    result_bits = np.empty(COLUMNS, np.int32)
    scale_row, inverse_row = scale_bits.view(np.float32), inverse_bits.view(np.float32)
    result_row = result_bits.view(np.float32)
    for first in range(0, b.shape[1], COLUMNS):
        last = min(first + COLUMNS, b.shape[1])
        n = last - first
        largest, total, scale, inverse = largest_row[:n], total_row[:n], scale_row[:n], inverse_row[:n]
        for k in range(begin, end, plan.step):
            for i in range(start, stop):
                largest[:] = none
                largest_exponents(ea[i], eb, k, k + plan.step, first, last, largest)
                begin_step(
                    largest,
                    plan,
                    c[i, first:last],
                    word[i, first:last],
                    scale_bits[:n],
                    inverse_bits[:n],
                    redo[i, first:last],
                )
                start_sum(c[i, first:last], scale, total)
                add_products(a[i], b, k, k + plan.step, first, last, scale, total)
                end_narrow(total, inverse, plan.keep, result_row[:n], result_bits[:n], word[i, first:last])


@kernel
def fused_wide(a, ea, b, eb, plan, none, c, word, redo, begin, end, start, stop):
    """The same with sums in int64; results toward zero to `plan.keep`, or to nearest float16 if `plan.half`."""
    largest_row = np.empty(COLUMNS, ea.dtype)
    total_row = np.empty(COLUMNS, np.int64)
    scale_bits, inverse_bits = np.empty(COLUMNS, np.int32), np.empty(COLUMNS, np.int32)
    result_bits, magic_bits = np.empty(COLUMNS, np.int64), np.empty(COLUMNS, np.int64)
    scale_row, inverse_row = scale_bits.view(np.float32), inverse_bits.view(np.float32)
    result_row, magic_row = result_bits.view(np.float64), magic_bits.view(np.float64)
    for first in range(0, b.shape[1], COLUMNS):
        last = min(first + COLUMNS, b.shape[1])
        n = last - first
        largest, total, scale, inverse = largest_row[:n], total_row[:n], scale_row[:n], inverse_row[:n]
        for k in range(begin, end, plan.step):
            for i in range(start, stop):
                out = c[i, first:last]
                largest[:] = none
                largest_exponents(ea[i], eb, k, k + plan.step, first, last, largest)
                begin_step(
                    largest,
                    plan,
                    out,
                    word[i, first:last],
                    scale_bits[:n],
                    inverse_bits[:n],
                    redo[i, first:last],
                )
                start_sum(out, scale, total)
                add_products(a[i], b, k, k + plan.step, first, last, scale, total)
                if plan.half:
                    end_half(total, inverse, result_row[:n], result_bits[:n], magic_row[:n], magic_bits[:n], out)
                else:
                    end_truncate(total, inverse, plan.keep, result_row[:n], result_bits[:n], out)
