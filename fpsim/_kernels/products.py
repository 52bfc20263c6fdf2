"""Loops of the CPU matrix products. Each fills rows start .. stop of a flat batch of outputs."""

from typing import NamedTuple

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.accumulate import fused_chain, grouped_step, two_stage_step
from fpsim._kernels.exact import exact_step
from fpsim._kernels.intrinsics import fma

WRAP, SATURATE, ERROR = range(3)


class Integer(NamedTuple):
    """An integer accumulator: see `fpsim.accumulators.IntegerAccumulator`."""

    low: int
    high: int
    overflow: int
    step: int
    step_low: int
    step_high: int


@kernel
def fused(sa, ea, sb, eb, c, plan, marked, out, begin, end, start, stop):
    """out[i, j] = T-FDPA steps over k in begin .. end from c[i, j], where marked; b is transposed, (N, K)."""
    for i in range(start, stop):
        for j in range(sb.shape[0]):
            if marked[i, j]:
                out[i, j] = fused_chain(sa, ea, i, sb, eb, j, begin, end, np.int64(c[i, j]), plan)


@kernel
def exact(sa, ea, sb, eb, plan, limb_count, out, start, stop):
    """out[i, j] += products, steps of `plan.terms` each rounded once; b is transposed, (N, K)."""
    limbs = np.zeros(limb_count, np.int64)
    depth = sa.shape[1]
    for i in range(start, stop):
        for j in range(sb.shape[0]):
            c = np.int64(out[i, j])
            for k in range(0, depth, plan.terms):
                c = exact_step(sa, ea, i, sb, eb, j, k, min(k + plan.terms, depth), c, plan, limbs)
            out[i, j] = c


@kernel
def two_stage(sa, ea, sb, eb, plan, out, start, stop):
    """out[i, j] += products, by steps of TR-FDPA or GTR-FDPA; b is transposed, (N, K)."""
    depth = sa.shape[1]
    for i in range(start, stop):
        for j in range(sb.shape[0]):
            c = np.int64(out[i, j])
            for k in range(0, depth, plan.terms):
                c = two_stage_step(sa, ea, i, sb, eb, j, k, min(k + plan.terms, depth), c, plan)
            out[i, j] = c


@kernel
def grouped(a, fa, ea, b, fb, eb, plan, out, start, stop):
    """out[i, j] += scaled products, by steps of GST-FDPA; b and its scales are transposed."""
    depth, step = a.shape[1], plan.group * plan.groups
    for i in range(start, stop):
        for j in range(b.shape[0]):
            c = np.int64(out[i, j])
            for k in range(0, depth, step):
                c = grouped_step(a, fa, ea, i, b, fb, eb, j, k, min(k + step, depth), c, plan)
            out[i, j] = c


@kernel
def flush_to_zero(x, smallest):
    """A float below the smallest normal one as a zero of its sign. `smallest` has the type of x."""
    return x * (smallest - smallest) if abs(x) < smallest else x


@kernel
def pairwise_tree(a, b, terms, smallest, out, start, stop):
    """out[i, j] += tree of `terms` rounded products; everything below `smallest` is flushed. K is a multiple."""
    part = np.empty(terms, np.float32)
    for i in range(start, stop):
        for j in range(b.shape[1]):
            c = out[i, j]
            for k in range(0, a.shape[1], terms):
                for t in range(terms):
                    part[t] = flush_to_zero(np.float32(a[i, k + t] * b[k + t, j]), smallest)
                width = terms
                while width > 1:
                    width //= 2
                    for t in range(width):
                        part[t] = flush_to_zero(np.float32(part[2 * t] + part[2 * t + 1]), smallest)
                c = flush_to_zero(np.float32(c + part[0]), smallest)
            out[i, j] = c


@kernel
def sequential_fma_flush(a, b, smallest, out, start, stop):
    """`sequential_fma` whose results below `smallest` are zeros of their sign."""
    for i in range(start, stop):
        for k in range(a.shape[1]):
            x = a[i, k]
            for j in range(b.shape[1]):
                out[i, j] = flush_to_zero(fma(x, b[k, j], out[i, j]), smallest)


