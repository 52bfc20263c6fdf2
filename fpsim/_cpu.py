"""The CPU backend: for each kind of accumulator, unpack the operands and run its kernel on all cores.

A fused dot product runs as vector code (`_kernels.vector`) where that is exact, and output by output
(`_kernels.accumulate`) where it is not: operands with Inf or NaN, exponents that float32 cannot scale, formats or
accumulators outside its limits. Both compute the same bits.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from fpsim import _jit, certificates
from fpsim._kernels import products, vector
from fpsim._kernels.accumulate import INFINITE, NAN, NO_FLOOR, ZERO, Exact, Fused, Grouped, Sum, TwoStage
from fpsim._operands import unpack
from fpsim.accumulators import (
    Accumulator,
    FusedDot,
    GroupedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.codec import Array, decode, encode
from fpsim.formats import Format, container, scalar_format
from fpsim.reference import ENGINE_NAN, split_ranges
from fpsim.rounding import rounding as find_rounding
from fpsim.spec import MatmulSpec

Scales = tuple[Array, Array]


def accumulate(a: Array, b: Array, c: Array, spec: MatmulSpec, scales: Scales | None = None) -> None:
    """c = c + a @ b in place. Codes a (M, K), b (K, N); c (M, N) codes of the accumulator's container, as integers.

    scales : block-scaled kinds: scale codes (M, K/block) and (K/block, N); scaled promotions: float32 values.
    """
    if a.shape[1]:
        _RUNNERS[type(spec.accumulator)](a, b, c, spec, spec.accumulator, scales)


# -- fused dot products -------------------------------------------------------------------------------------------


class _FusedProduct:
    """Operands of a fused dot product, unpacked once; `run` chains over a range of k."""

    def __init__(self, a: Array, b: Array, spec: MatmulSpec, kind: FusedDot, scales: Scales | None = None) -> None:
        self.depth, self.terms = a.shape[1], kind.terms or a.shape[1]
        self.plan = fused_plan(kind, spec.a, spec.b, self.terms)
        self.sa, self.ea = unpack(a, spec.a)
        self.sb, self.eb = unpack(np.ascontiguousarray(b.T), spec.b)
        self.vector = vector_plan(kind, spec.a, spec.b, self.terms)
        if scales is not None:
            self.vector = None
            self.ea = _scaled_exponents(self.ea, scales[0], spec)
            self.eb = _scaled_exponents(self.eb, np.ascontiguousarray(scales[1].T), spec)
        if self.vector is not None:
            self._prepare(a, b, spec, self.vector)

    def _prepare(self, a: Array, b: Array, spec: MatmulSpec, plan: vector.VectorPlan) -> None:
        """float32 values and exponents with K padded step by step, and the rows and columns that do not qualify."""
        small = _small_exponents(spec.a, spec.b)
        dtype, mark = (np.int8, -64) if small else (np.int16, -10000)
        self.none = dtype(-128 if small else -30000)
        low, high = (-1000, 1000) if small else (plan.lowest // 2, 62)

        def qualify(exponents: Array) -> Array:
            return np.any((exponents != ZERO) & ((exponents < low) | (exponents > high)), axis=1)

        self.bad_rows, self.bad_columns = qualify(self.ea), qualify(self.eb)
        x, y = decode(a, spec.a), decode(b, spec.b)
        ex = np.where(self.ea == ZERO, mark, self.ea)
        ey = np.where(self.eb == ZERO, mark, self.eb).T
        x[self.bad_rows], ex[self.bad_rows] = 0, mark
        y[:, self.bad_columns], ey[:, self.bad_columns] = 0, mark
        self.x, self.ex = self._pad(x, 1, 0, plan.step), self._pad(ex.astype(dtype), 1, mark, plan.step)
        self.y, self.ey = self._pad(y, 0, 0, plan.step), self._pad(ey.astype(dtype), 0, mark, plan.step)

    def _pad(self, array: Array, axis: int, fill: int, step: int) -> Array:
        """Every `terms` of K, and what is left of it, followed by zeros up to `step`."""
        steps = -(-self.depth // self.terms)
        tail = [(0, 0), (0, 0)]
        tail[axis] = (0, steps * self.terms - self.depth)
        whole = np.pad(array, tail, constant_values=fill)
        if step == self.terms:
            return np.ascontiguousarray(whole)
        shape = list(whole.shape)
        shape[axis : axis + 1] = [steps, self.terms]
        widths = [(0, 0)] * 3
        widths[axis + 1] = (0, step - self.terms)
        padded = np.pad(whole.reshape(shape), widths, constant_values=fill)
        shape[axis : axis + 2] = [steps * step]
        return np.ascontiguousarray(padded.reshape(shape))

    def run(self, c: Array, start: int, stop: int) -> None:
        """Chain the steps of k in start .. stop (start a multiple of the step) onto c, container codes, in place."""
        source = c.copy()
        if self.vector is None:
            marked = np.ones(c.shape, np.int8)
        else:
            marked = self._run_vector(c, start, stop, self.vector)
        if marked.any():
            args = (self.sa, self.ea, self.sb, self.eb, source, self.plan, marked, c, start, stop)
            _rows(lambda i, j: products.fused(*args, i, j), c, stop - start)

    def _run_vector(self, c: Array, start: int, stop: int, plan: vector.VectorPlan) -> Array:
        redo = np.zeros(c.shape, np.int8)
        redo[self.bad_rows] = 1
        redo[:, self.bad_columns] = 1
        value = c.view(np.float16).astype(np.float32) if plan.half else c.view(np.float32)
        run = vector.fused_narrow if plan.narrow else vector.fused_wide
        begin, end = start // self.terms * plan.step, -(-stop // self.terms) * plan.step
        args = (self.x, self.ex, self.y, self.ey, plan, self.none, value, value.view(np.int32), redo, begin, end)
        _rows(lambda i, j: run(*args, i, j), c, stop - start)
        if plan.half:
            with np.errstate(over="ignore"):
                c[...] = value.astype(np.float16).view(c.dtype)
        bits = np.dtype(c.dtype).itemsize * 8
        c[np.isnan(value)] = ENGINE_NAN[f"f{bits}"]
        return redo


def _scaled_exponents(exponents: Array, scales: Array, spec: MatmulSpec) -> Array:
    """Exponents with those of their block's power-of-two scale; a NaN scale makes NaN of the whole block."""
    _, powers = unpack(scales, scalar_format(spec.scale or "e8m0"))
    per_element = np.repeat(powers, spec.block or 1, axis=1)[:, : exponents.shape[1]]
    moved = np.where((exponents == ZERO) | (exponents >= INFINITE), exponents, exponents + per_element)
    return np.where(per_element == NAN, NAN, moved).astype(np.int16)


