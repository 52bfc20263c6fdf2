"""Arithmetic of one value, as plain functions of integers: compiled for the CPU and for CUDA from this one source.

Python integers and int64 agree as long as nothing wraps, so every function also runs uncompiled
(NUMBA_DISABLE_JIT=1). No float literals, no fused operations: a number is a significand and an exponent.
"""

from typing import NamedTuple

import numpy as np

from fpsim._jit import kernel

RNE, RZ, RU, RD, RNA, RNZ, RODD, SRA, SRB, SRC = range(10)

_F64_INFINITY = 0x7FF << 52
_F64_MANTISSA = (1 << 52) - 1
_F64_MAGNITUDE = (1 << 63) - 1


class FloatTarget(NamedTuple):
    """A float format and a conversion, flattened to integers: what each kind of value becomes."""

    mantissa_bits: int
    minimum_exponent: int
    base: int  #: code of the smallest normal exponent minus its implicit bit: 0, or -2**m without zero
    max_code: int
    rounding: int
    sign_bit: int
    negative_zero: int  #: a negative value that rounds to zero, and -0
    zero: int
    overflow: int
    negative_overflow: int
    infinity: int
    negative_infinity: int
    nan: int
    negative_nan: int
    payload_shift: int  #: right shift of a float64 NaN payload into the code; 63 where it is dropped
    unsigned: int  #: 1: a value that does not round to zero and is negative becomes `negative`
    negative: int
    shift: int  #: of the whole code in its container


@kernel
def rounds_up(rest, half, lower, negative, rounding):
    """1 if a magnitude `rest` units above the even-or-odd code `lower` goes to the next code; 2*half is one code."""
    up = 0
    if rest != 0:
        if rounding == RNE:
            up = 1 if rest > half or (rest == half and (lower & 1) == 1) else 0
        elif rounding == RU:
            up = 0 if negative else 1
        elif rounding == RD:
            up = 1 if negative else 0
        elif rounding == RNA:
            up = 1 if rest >= half else 0
        elif rounding == RNZ:
            up = 1 if rest > half else 0
        elif rounding == RODD:
            up = 1 - (lower & 1)
    return up


@kernel
def goes_away(rest, drop, rounding, random, count):
    """1 if rest / 2**drop of a step goes away from zero, by P3109 stochastic rounding with `count` random bits."""
    extra = 1 if rounding == SRB else 0
    keep = drop - count - extra  # bits below the comparison
    if keep <= 0:
        scaled, below, half = rest << -keep, 0, 1
    elif keep > 60:
        scaled, below, half = 0, 1, 2  # far below: only whether it is zero matters, and it does not
    else:
        scaled, below, half = rest >> keep, rest & ((1 << keep) - 1), 1 << (keep - 1)
    if rounding == SRB:
        return 1 if rest != 0 and scaled + 2 * random + 1 >= 2 << count else 0
    if rounding == SRC:
        scaled += rounds_up(below, half, scaled, False, RNE)
    return 1 if scaled + random >= 1 << count else 0


@kernel
def round_magnitude(magnitude, negative, target, random, count):
    """Code of a finite non-zero float64 magnitude (its bits), as if the exponent range had no upper end."""
    minimum_exponent, mantissa_bits = target.minimum_exponent, target.mantissa_bits
    field = magnitude >> 52
    mantissa = magnitude & _F64_MANTISSA
    if field == 0:
        exponent = -1022
    else:
        exponent = field - 1023
        mantissa |= 1 << 52
    top = exponent if exponent > minimum_exponent else minimum_exponent
    # The value is mantissa * 2**(exponent - 52); one code step is 2**(top - mantissa_bits).
    drop = top - exponent + 52 - mantissa_bits
    short = drop if drop < 54 else 54  # everything is below half a step already
    lower = ((top - minimum_exponent) << mantissa_bits) + (mantissa >> short) + target.base
    rest = mantissa & ((1 << short) - 1)
    if target.rounding >= SRA:
        lower += goes_away(rest, drop, target.rounding, random, count)
    elif short > 0:
        lower += rounds_up(rest, 1 << (short - 1), lower, negative, target.rounding)
    return lower if lower > 0 else 0


@kernel
def encode_float(bits, target, random, count):
    """The code that a float64, given as its bits in an int64, becomes in `target`."""
    negative = bits < 0
    magnitude = bits & _F64_MAGNITUDE
    if magnitude > _F64_INFINITY:
        code = (target.negative_nan if negative else target.nan) | ((magnitude & _F64_MANTISSA) >> target.payload_shift)
    elif magnitude == 0:
        code = target.negative_zero if negative else target.zero
    elif magnitude == _F64_INFINITY:
        code = target.negative_infinity if negative else target.infinity
    else:
        code = round_magnitude(magnitude, negative, target, random, count)
        if negative and target.unsigned == 1:
            code = target.negative_zero if code == 0 and target.base == 0 else target.negative
        elif code > target.max_code:
            code = target.negative_overflow if negative else target.overflow
        elif negative:
            code = target.negative_zero if code == 0 and target.base == 0 else code | target.sign_bit
    return code << target.shift


@kernel
def philox(index, key):
    """Word `index` of the Philox4x32-10 stream of a 64-bit key (Salmon et al., SC 2011): a function, not a state."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = (index >> 2) & mask, (index >> 34) & mask, 0, 0
    k0, k1 = key & mask, (key >> 32) & mask
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((p1 >> 32) & mask) ^ c1 ^ k0, p1 & mask, ((p0 >> 32) & mask) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    lane = index & 3
    if lane < 2:
        return c0 if lane == 0 else c1
    return c2 if lane == 2 else c3


@kernel
def round_integer(magnitude, lower, negative, rounding, random, count):
    """A non-negative float64 below 2**33 and its integer part -> the integer it rounds to."""
    rest = magnitude - lower  # exact, and so is its product with a power of two
    low = int(lower)
    if rounding >= SRA:
        return low + goes_away(int(np.ldexp(rest, 52)), 52, rounding, random, count)
    scaled = np.ldexp(rest, 52)
    part = int(scaled)
    sticky = 1 if part != scaled else 0  # below 2**-52: tells inexact from exact, never from half
    return low + rounds_up(2 * part + sticky, 1 << 52, low, negative, rounding)
