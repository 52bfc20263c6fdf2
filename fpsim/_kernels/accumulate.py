"""Accumulators, one dot product at a time: plain integer functions, compiled for the CPU and for CUDA from this source.

Operands arrive unpacked (`fpsim.gemm` does that through a table of all codes): a signed significand and an exponent per
element, value = significand * 2**(exponent - fraction_bits of its format). Exponents of ZERO and above INFINITE are
marks, not exponents.
"""

from typing import NamedTuple

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.scalar import rounds_up

ZERO = -20000  #: exponent mark of a zero
INFINITE = 10000  #: exponent mark of an infinity; its significand is +1 or -1
NAN = 20000  #: exponent mark of a NaN
NO_FLOOR = -30000  #: zero_exponent that never counts


class Sum(NamedTuple):
    """Where a sum is rounded to: a format, and the container that holds it."""

    rounding: int
    mantissa_bits: int
    minimum_exponent: int
    max_code: int
    widen: int  #: left shift of a rounded magnitude into the container
    container_mantissa_bits: int
    container_exponent_bits: int
    infinity: int  #: in the container, like the next two
    nan: int
    sign_bit: int


class Fused(NamedTuple):
    """A truncated fused dot product: see `fpsim.accumulators.FusedDot`."""

    terms: int
    fraction_bits: int
    zero_exponent: int
    product_fraction_bits: int
    sum: Sum


@kernel
def bit_length(x):  # type: ignore[no-untyped-def]
    """Position of the highest set bit plus one, for 0 <= x < 2**63."""
    n = 0
    for step in (32, 16, 8, 4, 2, 1):
        if x >> (n + step) != 0:
            n += step
    return n + 1 if x != 0 else 0


@kernel
def round_sum(total, exponent, to):  # type: ignore[no-untyped-def]
    """Code of total * 2**exponent in the container of `to`: rounded once; zero is +0, too large is Inf."""
    if total == 0:
        return 0
    negative = total < 0
    magnitude = -total if negative else total
    top = exponent + bit_length(magnitude) - 1
    target = top if top > to.minimum_exponent else to.minimum_exponent
    code = (target - to.minimum_exponent) << to.mantissa_bits
    drop = target - to.mantissa_bits - exponent
    if drop <= 0:
        code += magnitude << -drop
    elif drop < 63:
        code += magnitude >> drop
        code += rounds_up(magnitude & ((1 << drop) - 1), 1 << (drop - 1), code, negative, to.rounding)
    else:
        code += rounds_up(1, 2, code, negative, to.rounding)
    if code > to.max_code:
        code = to.infinity
    elif code == 0:
        return 0
    else:
        code <<= to.widen
    return code | to.sign_bit if negative else code


@kernel
def align(significand, shift):  # type: ignore[no-untyped-def]
    """significand * 2**shift, truncated toward zero."""
    if shift >= 0:
        return significand << shift
    drop = -shift if shift > -63 else 62
    return -((-significand) >> drop) if significand < 0 else significand >> drop


@kernel
def special_code(nan, positive, negative, to):  # type: ignore[no-untyped-def]
    """IEEE addition with an Inf or NaN among the terms."""
    if nan or (positive and negative):
        return to.nan
    return to.infinity | to.sign_bit if negative else to.infinity


@kernel
def fused_step(sa, ea, i, sb, eb, j, start, stop, c, plan):  # type: ignore[no-untyped-def]
    """One T-FDPA step (arXiv:2511.10909 Algorithm 7) over k in start .. stop; c and the result are container codes."""
    to = plan.sum
    bits = to.container_mantissa_bits
    c_field = (c >> bits) & ((1 << to.container_exponent_bits) - 1)
    c_significand = c & ((1 << bits) - 1)
    c_negative = (c & to.sign_bit) != 0
    bias = (1 << (to.container_exponent_bits - 1)) - 1
    nan = False
    positive = False
    negative = False
    if c_field == (1 << to.container_exponent_bits) - 1:
        nan = c_significand != 0
        negative = c_negative
        positive = not c_negative
    if c_field == 0:
        c_exponent = 1 - bias
    else:
        c_exponent = c_field - bias
        c_significand += 1 << bits
    largest = plan.zero_exponent
    if c_significand != 0 and c_exponent > largest:
        largest = c_exponent
    for k in range(start, stop):
        x = np.int64(ea[i, k])
        y = np.int64(eb[j, k])
        if x >= INFINITE or y >= INFINITE:
            if max(x, y) == NAN or min(x, y) == ZERO:
                nan = True
            elif (sa[i, k] < 0) != (sb[j, k] < 0):
                negative = True
            else:
                positive = True
        elif x != ZERO and y != ZERO and x + y > largest:
            largest = x + y
    if nan or positive or negative:
        return special_code(nan, positive, negative, to)
    total = align(-c_significand if c_negative else c_significand, plan.fraction_bits - largest + c_exponent - bits)
    base = plan.fraction_bits - largest - plan.product_fraction_bits
    for k in range(start, stop):
        x = np.int64(ea[i, k])
        y = np.int64(eb[j, k])
        if x != ZERO and y != ZERO:
            total += align(np.int64(sa[i, k]) * np.int64(sb[j, k]), base + x + y)
    return round_sum(total, largest - plan.fraction_bits, to)


@kernel
def fused_chain(sa, ea, i, sb, eb, j, start, stop, c, plan):  # type: ignore[no-untyped-def]
    """T-FDPA steps of `plan.terms` products, ascending; the result of one is the c of the next."""
    for k in range(start, stop, plan.terms):
        c = fused_step(sa, ea, i, sb, eb, j, k, min(k + plan.terms, stop), c, plan)
    return c