def _fused(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: FusedDot, scales: Scales | None) -> None:
    if kind.fraction_bits is None:
        _exact(a, b, c, spec, kind)
    else:
        _FusedProduct(a, b, spec, kind, scales).run(c, 0, a.shape[1])


def _exact(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: FusedDot) -> None:
    held = container(kind.output)
    if spec.a.kind != "float" or spec.b.kind != "float" or held.mantissa_bits > 23:
        raise ValueError(f"an exact FusedDot takes floats and gives at most f32, got {spec.a.name} x {spec.b.name}")
    sa, ea = unpack(a, spec.a)
    sb, eb = unpack(np.ascontiguousarray(b.T), spec.b)
    bits = spec.a.mantissa_bits + spec.b.mantissa_bits
    origin = min(spec.a.minimum_exponent + spec.b.minimum_exponent - bits, held.minimum_exponent - held.mantissa_bits)
    top = max(_top_exponent(spec.a) + _top_exponent(spec.b) + 2, held.bias + 1)
    plan = Exact(kind.terms or a.shape[1], origin, bits, sum_plan(kind.output, kind.rounding))
    limbs = (top - origin + 64 + a.shape[1].bit_length()) // 32 + 2
    _rows(lambda i, j: products.exact(sa, ea, sb, eb, plan, limbs, c, i, j), c, a.shape[1])


def _two_stage(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: TwoStageDot, scales: Scales | None) -> None:
    del scales
    bits = spec.a.mantissa_bits + spec.b.mantissa_bits
    if spec.a.kind != "float" or spec.b.kind != "float" or bits > 24 or kind.terms > 64:
        raise ValueError(
            f"a TwoStageDot takes floats of at most 13 significant bits, got {spec.a.name} x {spec.b.name}"
        )
    sa, ea = unpack(a, spec.a)
    sb, eb = unpack(np.ascontiguousarray(b.T), spec.b)
    plan = TwoStage(
        kind.terms, kind.fraction_bits, kind.sum_fraction_bits, kind.interleaved, bits, sum_plan(kind.output, "rne")
    )
    _rows(lambda i, j: products.two_stage(sa, ea, sb, eb, plan, c, i, j), c, a.shape[1])


