"""Arithmetic of one value, as plain functions of integers: compiled for the CPU and for CUDA from this one source.

Python integers and int64 agree as long as nothing wraps, so every function also runs uncompiled
(NUMBA_DISABLE_JIT=1). No float literals, no fused operations: a number is a significand and an exponent.
"""

from typing import NamedTuple

from fpsim._jit import kernel

RNE, RZ, RU, RD, RNA, RNZ, RODD = range(7)

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
def rounds_up(rest, half, lower, negative, rounding):  # type: ignore[no-untyped-def]
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
def round_magnitude(magnitude, negative, mantissa_bits, minimum_exponent, base, rounding):  # type: ignore[no-untyped-def]
    """Code of a finite non-zero float64 magnitude (its bits), as if the exponent range had no upper end."""
    field = magnitude >> 52
    mantissa = magnitude & _F64_MANTISSA
    if field == 0:
        exponent = -1022
    else:
        exponent = field - 1023
        mantissa |= 1 << 52
    target = exponent if exponent > minimum_exponent else minimum_exponent
    # The value is mantissa * 2**(exponent - 52); one code step is 2**(target - mantissa_bits).
    drop = target - exponent + 52 - mantissa_bits
    if drop > 54:
        drop = 54  # everything is below half a step already
    lower = ((target - minimum_exponent) << mantissa_bits) + (mantissa >> drop) + base
    if drop > 0:
        rest = mantissa & ((1 << drop) - 1)
        lower += rounds_up(rest, 1 << (drop - 1), lower, negative, rounding)
    return lower if lower > 0 else 0


@kernel
def encode_float(bits, target):  # type: ignore[no-untyped-def]
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
        code = round_magnitude(
            magnitude, negative, target.mantissa_bits, target.minimum_exponent, target.base, target.rounding
        )
        if negative and target.unsigned == 1:
            code = target.negative_zero if code == 0 and target.base == 0 else target.negative
        elif code > target.max_code:
            code = target.negative_overflow if negative else target.overflow
        elif negative:
            code = target.negative_zero if code == 0 and target.base == 0 else code | target.sign_bit
    return code << target.shift


@kernel
def round_integer(magnitude, lower, negative, rounding):  # type: ignore[no-untyped-def]
    """A non-negative float64 and its integer part -> the integer it rounds to."""
    rest = magnitude - lower  # exact
    up = 0
    if rest != 0:
        odd = lower % 2 == 1
        if rounding == RNE:
            up = 1 if rest + rest > 1 or (rest + rest == 1 and odd) else 0
        elif rounding == RU:
            up = 0 if negative else 1
        elif rounding == RD:
            up = 1 if negative else 0
        elif rounding == RNA:
            up = 1 if rest + rest >= 1 else 0
        elif rounding == RNZ:
            up = 1 if rest + rest > 1 else 0
        elif rounding == RODD:
            up = 0 if odd else 1
    return lower + up
