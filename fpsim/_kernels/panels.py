"""Rows of a times panels of b in vector registers: the inner loops of the fused dot products, as LLVM vectors.

A panel is 64 columns of b, stored one panel after the other (see `pack`): rows of a wide matrix would lie a power of
two apart and throw each other out of the cache. One row of a against a panel, or 16 columns of it, keeps its sums in
registers over all products of a step; per product and 16 columns that is

- `largest_exponents`: a byte addition and maximum of 64 (exponents are int8 where they fit, else int16),
- `truncated_sums`: two multiplications, a conversion and an addition: a * b exactly, times the power of two that makes
  the truncation unit one, toward zero to int32, summed. Eight such integers fit an int32; where a step does not, each
  eight are split into units of 32 and a rest, which do,
- `exact_sums`: one fused multiply-add, in float32 or float64, where nothing can be lost (see `certified`).

Numba's own loops would spend as much again on slicing the rows of b that they need in flight.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.extending import intrinsic

from fpsim._kernels.lanes import LANES, splat

GROUP = 8  #: products per int32 partial sum; steps are padded to a multiple of it
WIDE = 4  #: vectors of a panel
PANEL = WIDE * LANES
_INT, _LONG, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_SPLIT = 5  #: bits of a group's sum kept apart, so that sums of what is above fit an int32


def pack(b: Any, fill: int = 0) -> Any:
    """(K, N) -> (panels * K, PANEL): panel after panel, the last one filled up."""
    depth, columns = b.shape
    wide = np.pad(b, ((0, 0), (0, -columns % PANEL)), constant_values=fill)
    return np.ascontiguousarray(wide.reshape(depth, -1, PANEL).transpose(1, 0, 2)).reshape(-1, PANEL)


def _row(context: Any, builder: Any, array_type: Any, array: Any, i: Any, j: Any = None) -> tuple[Any, Any]:
    """Pointer to element (i, j) of a contiguous array (or i of a flat one), and the length of a row."""
    made = context.make_array(array_type)(context, builder, value=array)
    if j is None:
        return builder.gep(made.data, [i]), None
    length = cgutils.unpack_tuple(builder, made.shape)[1]
    return builder.gep(made.data, [builder.add(builder.mul(i, length), j)]), length


def _load(builder: Any, pointer: Any, offset: int, vector: Any, align: int) -> Any:
    moved = builder.gep(pointer, [ir.Constant(_LONG, offset)])
    return builder.load(builder.bitcast(moved, vector.as_pointer()), align=align)


def _store(builder: Any, value: Any, pointer: Any, offset: int, align: int) -> None:
    moved = builder.gep(pointer, [ir.Constant(_LONG, offset)])
    builder.store(value, builder.bitcast(moved, value.type.as_pointer()), align=align)


def _zeros(builder: Any, vector: Any, count: int) -> list[Any]:
    """Registers that a loop adds to: stack slots that the optimizer turns into registers."""
    slots = [cgutils.alloca_once(builder, vector) for _ in range(count)]
    for slot in slots:
        builder.store(ir.Constant(vector, None), slot)
    return slots


def _is(array: Any, axes: int, *dtypes: Any) -> bool:
    return isinstance(array, types.Array) and array.layout == "C" and array.ndim == axes and array.dtype in dtypes


def _largest_exponents(vectors: int) -> Any:
    @intrinsic
    def largest(
        typingctx: Any, ea: Any, i: Any, k: Any, eb: Any, r: Any, j: Any, count: Any, none: Any, out: Any, at: Any
    ) -> Any:
        del typingctx
        if not (_is(ea, 2, types.int8, types.int16) and _is(eb, 2, ea.dtype) and _is(out, 1, ea.dtype)):
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            ta, _, _, tb, *_, to, _ = signature.args
            rows, i, k, columns, r, j, count, mark, target, at = arguments
            element = context.get_value_type(ta.dtype)
            bytes_ = element.width // 8
            vector = ir.VectorType(element, LANES * vectors)
            left, _ = _row(context, builder, ta, rows, i, k)
            right, length = _row(context, builder, tb, columns, r, j)
            top = cgutils.alloca_once(builder, vector)
            builder.store(splat(builder, mark, vector), top)
            with cgutils.for_range(builder, count) as loop:
                one = splat(builder, builder.load(builder.gep(left, [loop.index])), vector)
                other = _load(builder, builder.gep(right, [builder.mul(loop.index, length)]), 0, vector, bytes_)
                total, kept = builder.add(one, other), builder.load(top)
                builder.store(builder.select(builder.icmp_signed(">", total, kept), total, kept), top)
            _store(builder, builder.load(top), _row(context, builder, to, target, at)[0], 0, bytes_)
            return context.get_dummy_value()

        index = types.intp
        return types.void(ea, index, index, eb, index, index, index, ea.dtype, out, index), generate

    return largest


def _truncated_sums(vectors: int) -> Any:
    @intrinsic
    def sums(
        typingctx: Any, a: Any, i: Any, k: Any, b: Any, r: Any, j: Any, count: Any, scale: Any, total: Any, at: Any
    ) -> Any:
        del typingctx
        real = types.float32
        if not (
            _is(a, 2, real) and _is(b, 2, real) and _is(scale, 1, real) and _is(total, 1, types.int32, types.int64)
        ):
            return None
        wide = total.dtype == types.int64

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            ta, _, _, tb, *_, ts, tt, _ = signature.args
            rows, i, k, columns, r, j, count, scales, target, at = arguments
            ints, floats = ir.VectorType(_INT, LANES), ir.VectorType(_FLOAT, LANES)
            left, _ = _row(context, builder, ta, rows, i, k)
            right, length = _row(context, builder, tb, columns, r, j)
            unit_at, _ = _row(context, builder, ts, scales, at)
            units = [_load(builder, unit_at, v * LANES, floats, 4) for v in range(vectors)]
            high, low = _zeros(builder, ints, vectors), _zeros(builder, ints, vectors)
            rest = ir.Constant(ints, [(1 << _SPLIT) - 1] * LANES)
            shift = ir.Constant(ints, [_SPLIT] * LANES)
            with cgutils.for_range(builder, builder.udiv(count, ir.Constant(count.type, GROUP))) as loop:
                first = builder.mul(loop.index, ir.Constant(_LONG, GROUP))
                parts: list[Any] = [None] * vectors
                for t in range(GROUP):
                    at_k = builder.add(first, ir.Constant(_LONG, t))
                    one = splat(builder, builder.load(builder.gep(left, [at_k])), floats)
                    line = builder.gep(right, [builder.mul(at_k, length)])
                    for v in range(vectors):
                        product = builder.fmul(one, _load(builder, line, v * LANES, floats, 4))
                        whole = builder.fptosi(builder.fmul(product, units[v]), ints)
                        parts[v] = whole if parts[v] is None else builder.add(parts[v], whole)
                for v in range(vectors):
                    above = builder.ashr(parts[v], shift) if wide else parts[v]
                    builder.store(builder.add(builder.load(high[v]), above), high[v])
                    if wide:
                        builder.store(builder.add(builder.load(low[v]), builder.and_(parts[v], rest)), low[v])
            result, _ = _row(context, builder, tt, target, at)
            longs = ir.VectorType(_LONG, LANES)
            for v in range(vectors):
                made = builder.load(high[v])
                if wide:
                    above = builder.shl(builder.sext(made, longs), ir.Constant(longs, [_SPLIT] * LANES))
                    made = builder.add(above, builder.zext(builder.load(low[v]), longs))
                before = _load(builder, result, v * LANES, made.type, 8 if wide else 4)
                _store(builder, builder.add(before, made), result, v * LANES, 8 if wide else 4)
            return context.get_dummy_value()

        index = types.intp
        return types.void(a, index, index, b, index, index, index, scale, total, index), generate

    return sums


def _exact_sums(vectors: int) -> Any:
    @intrinsic
    def exact(typingctx: Any, a: Any, i: Any, k: Any, b: Any, r: Any, j: Any, count: Any, total: Any, at: Any) -> Any:
        del typingctx
        if not (_is(a, 2, types.float32) and _is(b, 2, types.float32) and _is(total, 1, types.float32, types.float64)):
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            ta, _, _, tb, *_, tt, _ = signature.args
            rows, i, k, columns, r, j, count, target, at = arguments
            floats, wide = ir.VectorType(_FLOAT, LANES), tt.dtype == types.float64
            sums = ir.VectorType(ir.DoubleType(), LANES) if wide else floats
            name = f"llvm.fma.v{LANES}f{64 if wide else 32}"
            fused = cgutils.get_or_insert_function(builder.module, ir.FunctionType(sums, [sums] * 3), name)
            left, _ = _row(context, builder, ta, rows, i, k)
            right, length = _row(context, builder, tb, columns, r, j)
            slots = _zeros(builder, sums, vectors)
            with cgutils.for_range(builder, count) as loop:
                value = builder.load(builder.gep(left, [loop.index]))
                one = splat(builder, builder.fpext(value, sums.element) if wide else value, sums)
                line = builder.gep(right, [builder.mul(loop.index, length)])
                for v in range(vectors):
                    other = _load(builder, line, v * LANES, floats, 4)
                    other = builder.fpext(other, sums) if wide else other
                    builder.store(builder.call(fused, [one, other, builder.load(slots[v])]), slots[v])
            result, _ = _row(context, builder, tt, target, at)
            for v in range(vectors):
                _store(builder, builder.load(slots[v]), result, v * LANES, 8 if wide else 4)
            return context.get_dummy_value()

        index = types.intp
        return types.void(a, index, index, b, index, index, index, total, index), generate

    return exact


# -- the same without a compiler ----------------------------------------------------------------------------------


def _plain_largest(vectors: int) -> Any:
    def largest(ea: Any, i: Any, k: Any, eb: Any, r: Any, j: Any, count: Any, none: Any, out: Any, at: Any) -> None:
        width = LANES * vectors
        sums = ea[i, k : k + count, None] + eb[r : r + count, j : j + width]
        out[at : at + width] = np.maximum(sums.max(axis=0), none)

    return largest


def _plain_truncated(vectors: int) -> Any:
    def sums(a: Any, i: Any, k: Any, b: Any, r: Any, j: Any, count: Any, scale: Any, total: Any, at: Any) -> None:
        width = LANES * vectors
        with np.errstate(invalid="ignore", over="ignore"):
            terms = a[i, k : k + count, None] * b[r : r + count, j : j + width] * scale[at : at + width]
            total[at : at + width] += terms.astype(np.int32).sum(axis=0, dtype=total.dtype)

    return sums


def _plain_exact(vectors: int) -> Any:
    def sums(a: Any, i: Any, k: Any, b: Any, r: Any, j: Any, count: Any, total: Any, at: Any) -> None:
        width = LANES * vectors
        total[at : at + width] = (a[i, k : k + count, None] * b[r : r + count, j : j + width]).sum(axis=0)

    return sums


_PLAIN = bool(numba.config.DISABLE_JIT)
#: (ea, i, k, eb, r, j, count, none, out, at): out[at:] = largest of `none` and ea[i, k + t] + eb[r + t, j:], t < count
largest_of_64: Any = (_plain_largest if _PLAIN else _largest_exponents)(WIDE)
largest_of_16: Any = (_plain_largest if _PLAIN else _largest_exponents)(1)
#: (a, i, k, b, r, j, count, scale, total, at): total[at:] += sum of trunc(a[i, k + t] * b[r + t, j:] * scale[at:])
truncated_of_64: Any = (_plain_truncated if _PLAIN else _truncated_sums)(WIDE)
truncated_of_16: Any = (_plain_truncated if _PLAIN else _truncated_sums)(1)
#: (a, i, k, b, r, j, count, total, at): total[at:] = sum of a[i, k + t] * b[r + t, j:], all in total's type
exact_of_64: Any = (_plain_exact if _PLAIN else _exact_sums)(WIDE)
exact_of_16: Any = (_plain_exact if _PLAIN else _exact_sums)(1)