def _grouped(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: GroupedDot, scales: Scales | None) -> None:
    if scales is None or spec.scale is None or spec.block is None:
        raise ValueError("a GroupedDot needs scale codes: give the spec scale= and block=, and matmul a_scale, b_scale")
    if spec.block % kind.group or any(row.bits > 8 or row.nan != "none" for row in (spec.a, spec.b)):
        raise ValueError(f"a GroupedDot takes finite formats of at most 8 bits and blocks of whole groups, got {spec}")
    scale = scalar_format(spec.scale)
    points = [row.mantissa_bits - row.minimum_exponent for row in (spec.a, spec.b)]
    x = (decode(a, spec.a) * 2.0 ** points[0]).astype(np.int32)
    y = (decode(np.ascontiguousarray(b.T), spec.b) * 2.0 ** points[1]).astype(np.int32)
    fa, ea = unpack(scales[0], scale)
    fb, eb = unpack(np.ascontiguousarray(scales[1].T), scale)
    plan = Grouped(
        kind.group,
        kind.groups,
        kind.fraction_bits,
        NO_FLOOR if kind.zero_exponent is None else kind.zero_exponent,
        sum(points) + 2 * scale.mantissa_bits,
        spec.block,
        sum_plan(kind.output, kind.rounding),
    )
    _rows(lambda i, j: products.grouped(x, fa, ea, y, fb, eb, plan, c, i, j), c, a.shape[1])


def _promoted(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: Promoted, scales: Scales | None) -> None:
    held = container(kind.output)
    if held.name not in ("f32", "f16") or container(kind.inner.output) != held:
        raise ValueError(f"Promoted adds float32 or float16 sums of the same kind, got {kind}")
    if kind.inner.terms is None or kind.every % kind.inner.terms or kind.inner.fraction_bits is None:
        raise ValueError(f"Promoted.every ({kind.every}) must be a multiple of the inner terms, which truncate: {kind}")
    if kind.scaled and scales is None:
        raise ValueError("this engine scales every promotion: a_scale (M, groups) and b_scale (groups, N) are needed")
    if kind.operands:
        a, b = _converted(a, spec.a, kind.operands), _converted(b, spec.b, kind.operands)
        spec = MatmulSpec(kind.operands, kind.operands, spec.accumulator, spec.out)
    a, b = _reorder(a, b, kind)
    product = _FusedProduct(a, b, spec, kind.inner)
    for group, start in enumerate(range(0, a.shape[1], kind.every)):
        part = np.zeros_like(c)
        product.run(part, start, min(start + kind.every, a.shape[1]))
        if kind.scaled and scales is not None:
            with np.errstate(all="ignore"):
                scale = scales[0][:, group, None] * scales[1][None, group]
            value = c.view(np.float32)
            products.fma_into(scale, part.view(np.float32), value, 0, c.shape[0])
            c[np.isnan(value)] = ENGINE_NAN["f32"]
        else:
            _add(c, part, held)


def _converted(codes: Array, row: Format, target: str) -> Array:
    return encode(decode(codes, row), target, conversion="ocp-nonsat")


def _reorder(a: Array, b: Array, kind: Promoted) -> tuple[Array, Array]:
    """k in the order in which the inner accumulator sees it, K padded with zeros to whole groups."""
    if kind.order == "ascending":
        return a, b
    pad = -a.shape[1] % kind.every
    a, b = np.pad(a, ((0, 0), (0, pad))), np.pad(b, ((0, pad), (0, 0)))
    group = np.arange(kind.every)
    order = np.concatenate([group[group % 4 < 2], group[group % 4 >= 2]])
    k = (np.arange(0, a.shape[1], kind.every)[:, None] + order).reshape(-1)
    return np.ascontiguousarray(a[:, k]), np.ascontiguousarray(b[k])


def _split_k(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: SplitK, scales: Scales | None) -> None:
    for start, stop in split_ranges(a.shape[1], kind.splits, kind.tile):
        part = np.zeros_like(c)
        piece_a, piece_b = np.ascontiguousarray(a[:, start:stop]), np.ascontiguousarray(b[start:stop])
        _RUNNERS[type(kind.inner)](piece_a, piece_b, part, spec, kind.inner, scales)
        _add(c, part, container(kind.output))


def _add(total: Array, part: Array, held: Format) -> None:
    """IEEE addition of two arrays of float bit patterns, in place; NaN is the engine's."""
    dtype = f"f{held.bits // 8}"
    value = total.view(dtype)
    with np.errstate(all="ignore"):
        np.add(value, part.view(dtype), out=value)
    total[np.isnan(value)] = ENGINE_NAN[held.name]


# -- sequential, pairwise and integer accumulators ----------------------------------------------------------------


