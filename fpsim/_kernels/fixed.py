"""A fixed-point register, in float64 that holds integers: whole rows of outputs at a time.

Terms and sums count units of the register's last bit. Registers have at most 52 bits here and terms are brought below
2**52 in magnitude before they are added (a larger one saturates all the same, or leaves its remainder), so that every
sum is an integer below 2**53 and float64 exact.
"""

from typing import NamedTuple

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.accumulate import Sum, round_sum, special_code, unpack_code
from fpsim._kernels.count import DROPPED, OVERFLOW, TRUNCATED, note_result

#: Terms beyond this, in units of the last bit, saturate every register.
LIMIT = 2.0**52


class Fixed(NamedTuple):
    """A register: see `fpsim.accumulators.FixedPoint`. The first four are in units of its last bit."""

    low: float
    high: float
    size: float  #: 2**bits
    inverse: float  #: 2**-bits
    lsb: int
    wrap: bool
    sum: Sum


@kernel
def wrapping(x, y, plan, total, start, stop):
    """total[i, :] += x[i, k] * y[k, :], cut off and wrapped, k ascending."""
    low, size, inverse = plan.low, plan.size, plan.inverse
    for i in range(start, stop):
        for k in range(x.shape[1]):
            a = x[i, k]
            for j in range(y.shape[1]):
                term = np.trunc(a * y[k, j])
                term -= np.floor(term * inverse) * size
                held = total[i, j] + term
                total[i, j] = held - np.floor((held - low) * inverse) * size


@kernel
def saturating(x, y, plan, total, start, stop):
    """total[i, :] += x[i, k] * y[k, :], cut off and clamped, k ascending."""
    low, high = plan.low, plan.high
    for i in range(start, stop):
        for k in range(x.shape[1]):
            a = x[i, k]
            for j in range(y.shape[1]):
                term = min(max(np.trunc(a * y[k, j]), -LIMIT), LIMIT)
                total[i, j] = min(max(total[i, j] + term, low), high)


@kernel
def read(total, plan, out, start, stop):
    """out = codes of what registers hold."""
    for i in range(start, stop):
        for j in range(total.shape[1]):
            out[i, j] = round_sum(np.int64(total[i, j]), plan.lsb, plan.sum)


@kernel
def specials(x, y, c, marked, plan, out, start, stop):
    """Codes of outputs that are marked for an Inf or NaN among their products or in c (codes), over those in out."""
    for i in range(start, stop):
        for j in range(y.shape[1]):
            if not marked[i, j]:
                continue
            significand, _, kind = unpack_code(np.int64(c[i, j]), plan.sum)
            nan, positive, negative = kind == 2, kind == 1 and significand > 0, kind == 1 and significand < 0
            for k in range(x.shape[1]):
                product = x[i, k] * y[k, j]
                nan = nan or product != product
                positive, negative = positive or product == np.inf, negative or product == -np.inf
            out[i, j] = special_code(nan, positive, negative, plan.sum)


@kernel
def counted(x, y, given, plan, total, tally, start, stop):
    """`wrapping` or `saturating`, one output at a time, from a start before it was cut off, noting losses."""
    for i in range(start, stop):
        for j in range(y.shape[1]):
            held, notes = 0.0, tally[i, j]
            for k in range(-1, x.shape[1]):
                exact = given[i, j] if k < 0 else x[i, k] * y[k, j]
                term = np.trunc(exact)
                if term != exact:
                    notes[TRUNCATED] += 1
                    if term == 0:
                        notes[DROPPED] += 1
                capped = held + min(max(term, -LIMIT), LIMIT)
                if capped < plan.low or capped > plan.high:
                    notes[OVERFLOW] += 1
                if plan.wrap:
                    held += term - np.floor(term * plan.inverse) * plan.size
                    held -= np.floor((held - plan.low) * plan.inverse) * plan.size
                else:
                    held = min(max(capped, plan.low), plan.high)
            total[i, j] = held


@kernel
def note_reading(total, plan, marked, out, tally, start, stop):
    """Losses of the one rounding. `marked`: plan.sum with -1 for overflow."""
    for i in range(start, stop):
        for j in range(total.shape[1]):
            note_result(np.int64(total[i, j]), plan.lsb, np.int64(out[i, j]), plan.sum, marked, tally[i, j])
