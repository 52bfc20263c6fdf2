"""Products of the CUDA backend, one thread per output, calling the same scalar functions as the CPU.

Shapes are those of `cuda_arrays`; the fast kernel of the fused dot product is in `cuda_tiles`.
"""

import math
from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from fpsim._kernels.accumulate import (
    align,
    fused_chain,
    grouped_step,
    round_sum,
    special_code,
    two_stage_step,
    unpack_code,
)
from fpsim._kernels.cuda_arrays import place
from fpsim._kernels.cuda_words import float_word, fused_multiply_add, word_float
from fpsim._kernels.exact import exact_step
from fpsim._kernels.fixed import LIMIT
from fpsim._kernels.products import flush_to_zero


@cuda.jit(device=True)
def _added(x, y, to):
    """IEEE addition of two codes of a float32 or float16 container, to nearest even; NaN is the engine's."""
    if to.container_exponent_bits == 8:
        total = word_float(np.int32(x)) + word_float(np.int32(y))
        return np.int64(float_word(total)) & 0xFFFFFFFF if total == total else np.int64(to.nan)
    a, of_a, kind_a = unpack_code(x, to)
    b, of_b, kind_b = unpack_code(y, to)
    if kind_a != 0 or kind_b != 0:
        nan = kind_a == 2 or kind_b == 2
        positive = (kind_a == 1 and a > 0) or (kind_b == 1 and b > 0)
        negative = (kind_a == 1 and a < 0) or (kind_b == 1 and b < 0)
        return np.int64(special_code(nan, positive, negative, to))
    return np.int64(round_sum(align(a, of_a + 14) + align(b, of_b + 14), -14 - to.container_mantissa_bits, to))


@cuda.jit
def fused(sa, ea, sb, eb, start, redo, plan, begin, end, every, out):
    """out = T-FDPA steps over k in begin .. end from `start`, where `redo` (everywhere if it is empty).

    every > 0: the chain starts from zero and is added to the outer sum, which starts from `start`, after so many k.
    """
    t, i, j = place(out.shape)
    if t >= 0 and (redo.size == 0 or redo[t, i, j] != 0):
        at = min(t, sb.shape[0] - 1)
        c = np.int64(start[t, i, j])
        if every == 0:
            c = np.int64(fused_chain(sa[t], ea[t], i, sb[at], eb[at], j, begin, end, c, plan))
        else:
            for k in range(begin, end, every):
                stop = min(k + every, end)
                part = fused_chain(sa[t], ea[t], i, sb[at], eb[at], j, k, stop, np.int64(0), plan)
                c = _added(c, np.int64(part), plan.sum)
        out[t, i, j] = c


@cuda.jit
def two_stage(sa, ea, sb, eb, plan, out):
    """out += products, by steps of TR-FDPA or GTR-FDPA."""
    t, i, j = place(out.shape)
    if t >= 0:
        at, depth, c = min(t, sb.shape[0] - 1), sa.shape[2], np.int64(out[t, i, j])
        for k in range(0, depth, plan.terms):
            stop = min(k + plan.terms, depth)
            c = np.int64(two_stage_step(sa[t], ea[t], i, sb[at], eb[at], j, k, stop, c, plan))
        out[t, i, j] = c


@cuda.jit
def grouped(a, fa, ea, b, fb, eb, plan, out):
    """out += scaled products, by steps of GST-FDPA."""
    t, i, j = place(out.shape)
    if t >= 0:
        at, depth, c = min(t, b.shape[0] - 1), a.shape[2], np.int64(out[t, i, j])
        step = plan.group * plan.groups
        for k in range(0, depth, step):
            stop = min(k + step, depth)
            c = np.int64(grouped_step(a[t], fa[t], ea[t], i, b[at], fb[at], eb[at], j, k, stop, c, plan))
        out[t, i, j] = c


@cuda.jit
def add(total, part, plan):
    """total += part, codes of one container."""
    t, i, j = place(total.shape)
    if t >= 0:
        total[t, i, j] = _added(np.int64(total[t, i, j]), np.int64(part[t, i, j]), plan)


@cuda.jit
def add_scaled(total, part, a_scale, b_scale, group, nan):
    """total = (a_scale * b_scale) * part + total by one fused multiply-add (float32 words), scales of one group."""
    t, i, j = place(total.shape)
    if t >= 0:
        at = min(t, b_scale.shape[0] - 1)
        scale = np.float32(a_scale[t, i, group] * b_scale[at, j, group])
        value = fused_multiply_add(scale, word_float(np.int32(part[t, i, j])), word_float(np.int32(total[t, i, j])))
        total[t, i, j] = np.int64(float_word(value)) & 0xFFFFFFFF if value == value else nan


