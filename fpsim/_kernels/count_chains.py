"""What chains, trees and integer accumulators lose on their way: see `count`, whose tally this fills."""

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.chain import add, narrow, to_odd
from fpsim._kernels.count import DROPPED, INEXACT, OVERFLOW
from fpsim._kernels.products import WRAP


@kernel
def note_rounding(x, result, to, free, notes):
    """A float64, exact or rounded to odd, and what it became. `free`: `to` without a largest value."""
    if abs(x) < np.inf and x != result:  # a number rounded to odd keeps 53 bits, more than any result
        notes[INEXACT] += 1
        if abs(narrow(x, free)) > to.largest:
            notes[OVERFLOW] += 1


@kernel
def counted_add(x, y, negative_zero, to, free, notes):
    """`chain.add`, noted. Dropped: an addend that is not zero and left the other one as it was."""
    result = add(x, y, negative_zero, to)
    if abs(x) < np.inf and abs(y) < np.inf:
        exact_sum = to_odd(x, y)
        note_rounding(exact_sum, result, to, free, notes)
        if result != exact_sum and ((result == x and y != 0) or (result == y and x != 0)):
            notes[DROPPED] += 1
    return result


@kernel
def counted_product(x, y, to, free, notes):
    """A product rounded to `to`, noted."""
    result = narrow(x * y, to)
    note_rounding(x * y, result, to, free, notes)
    return result


@kernel
def chain(a, b, fused_product, negative_zero, product, to, free_product, free, out, tally, start, stop):
    """`chain.fused` or `chain.unfused`."""
    for i in range(start, stop):
        for j in range(b.shape[1]):
            c, notes = out[i, j], tally[i, j]
            for k in range(a.shape[1]):
                x = a[i, k] * b[k, j]
                if not fused_product:
                    x = counted_product(a[i, k], b[k, j], product, free_product, notes)
                c = counted_add(x, c, negative_zero, to, free, notes)
            out[i, j] = c


@kernel
def tree(a, b, terms, negative_zero, product, to, free_product, free, out, tally, start, stop):
    """`chain.tree`. K is a multiple of `terms`."""
    part = np.empty(terms, np.float64)
    for i in range(start, stop):
        for j in range(b.shape[1]):
            c, notes = out[i, j], tally[i, j]
            for k in range(0, a.shape[1], terms):
                for t in range(terms):
                    part[t] = counted_product(a[i, k + t], b[k + t, j], product, free_product, notes)
                width = terms
                while width > 1:
                    width //= 2
                    for t in range(width):
                        part[t] = counted_add(part[2 * t], part[2 * t + 1], negative_zero, to, free, notes)
                c = counted_add(c, part[0], negative_zero, to, free, notes)
            out[i, j] = c


@kernel
def add_into(x, negative_zero, convert, to, free_convert, free, out, tally, start, stop):
    """`chain.add_into`: the promotions of an inner sum."""
    for i in range(start, stop):
        for j in range(out.shape[1]):
            notes = tally[i, j]
            part = narrow(x[i, j], convert)
            note_rounding(x[i, j], part, convert, free_convert, notes)
            out[i, j] = counted_add(out[i, j], part, negative_zero, to, free, notes)


@kernel
def settled(total, kind, notes):
    """An integer sum after overflow has been looked at, noted."""
    if kind.low <= total <= kind.high:
        return total
    notes[OVERFLOW] += 1
    if kind.overflow == WRAP:
        return ((total - kind.low) & (kind.high - kind.low)) + kind.low
    return min(max(total, kind.low), kind.high)


@kernel
def integer(a, b, kind, pairwise, out, tally, start, stop):
    """`products.integer_wide` or `products.integer_tree`."""
    depth, part = a.shape[1], np.empty(kind.step, np.int64)
    for i in range(start, stop):
        for j in range(b.shape[1]):
            total, notes = np.int64(out[i, j]), tally[i, j]
            for k in range(0, depth, kind.step):
                count = min(k + kind.step, depth) - k
                for t in range(kind.step):
                    part[t] = np.int64(a[i, k + t]) * np.int64(b[k + t, j]) if t < count else np.int64(0)
                width = kind.step
                if pairwise:
                    for t in range(count):
                        part[t] = settled(part[t], kind, notes)
                    while width > 1:
                        width //= 2
                        for t in range(width):
                            part[t] = settled(part[2 * t] + part[2 * t + 1], kind, notes)
                step = part[:width].sum()
                if step < kind.step_low or step > kind.step_high:
                    notes[OVERFLOW] += 1
                    step = min(max(step, kind.step_low), kind.step_high)
                total = settled(total + step, kind, notes)
            out[i, j] = total
