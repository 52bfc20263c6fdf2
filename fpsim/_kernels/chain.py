"""Chains of IEEE operations in any narrow float format, in float64: every result is rounded once, as if exactly known.

Why this is exact. Operands have at most 53 significant bits between them, so their float64 product is the product.
Adding it to c rounds, but Knuth's TwoSum returns the error exactly, and with it the sum can be rounded *to odd*: where
it is inexact, take the neighbour whose last bit is set. A number rounded to odd in p bits and then to at most p - 2
bits, in any rounding, is what the exact number would have become (Boldo and Melquiond, "Emulation of FMA and correctly
rounded sums: proved algorithms using rounding to odd", IEEE Trans. Computers 57, 2008). With p = 53 that covers every
format of at most 51 significant bits, its subnormals too, which have fewer. The caller keeps exponents far from
float64's own limits.

No branches: rounding, overflow and the sign of zero are integer masks and selections, so the loops over columns become
vector code.
"""

from typing import NamedTuple

import numpy as np

from fpsim._jit import kernel

COLUMNS = 256  #: outputs of a row handled together, so that they and one row of b stay in cache

_MAGNITUDE = (1 << 63) - 1
_MANTISSA = (1 << 52) - 1
_INFINITY = 0x7FF << 52
_MAGIC = 0x433 << 52  #: 2**52: its low mantissa bits count ones


class Narrow(NamedTuple):
    """Where values are rounded to: a float format, a rounding and an overflow policy, as masks (0 or -1) and values."""

    mantissa_bits: int
    lowest: int  #: smallest exponent as a float64 exponent field
    nearest: int  #: add half a step (less `tie`)
    tie: int  #: 1: ties go toward zero unless `even` says otherwise
    even: int  #: 1: add the last bit kept
    up: int  #: away from zero if positive
    down: int  #: away from zero if negative
    odd: int  #: 1: set the last bit of what is inexact
    largest: float
    overflow: float  #: what finite values above `largest` become, and below its negative
    negative_overflow: float
    infinity: float
    negative_infinity: float
    smallest: float  #: results below are zeros of their sign; 0: they stay
    zero: float  #: -0.0, or +0.0 in a format without -0
    nan: float  #: what NaN becomes: the largest value in a format without NaN


@kernel
def to_odd(x, y):
    """x + y in float64, rounded to odd."""
    total = x + y
    part = total - x
    error = (x - (total - part)) + (y - part)
    word = np.float64(total).view(np.int64)
    toward = np.int64(1) if (error > 0) == (total > 0) else np.int64(-1)
    inexact = (error < 0) | (error > 0)  # false for a NaN, the error of an infinite sum
    word += toward if inexact & ((word & 1) == 0) else np.int64(0)
    return np.int64(word).view(np.float64)


@kernel
def narrow(x, to):
    """A float64 (exact, or rounded to odd) on the grid of `to`."""
    word = np.float64(x).view(np.int64)
    magnitude = word & _MAGNITUDE
    field = magnitude >> 52
    top = max(field, np.int64(to.lowest))
    drop = min(52 - to.mantissa_bits + top - field, np.int64(60))
    significand = (magnitude & _MANTISSA) | (np.int64(1) << 52) if magnitude != 0 else np.int64(0)
    mask = (np.int64(1) << drop) - 1
    away = to.down if word < 0 else to.up
    rest = significand & mask
    code = significand + ((((mask + 1) >> 1) - to.tie) & to.nearest) + ((significand >> drop) & to.even) + (mask & away)
    code >>= drop
    code |= np.int64(to.odd) if rest != 0 else np.int64(0)
    steps = np.int64(code | _MAGIC).view(np.float64) - 4503599627370496.0
    value = steps * np.int64((top - to.mantissa_bits) << 52).view(np.float64)
    value = np.float64(0.0) if value < to.smallest else value
    above = to.negative_overflow if word < 0 else to.overflow
    value = -value if word < 0 else value
    value = above if abs(value) > to.largest else value
    beyond = to.negative_infinity if word < 0 else to.infinity
    value = beyond if magnitude == _INFINITY else value
    return (to.nan if magnitude > _INFINITY else value) + to.zero


@kernel
def add(x, y, negative_zero, to):
    """IEEE x + y in `to`; an exact zero is -0 if both are, or, where `negative_zero`, if either is negative."""
    total = to_odd(x, y)
    sign = np.float64(x).view(np.int64) | np.float64(y).view(np.int64)
    return narrow(-0.0 if (total == 0.0) & (sign < 0) & negative_zero else total, to)


@kernel
def fused(a, b, negative_zero, to, out, start, stop):
    """out[i, :] = round(a[i, k] * b[k, :] + out[i, :]) for k ascending; out is float64, on the grid of `to`."""
    for first in range(0, b.shape[1], COLUMNS):
        last = min(first + COLUMNS, b.shape[1])
        for i in range(start, stop):
            c = out[i, first:last]
            for k in range(a.shape[1]):
                x, y = a[i, k], b[k, first:last]
                for j in range(c.size):
                    c[j] = add(x * y[j], c[j], negative_zero, to)


@kernel
def unfused(a, b, negative_zero, product, to, out, start, stop):
    """`fused` with the product rounded to `product` first."""
    for first in range(0, b.shape[1], COLUMNS):
        last = min(first + COLUMNS, b.shape[1])
        for i in range(start, stop):
            c = out[i, first:last]
            for k in range(a.shape[1]):
                x, y = a[i, k], b[k, first:last]
                for j in range(c.size):
                    c[j] = add(narrow(x * y[j], product), c[j], negative_zero, to)


@kernel
def tree(a, b, terms, negative_zero, product, to, out, start, stop):
    """out[i, :] += tree of `terms` products, each rounded to `product`, every addition to `to`. K is a multiple."""
    levels = np.empty((2, terms, COLUMNS), np.float64)  # a level of the tree and the next: separate, so they vectorize
    for first in range(0, b.shape[1], COLUMNS):
        last = min(first + COLUMNS, b.shape[1])
        for i in range(start, stop):
            c = out[i, first:last]
            for k in range(0, a.shape[1], terms):
                for t in range(terms):
                    x, y, part = a[i, k + t], b[k + t, first:last], levels[0, t]
                    for j in range(c.size):
                        part[j] = narrow(x * y[j], product)
                width, level = terms, 0
                while width > 1:
                    width //= 2
                    for t in range(width):
                        left, right, part = levels[level, 2 * t], levels[level, 2 * t + 1], levels[1 - level, t]
                        for j in range(c.size):
                            part[j] = add(left[j], right[j], negative_zero, to)
                    level = 1 - level
                part = levels[level, 0]
                for j in range(c.size):
                    c[j] = add(c[j], part[j], negative_zero, to)


@kernel
def add_into(x, convert, negative_zero, to, out, start, stop):
    """out = round(out + convert(x)), element by element."""
    for i in range(start, stop):
        for j in range(out.shape[1]):
            out[i, j] = add(out[i, j], narrow(x[i, j], convert), negative_zero, to)
