"""Matrix products in the arithmetic of a `MatmulSpec`: validate, unpack, run a kernel, view the result.

Every backend computes the same bits: "cpu" with compiled kernels on all cores, "reference" with `fpsim.reference`
(slow, for a look at the definition). The order of k is part of the arithmetic and is ascending unless the accumulator
says otherwise.
"""

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fpsim import _cpu
from fpsim._names import unknown
from fpsim.codec import Array, as_codes, encode
from fpsim.formats import Format, container
from fpsim.reference import dot as reference_dot
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
        count = math.prod(shape[:-1])
        rows = start.reshape(count, shape[-1])
        _product(x.reshape(count, x.shape[-1]), y.reshape(y.shape[-2:]), rows, spec, backend)
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
        _cpu.accumulate(a, b, c, spec)


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


def conv2d(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    spec: MatmulSpec,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    pad_code: int = 0,
    order: str = "channel-row-column",
    backend: str = "cpu",
) -> Array:
    """Two-dimensional cross-correlation as one matrix product per group, in the arithmetic of `spec`.

    x : codes of spec.a, (N, C, H, W). w : codes of spec.b, (O, C / groups, KH, KW).
    padding : rows and columns of `pad_code` on each side (a zero; the zero point of asymmetric integers).
    order : the order of k, which changes the bits: "channel-row-column" or "row-column-channel" (channels last).
    Returns (N, O, H', W') in the output's dtype. A library convolution's own order and tiling are not claimed.

    Raises ValueError for shapes that do not fit, or what `matmul` raises.
    """
    images, weights = as_codes(x, spec.a, "x"), as_codes(w, spec.b, "w")
    if images.ndim != 4 or weights.ndim != 4:
        raise ValueError(f"x must be (N, C, H, W) and w (O, C/groups, KH, KW), got {images.shape} and {weights.shape}")
    if order not in CONV_ORDERS:
        raise unknown("order", order, CONV_ORDERS)
    (n, channels, _, _), (outputs, depth, kh, kw) = images.shape, weights.shape
    if groups < 1 or channels != depth * groups or outputs % groups:
        raise ValueError(
            f"x has {channels} channels and w is {weights.shape} with groups={groups}: "
            "C must be groups * w.shape[1], and O a multiple of groups"
        )
    (sh, sw), (ph, pw), (dh, dw) = _pair(stride, "stride"), _pair(padding, "padding", 0), _pair(dilation, "dilation")
    padded = np.pad(images, ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=pad_code)
    if padded.shape[2] < dh * (kh - 1) + 1 or padded.shape[3] < dw * (kw - 1) + 1:
        raise ValueError(f"the padded input {padded.shape[2:]} is smaller than the dilated kernel of w {weights.shape}")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
    windows = windows[:, :, ::sh, ::sw, ::dh, ::dw]  # (N, C, H', W', KH, KW)
    rows, columns = windows.shape[2:4]
    axes, kernel_axes = CONV_ORDERS[order]
    results = []
    for group in range(groups):
        part = windows[:, group * depth : (group + 1) * depth]
        patches = part.transpose(0, 2, 3, *axes).reshape(n * rows * columns, depth * kh * kw)
        kernel = weights[group * (outputs // groups) : (group + 1) * (outputs // groups)]
        matrix = kernel.transpose(0, *kernel_axes).reshape(outputs // groups, depth * kh * kw).T
        results.append(matmul(np.ascontiguousarray(patches), np.ascontiguousarray(matrix), spec, backend=backend))
    flat = np.concatenate(results, axis=1) if groups > 1 else results[0]
    return np.ascontiguousarray(flat.reshape(n, rows, columns, outputs).transpose(0, 3, 1, 2))


#: order of k -> axes of the windows (N, C, H', W', KH, KW) and of the weights (O, C, KH, KW) that make it
CONV_ORDERS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "channel-row-column": ((1, 4, 5), (1, 2, 3)),
    "row-column-channel": ((4, 5, 1), (2, 3, 1)),
}


def _pair(value: int | tuple[int, int], name: str, least: int = 1) -> tuple[int, int]:
    first, second = (value, value) if isinstance(value, int) else value
    if min(first, second) < least:
        raise ValueError(f"{name} is {value}; allowed: {least} or more, one number or (rows, columns)")
    return first, second