def _sequential(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: SequentialFma, scales: Scales | None) -> None:
    del scales
    if kind.output not in ("f32", "f64") or kind.rounding != "rne" or (kind.flush and kind.output != "f32"):
        raise ValueError(f"SequentialFma runs in f32 or f64 with rounding 'rne', flushing in f32 only; got {kind}")
    dtype = np.dtype(np.float32 if kind.output == "f32" else np.float64)
    x, y = decode(a, spec.a), decode(b, spec.b)
    if dtype.itemsize < max(x.dtype.itemsize, y.dtype.itemsize):
        raise ValueError(
            f"operands {spec.a.name} x {spec.b.name} do not fit a {kind.output} multiplier; use output='f64'"
        )
    x, y, total = x.astype(dtype), y.astype(dtype), c.view(dtype)
    if kind.order == "odd-even":
        pad = x.shape[1] % 2
        x, y = np.pad(x, ((0, 0), (0, pad))), np.pad(y, ((0, pad), (0, 0)))
        k = np.arange(x.shape[1]) ^ 1
        x, y = np.ascontiguousarray(x[:, k]), np.ascontiguousarray(y[k])
    if kind.flush:
        smallest = np.float32(2.0**-126)
        for array in (x, y, total):
            array[np.abs(array) < smallest] *= np.float32(0)
        _rows(lambda i, j: products.sequential_fma_flush(x, y, smallest, total, i, j), c, a.shape[1])
    else:
        _rows(lambda i, j: products.sequential_fma(x, y, total, i, j), c, a.shape[1])
    c[np.isnan(total)] = np.array(ENGINE_NAN[kind.output], np.uint64).astype(c.dtype)


def _pairwise(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: PairwiseTree, scales: Scales | None) -> None:
    del scales
    x, y, total = decode(a, spec.a), decode(b, spec.b), c.view(np.float32)
    if kind.output != "f32" or x.dtype != np.float32 or y.dtype != np.float32:
        raise ValueError(f"PairwiseTree adds in f32, got {spec.a.name} x {spec.b.name} into {kind.output}")
    pad = -x.shape[1] % kind.terms
    x, y = np.pad(x, ((0, 0), (0, pad))), np.pad(y, ((0, pad), (0, 0)))
    if kind.flush:
        x[np.abs(x) < np.float32(spec.a.smallest_normal)] = 0
        y[np.abs(y) < np.float32(spec.b.smallest_normal)] = 0
        total[np.abs(total) < np.float32(2.0**-126)] = 0
    smallest = np.float32(2.0**-126 if kind.flush else 0)
    _rows(lambda i, j: products.pairwise_tree(x, y, kind.terms, smallest, total, i, j), c, a.shape[1])
    c[np.isnan(total)] = ENGINE_NAN["f32"]


def _integer(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: IntegerAccumulator, scales: Scales | None) -> None:
    del scales
    if spec.a.kind != "int" or spec.b.kind != "int" or spec.a.bias or spec.b.bias:
        raise ValueError(f"an IntegerAccumulator takes integer operands, got {spec.a.name} x {spec.b.name}")
    low, high = -(1 << (kind.bits - 1)), (1 << (kind.bits - 1)) - 1
    if kind.overflow == "wrap" and kind.step_bits is None:
        _rows(lambda i, j: products.integer_wrap(a, b, c, i, j), c, a.shape[1])
        if kind.bits < 32:
            c[...] = ((c.astype(np.int64) - low) & ((1 << kind.bits) - 1)) + low
        return
    if c.min() < low or c.max() > high:
        raise ValueError(f"c leaves the range of the {kind.bits}-bit accumulator ({low} to {high})")
    if kind.step_bits is None and certificates.holds(a, b, c, kind):  # no sum leaves the range: order does not matter
        _rows(lambda i, j: products.integer_wrap(a, b, c, i, j), c, a.shape[1])
        return
    largest = max(abs(spec.a.min), spec.a.max) * max(abs(spec.b.min), spec.b.max)
    if kind.overflow == "saturate" and kind.step == 1 and kind.step_bits is None and largest + high < 2**31:
        _rows(lambda i, j: products.integer_saturate(a, b, low, high, c, i, j), c, a.shape[1])
        return
    step_bits = kind.step_bits or 63
    plan = products.Integer(
        low=low,
        high=high,
        overflow=("wrap", "saturate", "error").index(kind.overflow),
        step=kind.step,
        step_low=-(1 << (step_bits - 1)),
        step_high=(1 << (step_bits - 1)) - 1,
    )
    failed = np.full((c.shape[0], 3), -1, np.int64)
    _rows(lambda i, j: products.integer_wide(a, b, plan, c, failed, i, j), c, a.shape[1])
    if (failed[:, 0] >= 0).any():
        i = int(np.argmax(failed[:, 0] >= 0))
        j, k, total = (int(v) for v in failed[i])
        raise OverflowError(
            f"output [{i}, {j}] reaches {total} at k = {k}, outside the {kind.bits}-bit accumulator ({low} to {high})"
        )


