"""Loops over arrays for the CPU codec, each over start .. stop of flat arrays, so that threads can share one array."""

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.intrinsics import shift_right
from fpsim._kernels.scalar import encode_float, philox, round_integer


@kernel
def encode_floats(bits, target, random, count, out, start, stop):
    """Any rounding, any float target: int64 view of float64 -> codes. `random` has one word, or one per value."""
    for i in range(start, stop):
        out[i] = encode_float(bits[i], target, np.int64(random[i if random.size > 1 else 0]), count)


@kernel
def encode_integers(x, scale, low, high, rounding, random, count, out, start, stop):
    """float64 -> integer code of value * scale (scale a power of two), clamped to low .. high; NaN is 0."""
    for i in range(start, stop):
        value = x[i] * scale
        negative = value < 0
        magnitude = abs(value)
        if value != value:
            code = 0
        elif magnitude >= 4294967296.0:
            code = low if negative else high
        else:
            word = np.int64(random[i if random.size > 1 else 0])
            code = round_integer(magnitude, np.floor(magnitude), negative, rounding, word, count)
            if negative:
                code = -code
            code = min(max(code, low), high)
        out[i] = code


@kernel
def random_words(key, shift, out, start, stop):
    """The high bits of words start .. stop of a Philox stream."""
    for i in range(start, stop):
        out[i] = philox(i, key) >> shift


@kernel
def encode_nearest_even(x, bits, target, scale, out, start, stop):
    """The fast road for float32 -> at most 16 bits, nearest even, branch-free so that it becomes vector code.

    A normal result is the float32 bits plus half a step, shifted; a subnormal one is rint(|x| / step). Both are codes
    of the magnitude; overflow, Inf and NaN are then selected over them.
    """
    drop = np.int32(23 - target.mantissa_bits)
    half = np.int32((1 << (22 - target.mantissa_bits)) - 1)
    rebias = np.int32((127 + target.minimum_exponent - 1) << target.mantissa_bits)
    smallest = np.int32((target.minimum_exponent + 127) << 23)
    if target.minimum_exponent <= -126:
        smallest = np.int32(0)  # float32's own subnormals: the shift is right for them too
    max_code, overflow, infinity, nan = (
        np.int32(target.max_code),
        np.int32(target.overflow),
        np.int32(target.infinity),
        np.int32(target.nan),
    )
    sign_bit = np.int32(target.sign_bit)
    zero_sign = np.int32(0) if target.negative_zero != 0 else np.int32(1)
    one = np.int32(1)
    x, bits, out = x[start:stop], bits[start:stop], out[start:stop]
    for i in range(out.size):
        word = bits[i]
        magnitude = np.int32(word & np.int32(0x7FFFFFFF))
        odd = np.int32(shift_right(magnitude, drop) & one)
        normal = np.int32(shift_right(np.int32(magnitude + half + odd), drop) - rebias)
        small = np.int32(np.rint(abs(x[i]) * scale))
        code = small if magnitude < smallest else normal
        code = overflow if code > max_code else code
        code = infinity if magnitude == np.int32(0x7F800000) else code
        code = nan if magnitude > np.int32(0x7F800000) else code
        sign = np.int32(np.int32(word >> np.int32(31)) & sign_bit)
        sign = np.int32(0) if code < zero_sign else sign
        out[i] = code | sign


@kernel
def look_up(codes, table, mask, out, start, stop):
    """codes -> table[code & mask]."""
    codes, out = codes[start:stop], out[start:stop]
    for i in range(out.size):
        out[i] = table[np.int64(codes[i]) & mask]
