"""Dot products that drop nothing: a fixed-point number wide enough for every term (Kulisch's accumulator).

The number is an array of 32-bit limbs kept in int64, so that carries are made once, when it is rounded.
"""

from typing import NamedTuple

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.accumulate import Sum, bit_length, classify, round_sum, special_code, unpack_code


class Exact(NamedTuple):
    """A fused dot product that drops nothing: terms are added in a fixed-point number wide enough for all of them."""

    terms: int
    origin: int  #: exponent of the lowest bit any term can have
    product_fraction_bits: int
    wide: bool  #: significands have up to 53 bits each, so that their product does not fit an int64
    sum: Sum


@kernel
def add_at(limbs, magnitude, position, negative):
    """Add a magnitude below 2**55 at a bit position of a number in 32-bit limbs (in int64; carries come later)."""
    for part in range(2):
        value = magnitude & 0xFFFFFF if part == 0 else magnitude >> 24
        place = position + 24 * part
        value <<= place & 31
        low, high = value & 0xFFFFFFFF, value >> 32
        limbs[place >> 5] += -low if negative else low
        limbs[(place >> 5) + 1] += -high if negative else high


@kernel
def round_limbs(limbs, origin, to):
    """Code of the number in `limbs` times 2**origin, rounded once. Clears the limbs."""
    last = limbs.size - 1
    for k in range(last):  # carries up; a negative total ends with a negative top limb
        limbs[k + 1] += limbs[k] >> 32
        limbs[k] &= 0xFFFFFFFF
    negative = limbs[last] < 0
    if negative:
        for k in range(last + 1):
            limbs[k] = -limbs[k]
        for k in range(last):
            limbs[k + 1] += limbs[k] >> 32
            limbs[k] &= 0xFFFFFFFF
    top = last
    while top > 0 and limbs[top] == 0:
        top -= 1
    # The leading 62 bits, from up to three limbs; the last of them is set if anything below is.
    room = 62 - bit_length(limbs[top])
    magnitude = limbs[top] << room
    sticky = 0
    if top > 0:
        first = limbs[top - 1]
        if room >= 32:
            magnitude |= first << (room - 32)
        else:
            magnitude |= first >> (32 - room)
            sticky = first & ((1 << (32 - room)) - 1)
    if top > 1:
        second, kept = limbs[top - 2], max(room - 32, 0)
        magnitude |= second >> (32 - kept)
        sticky |= second & ((1 << (32 - kept)) - 1)
    for k in range(top - 2):
        sticky |= limbs[k]
    for k in range(last + 1):
        limbs[k] = 0
    if sticky != 0:
        magnitude |= 1
    return round_sum(-magnitude if negative else magnitude, origin + 32 * top - room, to)


@kernel
def add_product(limbs, p, q, position, negative, wide):
    """Add p * q at a bit position; `wide`: both may have 53 bits, and meet in halves."""
    if wide:
        low, high = p & 0x3FFFFFF, p >> 26
        other, upper = q & 0x3FFFFFF, q >> 26
        add_at(limbs, low * other, position, negative)
        add_at(limbs, low * upper, position + 26, negative)
        add_at(limbs, high * other, position + 26, negative)
        add_at(limbs, high * upper, position + 52, negative)
    else:
        add_at(limbs, p * q, position, negative)


@kernel
def exact_step(sa, ea, i, sb, eb, j, start, stop, c, plan, limbs):
    """c + exact sum of the products of k in start .. stop, rounded once. `limbs` is zero before and after."""
    to = plan.sum
    significand, exponent, kind = unpack_code(c, to)
    nan, positive, negative = kind == 2, kind == 1 and significand > 0, kind == 1 and significand < 0
    for k in range(start, stop):
        x, y = np.int64(ea[i, k]), np.int64(eb[j, k])
        p, q = np.int64(sa[i, k]), np.int64(sb[j, k])
        minus = (p < 0) != (q < 0)
        of = classify(x, y, minus)
        nan, positive, negative = nan or of == 2, positive or of == 3, negative or of == 4
        if of == 0:
            add_product(limbs, abs(p), abs(q), x + y - plan.product_fraction_bits - plan.origin, minus, plan.wide)
    if nan or positive or negative:
        limbs[:] = 0
        return special_code(nan, positive, negative, to)
    add_at(limbs, abs(significand), exponent - to.container_mantissa_bits - plan.origin, significand < 0)
    return round_limbs(limbs, plan.origin, to)
