"""Whole dot products: accumulators around accumulators, and the way from codes to a code."""

from collections.abc import Sequence
from dataclasses import replace

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
from fpsim.formats import container
from fpsim.reference.chains import fma_chain, integer_chain, settle_integer, tree_chain
from fpsim.reference.fixed import fixed_chain
from fpsim.reference.numbers import Number, decode, encode
from fpsim.reference.steps import fused_chain, grouped_chain, two_stage_chain
from fpsim.reference.sums import ENGINE_NAN, add, ieee_result, multiply, multiply_add
from fpsim.spec import MatmulSpec


def _promoted(
    pairs: Sequence[tuple[Number, Number]], c: int, kind: Promoted, scales: Sequence[tuple[Number, Number]]
) -> int:
    if kind.operands:
        pairs = [(_converted(a, kind.operands), _converted(b, kind.operands)) for a, b in pairs]
    held, of_inner = container(kind.output), container(kind.inner.output)
    for start in range(0, len(pairs), kind.every):
        group = list(pairs[start : start + kind.every])
        if kind.order == "mod4-pairs":
            zero = Number("finite")
            group += [(zero, zero)] * (-len(group) % kind.every)
            group = [p for i, p in enumerate(group) if i % 4 < 2] + [p for i, p in enumerate(group) if i % 4 >= 2]
        inner = accumulate(group, 0, kind.inner)
        if kind.outer is not None:
            c = settle_integer(c + inner, kind.outer)
            continue
        converted = decode(ieee_result(decode(inner, of_inner), "rne", kind.output), held)
        if kind.scaled:
            scale_a, scale_b = scales[start // kind.every]
            scale = decode(multiply(scale_a, scale_b, "rne", "f32"), "f32")
            c = multiply_add(scale, converted, decode(c, held), kind.rounding, kind.output)
        else:
            c = add(decode(c, held), converted, kind.rounding, kind.output)
    return c


def _split(pairs: Sequence[tuple[Number, Number]], c: int, kind: SplitK) -> int:
    held = container(kind.output)
    register = kind.inner.outer if isinstance(kind.inner, Promoted) and kind.inner.outer else kind.inner
    for start, stop in split_ranges(len(pairs), kind.splits, kind.tile):
        part = accumulate(pairs[start:stop], 0, kind.inner)
        if isinstance(register, IntegerAccumulator):
            c = settle_integer(c + part, register)
        else:
            c = add(decode(c, held), decode(part, held), "rne", held.name)
    return c


def _converted(number: Number, target: str) -> Number:
    return decode(encode(number, target, "rne", "infinity", "ocp-nonsat"), target)


def split_ranges(k: int, splits: int, tile: int) -> list[tuple[int, int]]:
    """Contiguous K ranges of ceil(tiles / splits) tiles each; the last one may be short or missing."""
    tiles = -(-k // tile)
    width = -(-tiles // splits) * tile
    return [(start, min(start + width, k)) for start in range(0, k, max(width, 1))]


def accumulate(
    pairs: Sequence[tuple[Number, Number]],
    c: int,
    kind: Accumulator,
    scales: Sequence[tuple[Number, Number]] = (),
    block: int = 1,
) -> int:
    """The result code of one dot product.

    c : a code of the accumulator's container (an int for integers).
    kind : a FixedPoint with its last bit in numbers (`FixedPoint.placed`).
    scales, block : for block-scaled kinds, the scales of a and b for each run of `block` products.
    """
    if isinstance(kind, FusedDot):
        if scales:
            pairs = [
                (scaled(a, scales[k // block][0]), scaled(b, scales[k // block][1])) for k, (a, b) in enumerate(pairs)
            ]
        return fused_chain(pairs, c, kind)
    if isinstance(kind, GroupedDot):
        return grouped_chain(pairs, c, kind, scales, block)
    if isinstance(kind, TwoStageDot):
        return two_stage_chain(pairs, c, kind)
    if isinstance(kind, SequentialFma):
        return fma_chain(pairs, c, kind)
    if isinstance(kind, PairwiseTree):
        return tree_chain(pairs, c, kind)
    if isinstance(kind, FixedPoint):
        return fixed_chain(pairs, c, kind)
    if isinstance(kind, Promoted):
        return _promoted(pairs, c, kind, scales)
    if isinstance(kind, SplitK):
        return _split(pairs, c, kind)
    return integer_chain(pairs, c, kind)


def scaled(number: Number, scale: Number) -> Number:
    """A number times a power of two: the scale's exponent joins its own."""
    if scale.kind == "nan":
        return scale
    return replace(number, exponent=number.exponent + scale.exponent)


def dot(
    a: Sequence[int],
    b: Sequence[int],
    c: int,
    spec: MatmulSpec,
    scale_a: Sequence[int] = (),
    scale_b: Sequence[int] = (),
) -> int:
    """One output element: codes of a row of A and of a column of B, and the code of c, all as Python integers.

    scale_a, scale_b : codes of spec.scale per block of k; for scaled promotions, float32 codes per group.
    """
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} codes and b has {len(b)}; a dot product needs as many of each")
    pairs = [(decode(x, spec.a), decode(y, spec.b)) for x, y in zip(a, b, strict=True)]
    held_scale = spec.scale or "f32"
    scales = [(decode(x, held_scale), decode(y, held_scale)) for x, y in zip(scale_a, scale_b, strict=True)]
    kind = spec.accumulator.placed(spec.a, spec.b) if isinstance(spec.accumulator, FixedPoint) else spec.accumulator
    result = accumulate(pairs, c, kind, scales, spec.block or 1)
    held = container(spec.accumulator.output)
    if spec.out == held.name:
        return result
    value = decode(result, held)
    if value.kind == "nan" and spec.out in ENGINE_NAN:
        return ENGINE_NAN[spec.out]
    return encode(value, spec.out, "rne", "infinity", "ocp-nonsat")
