"""What a dot product loses, counted by definition: the truth of `fpsim.counts`."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from fpsim.accumulators import (
    Accumulator,
    FixedPoint,
    FusedDot,
    GroupedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.formats import container, scalar_format
from fpsim.reference import chains, steps
from fpsim.reference.dot import scaled, split_ranges
from fpsim.reference.fixed import fixed_chain, on_grid, settled
from fpsim.reference.numbers import Number, decode, round_magnitude
from fpsim.reference.sums import add, ieee_result, multiply, multiply_add
from fpsim.rounding import rounding as find_rounding

Pairs = Sequence[tuple[Number, Number]]


@dataclass
class Tally:
    """Counts of one output, filled in as it is computed."""

    overflow: int = 0
    truncated: int = 0
    dropped: int = 0
    inexact: int = 0

    def rounded(self, exact: Fraction, result: Number, rounding: str, output: str) -> None:
        """One rounding: an exact finite value and what it became."""
        row = scalar_format(output)
        beyond = round_magnitude(abs(exact), exact < 0, row, find_rounding(rounding)) > row.max_code
        self.overflow += beyond
        self.inexact += beyond or result.kind != "finite" or result.value != exact


def count(
    pairs: Pairs,
    c: int,
    kind: Accumulator,
    tally: Tally,
    scales: Pairs = (),
    block: int = 1,
) -> int:
    """`accumulate`, with every loss added to `tally`; ValueError for what has no counts here."""
    if getattr(kind, "flush", False) or getattr(kind, "order", "ascending") not in ("ascending", "pairwise"):
        raise ValueError(f"no counts are defined for flushing or reordering, got {kind}")
    if isinstance(kind, FusedDot | GroupedDot):
        return _count_steps(pairs, c, kind, tally, scales, block)
    if isinstance(kind, TwoStageDot):
        return _count_two_stage(pairs, c, kind, tally)
    if isinstance(kind, SequentialFma):
        return _count_chain(pairs, c, kind, tally)
    if isinstance(kind, PairwiseTree):
        return _count_tree(pairs, c, kind, tally)
    if isinstance(kind, FixedPoint):
        return _count_fixed(pairs, c, kind, tally)
    if isinstance(kind, IntegerAccumulator):
        return _count_integers(pairs, c, kind, tally)
    if isinstance(kind, Promoted):
        for start in range(0, len(pairs), kind.every):
            inner = count(pairs[start : start + kind.every], 0, kind.inner, tally)
            c = _count_outer(c, inner, kind.inner, kind.output, kind.rounding, kind.outer, tally)
        return c
    if isinstance(kind, SplitK):
        register = kind.inner.outer if isinstance(kind.inner, Promoted) else kind.inner
        whole = register if isinstance(register, IntegerAccumulator) else None
        for start, stop in split_ranges(len(pairs), kind.splits, kind.tile):
            part = count(pairs[start:stop], 0, kind.inner, tally)
            c = _count_outer(c, part, kind.inner, container(kind.output).name, "rne", whole, tally)
        return c
    raise ValueError(f"no counts are defined for {type(kind).__name__}")


def _count_steps(pairs: Pairs, c: int, kind: FusedDot | GroupedDot, tally: Tally, scales: Pairs, block: int) -> int:
    held = container(kind.output)
    each = kind.group if isinstance(kind, GroupedDot) else 1
    step = kind.group * kind.groups if isinstance(kind, GroupedDot) else kind.terms or max(len(pairs), 1)
    for start in range(0, len(pairs), step):
        part, number = pairs[start : start + step], decode(c, held)
        of_part = [scales[k // block] for k in range(start, start + len(part))] if scales else []
        if isinstance(kind, GroupedDot):
            c = steps.grouped_chain(part, c, kind, of_part, 1)
        else:
            if scales:
                part = [(scaled(a, s), scaled(b, t)) for (a, b), (s, t) in zip(part, of_part, strict=True)]
            c = steps.fused_step(part, number, kind)
        kinds = {x.kind for pair in [*part, *of_part] for x in pair} | {number.kind}
        if kinds != {"finite"}:
            continue
        terms, exponents = [number.value], [number.exponent] if number.significand else []
        for k in range(0, len(part), each):
            group = part[k : k + each]
            value = sum((a.value * b.value for a, b in group), Fraction(0))
            if isinstance(kind, GroupedDot):
                s, t = of_part[k]
                value, exponent = value * s.value * t.value, s.exponent + t.exponent
                some = any(a.significand and b.significand for a, b in group) and s.significand and t.significand
            else:
                exponent, some = group[0][0].exponent + group[0][1].exponent, value != 0
            terms.append(value)
            exponents += [exponent] if some else []
        if kind.zero_exponent is not None:
            exponents.append(kind.zero_exponent)
        if kind.fraction_bits is not None:
            unit = Fraction(2) ** (max(exponents, default=0) - kind.fraction_bits)
            tally.truncated += sum(int(x / unit) * unit != x for x in terms)
            tally.dropped += sum(x != 0 and int(x / unit) == 0 for x in terms)
            terms = [int(x / unit) * unit for x in terms]
        tally.rounded(sum(terms, Fraction(0)), decode(c, held), kind.rounding, kind.output)
    return c


def _count_two_stage(pairs: Pairs, c: int, kind: TwoStageDot, tally: Tally) -> int:
    held, f = container(kind.output), kind.fraction_bits
    for start in range(0, len(pairs), kind.terms):
        part, number = pairs[start : start + kind.terms], decode(c, held)
        c = steps.two_stage_step(part, number, kind)
        result = decode(c, held)
        if {x.kind for pair in part for x in pair} | {number.kind} != {"finite"}:
            continue
        exact = number.value + sum((a.value * b.value for a, b in part), Fraction(0))
        tally.overflow += result.kind != "finite"
        tally.inexact += result.kind != "finite" or result.value != exact
        if result.kind != "finite":
            continue
        terms = [(a.value * b.value, a.exponent + b.exponent) for a, b in part]
        largest = -999
        for group in (terms[::2], terms[1::2]) if kind.interleaved else (terms,):
            of_group = max((e for value, e in group if value != 0), default=-999)
            largest = max(largest, of_group)
            for value, _ in group:
                _aligned(value, of_group - f, tally)
        largest = max(largest, number.exponent)
        if kind.interleaved and number.exponent < largest - f - 1:
            tally.truncated += number.value != 0
            tally.dropped += number.value != 0
        else:
            _aligned(number.value, largest - f, tally)
    return c


def _aligned(value: Fraction, exponent: int, tally: Tally) -> None:
    """One term whose bits below 2**exponent go."""
    unit = Fraction(2) ** exponent
    tally.truncated += value % unit != 0
    tally.dropped += 0 < abs(value) < unit


def _added(x: Number, y: Number, result: Number, rounding: str, output: str, tally: Tally) -> None:
    """One IEEE addition, noted."""
    if x.kind == y.kind == "finite":
        total = x.value + y.value
        tally.rounded(total, result, rounding, output)
        if result.kind == "finite" and result.value != total:
            kept_x, kept_y = result.value == x.value and y.value != 0, result.value == y.value and x.value != 0
            tally.dropped += kept_x or kept_y


def _product(a: Number, b: Number, kind: SequentialFma | PairwiseTree, tally: Tally) -> Number:
    """One rounded product, noted."""
    output = kind.product or kind.output
    result = decode(multiply(a, b, kind.rounding, output, kind.overflow), container(output))
    if a.kind == b.kind == "finite":
        tally.rounded(a.value * b.value, result, kind.rounding, output)
    return result


def _exact_product(a: Number, b: Number) -> Number:
    value = a.value * b.value
    return Number("finite", value < 0, abs(value.numerator), 0, value.denominator.bit_length() - 1)


def _count_chain(pairs: Pairs, c: int, kind: SequentialFma, tally: Tally) -> int:
    held = container(kind.output)
    for a, b in pairs:
        number = decode(c, held)
        if kind.fused:
            c = multiply_add(a, b, number, kind.rounding, kind.output, kind.overflow)
            if a.kind == b.kind == "finite":
                _added(_exact_product(a, b), number, decode(c, held), kind.rounding, kind.output, tally)
        else:
            part = _product(a, b, kind, tally)
            c = add(part, number, kind.rounding, kind.output, kind.overflow)
            _added(part, number, decode(c, held), kind.rounding, kind.output, tally)
    return c


def _count_tree(pairs: Pairs, c: int, kind: PairwiseTree, tally: Tally) -> int:
    held, zero = container(kind.output), Number("finite")

    def added(x: Number, y: Number) -> int:
        code = add(x, y, kind.rounding, kind.output, kind.overflow)
        _added(x, y, decode(code, held), kind.rounding, kind.output, tally)
        return code

    for start in range(0, len(pairs), kind.terms):
        group = list(pairs[start : start + kind.terms])
        level = [_product(a, b, kind, tally) for a, b in group + [(zero, zero)] * (kind.terms - len(group))]
        while len(level) > 1:
            level = [decode(added(x, y), held) for x, y in zip(level[::2], level[1::2], strict=True)]
        c = added(decode(c, held), level[0])
    return c


def _settle(total: int, kind: IntegerAccumulator, tally: Tally) -> int:
    tally.overflow += not kind.low <= total <= kind.high
    return chains.settle_integer(total, kind)


def _count_integers(pairs: Pairs, c: int, kind: IntegerAccumulator, tally: Tally) -> int:
    for start in range(0, len(pairs), kind.step):
        part = [int(a.value * b.value) for a, b in pairs[start : start + kind.step]]
        if kind.order == "pairwise":
            part = [_settle(x, kind, tally) for x in part] + [0] * (kind.step - len(part))
            while len(part) > 1:
                part = [_settle(x + y, kind, tally) for x, y in zip(part[::2], part[1::2], strict=True)]
        total = sum(part)
        if kind.step_bits is not None:
            half = 1 << (kind.step_bits - 1)
            tally.overflow += not -half <= total < half
            total = min(max(total, -half), half - 1)
        c = _settle(c + total, kind, tally)
    return c


def _count_fixed(pairs: Pairs, c: int, kind: FixedPoint, tally: Tally) -> int:
    held = container(kind.output)
    result, start = fixed_chain(pairs, c, kind), decode(c, held)
    if {x.kind for pair in pairs for x in pair} | {start.kind} != {"finite"}:
        return result
    unit, total = Fraction(2) ** (kind.lsb or 0), 0
    for value in (start.value, *(a.value * b.value for a, b in pairs)):
        term = on_grid(value, kind)
        tally.truncated += term * unit != value
        tally.dropped += term == 0 and value != 0
        tally.overflow += not -(1 << (kind.bits - 1)) <= total + term < 1 << (kind.bits - 1)
        total = settled(total + term, kind)
    tally.rounded(total * unit, decode(result, held), kind.rounding, kind.output)
    return result


def _count_outer(
    c: int, inner: int, of: Accumulator, output: str, rounding: str, outer: IntegerAccumulator | None, tally: Tally
) -> int:
    """One promotion: a conversion of the inner result and an addition."""
    if outer is not None:
        return _settle(c + inner, outer, tally)
    held, number = container(output), decode(inner, container(of.output))
    converted = decode(ieee_result(number, "rne", output), held)
    if number.kind == "finite":
        tally.rounded(number.value, converted, "rne", output)
    code = add(decode(c, held), converted, rounding, output)
    _added(decode(c, held), converted, decode(code, held), rounding, output, tally)
    return code
