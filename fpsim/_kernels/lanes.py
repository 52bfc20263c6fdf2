"""Sixteen float32 values at a time, written down as vectors: for loops too short for the compiler's own vectorizer.

A block of a block format has 16 or 32 values. A loop that short is unrolled into scalar code before the vectorizer sees
it, so the two things blocks need are spelled out here as LLVM vector instructions, which become what the machine has:
one 512-bit register, two of 256 bits or four of 128.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

LANES = 16
_INT, _FLOAT = ir.IntType(32), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_INT, LANES), ir.VectorType(_FLOAT, LANES)


def _at(context: Any, builder: Any, array_type: Any, array: Any, index: Any, vector: Any) -> Any:
    """Pointer to the lanes that start at flat `index` of a contiguous array."""
    data = context.make_array(array_type)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def splat(builder: Any, value: Any, vector: Any) -> Any:
    """`value` in every lane of a vector type."""
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_INT, 0))
    lanes = ir.Constant(ir.VectorType(_INT, vector.count), [0] * vector.count)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)


def _all_int32(*arguments: Any) -> bool:
    return all(argument == types.int32 for argument in arguments)


def _contiguous(array: Any, dtype: Any) -> bool:
    return isinstance(array, types.Array) and array.dtype == dtype and array.layout == "C"


@intrinsic
def _largest_magnitude(typingctx: Any, words: Any, index: Any) -> Any:
    del typingctx
    if not _contiguous(words, types.int32) or not isinstance(index, types.Integer):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = builder.load(_at(context, builder, signature.args[0], arguments[0], arguments[1], _INTS), align=4)
        magnitudes = builder.and_(lanes, ir.Constant(_INTS, [0x7FFFFFFF] * LANES))
        kind = ir.FunctionType(_INT, [_INTS])
        reduce = numba.core.cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.smax.v16i32")
        return builder.call(reduce, [magnitudes])

    return types.int32(words, types.intp), generate


def _round_lanes(builder: Any, x: Any, floor: Any, lift: Any, fields: Any, sign: Any, low: Any, high: Any) -> Any:
    """The vector code of `nearest`."""
    clamped = builder.select(builder.fcmp_ordered("<", x, high), x, high)
    clamped = builder.select(builder.fcmp_ordered(">", clamped, low), clamped, low)
    field = builder.and_(builder.bitcast(clamped, _INTS), fields)
    field = builder.select(builder.icmp_signed(">", field, floor), field, floor)
    addend = builder.bitcast(builder.add(field, lift), _FLOATS)
    rounded = builder.fsub(builder.fadd(clamped, addend), addend)
    signed = builder.or_(builder.bitcast(rounded, _INTS), builder.and_(builder.bitcast(x, _INTS), sign))
    return builder.bitcast(signed, _FLOATS)


def _round_signature(x: Any, out: Any, index: Any, integers: Any, floats: Any) -> bool:
    return (
        _contiguous(x, types.float32)
        and _contiguous(out, types.float32)
        and isinstance(index, types.Integer)
        and _all_int32(*integers)
        and all(argument == types.float32 for argument in floats)
    )


@intrinsic
def _round_to_grid(
    typingctx: Any, x: Any, out: Any, index: Any, floor: Any, lift: Any, fields: Any, sign: Any, low: Any, high: Any
) -> Any:
    del typingctx
    if not _round_signature(x, out, index, (floor, lift, fields, sign), (low, high)):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target, at, *rest = arguments
        value = builder.load(_at(context, builder, signature.args[0], source, at, _FLOATS), align=4)
        grid = [splat(builder, v, _INTS if i < 4 else _FLOATS) for i, v in enumerate(rest)]
        made = _round_lanes(builder, value, *grid)
        builder.store(made, _at(context, builder, signature.args[1], target, at, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(x, out, types.intp, floor, lift, fields, sign, low, high), generate


@intrinsic
def _round_scaled(
    typingctx: Any,
    x: Any,
    out: Any,
    index: Any,
    step: Any,
    floor: Any,
    lift: Any,
    fields: Any,
    sign: Any,
    low: Any,
    high: Any,
) -> Any:
    del typingctx
    if not _round_signature(x, out, index, (floor, lift, fields, sign), (step, low, high)):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target, at, unit, *rest = arguments
        value = builder.load(_at(context, builder, signature.args[0], source, at, _FLOATS), align=4)
        steps = splat(builder, unit, _FLOATS)
        grid = [splat(builder, v, _INTS if i < 4 else _FLOATS) for i, v in enumerate(rest)]
        made = builder.fmul(_round_lanes(builder, builder.fdiv(value, steps), *grid), steps)
        builder.store(made, _at(context, builder, signature.args[1], target, at, _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(x, out, types.intp, step, floor, lift, fields, sign, low, high), generate


def _plain_largest(words: Any, index: Any) -> Any:
    return np.int32((words.reshape(-1)[index : index + LANES] & 0x7FFFFFFF).max())


def _plain_round(x: Any, floor: Any, lift: Any, fields: Any, sign: Any, low: Any, high: Any) -> Any:
    clamped = np.maximum(np.minimum(x, high), low)
    addend = (np.maximum(clamped.view(np.int32) & fields, floor) + lift).view(np.float32)
    rounded = (clamped + addend) - addend
    return (rounded.view(np.int32) | (x.view(np.int32) & sign)).view(np.float32)


def _plain_to_grid(x: Any, out: Any, index: Any, *grid: Any) -> None:
    out.reshape(-1)[index : index + LANES] = _plain_round(x.reshape(-1)[index : index + LANES], *grid)


def _plain_scaled(x: Any, out: Any, index: Any, step: Any, *grid: Any) -> None:
    out.reshape(-1)[index : index + LANES] = _plain_round(x.reshape(-1)[index : index + LANES] / step, *grid) * step


_PLAIN = bool(numba.config.DISABLE_JIT)
#: (words, index) -> largest magnitude of the 16 int32 patterns at flat `index`
largest_magnitude: Any = _plain_largest if _PLAIN else _largest_magnitude
#: (x, out, index, floor, lift, fields, sign, low, high): out[index:] = nearest(x[index:]), 16 values
round_to_grid: Any = _plain_to_grid if _PLAIN else _round_to_grid
#: (x, out, index, step, ...): out[index:] = nearest(x[index:] / step) * step
round_scaled: Any = _plain_scaled if _PLAIN else _round_scaled
