"""Chains and trees in float64 itself, in any rounding: the machine's sum, moved by one step where its error says so.

Operands are such that products are exact (see `chain`), so only additions round. TwoSum gives the error of the nearest
sum; its sign says on which side of the exact sum that lies, and the neighbour on that side whether it was a tie.
"""

from typing import NamedTuple

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.chain import Narrow, narrow
from fpsim._kernels.scalar import RD, RNA, RNZ, RODD, RU, RZ


class Wide(NamedTuple):
    """float64 results: a rounding, and what too large and infinite ones become."""

    rounding: int
    overflow: float
    negative_overflow: float
    infinity: float
    negative_infinity: float
    smallest: float  #: results below are zeros of their sign; 0: they stay
    product: Narrow  #: where products are rounded to, if they are
    rounded: bool  #: whether they are


@kernel
def add(x, y, to):
    """IEEE x + y in float64, rounded by `to`."""
    total = x + y
    part = total - x
    error = (x - (total - part)) + (y - part)
    word = np.float64(total).view(np.int64)
    outward = (error > 0) == (total > 0)
    step = np.int64(1) if outward else np.int64(-1)
    tie = np.int64(word + step).view(np.float64) - total == 2 * error
    move = (
        ((to.rounding == RZ) & (not outward))
        | ((to.rounding == RU) & (error > 0))
        | ((to.rounding == RD) & (error < 0))
        | ((to.rounding == RODD) & ((word & 1) == 0))
        | ((to.rounding == RNA) & tie & outward)
        | ((to.rounding == RNZ) & tie & (not outward))
    )
    if move & ((error < 0) | (error > 0)):
        word += step
    value = np.int64(word).view(np.float64)
    if abs(value) == np.inf:
        if abs(x) < np.inf and abs(y) < np.inf:
            return to.overflow if value > 0 else to.negative_overflow
        return to.infinity if value > 0 else to.negative_infinity
    if value == 0 and to.rounding == RD:
        value = np.float64(-0.0) if (np.float64(x).view(np.int64) | np.float64(y).view(np.int64)) < 0 else value
    return value * 0.0 if abs(value) < to.smallest else value


@kernel
def multiply(x, y, to):
    """The product, exact or rounded to a format of its own, or with what float64 makes of an infinite one."""
    product = x * y
    if to.rounded:
        return narrow(product, to.product)
    return product


@kernel
def chain(a, b, to, out, start, stop):
    """out[i, j] = round(a[i, k] * b[k, j] + out[i, j]) for k ascending."""
    for i in range(start, stop):
        for k in range(a.shape[1]):
            for j in range(b.shape[1]):
                out[i, j] = add(multiply(a[i, k], b[k, j], to), out[i, j], to)


@kernel
def tree(a, b, terms, to, out, start, stop):
    """out[i, j] += tree of `terms` products, every addition rounded. K is a multiple."""
    part = np.empty(terms, np.float64)
    for i in range(start, stop):
        for j in range(b.shape[1]):
            c = out[i, j]
            for k in range(0, a.shape[1], terms):
                for t in range(terms):
                    part[t] = multiply(a[i, k + t], b[k + t, j], to)
                width = terms
                while width > 1:
                    width //= 2
                    for t in range(width):
                        part[t] = add(part[2 * t], part[2 * t + 1], to)
                c = add(c, part[0], to)
            out[i, j] = c
