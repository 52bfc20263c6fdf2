"""Matrix products in the arithmetic of a `MatmulSpec`: validate, unpack, run a kernel, view the result.

Every backend computes the same bits: "cpu" with compiled kernels on all cores, "reference" with `fpsim.reference`
(slow, for a look at the definition). The order of k is part of the arithmetic and is ascending unless the accumulator
says otherwise.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fpsim import _jit
from fpsim._kernels import accumulate, products
from fpsim._names import unknown
from fpsim.accumulators import (
    Accumulator,
    FusedDot,
    IntegerAccumulator,
    Promoted,
    SequentialFma,
    SplitK,
)
from fpsim.codec import Array, as_codes, decode, encode
from fpsim.formats import Format, container, scalar_format
from fpsim.reference import ENGINE_NAN, split_ranges
from fpsim.reference import dot as reference_dot
from fpsim.rounding import rounding as find_rounding
from fpsim.spec import MatmulSpec

BACKENDS = ("cpu", "reference")

#: result format -> numpy dtype of the array that comes out
RESULT_DTYPES: dict[str, np.dtype[Any]] = {
    "f64": np.dtype(np.float64),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "int32": np.dtype(np.int32),
}


def matmul(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    spec: MatmulSpec,
    c: npt.ArrayLike | None = None,
    *,
    out: Array | None = None,
    backend: str = "cpu",
) -> Array:
    """a @ b + c, every bit as the engine of `spec` computes it.

    a : codes of spec.a, shape (..., M, K). b : codes of spec.b, shape (..., K, N). Leading axes broadcast. Integer
        formats take the integers themselves; float16/32/64 and ml_dtypes arrays are taken as their own formats.
    c : the value the accumulator starts from, of the accumulator's dtype, broadcastable to (..., M, N); None is zero.
    out : optional contiguous array for the result.
    Returns (..., M, N) in the output's dtype: float32, float16, float64, int32, or an ml_dtypes type.

    Raises ValueError for shapes, dtypes or codes that do not fit, OverflowError for an integer accumulator with
    overflow="error" that leaves its range.
    """
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if spec.scale is not None:
        raise ValueError(
            f"{spec.engine or 'this spec'} is block-scaled: scale codes are needed, and not supported here"
        )
    x, y = as_codes(a, spec.a, "a"), as_codes(b, spec.b, "b")
    if x.ndim < 2 or y.ndim < 2:
        raise ValueError(f"a and b need at least two axes, got shapes {x.shape} and {y.shape}; add one with a[None, :]")
    if x.shape[-1] != y.shape[-2]:
        raise ValueError(f"a is {x.shape} and b is {y.shape}: a's last axis must be as long as b's second to last (K)")
    try:
        batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    except ValueError as error:
        raise ValueError(f"leading axes of a {x.shape} and b {y.shape} do not broadcast") from error
    shape = (*batch, x.shape[-2], y.shape[-1])
    held = container(spec.accumulator.output)
    start = _start(c, held, shape)
    if not batch or y.ndim == 2:  # one b for all: its batch of a is more rows
        rows = start.reshape(-1, shape[-1])
        _product(x.reshape(-1, x.shape[-1]), y.reshape(y.shape[-2:]), rows, spec, backend)
    else:
        xs, ys = np.broadcast_to(x, (*batch, *x.shape[-2:])), np.broadcast_to(y, (*batch, *y.shape[-2:]))
        for index in np.ndindex(batch):
            _product(np.ascontiguousarray(xs[index]), np.ascontiguousarray(ys[index]), start[index], spec, backend)
    return _finish(start, held, spec, out)


def _start(c: npt.ArrayLike | None, held: Format, shape: tuple[int, ...]) -> Array:
    """A fresh array of container codes (signed integers of the container's width) that holds c."""
    dtype = RESULT_DTYPES[held.name]
    if c is None:
        return np.zeros(shape, dtype).view(f"i{dtype.itemsize}")
    array = np.asarray(c)
    if array.dtype != dtype:
        raise ValueError(f"c has dtype {array.dtype}; this accumulator starts from {dtype}")
    try:
        return np.broadcast_to(array, shape).copy().view(f"i{dtype.itemsize}")
    except ValueError as error:
        raise ValueError(f"c has shape {array.shape}, which does not broadcast to the result {shape}") from error


def _finish(codes: Array, held: Format, spec: MatmulSpec, out: Array | None) -> Array:
    """Container codes -> the array the caller gets, through the spec's output format."""
    result = codes.view(RESULT_DTYPES[held.name])
    if spec.out != held.name:
        wanted = RESULT_DTYPES.get(spec.out)
        if wanted is None:
            raise ValueError(f"matmul has no array type for out={spec.out!r} (allowed: {', '.join(RESULT_DTYPES)})")
        result = encode(result, spec.out, conversion="ocp-nonsat").view(wanted)
    if out is None:
        return result
    if out.shape != result.shape or out.dtype != result.dtype or not out.flags.writeable:
        raise ValueError(
            f"out is {out.dtype}{list(out.shape)}; it must be writeable {result.dtype}{list(result.shape)}"
        )
    out[...] = result
    return out


def _product(a: Array, b: Array, c: Array, spec: MatmulSpec, backend: str) -> None:
    """One 2-D product of codes; c holds the start and becomes the result."""
    if c.size == 0:
        return
    if backend == "reference":
        _reference_product(a, b, c, spec)
    else:
        _RUNNERS[type(spec.accumulator)](a, b, c, spec, spec.accumulator)


def _reference_product(a: Array, b: Array, c: Array, spec: MatmulSpec) -> None:
    held = container(spec.accumulator.output)
    inner = MatmulSpec(spec.a, spec.b, spec.accumulator, held.name)
    mask = (1 << 8 * c.dtype.itemsize) - 1 if held.kind == "float" else -1
    columns = [b[:, j].tolist() for j in range(b.shape[1])]
    for i in range(a.shape[0]):
        row = a[i].tolist()
        for j, column in enumerate(columns):
            code = reference_dot(row, column, int(c[i, j]) & mask, inner)
            c[i, j] = np.array(code & ((1 << 64) - 1), np.uint64).astype(c.dtype)


# -- kernels by kind of accumulator -------------------------------------------------------------------------------


def _fused(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: FusedDot) -> None:
    plan = fused_plan(kind, spec.a, spec.b, a.shape[1])
    sa, ea = unpack(a, spec.a)
    sb, eb = unpack(np.ascontiguousarray(b.T), spec.b)
    source = c.copy()
    _rows(lambda i, j: products.fused(sa, ea, sb, eb, source, plan, c, i, j), a, b)


def _promoted(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: Promoted) -> None:
    if container(kind.output).name != "f32" or container(kind.inner.output).name != "f32":
        raise ValueError(f"Promoted adds float32 sums, got output={kind.output!r}, inner output={kind.inner.output!r}")
    a, b = _reorder(a, b, kind)
    plan = fused_plan(kind.inner, spec.a, spec.b, kind.every)
    sa, ea = unpack(a, spec.a)
    sb, eb = unpack(np.ascontiguousarray(b.T), spec.b)
    source = c.copy()
    _rows(lambda i, j: products.promoted(sa, ea, sb, eb, source, plan, kind.every, c, i, j), a, b)


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


def _split_k(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: SplitK) -> None:
    total = c.view(np.float32)
    for start, stop in split_ranges(a.shape[1], kind.splits, kind.tile):
        part = np.zeros_like(c)
        piece_a, piece_b = np.ascontiguousarray(a[:, start:stop]), np.ascontiguousarray(b[start:stop])
        _RUNNERS[type(kind.inner)](piece_a, piece_b, part, spec, kind.inner)
        if start == 0 and not c.any():
            c[...] = part
            continue
        with np.errstate(all="ignore"):
            np.add(total, part.view(np.float32), out=total)
        c[np.isnan(total)] = ENGINE_NAN["f32"]


def _sequential(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: SequentialFma) -> None:
    if kind.output not in ("f32", "f64") or kind.rounding != "rne":
        raise ValueError(f"SequentialFma runs in f32 or f64 with rounding 'rne', got {kind}")
    dtype = RESULT_DTYPES[kind.output]
    x, y = decode(a, spec.a), decode(b, spec.b)
    if dtype.itemsize < max(x.dtype.itemsize, y.dtype.itemsize):
        raise ValueError(
            f"operands {spec.a.name} x {spec.b.name} do not fit a {kind.output} multiplier; use output='f64'"
        )
    x, y, total = x.astype(dtype), y.astype(dtype), c.view(dtype)
    _rows(lambda i, j: products.sequential_fma(x, y, total, i, j), a, b)
    c[np.isnan(total)] = np.array(ENGINE_NAN[kind.output], np.uint64).astype(c.dtype)


def _integer(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: IntegerAccumulator) -> None:
    if spec.a.kind != "int" or spec.b.kind != "int" or spec.a.bias or spec.b.bias:
        raise ValueError(f"an IntegerAccumulator takes integer operands, got {spec.a.name} x {spec.b.name}")
    low, high = -(1 << (kind.bits - 1)), (1 << (kind.bits - 1)) - 1
    if kind.overflow == "wrap":
        _rows(lambda i, j: products.integer_wrap(a, b, c, i, j), a, b)
        if kind.bits < 32:
            c[...] = ((c.astype(np.int64) - low) & ((1 << kind.bits) - 1)) + low
        return
    if c.min() < low or c.max() > high:
        raise ValueError(f"c leaves the range of the {kind.bits}-bit accumulator ({low} to {high})")
    largest = max(abs(spec.a.min), spec.a.max) * max(abs(spec.b.min), spec.b.max)
    if kind.overflow == "saturate" and largest + high < 2**31:
        _rows(lambda i, j: products.integer_saturate(a, b, low, high, c, i, j), a, b)
        return
    failed = np.full((c.shape[0], 3), -1, np.int64)
    saturate = kind.overflow == "saturate"
    _rows(lambda i, j: products.integer_wide(a, b, low, high, saturate, c, failed, i, j), a, b)
    if not saturate and (failed[:, 0] >= 0).any():
        i = int(np.argmax(failed[:, 0] >= 0))
        j, k, total = (int(v) for v in failed[i])
        raise OverflowError(
            f"output [{i}, {j}] reaches {total} at k = {k}, outside the {kind.bits}-bit accumulator ({low} to {high})"
        )


#: kind of accumulator -> its CPU runner (codes a (M, K), b (K, N), container codes c (M, N), in place)
_RUNNERS: dict[type[Accumulator], Callable[[Array, Array, Array, MatmulSpec, Any], None]] = {
    FusedDot: _fused,
    Promoted: _promoted,
    SplitK: _split_k,
    SequentialFma: _sequential,
    IntegerAccumulator: _integer,
}


def _rows(run: Callable[[int, int], object], a: Array, b: Array) -> None:
    """`run` over rows of a, on all cores once there is enough work to share."""
    work = max(a.shape[1] * b.shape[1], 1)
    _jit.parallel(run, a.shape[0], grain=max(1, 200_000 // work))


# -- unpacking ----------------------------------------------------------------------------------------------------


def fused_plan(kind: FusedDot, a: Format, b: Format, depth: int) -> accumulate.Fused:
    """Flatten a FusedDot for its operand formats; ValueError if its sums would not fit 63 bits."""
    if a.kind != "float" or b.kind != "float":
        raise ValueError(f"a FusedDot takes float operands, got {a.name} x {b.name}; see IntegerAccumulator")
    if kind.fraction_bits is None:
        raise ValueError("an exact FusedDot (fraction_bits=None) runs with backend='reference' only")
    terms = kind.terms or max(depth, 1)
    product_bits = a.mantissa_bits + b.mantissa_bits
    if max(kind.fraction_bits, product_bits) + (terms + 1).bit_length() + 2 > 62:
        raise ValueError(
            f"{terms} products of {a.name} x {b.name} with {kind.fraction_bits} fraction bits do not fit a 63-bit sum"
        )
    held, row = container(kind.output), scalar_format(kind.output)
    return accumulate.Fused(
        terms=terms,
        fraction_bits=kind.fraction_bits,
        zero_exponent=accumulate.NO_FLOOR if kind.zero_exponent is None else kind.zero_exponent,
        product_fraction_bits=product_bits,
        sum=accumulate.Sum(
            rounding=find_rounding(kind.rounding).code,
            mantissa_bits=row.mantissa_bits,
            minimum_exponent=row.minimum_exponent,
            max_code=row.max_code,
            widen=held.mantissa_bits - row.mantissa_bits,
            container_mantissa_bits=held.mantissa_bits,
            container_exponent_bits=held.exponent_bits,
            infinity=held.infinity_code or 0,
            nan=ENGINE_NAN[held.name],
            sign_bit=held.sign_bit,
        ),
    )


def unpack(codes: Array, row: Format) -> tuple[Array, Array]:
    """Signed significands (int32) and exponents (int16, with the marks of `accumulate`) of an array of codes."""
    if row.bits <= 16:
        significands, exponents = _unpack_table(row)
        index = codes & ((1 << row.bits) - 1)
        return significands[index], exponents[index]
    if row.mantissa_bits > 23:
        raise ValueError(f"{row.name!r} has {row.mantissa_bits} mantissa bits; a fused dot takes at most 23")
    return _unpack_codes(codes >> row.shift, row)


@cache
def _unpack_table(row: Format) -> tuple[Array, Array]:
    return _unpack_codes(np.arange(1 << row.bits), row)


def _unpack_codes(codes: Array, row: Format) -> tuple[Array, Array]:
    word = codes.astype(np.int64)
    magnitude = word & ((1 << (row.exponent_bits + row.mantissa_bits)) - 1)
    field, mantissa = magnitude >> row.mantissa_bits, magnitude & ((1 << row.mantissa_bits) - 1)
    subnormal = (field == 0) & row.zero
    significand = np.where(subnormal, mantissa, mantissa + (1 << row.mantissa_bits))
    exponent = np.where(subnormal, 1, field) - row.bias
    values = _class_of(word, row)
    exponent[significand == 0] = accumulate.ZERO
    exponent[np.isinf(values)] = accumulate.INFINITE
    exponent[np.isnan(values)] = accumulate.NAN
    significand[~np.isfinite(values)] = 1
    significand = np.where((word & row.sign_bit) != 0, -significand, significand)
    return significand.astype(np.int32), exponent.astype(np.int16)


def _class_of(word: Array, row: Format) -> Array:
    """Values that are NaN and Inf where the codes are (their finite values do not matter here)."""
    return decode((word << row.shift).astype(row.code_dtype), row)