@cuda.jit
def sequential(a, b, smallest, out):
    """out += a @ b, one fused multiply-add per k, ascending; what is below `smallest` is flushed."""
    t, i, j = place(out.shape)
    if t >= 0:
        at, c = min(t, b.shape[0] - 1), out[t, i, j]
        for k in range(a.shape[2]):
            c = flush_to_zero(fused_multiply_add(a[t, i, k], b[at, j, k], c), smallest)
        out[t, i, j] = c


@cache
def exact_kernel(limb_count: int) -> Any:
    """The kernel that adds steps of products exactly, in `limb_count` limbs: sa, ea, sb, eb, plan, out."""

    @cuda.jit
    def exact(sa, ea, sb, eb, plan, out):
        t, i, j = place(out.shape)
        if t >= 0:
            limbs = cuda.local.array(limb_count, np.int64)
            for k in range(limb_count):
                limbs[k] = 0
            at, depth, c = min(t, sb.shape[0] - 1), sa.shape[2], np.int64(out[t, i, j])
            for k in range(0, depth, plan.terms):
                stop = min(k + plan.terms, depth)
                c = np.int64(exact_step(sa[t], ea[t], i, sb[at], eb[at], j, k, stop, c, plan, limbs))
            out[t, i, j] = c

    return exact


@cache
def pairwise_kernel(terms: int) -> Any:
    """The kernel that adds trees of `terms` rounded float32 products, K a multiple of it: a, b, smallest, out."""

    @cuda.jit
    def pairwise(a, b, smallest, out):
        t, i, j = place(out.shape)
        if t >= 0:
            part = cuda.local.array(terms, np.float32)
            at, c = min(t, b.shape[0] - 1), out[t, i, j]
            for k in range(0, a.shape[2], terms):
                for n in range(terms):
                    part[n] = flush_to_zero(np.float32(a[t, i, k + n] * b[at, j, k + n]), smallest)
                width = terms
                while width > 1:
                    width //= 2
                    for n in range(width):
                        part[n] = flush_to_zero(np.float32(part[2 * n] + part[2 * n + 1]), smallest)
                c = flush_to_zero(np.float32(c + part[0]), smallest)
            out[t, i, j] = c

    return pairwise


@cuda.jit
def integer(a, b, plan, out, failed):
    """out += a @ b as `products.integer_wide`; `failed` becomes 1 where overflow is an error and happened."""
    t, i, j = place(out.shape)
    if t >= 0:
        at, depth, total = min(t, b.shape[0] - 1), a.shape[2], np.int64(out[t, i, j])
        for k in range(0, depth, plan.step):
            part = np.int64(0)
            for n in range(k, min(k + plan.step, depth)):
                part += np.int64(a[t, i, n]) * np.int64(b[at, j, n])
            total += min(max(part, plan.step_low), plan.step_high)
            if total < plan.low or total > plan.high:
                if plan.overflow == 2:
                    failed[0] = 1
                if plan.overflow == 0:
                    total = ((total - plan.low) & (plan.high - plan.low)) + plan.low
                else:
                    total = min(max(total, plan.low), plan.high)
        out[t, i, j] = total


@cuda.jit
def fixed(a, b, scale, plan, out):
    """out = what a register holds of out and the products, read: as `_kernels.fixed`, in int64 between additions.

    scale : makes units of the register's last bit of a product of a and b.
    """
    t, i, j = place(out.shape)
    if t >= 0:
        at, low, high = min(t, b.shape[0] - 1), np.int64(plan.low), np.int64(plan.high)
        to, total = plan.sum, np.int64(0)
        significand, exponent, kind = unpack_code(np.int64(out[t, i, j]), to)
        nan, positive, negative = kind == 2, kind == 1 and significand > 0, kind == 1 and significand < 0
        shift = exponent - to.container_mantissa_bits - plan.lsb  # beyond 62 a c saturates, or wraps to 0, all the same
        start = float(significand) * float(1 << min(shift, 62)) if shift > 0 else float(align(significand, shift))
        for k in range(-1, a.shape[2]):
            product = start if k < 0 else (np.float64(a[t, i, k]) * scale) * np.float64(b[at, j, k])
            nan = nan or product != product
            positive, negative = positive or product == np.inf, negative or product == -np.inf
            if nan or positive or negative:
                continue
            if plan.wrap:
                if abs(product) >= LIMIT:
                    product = math.fmod(product, plan.size)
                total = ((total + np.int64(product) - low) & (high - low)) + low
            else:
                total = min(max(total + np.int64(min(max(product, -LIMIT), LIMIT)), low), high)
        special = nan or positive or negative
        out[t, i, j] = special_code(nan, positive, negative, to) if special else round_sum(total, plan.lsb, to)
