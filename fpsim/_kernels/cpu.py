"""Loops over arrays for the CPU codec, each over start .. stop of flat arrays, so that threads can share one array."""

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.intrinsics import bits_of, float_of, shift_right
from fpsim._kernels.scalar import RD, RNA, RNE, RNZ, RODD, RU, encode_float, philox, round_integer

PIECE = 4096  #: values between two looks for NaN


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
def magnitude_code(magnitude, top, floor, lift, drop, base):
    """Code of the magnitude of a float32 pattern, clamped to `top`: see `encode_by_addition`."""
    clamped = min(magnitude, top)
    field = max(np.int32(clamped & np.int32(0x7F800000)), floor)
    addend = np.int32(field + lift)
    total = bits_of(np.float32(float_of(clamped) + float_of(addend)))
    return np.int32(np.int32(total - addend) + np.int32(shift_right(field, drop) - base))


@kernel
def encode_by_addition(words, target, top, out, start, stop):
    """The fast road for float32 bit patterns -> codes of at most 16 bits with a sign, nearest even: 15 vector
    instructions for 16 values, so that memory is what it waits for.

    Adding M = 1.5 * 2**(e + 23 - m) to a magnitude with exponent e pushes what is below 2**(e - m) out of the 24 bits
    of the sum, and the addition itself rounds to nearest, ties to even; holding e at the format's smallest exponent
    rounds subnormals by the same steps. The sum and M share a binade, so the difference of their bit patterns is the
    rounded significand, and (e - smallest) << m plus that is the code. Magnitudes are first clamped to `top`, the value
    of the last code wanted: the largest one where the format saturates, the next one where that is its Inf or NaN.

    Needs 1 <= m (ties go to even codes, not to even significands of neighbouring binades) and e + 23 - m <= 127.
    NaN is only noticed in the first loop, and a piece that has one is done again.
    """
    m = target.mantissa_bits
    floor, lift = np.int32((target.minimum_exponent + 127) << 23), np.int32((23 - m) << 23 | 0x400000)
    drop, base = np.int32(23 - m), np.int32((target.minimum_exponent + 127) << m)
    top, nan, sign_bit = np.int32(top), np.int32(target.nan), np.int32(target.sign_bit)
    infinity, all_but_sign, high = np.int32(0x7F800000), np.int32(0x7FFFFFFF), np.int32(31)
    has_negative_zero, has_negative_nan = target.negative_zero != 0, target.negative_nan != target.nan
    for first in range(start, stop, PIECE):
        part, codes = words[first : min(first + PIECE, stop)], out[first : min(first + PIECE, stop)]
        most = np.int32(0) if has_negative_zero else infinity
        if has_negative_zero:
            for i in range(codes.size):
                word = part[i]
                magnitude = np.int32(word & all_but_sign)
                most = max(most, magnitude)
                code = magnitude_code(magnitude, top, floor, lift, drop, base)
                codes[i] = np.int32(code | np.int32(shift_right(word, high) & sign_bit))
        if most > infinity or not has_negative_zero:
            for i in range(codes.size):
                word = part[i]
                magnitude = np.int32(word & all_but_sign)
                code = magnitude_code(magnitude, top, floor, lift, drop, base)
                code = nan if magnitude > infinity else code
                sign = np.int32(shift_right(word, high) & sign_bit)
                sign = sign if has_negative_zero or code != 0 else np.int32(0)
                sign = sign if has_negative_nan or magnitude <= infinity else np.int32(0)
                codes[i] = np.int32(code | sign)


