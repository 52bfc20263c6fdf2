"""Accumulators around accumulators on the CPU: promotions and split K."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fpsim._cpu.chains import finish, pairwise, sequential, start_values
from fpsim._cpu.fused import FusedProduct, fused
from fpsim._cpu.integers import integer, settle
from fpsim._cpu.plans import narrow_plan
from fpsim._cpu.rows import Scales, rows
from fpsim._cpu.steps import two_stage
from fpsim._kernels import chain, products
from fpsim.accumulators import (
    Accumulator,
    FusedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.codec import Array, decode, encode
from fpsim.formats import Format, container, scalar_format
from fpsim.reference import engine_nan, split_ranges
from fpsim.spec import MatmulSpec


def promoted(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: Promoted, scales: Scales | None) -> None:
    if kind.scaled and scales is None:
        raise ValueError("this engine scales every promotion: a_scale (M, groups) and b_scale (groups, N) are needed")
    if kind.scaled and (kind.output != "f32" or kind.rounding != "rne"):
        raise ValueError(f"scaled promotions run in float32 to nearest even, got {kind.output} and {kind.rounding}")
    a, b, spec = inner_operands(a, b, spec, kind)
    run = _over_ranges(a, b, spec, kind)
    for group, start in enumerate(range(0, a.shape[1], kind.every)):
        part = zeros(c.shape, kind.inner)
        run(part, start, min(start + kind.every, a.shape[1]))
        if kind.outer is not None:
            settle(c, part, kind.outer)
        elif kind.scaled and scales is not None:
            with np.errstate(all="ignore"):
                scale = scales[0][:, group, None] * scales[1][None, group]
                inner = values(part, kind.inner).astype(np.float32)
            value = c.view(np.float32)
            products.fma_into(scale, inner, value, 0, c.shape[0])
            c[np.isnan(value)] = engine_nan(container("f32"))
        else:
            add(c, part, kind.inner, kind.output, kind.rounding)


def _over_ranges(a: Array, b: Array, spec: MatmulSpec, kind: Promoted) -> Callable[[Array, int, int], None]:
    """The inner accumulator as a function of (sums, first k, last k); a fused dot unpacks its operands only once."""
    inner = kind.inner
    if (
        isinstance(inner, FusedDot)
        and inner.terms
        and kind.every % inner.terms == 0
        and inner.fraction_bits is not None
    ):
        return FusedProduct(a, b, spec, inner).run
    return lambda part, start, stop: _INNER[type(inner)](
        np.ascontiguousarray(a[:, start:stop]), np.ascontiguousarray(b[start:stop]), part, spec, inner, None
    )


def split_k(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: SplitK, scales: Scales | None) -> None:
    inner, whole = kind.inner, register(kind.inner)
    for start, stop in split_ranges(a.shape[1], kind.splits, kind.tile):
        part = zeros(c.shape, inner)
        piece_a, piece_b = np.ascontiguousarray(a[:, start:stop]), np.ascontiguousarray(b[start:stop])
        _INNER[type(inner)](piece_a, piece_b, part, spec, inner, scales)
        if whole is not None:
            settle(c, part, whole)
        else:
            add(c, part, inner, container(kind.output).name, "rne")


def register(kind: Accumulator) -> IntegerAccumulator | None:
    """The integer accumulator that holds the results of `kind`; None where they are floats."""
    last = kind.outer if isinstance(kind, Promoted) else kind
    return last if isinstance(last, IntegerAccumulator) else None


def zeros(shape: tuple[int, ...], kind: Accumulator) -> Array:
    """Container codes of +0, as signed integers."""
    return np.zeros(shape, f"i{np.dtype(container(kind.output).code_dtype).itemsize}")


def add(total: Array, part: Array, inner: Accumulator, output: str, rounding: str) -> None:
    """total += part: one IEEE addition in `output` of container codes, after a conversion of part to it. In place."""
    row = container(output)
    if row.name == output and output in ("f16", "f32", "f64") and rounding == "rne":
        value = total.view(row.value_dtype if output != "f16" else np.float16)
        with np.errstate(all="ignore"):
            np.add(value, values(part, inner).astype(value.dtype, copy=False), out=value)
        total[np.isnan(value)] = np.array(engine_nan(row), np.uint64).astype(total.dtype)
        return
    sums, x = start_values(total, row), values(part, inner).astype(np.float64)
    convert, to = narrow_plan(output, "rne"), narrow_plan(output, rounding)
    rows(lambda i, j: chain.add_into(x, convert, rounding == "rd", to, sums, i, j), sums, 1)
    finish(sums, row, total)


def values(part: Array, inner: Accumulator) -> Array:
    """What container codes of `inner` stand for: the very bits where they are floats of this machine."""
    held = container(inner.output)
    if held.kind == "int":
        bits = inner.bits if isinstance(inner, IntegerAccumulator) else 64
        if bits > 54:
            raise ValueError(f"a {bits}-bit integer sum does not convert to a float exactly; allowed: at most 54 bits")
        return part.astype(np.float64)
    return part.view(np.float16) if held.name == "f16" else decode(part.view(held.code_dtype), held)


def inner_operands(a: Array, b: Array, spec: MatmulSpec, kind: Promoted) -> tuple[Array, Array, MatmulSpec]:
    """The operands as the inner accumulator sees them: converted, in its order of k."""
    rows_of = spec.a, spec.b
    if kind.operands:
        a, b = _converted(a, spec.a, kind.operands), _converted(b, spec.b, kind.operands)
        rows_of = scalar_format(kind.operands), scalar_format(kind.operands)
    return *_reorder(a, b, kind), MatmulSpec(*rows_of, kind.inner)


def _converted(codes: Array, row: Format, target: str) -> Array:
    return encode(decode(codes, row), target, conversion="ocp-nonsat")


def _reorder(a: Array, b: Array, kind: Promoted) -> tuple[Array, Array]:
    """K padded with zeros to whole groups and permuted within them."""
    if kind.order == "ascending":
        return a, b
    pad = -a.shape[1] % kind.every
    a, b = np.pad(a, ((0, 0), (0, pad))), np.pad(b, ((0, pad), (0, 0)))
    group = np.arange(kind.every)
    order = np.concatenate([group[group % 4 < 2], group[group % 4 >= 2]])
    k = (np.arange(0, a.shape[1], kind.every)[:, None] + order).reshape(-1)
    return np.ascontiguousarray(a[:, k]), np.ascontiguousarray(b[k])


#: kind of accumulator inside another -> its runner
_INNER: dict[type[Accumulator], Callable[[Array, Array, Array, MatmulSpec, Any, Scales | None], None]] = {
    FusedDot: fused,
    TwoStageDot: two_stage,
    SequentialFma: sequential,
    PairwiseTree: pairwise,
    IntegerAccumulator: integer,
    Promoted: promoted,
}
