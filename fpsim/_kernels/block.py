"""Quantize-dequantize of whole blocks: choose the scale, round the elements, scale back, in registers.

The same values as `fpsim.blocks.encode` and `decode` one after the other, without the codes in between. Elements are
rounded as in `cpu.encode_by_addition`: adding and subtracting M = 1.5 * 2**(e + 23 - m) rounds a float32 with exponent
e to m fraction bits, nearest even; e is held at the element's smallest exponent, which makes the same two operations
round subnormals, and is that exponent always where the element is an integer. Values are clamped to the element's
range first: its ends are on the grid and rounding is monotone, so that is saturation.

Where the scale is a power of two nothing is divided: the grid times the scale is rounded to instead. Everything else
is x / step, rounded, times step, two float32 operations as the definition says.

Arrays are flat; a block is `parts` times LANES values.
"""

from typing import NamedTuple

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.intrinsics import bits_of, float_of
from fpsim._kernels.lanes import LANES, largest_magnitude, round_scaled, round_to_grid

INFINITY = 0x7F800000  #: bits of +Inf in float32


class Element(NamedTuple):
    """An element format for rounding float32 to nearest even with saturation."""

    mantissa_bits: int  #: 0 for integers
    minimum_exponent: int  #: of the last bit, for integers
    fields: int  #: mask of the exponent field; 0 for integers, whose spacing does not depend on the value
    sign: int  #: mask of the sign where the format has a -0, else 0
    low: float
    high: float
    emax: int  #: exponent of the largest value


@kernel
def nearest(x, floor, lift, fields, sign, low, high):
    """x clamped to low .. high, rounded; floor: exponent field of the smallest spacing; lift: M's field over x's."""
    y = max(min(x, high), low)
    addend = float_of(np.int32(max(np.int32(bits_of(y) & fields), floor) + lift))
    y = np.float32(np.float32(y + addend) - addend)
    return float_of(np.int32(bits_of(y) | np.int32(bits_of(x) & sign)))


@kernel
def largest_word(words, start, stop):
    """Bits of the largest magnitude of start .. stop."""
    top = np.int32(0)
    for at in range(start, stop, LANES):
        top = max(top, largest_magnitude(words, at))
    return top


@kernel
def quantize_power_of_two(x, words, block, element, out, start, stop):
    """MX with the floor rule: blocks start .. stop; `words` are the bits of x."""
    fields, sign = np.int32(element.fields), np.int32(element.sign)
    lift = np.int32((23 - element.mantissa_bits) << 23 | 0x400000)
    low, high = np.float32(element.low), np.float32(element.high)
    own_floor = np.int32((element.minimum_exponent + 127) << 23)
    least, most = 1 - element.minimum_exponent, 254 - 23 - element.emax  # codes whose powers stay normal float32
    for i in range(start, stop):
        first, last = i * block, (i + 1) * block
        top = largest_word(words, first, last)
        if top >= np.int32(INFINITY):
            out[first:last] = np.float32(np.nan)
            continue
        code = max((np.int64(top) >> 23) - element.emax, 0)
        scale = float_of(np.int32(code << 23 if code > 0 else 1 << 22))  # 2**(code - 127); 2**-127 is subnormal
        if least <= code <= most:
            floor = np.int32((element.minimum_exponent + code) << 23)
            least_value, most_value = np.float32(low * scale), np.float32(high * scale)
            for at in range(first, last, LANES):
                round_to_grid(x, out, at, floor, lift, fields, sign, least_value, most_value)
        else:
            for at in range(first, last, LANES):
                round_scaled(x, out, at, scale, own_floor, lift, fields, sign, low, high)


@kernel
def quantize_by_steps(x, block, element, steps, out, start, stop):
    """out = element(x / step) * step with one float32 step per block; a zero step makes zeros, a NaN one NaN."""
    fields, sign = np.int32(element.fields), np.int32(element.sign)
    floor = np.int32((element.minimum_exponent + 127) << 23)
    lift = np.int32((23 - element.mantissa_bits) << 23 | 0x400000)
    low, high = np.float32(element.low), np.float32(element.high)
    for i in range(start, stop):
        first, last, step = i * block, (i + 1) * block, steps[i]
        if step > np.float32(0):
            for at in range(first, last, LANES):
                round_scaled(x, out, at, step, floor, lift, fields, sign, low, high)
        else:
            out[first:last] = np.float32(0) if step == 0 else np.float32(np.nan)


@kernel
def block_largest(words, block, out, start, stop):
    """Bits of the largest magnitude of each block; returns the largest finite one."""
    most = np.int32(0)
    for i in range(start, stop):
        top = largest_word(words, i * block, (i + 1) * block)
        out[i] = top
        most = max(most, top if top < np.int32(INFINITY) else np.int32(0))
    return most


@kernel
def steps_of(amax, largest, tensor, scale, out, start, stop):
    """out = tensor * scale((amax / largest) / tensor), the scale rounded to its own format; NaN where amax is none."""
    floor = np.int32((scale.minimum_exponent + 127) << 23)
    lift = np.int32((23 - scale.mantissa_bits) << 23 | 0x400000)
    fields, sign, low, high = np.int32(scale.fields), np.int32(0), np.float32(0), np.float32(scale.high)
    amax, out = amax[start:stop], out[start:stop]
    for i in range(out.size):
        ratio = np.float32(np.float32(amax[i] / largest) / tensor)
        step = np.float32(tensor * nearest(ratio, floor, lift, fields, sign, low, high))
        out[i] = step if amax[i] < np.float32(np.inf) else np.float32(np.nan)


@kernel
def squared_errors(x, block, element, steps, out, start, stop):
    """Per block the sum of (x - element(x / step) * step)**2 in float64, ascending; Inf where the step is NaN."""
    fields, sign = np.int32(element.fields), np.int32(element.sign)
    floor = np.int32((element.minimum_exponent + 127) << 23)
    lift = np.int32((23 - element.mantissa_bits) << 23 | 0x400000)
    low, high = np.float32(element.low), np.float32(element.high)
    made, squares = np.empty(block, np.float32), np.empty(block)
    for i in range(start, stop):
        part, step, total = x[i * block : (i + 1) * block], steps[i], 0.0
        made[:] = np.float32(0)
        if step > np.float32(0):
            for at in range(0, block, LANES):
                round_scaled(part, made, at, step, floor, lift, fields, sign, low, high)
        for j in range(block):
            error = np.float64(part[j]) - np.float64(made[j])
            squares[j] = error * error
        for j in range(block):
            total += squares[j]
        out[i] = total if step >= np.float32(0) else np.inf