@kernel
def encode_words(words, target, out, start, stop):
    """`encode_floats` for float32 patterns, deterministic roundings and codes of at most 16 bits, without branches.

    A magnitude goes up a code where what is dropped, plus a tie-breaker, exceeds a limit: half a step if the rounding
    is a nearest one; else nothing or everything, by the sign or (to odd) by the code below.
    Needs a smallest exponent of at least float32's, whose subnormals then have too few bits to matter otherwise.
    """
    m, rounding = target.mantissa_bits, target.rounding
    never, one, none, high, sticky = np.int32(0x7FFFFFFF), np.int32(1), np.int32(0), np.int32(31), np.int32(26)
    nearest, to_odd = rounding in (RNE, RNA, RNZ), rounding == RODD
    even, away = np.int32(1 if rounding == RNE else 0), np.int32(1 if rounding == RNA else 0)
    above, below = (none if rounding == RU or to_odd else never), (none if rounding == RD or to_odd else never)
    smallest, kept, base = np.int32(target.minimum_exponent + 127), np.int32(23 - m), np.int32(target.base)
    step, mantissa, implicit, infinite = np.int32(1 << m), np.int32(0x7FFFFF), np.int32(1 << 23), np.int32(0x7F800000)
    has_zero, unsigned = target.base == 0, target.unsigned == 1
    max_code, sign_bit, negative_code = np.int32(target.max_code), np.int32(target.sign_bit), np.int32(target.negative)
    zeros = np.int32(target.zero), np.int32(target.negative_zero)
    overflows = np.int32(target.overflow), np.int32(target.negative_overflow)
    infinities = np.int32(target.infinity), np.int32(target.negative_infinity)
    nans = np.int32(target.nan), np.int32(target.negative_nan)
    words, out = words[start:stop], out[start:stop]
    for i in range(out.size):
        word = words[i]
        negative = word < none
        magnitude = np.int32(word & never)
        field = shift_right(magnitude, np.int32(23))
        significand = np.int32(np.int32(magnitude & mantissa) | (implicit if field > none else none))
        field = max(field, one)
        top = max(field, smallest)
        short = min(np.int32(np.int32(top - field) + kept), sticky)  # 26: all of it is below half a step
        half = shift_right(np.int32(1 << 30), np.int32(high - short))
        rest = np.int32(significand & np.int32(np.int32(half + half) - one))
        lower = np.int32(np.int32(np.int32(top - smallest) * step) + np.int32(shift_right(significand, short) + base))
        odd = np.int32(lower & one)
        limit = half if nearest else (below if negative else above)
        limit = never if to_odd and odd == one else limit
        code = np.int32(lower + (one if np.int32(rest + np.int32(np.int32(odd & even) | away)) > limit else none))
        code = max(code, none)
        vanished = has_zero and code == none
        if unsigned:
            signed = zeros[1] if vanished else negative_code
        else:
            signed = overflows[1] if code > max_code else np.int32(code | sign_bit)
            signed = zeros[1] if vanished else signed
        code = overflows[0] if code > max_code else code
        code = signed if negative else code
        code = (zeros[1] if negative else zeros[0]) if magnitude == none else code
        code = (infinities[1] if negative else infinities[0]) if magnitude == infinite else code
        out[i] = (nans[1] if negative else nans[0]) if magnitude > infinite else code


@kernel
def encode_nearest_even(words, target, out, start, stop):
    """The same for formats with float32's exponents (bf16), whose subnormals are float32's: half a step is added to the
    bit pattern, which is then shifted; overflow, Inf and NaN are selected over the result."""
    drop = np.int32(23 - target.mantissa_bits)
    half = np.int32((1 << (22 - target.mantissa_bits)) - 1)
    max_code, overflow = np.int32(target.max_code), np.int32(target.overflow)
    infinity, nan, sign_bit = np.int32(target.infinity), np.int32(target.nan), np.int32(target.sign_bit)
    one, infinite, all_but_sign = np.int32(1), np.int32(0x7F800000), np.int32(0x7FFFFFFF)
    words, out = words[start:stop], out[start:stop]
    for i in range(out.size):
        word = words[i]
        magnitude = np.int32(word & all_but_sign)
        odd = np.int32(shift_right(magnitude, drop) & one)
        code = shift_right(np.int32(magnitude + np.int32(half + odd)), drop)
        code = overflow if code > max_code else code
        code = infinity if magnitude == infinite else code
        code = nan if magnitude > infinite else code
        out[i] = np.int32(code | np.int32(shift_right(word, np.int32(31)) & sign_bit))


@kernel
def look_up(codes, table, mask, out, start, stop):
    """codes -> table[code & mask]."""
    codes, out = codes[start:stop], out[start:stop]
    for i in range(out.size):
        out[i] = table[np.int64(codes[i]) & mask]
