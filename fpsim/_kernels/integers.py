"""Integer accumulators that look at overflow in steps or trees, as vector code: whole rows of outputs at a time.

`word` is an empty array of the type that sums are computed in: int32 where every product, step and sum before the
clamp fits it, else int64. Overflow wraps or saturates here; "error" is left to `products`, which notes where.
"""

import numpy as np

from fpsim._jit import kernel

COLUMNS = 256


@kernel
def clamp(total, low, high, wrap):
    """A sum after overflow has been looked at; all arguments in one type."""
    if wrap:
        return ((total - low) & (high - low)) + low
    return min(max(total, low), high)


@kernel
def steps(a, b, kind, wrap, word, out, start, stop):
    """out[i, :] += sums of `kind.step` products, each clamped to the step's bits, then added and settled."""
    one = word.dtype.type
    low, high, step_low, step_high = one(kind.low), one(kind.high), one(kind.step_low), one(kind.step_high)
    part_row = np.empty(COLUMNS, word.dtype)
    for first in range(0, b.shape[1], COLUMNS):
        last = min(first + COLUMNS, b.shape[1])
        part = part_row[: last - first]
        for i in range(start, stop):
            c = out[i, first:last]
            for k in range(0, a.shape[1], kind.step):
                part[:] = 0
                for t in range(k, min(k + kind.step, a.shape[1])):
                    x, y = one(a[i, t]), b[t, first:last]
                    for j in range(c.size):
                        part[j] = one(part[j] + one(x * one(y[j])))
                for j in range(c.size):
                    total = one(one(c[j]) + min(max(part[j], step_low), step_high))
                    c[j] = clamp(total, low, high, wrap)


@kernel
def trees(a, b, kind, wrap, word, out, start, stop):
    """out[i, :] += trees of `kind.step` products, every addition settled. K is a multiple."""
    one = word.dtype.type
    low, high = one(kind.low), one(kind.high)
    levels = np.empty((2, kind.step, COLUMNS), word.dtype)
    for first in range(0, b.shape[1], COLUMNS):
        last = min(first + COLUMNS, b.shape[1])
        for i in range(start, stop):
            c = out[i, first:last]
            for k in range(0, a.shape[1], kind.step):
                for t in range(kind.step):
                    x, y, part = one(a[i, k + t]), b[k + t, first:last], levels[0, t]
                    for j in range(c.size):
                        part[j] = clamp(one(x * one(y[j])), low, high, wrap)
                width, level = kind.step, 0
                while width > 1:
                    width //= 2
                    for t in range(width):
                        left, right, part = levels[level, 2 * t], levels[level, 2 * t + 1], levels[1 - level, t]
                        for j in range(c.size):
                            part[j] = clamp(one(left[j] + right[j]), low, high, wrap)
                    level = 1 - level
                part = levels[level, 0]
                for j in range(c.size):
                    c[j] = clamp(one(one(c[j]) + part[j]), low, high, wrap)
