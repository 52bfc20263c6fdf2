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
    infinity: int  #: what is too large becomes, in the container like the next three
    nan: int
    sign_bit: int
    finite: int  #: largest finite magnitude's code
    unsigned_nan: int  #: the NaN in the place of -0, -1 where there is none
    no_infinity: int  #: 1: what is too large becomes NaN, which has no sign


class Fused(NamedTuple):
    """A truncated fused dot product: see `fpsim.accumulators.FusedDot`."""

    terms: int
    fraction_bits: int
    zero_exponent: int
    product_fraction_bits: int
    sum: Sum


@kernel
def bit_length(x):
    """Position of the highest set bit plus one, for 0 <= x < 2**63."""
    n = 0
    for step in (32, 16, 8, 4, 2, 1):
        if x >> (n + step) != 0:
            n += step
    return n + 1 if x != 0 else 0


@kernel
def overflowed(negative, to):
    """What a sum that is too large, or infinite, becomes."""
    if to.no_infinity == 1:
        return to.nan
    return to.infinity | to.sign_bit if negative else to.infinity


@kernel
def round_sum(total, exponent, to):
    """Code of total * 2**exponent in the container of `to`: rounded once; zero is +0, too large is Inf."""
    if total == 0:
        return 0
    negative = total < 0
    magnitude = -total if negative else total
    top = exponent + bit_length(magnitude) - 1
    if top - to.minimum_exponent >= to.max_code >> to.mantissa_bits:
        return overflowed(negative, to)
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
        return overflowed(negative, to)
    code <<= to.widen
    return code | to.sign_bit if negative and code != 0 else code


@kernel
def align(significand, shift):
    """significand * 2**shift, truncated toward zero."""
    if shift >= 0:
        return significand << shift
    drop = -shift if shift > -63 else 62
    return -((-significand) >> drop) if significand < 0 else significand >> drop


@kernel
def special_code(nan, positive, negative, to):
    """IEEE addition with an Inf or NaN among the terms."""
    return to.nan if nan or (positive and negative) else overflowed(negative, to)


@kernel
def special_class(c, to):
    """A container code: 0 finite, 1 infinite, 2 NaN."""
    magnitude = c & ((1 << (to.container_mantissa_bits + to.container_exponent_bits)) - 1)
    if magnitude > to.finite:
        return 1 if magnitude == to.infinity and to.no_infinity == 0 else 2
    return 2 if magnitude == 0 and (c & to.sign_bit) != 0 and to.unsigned_nan != -1 else 0


@kernel
def fused_step(sa, ea, i, sb, eb, j, start, stop, c, plan):
    """One T-FDPA step (arXiv:2511.10909 Algorithm 7) over k in start .. stop; c and the result are container codes."""
    to = plan.sum
    bits = to.container_mantissa_bits
    c_field = (c >> bits) & ((1 << to.container_exponent_bits) - 1)
    c_significand = c & ((1 << bits) - 1)
    c_negative = (c & to.sign_bit) != 0
    c_class = special_class(c, to)
    nan = c_class == 2
    positive = c_class == 1 and not c_negative
    negative = c_class == 1 and c_negative
    c_exponent = to.minimum_exponent
    if c_field != 0:
        c_exponent += c_field - 1
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
def fused_chain(sa, ea, i, sb, eb, j, start, stop, c, plan):
    """T-FDPA steps of `plan.terms` products, ascending; the result of one is the c of the next."""
    for k in range(start, stop, plan.terms):
        c = fused_step(sa, ea, i, sb, eb, j, k, min(k + plan.terms, stop), c, plan)
    return c


@kernel
def unpack_code(c, to):
    """Container code -> signed significand, exponent of its leading bit, and 0 finite, 1 infinite, 2 NaN."""
    bits = to.container_mantissa_bits
    field = (c >> bits) & ((1 << to.container_exponent_bits) - 1)
    significand = c & ((1 << bits) - 1)
    kind = special_class(c, to)
    exponent = to.minimum_exponent
    if field != 0:
        exponent += field - 1
        significand += 1 << bits
    return (-significand if (c & to.sign_bit) != 0 else significand), exponent, kind


@kernel
def classify(x, y, negative):
    """A product by its exponent marks: 0 finite, 1 zero, 2 NaN, 3 +Inf, 4 -Inf."""
    if x >= INFINITE or y >= INFINITE:
        if max(x, y) == NAN or min(x, y) == ZERO:
            return 2
        return 4 if negative else 3
    return 1 if min(x, y) == ZERO else 0


class TwoStage(NamedTuple):
    """Products first, c second: see `fpsim.accumulators.TwoStageDot`."""

    terms: int
    fraction_bits: int
    sum_fraction_bits: int
    interleaved: bool
    product_fraction_bits: int
    sum: Sum


@kernel
def move(value, shift):
    """value * 2**shift with floor."""
    if shift >= 0:
        return value << shift
    return value >> (-shift if shift > -63 else 62)


