"""Dot products in steps that round once: fused (T-FDPA), two-stage (CDNA3) and grouped (block-scaled FP4)."""

from collections.abc import Sequence
from fractions import Fraction

from fpsim.accumulators import FusedDot, GroupedDot, TwoStageDot
from fpsim.formats import container, scalar_format
from fpsim.reference.numbers import Number, decode, floor_log2
from fpsim.reference.sums import ONE, engine_nan, round_sum, special_sum


def fused_step(products: Sequence[tuple[Number, Number]], c: Number, kind: FusedDot) -> int:
    """One T-FDPA step, arXiv:2511.10909 Algorithm 7: align, truncate, add exactly, round once."""
    special = special_sum(products, c, kind.output)
    if special is not None:
        return special
    # 1. Terms as (value, exponent); the product of two significands is in [0, 4) and is not renormalised.
    terms = [(a.value * b.value, a.exponent + b.exponent) for a, b in products]
    terms.append((c.value, c.exponent))
    # 2. The largest exponent among the terms that are not zero; zeros count with `zero_exponent`.
    exponents = [e for value, e in terms if value != 0]
    if kind.zero_exponent is not None:
        exponents.append(kind.zero_exponent)
    if not exponents:
        return 0
    largest = max(exponents)
    # 3. Truncate each term toward zero at 2**(largest - F), then add exactly.
    total = Fraction(0)
    for value, _ in terms:
        if kind.fraction_bits is None:
            total += value
        else:
            unit = Fraction(2) ** (largest - kind.fraction_bits)
            total += int(value / unit) * unit  # int() truncates toward zero
    # 4. Round once.
    return round_sum(total, kind.rounding, kind.output)


def fused_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: FusedDot) -> int:
    held, step = container(kind.output), kind.terms or max(len(pairs), 1)
    for start in range(0, len(pairs), step):
        c = fused_step(pairs[start : start + step], decode(c, held), kind)
    return c


def _floor_at(value: Fraction, exponent: int) -> Fraction:
    """The largest multiple of 2**exponent that is not above `value`."""
    unit = Fraction(2) ** exponent
    return (value // unit) * unit


def _truncated_sum(terms: Sequence[tuple[Fraction, int]], fraction_bits: int) -> tuple[Fraction, int]:
    """Terms (value, exponent) truncated toward zero below their largest exponent, added; and that exponent."""
    largest = max((e for value, e in terms if value != 0), default=-999)
    unit = Fraction(2) ** (largest - fraction_bits)
    return sum((int(value / unit) * unit for value, _ in terms), Fraction(0)), largest


def two_stage_step(products: Sequence[tuple[Number, Number]], c: Number, kind: TwoStageDot) -> int:
    """TR-FDPA, and GTR-FDPA where `kind.interleaved` (arXiv:2511.10909)."""
    row = scalar_format(kind.output)
    terms = [(a.value * b.value, a.exponent + b.exponent) for a, b in products]
    infinite = [
        (Number("infinite", value < 0), ONE) if abs(value) >= Fraction(2) ** (row.bias + 1) else pair
        for (value, _), pair in zip(terms, products, strict=True)
    ]
    special = special_sum(infinite, c, kind.output)
    if special is not None:
        return special
    f = kind.fraction_bits
    if kind.interleaved:
        (even, e_even), (odd, e_odd) = _truncated_sum(terms[::2], f), _truncated_sum(terms[1::2], f)
        e_dot = max(e_even, e_odd)
        dot_sum = _floor_at(even, e_dot - f) + _floor_at(odd, e_dot - f)
    else:
        dot_sum, e_dot = _truncated_sum(terms, f)
    largest = max(e_dot, c.exponent)
    total = _floor_at(dot_sum, largest - kind.sum_fraction_bits - 1)
    if not (kind.interleaved and c.exponent < largest - f - 1):
        total += _floor_at(c.value, largest - f)
    if total == 0:
        return 0
    e = max(floor_log2(abs(total)), row.minimum_exponent)
    return round_sum(_floor_at(total, e - kind.sum_fraction_bits), "rne", kind.output)


def two_stage_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: TwoStageDot) -> int:
    for start in range(0, len(pairs), kind.terms):
        c = two_stage_step(pairs[start : start + kind.terms], decode(c, kind.output), kind)
    return c


def grouped_chain(
    pairs: Sequence[tuple[Number, Number]],
    c: int,
    kind: GroupedDot,
    scales: Sequence[tuple[Number, Number]],
    block: int,
) -> int:
    """GST-FDPA (arXiv:2511.10909): exact sums of groups, times their scales, as terms of a fused dot."""
    held = container(kind.output)
    step = kind.group * kind.groups
    for start in range(0, len(pairs), step):
        number = decode(c, held)
        terms, exponents = [number.value], [number.exponent] if number.significand else []
        nan = number.kind == "nan"
        for first in range(start, min(start + step, len(pairs)), kind.group):
            group = pairs[first : min(first + kind.group, len(pairs))]
            scale_a, scale_b = scales[first // block]
            nan = nan or "nan" in (scale_a.kind, scale_b.kind)
            terms.append(sum((a.value * b.value for a, b in group), Fraction(0)) * scale_a.value * scale_b.value)
            if any(a.significand and b.significand for a, b in group) and scale_a.significand and scale_b.significand:
                exponents.append(scale_a.exponent + scale_b.exponent)
        if nan or number.kind != "finite":
            c = engine_nan(held) if nan else c
            continue
        if kind.zero_exponent is not None:
            exponents.append(kind.zero_exponent)
        unit = Fraction(2) ** (max(exponents, default=0) - kind.fraction_bits)
        c = round_sum(sum((int(t / unit) * unit for t in terms), Fraction(0)), kind.rounding, kind.output)
    return c
