"""Chains and trees: one rounding, or one look at overflow, per product or addition."""

from collections.abc import Sequence

from fpsim.accumulators import IntegerAccumulator, PairwiseTree, SequentialFma
from fpsim.reference.numbers import Number, decode
from fpsim.reference.sums import add, flushed, flushed_code, multiply_add


def fma_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: SequentialFma) -> int:
    order = list(range(len(pairs)))
    if kind.order == "odd-even":
        order = [k for start in range(0, len(pairs), 2) for k in (start + 1, start) if k < len(pairs)]
    for k in order:
        a, b, number = *pairs[k], decode(c, kind.output)
        if kind.flush:
            a, b, number = flushed(a, True), flushed(b, True), flushed(number, True)
        c = multiply_add(a, b, number, kind.rounding, kind.output)
        if kind.flush:
            c = flushed_code(c, kind.output)
    return c


def tree_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: PairwiseTree) -> int:
    def settle(code: int) -> int:
        return flushed_code(code, kind.output) if kind.flush else code

    zero = Number("finite")
    if kind.flush and pairs:
        flat = flushed(decode(c, kind.output), False)
        c = c if flat.significand or flat.kind != "finite" else 0
    for start in range(0, len(pairs), kind.terms):
        group = list(pairs[start : start + kind.terms])
        group += [(zero, zero)] * (kind.terms - len(group))
        if kind.flush:
            group = [(flushed(a, False), flushed(b, False)) for a, b in group]
        # A product alone: adding -0 changes nothing, not even the sign of a zero.
        minus_zero = Number("finite", True)
        sums = [settle(multiply_add(a, b, minus_zero, "rne", kind.output)) for a, b in group]
        while len(sums) > 1:
            sums = [settle(add(x, y, kind.output)) for x, y in zip(sums[::2], sums[1::2], strict=True)]
        c = settle(add(c, sums[0], kind.output))
    return c


def integer_chain(pairs: Sequence[tuple[Number, Number]], c: int, kind: IntegerAccumulator) -> int:
    def saturate(x: int, bits: int) -> int:
        return min(max(x, -(1 << (bits - 1))), (1 << (bits - 1)) - 1)

    half, modulus = 1 << (kind.bits - 1), 1 << kind.bits
    for start in range(0, len(pairs), kind.step):
        part = sum(int(a.value * b.value) for a, b in pairs[start : start + kind.step])
        c += part if kind.step_bits is None else saturate(part, kind.step_bits)
        if kind.overflow == "wrap":
            c = (c + half) % modulus - half
        elif kind.overflow == "saturate":
            c = saturate(c, kind.bits)
        elif not -half <= c < half:
            raise OverflowError(f"the {kind.bits}-bit sum is {c} after product {start + kind.step - 1}")
    return c