@kernel
def truncated_sum(sa, ea, i, sb, eb, j, start, stop, stride, plan):
    """Sum of products truncated below their largest exponent, in units of 2**(that - fraction_bits); and it."""
    largest = np.int64(-999)
    for k in range(start, stop, stride):
        x, y = np.int64(ea[i, k]), np.int64(eb[j, k])
        if x != ZERO and y != ZERO and x + y > largest:
            largest = x + y
    total = np.int64(0)
    for k in range(start, stop, stride):
        x, y = np.int64(ea[i, k]), np.int64(eb[j, k])
        if x != ZERO and y != ZERO:
            shift = plan.fraction_bits - largest + x + y - plan.product_fraction_bits
            total += align(np.int64(sa[i, k]) * np.int64(sb[j, k]), shift)
    return total, largest


@kernel
def two_stage_step(sa, ea, i, sb, eb, j, start, stop, c, plan):
    """One step of TR-FDPA or GTR-FDPA (arXiv:2511.10909)."""
    to = plan.sum
    f = plan.fraction_bits
    significand, exponent, kind = unpack_code(c, to)
    nan, positive, negative = kind == 2, kind == 1 and significand > 0, kind == 1 and significand < 0
    limit = 2 - to.minimum_exponent  # products of 2**limit and more are infinite
    for k in range(start, stop):
        x, y = np.int64(ea[i, k]), np.int64(eb[j, k])
        product = np.int64(sa[i, k]) * np.int64(sb[j, k])
        of = classify(x, y, product < 0)
        if of == 0 and x + y + (1 if abs(product) >> (plan.product_fraction_bits + 1) != 0 else 0) >= limit:
            of = 4 if product < 0 else 3
        nan, positive, negative = nan or of == 2, positive or of == 3, negative or of == 4
    if nan or positive or negative:
        return special_code(nan, positive, negative, to)
    if plan.interleaved:
        even, e_even = truncated_sum(sa, ea, i, sb, eb, j, start, stop, 2, plan)
        odd, e_odd = truncated_sum(sa, ea, i, sb, eb, j, start + 1, stop, 2, plan)
        e_dot = max(e_even, e_odd)
        total = move(even, e_even - e_dot) + move(odd, e_odd - e_dot)
    else:
        total, e_dot = truncated_sum(sa, ea, i, sb, eb, j, start, stop, 1, plan)
    largest = max(e_dot, exponent)
    wide = plan.sum_fraction_bits + 1
    total = move(total, wide - f - largest + e_dot)
    if not plan.interleaved or exponent >= largest - f - 1:
        total += move(significand, f - to.container_mantissa_bits - largest + exponent) << (wide - f)
    if total == 0:
        return 0
    e = max(bit_length(abs(total)) - 1 + largest - wide, to.minimum_exponent)
    drop = e - plan.sum_fraction_bits - largest + wide
    if drop > 0:
        return round_sum(total >> drop, e - plan.sum_fraction_bits, to)
    return round_sum(total, largest - wide, to)


class Grouped(NamedTuple):
    """Groups of exact sums times scales: see `fpsim.accumulators.GroupedDot`."""

    group: int
    groups: int
    fraction_bits: int
    zero_exponent: int
    term_fraction_bits: int  #: of a group's sum times both scale significands
    block: int
    sum: Sum


@kernel
def grouped_step(a, fa, ea, i, b, fb, eb, j, start, stop, c, plan):
    """One step of GST-FDPA (arXiv:2511.10909). a, b: operands as integers; f, e: scale significands and exponents."""
    to = plan.sum
    significand, exponent, kind = unpack_code(c, to)
    nan = kind == 2
    largest = plan.zero_exponent
    if significand != 0 and kind == 0 and exponent > largest:
        largest = exponent
    for first in range(start, stop, plan.group):
        x, y = np.int64(ea[i, first // plan.block]), np.int64(eb[j, first // plan.block])
        if max(x, y) == NAN:
            nan = True
        elif x != ZERO and y != ZERO and x + y > largest:
            for k in range(first, min(first + plan.group, stop)):
                if a[i, k] != 0 and b[j, k] != 0:
                    largest = x + y
                    break
    if nan or kind != 0:
        return to.nan if nan else c
    total = align(significand, plan.fraction_bits - largest + exponent - to.container_mantissa_bits)
    for first in range(start, stop, plan.group):
        x, y = np.int64(ea[i, first // plan.block]), np.int64(eb[j, first // plan.block])
        if x != ZERO and y != ZERO:
            term = np.int64(0)
            for k in range(first, min(first + plan.group, stop)):
                term += np.int64(a[i, k]) * np.int64(b[j, k])
            term *= np.int64(fa[i, first // plan.block]) * np.int64(fb[j, first // plan.block])
            total += align(term, plan.fraction_bits - largest + x + y - plan.term_fraction_bits)
    return round_sum(total, largest - plan.fraction_bits, to)
