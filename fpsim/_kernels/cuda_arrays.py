"""Kernels of the CUDA backend that take arrays apart and put results together: one thread per element.

Operands are (T, rows, K) arrays, T independent products; where the second operand serves all of them its T is 1.
"""

import numpy as np
from numba import cuda

from fpsim._kernels.accumulate import INFINITE, NAN, ZERO
from fpsim._kernels.cuda_tiles import ABSENT
from fpsim._kernels.cuda_words import double_word, word_float
from fpsim._kernels.products import flush_to_zero
from fpsim._kernels.scalar import encode_float


@cuda.jit(device=True)
def place(shape):
    """(product, row, column) of this thread in an array of that shape; product -1 outside."""
    n = np.int64(cuda.grid(1))
    columns, rows = shape[2], shape[1]
    return (n // (rows * columns) if n < shape[0] * rows * columns else -1), n // columns % rows, n % columns


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
    t, i, k = place(out_significands.shape)
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
    t, k, i = place(values.shape)
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
    t, i, k = place(out.shape)
    if t >= 0:
        value = table[0] if table.size != 0 else out[t, i, k]
        if order[k] >= 0:
            code = codes[t * strides[0] + i * strides[1] + order[k] * strides[2]]
            value = table[np.int64(code) & (table.size - 1)] if table.size != 0 else code
        out[t, i, k] = value


@cuda.jit
def patches(x, w, pad_code, stride, padding, dilation, size, kernel_last, out):
    """im2col: x (N, C, H, W) -> out (1, N * H' * W', C * KH * KW), where `w` is (KH, KW) and size is (H', W')."""
    t, i, k = place(out.shape)
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
    t, i, j = place(rows.shape)
    if t >= 0:
        pixel = i % pixels
        out[i // pixels, first + j, pixel // out.shape[3], pixel % out.shape[3]] = rows[t, i, j]


@cuda.jit
def outside(codes, strides, shape, low, high, found):
    """found[0] = 1 if any code leaves low .. high."""
    t, i, k = place(shape)
    if t >= 0:
        code = np.int64(codes[t * strides[0] + i * strides[1] + k * strides[2]])
        if code < low or code > high:
            found[0] = 1


@cuda.jit
def flush(array, smallest, positive):
    """What is below `smallest` becomes a zero of its sign, or +0."""
    t, i, k = place(array.shape)
    if t >= 0 and abs(array[t, i, k]) < smallest:
        array[t, i, k] = 0 if positive else flush_to_zero(array[t, i, k], smallest)


@cuda.jit
def canonical(values, words, nan):
    """The engine's NaN wherever there is one."""
    t, i, j = place(words.shape)
    if t >= 0 and values[t, i, j] != values[t, i, j]:
        words[t, i, j] = nan


@cuda.jit
def epilogue(words, a_scale, b_scale, bias, scalar, out):
    """float32 sums (words) times scales, plus bias, each operation one rounding: see `fpsim.spec.Epilogue`."""
    t, i, j = place(out.shape)
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
    t, i, j = place(out.shape)
    if t >= 0:
        out[t, i, j] = encode_float(double_word(np.float64(values[t, i, j])), target, 0, 0)