@kernel
def sequential_multiply_add(a, b, smallest, out, start, stop):
    """out[i, :] = round(round(a[i, k] * b[k, :]) + out[i, :]), k ascending; everything below `smallest` is flushed."""
    for i in range(start, stop):
        for k in range(a.shape[1]):
            x = a[i, k]
            for j in range(b.shape[1]):
                out[i, j] = flush_to_zero(flush_to_zero(x * b[k, j], smallest) + out[i, j], smallest)


@kernel
def fma_into(scale, x, out, start, stop):
    """out = scale * x + out, element by element."""
    for i in range(start, stop):
        for j in range(out.shape[1]):
            out[i, j] = fma(scale[i, j], x[i, j], out[i, j])


@kernel
def sequential_fma(a, b, out, start, stop):
    """out[i, :] += a[i, k] * b[k, :], one fused multiply-add per k, ascending; out arrives holding c."""
    for i in range(start, stop):
        for k in range(a.shape[1]):
            x = a[i, k]
            for j in range(b.shape[1]):
                out[i, j] = fma(x, b[k, j], out[i, j])


@kernel
def integer_wrap(a, b, out, start, stop):
    """out[i, :] += a[i, k] * b[k, :] modulo 2**32, int32."""
    for i in range(start, stop):
        for k in range(a.shape[1]):
            x = np.int32(a[i, k])
            for j in range(b.shape[1]):
                out[i, j] = np.int32(out[i, j] + np.int32(x * np.int32(b[k, j])))


@kernel
def integer_wrap_wide(a, b, out, start, stop):
    """The same modulo 2**64, int64."""
    for i in range(start, stop):
        for k in range(a.shape[1]):
            x = np.int64(a[i, k])
            for j in range(b.shape[1]):
                out[i, j] += x * np.int64(b[k, j])


@kernel
def integer_saturate(a, b, low, high, out, start, stop):
    """The same, clamped to low .. high after every addition. Sums must fit int32 before the clamp."""
    least, most = np.int32(low), np.int32(high)
    for i in range(start, stop):
        for k in range(a.shape[1]):
            x = np.int32(a[i, k])
            for j in range(b.shape[1]):
                total = np.int32(out[i, j] + np.int32(x * np.int32(b[k, j])))
                total = least if total < least else total
                out[i, j] = most if total > most else total


@kernel
def settle(total, kind, failed, i, j, k):
    """A sum after overflow has been looked at; `failed` notes per row the first output and k out of range."""
    if kind.low <= total <= kind.high:
        return total
    if kind.overflow == ERROR and failed[i, 0] < 0:
        failed[i, 0], failed[i, 1], failed[i, 2] = j, k, total
    if kind.overflow == WRAP:
        return ((total - kind.low) & (kind.high - kind.low)) + kind.low
    return min(max(total, kind.low), kind.high)


@kernel
def integer_wide(a, b, kind, out, failed, start, stop):
    """Any ascending integer accumulator, in int64."""
    depth = a.shape[1]
    for i in range(start, stop):
        for j in range(b.shape[1]):
            total = np.int64(out[i, j])
            for k in range(0, depth, kind.step):
                part = np.int64(0)
                last = min(k + kind.step, depth)
                for t in range(k, last):
                    part += np.int64(a[i, t]) * np.int64(b[t, j])
                total = settle(total + min(max(part, kind.step_low), kind.step_high), kind, failed, i, j, last - 1)
            out[i, j] = total


@kernel
def integer_tree(a, b, kind, out, failed, start, stop):
    """Trees of `step` products, every addition looked at; K is a multiple."""
    part = np.empty(kind.step, np.int64)
    for i in range(start, stop):
        for j in range(b.shape[1]):
            total = np.int64(out[i, j])
            for k in range(0, a.shape[1], kind.step):
                last = k + kind.step - 1
                for t in range(kind.step):
                    part[t] = settle(np.int64(a[i, k + t]) * np.int64(b[k + t, j]), kind, failed, i, j, last)
                width = kind.step
                while width > 1:
                    width //= 2
                    for t in range(width):
                        part[t] = settle(part[2 * t] + part[2 * t + 1], kind, failed, i, j, last)
                total = settle(total + part[0], kind, failed, i, j, last)
            out[i, j] = total
