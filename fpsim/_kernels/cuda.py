"""Kernels of the CUDA backend: one thread per output or element, calling the same scalar functions as the CPU.

Operands are (T, rows, K) arrays, T independent products; where the second operand serves all of them its T is 1. The
fast kernel of the fused dot product is in `cuda_tiles`.
"""

from functools import cache
from typing import Any

import numpy as np
from numba import cuda

from fpsim._kernels.accumulate import (
    INFINITE,
    NAN,
    ZERO,
    align,
    exact_step,
    fused_chain,
    grouped_step,
    round_sum,
    special_code,
    two_stage_step,
    unpack_code,
)
from fpsim._kernels.cuda_tiles import ABSENT
from fpsim._kernels.cuda_words import double_word, float_word, fused_multiply_add, word_float
from fpsim._kernels.products import flush_to_zero
from fpsim._kernels.scalar import encode_float


@cuda.jit(device=True)
def _place(shape):
    """(product, row, column) of this thread in an array of that shape; product -1 outside."""
    n = np.int64(cuda.grid(1))
    columns, rows = shape[2], shape[1]
    return (n // (rows * columns) if n < shape[0] * rows * columns else -1), n // columns % rows, n % columns


# -- operands -----------------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _significand_exponent(code, fields, significands, exponents):
    """A code's signed significand and marked exponent: from a table, or from an IEEE layout of more than 16 bits."""
    if significands.size != 0:
        at = np.int64(code) & (significands.size - 1)
        return np.int64(significands[at]), np.int64(exponents[at])
    mantissa_bits, exponent_bits, shift = fields
    word = np.int64(code) >> shift
    top = (1 << exponent_bits) - 1
    field = (word >> mantissa_bits) & top
    significand = word & ((1 << mantissa_bits) - 1)
    exponent = max(field, 1) - (top >> 1)
    if field == top:
        exponent = NAN if significand != 0 else INFINITE
        significand = 1
    elif field != 0:
        significand += 1 << mantissa_bits
    elif significand == 0:
        exponent = ZERO
    if (word >> (mantissa_bits + exponent_bits)) & 1 != 0:
        significand = -significand
    return np.int64(significand), np.int64(exponent)


@cuda.jit(device=True)
def _moved(exponent, power):
    """An exponent moved by a scale's: marks stay, a NaN scale makes NaN of everything."""
    if power == NAN:
        return NAN
    return exponent if exponent == ZERO or exponent >= INFINITE else exponent + power


@cuda.jit
def unpack(codes, strides, order, fields, significands, exponents, powers, block, out_significands, out_exponents):
    """Codes (any strides, in elements) -> significands and marked exponents (T, rows, K'), k taken by `order` (-1: 0).

    powers : int16 (T, rows, K / block), exponents of scales that join the elements'; empty for none.
    """
    t, i, k = _place(out_significands.shape)
    if t >= 0:
        source = order[k]
        significand, exponent = np.int64(0), np.int64(ZERO)
        if source >= 0:
            code = codes[t * strides[0] + i * strides[1] + source * strides[2]]
            significand, exponent = _significand_exponent(code, fields, significands, exponents)
            if powers.size != 0:
                exponent = _moved(exponent, np.int64(powers[t, i, source // block]))
        out_significands[t, i, k] = significand
        out_exponents[t, i, k] = exponent


@cuda.jit
def unpack_tiles(codes, strides, order, fields, significands, exponents, powers, block, limits, values, out, bad):
    """The same for `cuda_tiles`: float32 values and exponents (T, K', rows'), and the rows that do not qualify.

    limits : smallest and largest exponent that qualify, and the fraction bits of a significand.
    """
    t, k, i = _place(values.shape)
    if t >= 0 and i < bad.shape[1] and order[k] >= 0:
        source = order[k]
        code = codes[t * strides[0] + i * strides[1] + source * strides[2]]
        significand, exponent = _significand_exponent(code, fields, significands, exponents)
        if powers.size != 0:
            exponent = _moved(exponent, np.int64(powers[t, i, source // block]))
        value, mark = np.float32(0), np.int64(ABSENT)
        if exponent != ZERO:
            if exponent < limits[0] or exponent > limits[1]:
                bad[t, i] = 1
            else:
                unit = word_float(np.int32(np.int32(127 + exponent - limits[2]) << 23))
                value, mark = np.float32(np.float32(significand) * unit), exponent
        values[t, k, i] = value
        out[t, k, i] = mark
    elif t >= 0:
        values[t, k, i] = np.float32(0)
        out[t, k, i] = ABSENT


@cuda.jit
def clear(flat):
    """Zeros, one thread per element."""
    n = cuda.grid(1)
    if n < flat.size:
        flat[n] = 0


@cuda.jit
def gather(codes, strides, order, table, out):
    """Codes (any strides) -> table[code], or the code itself without a table, as an array (T, rows, K')."""
    t, i, k = _place(out.shape)
    if t >= 0:
        value = table[0] if table.size != 0 else out[t, i, k]
        if order[k] >= 0:
            code = codes[t * strides[0] + i * strides[1] + order[k] * strides[2]]
            value = table[np.int64(code) & (table.size - 1)] if table.size != 0 else code
        out[t, i, k] = value


@cuda.jit
def patches(x, w, pad_code, stride, padding, dilation, size, kernel_last, out):
    """im2col: x (N, C, H, W) -> out (1, N * H' * W', C * KH * KW), where `w` is (KH, KW) and size is (H', W')."""
    t, i, k = _place(out.shape)
    if t >= 0:
        taps = w[0] * w[1]
        channel, tap = (k // taps, k % taps) if kernel_last else (k % x.shape[1], k // x.shape[1])
        row = i // size[1] % size[0] * stride[0] + tap // w[1] * dilation[0] - padding[0]
        column = i % size[1] * stride[1] + tap % w[1] * dilation[1] - padding[1]
        inside = row >= 0 and row < x.shape[2] and column >= 0 and column < x.shape[3]
        out[t, i, k] = x[i // (size[0] * size[1]), channel, row, column] if inside else pad_code


@cuda.jit
def channels_first(rows, pixels, first, out):
    """Rows (1, N * pixels, O) of a convolution into channels `first` .. of out (N, channels, H', W')."""
    t, i, j = _place(rows.shape)
    if t >= 0:
        pixel = i % pixels
        out[i // pixels, first + j, pixel // out.shape[3], pixel % out.shape[3]] = rows[t, i, j]


@cuda.jit
def outside(codes, strides, shape, low, high, found):
    """found[0] = 1 if any code leaves low .. high."""
    t, i, k = _place(shape)
    if t >= 0:
        code = np.int64(codes[t * strides[0] + i * strides[1] + k * strides[2]])
        if code < low or code > high:
            found[0] = 1


# -- products -----------------------------------------------------------------------------------------------------


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
    t, i, j = _place(out.shape)
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
    t, i, j = _place(out.shape)
    if t >= 0:
        at, depth, c = min(t, sb.shape[0] - 1), sa.shape[2], np.int64(out[t, i, j])
        for k in range(0, depth, plan.terms):
            stop = min(k + plan.terms, depth)
            c = np.int64(two_stage_step(sa[t], ea[t], i, sb[at], eb[at], j, k, stop, c, plan))
        out[t, i, j] = c


@cuda.jit
def grouped(a, fa, ea, b, fb, eb, plan, out):
    """out += scaled products, by steps of GST-FDPA."""
    t, i, j = _place(out.shape)
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
    t, i, j = _place(total.shape)
    if t >= 0:
        total[t, i, j] = _added(np.int64(total[t, i, j]), np.int64(part[t, i, j]), plan)


@cuda.jit
def add_scaled(total, part, a_scale, b_scale, group, nan):
    """total = (a_scale * b_scale) * part + total by one fused multiply-add (float32 words), scales of one group."""
    t, i, j = _place(total.shape)
    if t >= 0:
        at = min(t, b_scale.shape[0] - 1)
        scale = np.float32(a_scale[t, i, group] * b_scale[at, j, group])
        value = fused_multiply_add(scale, word_float(np.int32(part[t, i, j])), word_float(np.int32(total[t, i, j])))
        total[t, i, j] = np.int64(float_word(value)) & 0xFFFFFFFF if value == value else nan


@cuda.jit
def sequential(a, b, smallest, out):
    """out += a @ b, one fused multiply-add per k, ascending; what is below `smallest` is flushed."""
    t, i, j = _place(out.shape)
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
        t, i, j = _place(out.shape)
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
        t, i, j = _place(out.shape)
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
    t, i, j = _place(out.shape)
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


# -- what follows a product ---------------------------------------------------------------------------------------


@cuda.jit
def flush(array, smallest, positive):
    """What is below `smallest` becomes a zero of its sign, or +0."""
    t, i, k = _place(array.shape)
    if t >= 0 and abs(array[t, i, k]) < smallest:
        array[t, i, k] = 0 if positive else flush_to_zero(array[t, i, k], smallest)


@cuda.jit
def canonical(values, words, nan):
    """The engine's NaN wherever there is one."""
    t, i, j = _place(words.shape)
    if t >= 0 and values[t, i, j] != values[t, i, j]:
        words[t, i, j] = nan


@cuda.jit
def epilogue(words, a_scale, b_scale, bias, scalar, out):
    """float32 sums (words) times scales, plus bias, each operation one rounding: see `fpsim.spec.Epilogue`."""
    t, i, j = _place(out.shape)
    if t >= 0:
        value = word_float(np.int32(words[t, i, j]))
        left = a_scale[i % a_scale.size]
        right = b_scale[j % b_scale.size]
        if scalar:
            value = np.float32(value * np.float32(left * right))
        else:
            value = np.float32(np.float32(value * right) * left)
        if bias.size != 0:
            value = np.float32(value + bias[j % bias.size])
        out[t, i, j] = value


@cuda.jit
def cast(values, target, out):
    """float32 values -> codes of another float format, to nearest even."""
    t, i, j = _place(out.shape)
    if t >= 0:
        out[t, i, j] = encode_float(double_word(np.float64(values[t, i, j])), target, 0, 0)
