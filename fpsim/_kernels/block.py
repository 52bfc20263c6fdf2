"""Quantize-dequantize of whole blocks in one pass: choose the scale, round the elements, scale back.

The same values as `fpsim.blocks.encode` and `decode` one after the other, without the codes in between.
"""

from typing import NamedTuple

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.intrinsics import shift_right


class Element(NamedTuple):
    """A signed float element format, for rounding float32 to nearest even with saturation."""

    drop: int  #: mantissa bits of float32 that go
    smallest: float  #: smallest normal value
    step: float  #: spacing of the subnormals
    inverse_step: float
    largest: float
    emax: int  #: exponent of the largest value


@kernel
def round_block(x, words, inverse, element, out, out_words):
    """out = elements nearest to x * inverse, as values (before the scale)."""
    drop = np.int32(element.drop)
    half, one = np.int32((1 << (element.drop - 1)) - 1), np.int32(1)
    mask = np.int32(-(1 << element.drop))
    smallest, largest = np.float32(element.smallest), np.float32(element.largest)
    step, inverse_step = np.float32(element.step), np.float32(element.inverse_step)
    for j in range(out.size):
        out[j] = x[j] * inverse
    for j in range(out.size):  # the rounded normal value, by its bits
        word = out_words[j]
        odd = np.int32(shift_right(word, drop) & one)
        words[j] = np.int32(np.int32(word + half + odd) & mask)
    rounded = words.view(np.float32)
    for j in range(out.size):
        y = out[j]
        small = np.float32(np.rint(y * inverse_step)) * step
        v = rounded[j] if abs(y) >= smallest else small
        v = v if abs(v) <= largest else np.float32(np.copysign(largest, y))
        out[j] = np.copysign(v, y)


@kernel
def largest_word(words):
    """Bits of the largest magnitude of a block."""
    top = np.int32(0)
    for j in range(words.size):
        word = np.int32(words[j] & np.int32(0x7FFFFFFF))
        top = word if word > top else top
    return top


@kernel
def quantize_power_of_two(x, words, block, element, out, out_words, start, stop):
    """MX with the floor rule: rows of blocks start .. stop of flat arrays."""
    scratch = np.empty(block, np.int32)
    power = np.empty(2, np.int32)
    power_value = power.view(np.float32)
    for i in range(start, stop):
        first, last = i * block, (i + 1) * block
        top = largest_word(words[first:last])
        o = out[first:last]
        if top >= np.int32(0x7F800000):
            o[:] = np.float32(np.nan)
            continue
        code = max((top >> 23) - element.emax, 0)
        power[0] = code << 23 if code > 0 else 1 << 22  # 2**(code - 127); 2**-127 is subnormal
        power[1] = (254 - code) << 23 if code < 254 else 1 << 22  # its inverse
        round_block(x[first:last], scratch, power_value[1], element, o, out_words[first:last])
        scale = power_value[0]
        for j in range(block):
            o[j] *= scale


@kernel
def quantize_two_level(x, words, block, element, tensor, scales, out, out_words, start, stop):
    """NVFP4: `scales` holds each block's decoded scale; out = element(x / (tensor * scale)) * (tensor * scale)."""
    scratch = np.empty(block, np.int32)
    scaled = np.empty(block, np.float32)
    for i in range(start, stop):
        first, last = i * block, (i + 1) * block
        o, step = out[first:last], np.float32(tensor * scales[i])
        if step != step:
            o[:] = np.float32(np.nan)
        elif step == 0:
            o[:] = np.float32(0)
        else:
            part = x[first:last]
            for j in range(block):
                scaled[j] = part[j] / step
            round_block(scaled, scratch, np.float32(1), element, o, out_words[first:last])
            for j in range(block):
                o[j] *= step


@kernel
def block_largest(words, block, out, start, stop):
    """Bits of the largest magnitude of each block."""
    for i in range(start, stop):
        out[i] = largest_word(words[i * block : (i + 1) * block])
