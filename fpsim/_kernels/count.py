"""What a product in steps loses on its way: counts per output, beside the very steps that compute it.

Every loop here calls the step functions of the products themselves (so the results are theirs) and looks at the
operands, the running sum before and the running sum after. `tally` is int64 (M, N, 4), the columns as below.
"""

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.accumulate import (
    INFINITE,
    ZERO,
    align,
    bit_length,
    fused_step,
    grouped_step,
    round_sum,
    truncated_sum,
    two_stage_step,
    unpack_code,
)
from fpsim._kernels.exact import add_at, add_product, exact_step

OVERFLOW, TRUNCATED, DROPPED, INEXACT = range(4)


@kernel
def same_value(x, i, y, j):
    """Whether x * 2**i == y * 2**j."""
    if x == 0 or y == 0:
        return x == y
    drop, other = bit_length(x & -x) - 1, bit_length(y & -y) - 1
    return x >> drop == y >> other and i + drop == j + other


@kernel
def note_term(magnitude, shift, tally):
    """A finite non-zero term, aligned by `shift`."""
    drop = min(-shift, 62)
    if drop > 0 and (magnitude & ((1 << drop) - 1)) != 0:
        tally[TRUNCATED] += 1
        if magnitude >> drop == 0:
            tally[DROPPED] += 1


@kernel
def note_result(total, exponent, c, to, marked, tally):
    """The sum of a step's aligned terms, and the code it was rounded to. `marked`: `to` with -1 for overflow."""
    significand, top, _ = unpack_code(c, to)
    if round_sum(total, exponent, marked) == -1:
        tally[OVERFLOW] += 1
        tally[INEXACT] += 1
    elif not same_value(abs(significand), top - to.container_mantissa_bits, abs(total), exponent):
        tally[INEXACT] += 1


@kernel
def fused(sa, ea, sb, eb, plan, marked, out, tally, start, stop):
    """T-FDPA steps over all of K."""
    to, depth = plan.sum, sa.shape[1]
    for i in range(start, stop):
        for j in range(sb.shape[0]):
            c, notes = np.int64(out[i, j]), tally[i, j]
            for first in range(0, depth, plan.terms):
                last = min(first + plan.terms, depth)
                significand, exponent, kind = unpack_code(c, to)
                c = fused_step(sa, ea, i, sb, eb, j, first, last, c, plan)
                finite, largest = kind == 0, plan.zero_exponent
                if significand != 0 and exponent > largest:
                    largest = exponent
                for k in range(first, last):
                    x, y = np.int64(ea[i, k]), np.int64(eb[j, k])
                    finite = finite and x < INFINITE and y < INFINITE
                    if x != ZERO and y != ZERO and x + y > largest:
                        largest = x + y
                if not finite:
                    continue
                shift = plan.fraction_bits - largest + exponent - to.container_mantissa_bits
                note_term(abs(significand), shift, notes)
                total = align(significand, shift)
                for k in range(first, last):
                    x, y = np.int64(ea[i, k]), np.int64(eb[j, k])
                    if x != ZERO and y != ZERO:
                        product = np.int64(sa[i, k]) * np.int64(sb[j, k])
                        shift = plan.fraction_bits - largest - plan.product_fraction_bits + x + y
                        note_term(abs(product), shift, notes)
                        total += align(product, shift)
                note_result(total, largest - plan.fraction_bits, c, to, marked, notes)
            out[i, j] = c


@kernel
def not_all(sa, ea, i, sb, eb, j, first, last, before, low, after, high, plan, limbs):
    """Whether the products of k in first .. last and a running sum differ from what they became. Clears the limbs.

    before, low; after, high : the sum's significand and exponent before and after.
    """
    point = plan.origin + plan.sum.container_mantissa_bits
    for k in range(first, last):
        x, y = np.int64(ea[i, k]), np.int64(eb[j, k])
        if x != ZERO and y != ZERO:
            p, q = np.int64(sa[i, k]), np.int64(sb[j, k])
            at = x + y - plan.product_fraction_bits - plan.origin
            add_product(limbs, abs(p), abs(q), at, (p < 0) != (q < 0), plan.wide)
    add_at(limbs, abs(before), low - point, before < 0)
    add_at(limbs, abs(after), high - point, after >= 0)
    rest = False
    for k in range(limbs.size - 1):
        limbs[k + 1] += limbs[k] >> 32
        rest = rest or (limbs[k] & 0xFFFFFFFF) != 0
    rest = rest or limbs[limbs.size - 1] != 0
    limbs[:] = 0
    return rest