#: kind of accumulator -> its runner
_RUNNERS: dict[type[Accumulator], Callable[[Array, Array, Array, MatmulSpec, Any, Scales | None], None]] = {
    FusedDot: _fused,
    GroupedDot: _grouped,
    TwoStageDot: _two_stage,
    Promoted: _promoted,
    SplitK: _split_k,
    SequentialFma: _sequential,
    PairwiseTree: _pairwise,
    IntegerAccumulator: _integer,
}


def _rows(run: Callable[[int, int], object], c: Array, depth: int) -> None:
    """`run` over ranges of the rows of c, on all cores once there is enough work to share."""
    _jit.parallel(run, c.shape[0], grain=max(1, 200_000 // max(c.shape[1] * depth, 1)))


# -- plans --------------------------------------------------------------------------------------------------------


def fused_plan(kind: FusedDot, a: Format, b: Format, depth: int) -> Fused:
    """Flatten a FusedDot for its operand formats; ValueError if its sums would not fit 63 bits."""
    if a.kind != "float" or b.kind != "float":
        raise ValueError(f"a FusedDot takes float operands, got {a.name} x {b.name}; see IntegerAccumulator")
    if kind.fraction_bits is None:
        raise ValueError("an exact FusedDot has no truncation plan; it runs on its own, not inside another accumulator")
    terms = kind.terms or max(depth, 1)
    product_bits = a.mantissa_bits + b.mantissa_bits
    if max(kind.fraction_bits, product_bits) + (terms + 1).bit_length() + 2 > 62:
        raise ValueError(
            f"{terms} products of {a.name} x {b.name} with {kind.fraction_bits} fraction bits do not fit a 63-bit sum"
        )
    return Fused(
        terms=terms,
        fraction_bits=kind.fraction_bits,
        zero_exponent=NO_FLOOR if kind.zero_exponent is None else kind.zero_exponent,
        product_fraction_bits=product_bits,
        sum=sum_plan(kind.output, kind.rounding),
    )


def sum_plan(output: str, rounding: str) -> Sum:
    """Where sums are rounded to, flattened to integers."""
    held, row = container(output), scalar_format(output)
    return Sum(
        rounding=find_rounding(rounding).code,
        mantissa_bits=row.mantissa_bits,
        minimum_exponent=row.minimum_exponent,
        max_code=row.max_code,
        widen=held.mantissa_bits - row.mantissa_bits,
        container_mantissa_bits=held.mantissa_bits,
        container_exponent_bits=held.exponent_bits,
        infinity=held.infinity_code or 0,
        nan=ENGINE_NAN[held.name],
        sign_bit=held.sign_bit,
    )


def vector_plan(kind: FusedDot, a: Format, b: Format, terms: int) -> vector.VectorPlan | None:
    """The plan for the vector kernels, or None where they would not be exact (the scalar kernel then does it all)."""
    if kind.fraction_bits is None or kind.fraction_bits > 26 or a.mantissa_bits + b.mantissa_bits + 2 > 24:
        return None
    row, fraction_bits = scalar_format(kind.output), kind.fraction_bits
    half = kind.output == "f16" and kind.rounding == "rne"
    if not half and not (kind.rounding == "rz" and row.exponent_bits == 8 and container(row).name == "f32"):
        return None
    narrow = not half and (terms + 1) << (fraction_bits + 2) <= 1 << 24
    low = fraction_bits - 125
    return vector.VectorPlan(
        step=-(-terms // vector.GROUP) * vector.GROUP,
        fraction_bits=fraction_bits,
        zero_exponent=-1000 if kind.zero_exponent is None else kind.zero_exponent,
        lowest=a.minimum_exponent + b.minimum_exponent if _small_exponents(a, b) else low // 2 * 2,
        low=low,
        keep=-(1 << ((23 if narrow else 52) - row.mantissa_bits)),
        narrow=narrow,
        half=half,
    )


def _small_exponents(a: Format, b: Format) -> bool:
    """Whether exponents and their sums, with a mark for zero, fit int8."""
    tops = [_top_exponent(row) for row in (a, b)]
    return max(tops) - 64 < a.minimum_exponent + b.minimum_exponent and sum(tops) < 128


def _top_exponent(row: Format) -> int:
    """Exponent of the largest finite value."""
    return int(np.frexp(row.max)[1]) - 1
