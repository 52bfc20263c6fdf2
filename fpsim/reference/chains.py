"""Chains and trees: one rounding, or one look at overflow, per product or addition."""

from collections.abc import Sequence

from fpsim.accumulators import IntegerAccumulator, PairwiseTree, SequentialFma
from fpsim.formats import container
from fpsim.reference.numbers import Number, decode
from fpsim.reference.sums import add, flushed, flushed_code, multiply, multiply_add

Pairs = Sequence[tuple[Number, Number]]


def fma_chain(pairs: Pairs, c: int, kind: SequentialFma) -> int:
    held, product_format = container(kind.output), kind.product or kind.output
    order = list(range(len(pairs)))
    if kind.order == "odd-even":
        order = [k for start in range(0, len(pairs), 2) for k in (start + 1, start) if k < len(pairs)]
    for k in order:
        a, b, number = *pairs[k], decode(c, held)
        if kind.flush:
            a, b, number = flushed(a, True), flushed(b, True), flushed(number, True)
        if kind.fused:
            c = multiply_add(a, b, number, kind.rounding, kind.output, kind.overflow)
        else:
            code = multiply(a, b, kind.rounding, product_format, kind.overflow)
            if kind.flush:
                code = flushed_code(code, product_format)
            c = add(decode(code, container(product_format)), number, kind.rounding, kind.output, kind.overflow)
        if kind.flush:
            c = flushed_code(c, kind.output)
    return c


def tree_chain(pairs: Pairs, c: int, kind: PairwiseTree) -> int:
    held, product_format = container(kind.output), kind.product or kind.output
    how = kind.rounding, kind.output, kind.overflow

    def settle(code: int, output: str) -> Number:
        return decode(flushed_code(code, output) if kind.flush else code, container(output))

    zero, total = Number("finite"), decode(c, held)
    if kind.flush and pairs:
        total = flushed(total, False)
        c = c if total.significand or total.kind != "finite" else 0
    for start in range(0, len(pairs), kind.terms):
        group = list(pairs[start : start + kind.terms])
        group += [(zero, zero)] * (kind.terms - len(group))
        if kind.flush:
            group = [(flushed(a, False), flushed(b, False)) for a, b in group]
        sums = [settle(multiply(a, b, kind.rounding, product_format, kind.overflow), product_format) for a, b in group]
        while len(sums) > 1:
            sums = [settle(add(x, y, *how), kind.output) for x, y in zip(sums[::2], sums[1::2], strict=True)]
        c = add(decode(c, held), sums[0], *how)
        c = flushed_code(c, kind.output) if kind.flush else c
    return c


def settle_integer(total: int, kind: IntegerAccumulator) -> int:
    """A sum after the accumulator has looked at overflow; OverflowError if it may not happen."""
    if kind.low <= total <= kind.high:
        return total
    if kind.overflow == "wrap":
        return (total - kind.low) % (1 << kind.bits) + kind.low
    if kind.overflow == "saturate":
        return min(max(total, kind.low), kind.high)
    raise OverflowError(f"the {kind.bits}-bit sum is {total}")


def integer_chain(pairs: Pairs, c: int, kind: IntegerAccumulator) -> int:
    for start in range(0, len(pairs), kind.step):
        part = [int(a.value * b.value) for a, b in pairs[start : start + kind.step]]
        if kind.order == "pairwise":
            part = [settle_integer(x, kind) for x in part] + [0] * (kind.step - len(part))
            while len(part) > 1:
                part = [settle_integer(x + y, kind) for x, y in zip(part[::2], part[1::2], strict=True)]
        total = sum(part)
        if kind.step_bits is not None:
            half = 1 << (kind.step_bits - 1)
            total = min(max(total, -half), half - 1)
        c = settle_integer(c + total, kind)
    return c