@kernel
def exact(sa, ea, sb, eb, plan, marked, limb_count, out, tally, start, stop):
    """Exact steps over all of K. A step was exact if its terms less its result are zero.

    marked : the plan with -1 for overflow.
    """
    limbs = np.zeros(limb_count, np.int64)
    to, depth = plan.sum, sa.shape[1]
    for i in range(start, stop):
        for j in range(sb.shape[0]):
            c, notes = np.int64(out[i, j]), tally[i, j]
            for first in range(0, depth, plan.terms):
                last = min(first + plan.terms, depth)
                before, low, kind = unpack_code(c, to)
                beyond = exact_step(sa, ea, i, sb, eb, j, first, last, c, marked, limbs) == -1
                c = exact_step(sa, ea, i, sb, eb, j, first, last, c, plan, limbs)
                after, high, _ = unpack_code(c, to)
                finite = kind == 0
                for k in range(first, last):
                    x, y = np.int64(ea[i, k]), np.int64(eb[j, k])
                    finite = finite and x < INFINITE and y < INFINITE
                if not finite:
                    continue
                if beyond:
                    notes[OVERFLOW] += 1
                    notes[INEXACT] += 1
                    continue
                rest = not_all(sa, ea, i, sb, eb, j, first, last, before, low, after, high, plan, limbs)
                notes[INEXACT] += 1 if rest else 0
            out[i, j] = c


@kernel
def two_stage(sa, ea, sb, eb, plan, whole, limb_count, out, tally, start, stop):
    """TR-FDPA or GTR-FDPA steps over all of K. `whole`: the plan of the same dot product without any loss."""
    limbs = np.zeros(limb_count, np.int64)
    to, depth, f = plan.sum, sa.shape[1], plan.fraction_bits
    stride = 2 if plan.interleaved else 1
    for i in range(start, stop):
        for j in range(sb.shape[0]):
            c, notes = np.int64(out[i, j]), tally[i, j]
            for first in range(0, depth, plan.terms):
                last = min(first + plan.terms, depth)
                before, low, kind = unpack_code(c, to)
                c = two_stage_step(sa, ea, i, sb, eb, j, first, last, c, plan)
                after, high, result = unpack_code(c, to)
                finite = kind == 0
                for k in range(first, last):
                    finite = finite and ea[i, k] < INFINITE and eb[j, k] < INFINITE
                if not finite:
                    continue
                if result != 0:
                    notes[OVERFLOW] += 1
                    notes[INEXACT] += 1
                    continue
                e_dot = np.int64(-999)
                for parity in range(stride):
                    _, largest = truncated_sum(sa, ea, i, sb, eb, j, first + parity, last, stride, plan)
                    e_dot = max(e_dot, largest)
                    for k in range(first + parity, last, stride):
                        x, y = np.int64(ea[i, k]), np.int64(eb[j, k])
                        if x != ZERO and y != ZERO:
                            product = abs(np.int64(sa[i, k]) * np.int64(sb[j, k]))
                            note_term(product, f - largest + x + y - plan.product_fraction_bits, notes)
                largest = max(e_dot, low)
                if not plan.interleaved or low >= largest - f - 1:
                    note_term(abs(before), f - to.container_mantissa_bits - largest + low, notes)
                elif before != 0:
                    notes[TRUNCATED] += 1
                    notes[DROPPED] += 1
                rest = not_all(sa, ea, i, sb, eb, j, first, last, before, low, after, high, whole, limbs)
                notes[INEXACT] += 1 if rest else 0
            out[i, j] = c


@kernel
def grouped(a, fa, ea, b, fb, eb, plan, marked, out, tally, start, stop):
    """GST-FDPA steps over all of K; a term is a group."""
    to, depth, step = plan.sum, a.shape[1], plan.group * plan.groups
    terms, exponents = np.empty(plan.groups, np.int64), np.empty(plan.groups, np.int64)
    for i in range(start, stop):
        for j in range(b.shape[0]):
            c, notes = np.int64(out[i, j]), tally[i, j]
            for first in range(0, depth, step):
                last = min(first + step, depth)
                significand, exponent, kind = unpack_code(c, to)
                c = grouped_step(a, fa, ea, i, b, fb, eb, j, first, last, c, plan)
                finite, largest = kind == 0, plan.zero_exponent
                if significand != 0 and exponent > largest:
                    largest = exponent
                count = 0
                for k in range(first, last, plan.group):
                    x, y = np.int64(ea[i, k // plan.block]), np.int64(eb[j, k // plan.block])
                    finite = finite and x < INFINITE and y < INFINITE
                    term, some = np.int64(0), False
                    for t in range(k, min(k + plan.group, last)):
                        term += np.int64(a[i, t]) * np.int64(b[j, t])
                        some = some or (a[i, t] != 0 and b[j, t] != 0)
                    if x != ZERO and y != ZERO and some:
                        largest = max(largest, x + y)
                        terms[count] = term * np.int64(fa[i, k // plan.block]) * np.int64(fb[j, k // plan.block])
                        exponents[count] = x + y
                        count += 1
                if not finite:
                    continue
                shift = plan.fraction_bits - largest + exponent - to.container_mantissa_bits
                note_term(abs(significand), shift, notes)
                total = align(significand, shift)
                for t in range(count):
                    shift = plan.fraction_bits - largest + exponents[t] - plan.term_fraction_bits
                    note_term(abs(terms[t]), shift, notes)
                    total += align(terms[t], shift)
                note_result(total, largest - plan.fraction_bits, c, to, marked, notes)
            out[i, j] = c
