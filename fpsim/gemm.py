"""Matrix products in the arithmetic of a `MatmulSpec`: validate, unpack, run a kernel, view the result.

Every backend computes the same bits: "cpu" with compiled kernels on all cores, "cuda" on an NVIDIA GPU from the same
scalar source, "reference" with `fpsim.reference` (slow, for a look at the definition). The order of k is part of the
arithmetic and is ascending unless the accumulator says otherwise.
"""

import math
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fpsim import _cpu
from fpsim._names import unknown
from fpsim._tensors import on_device
from fpsim.accumulators import IntegerAccumulator, Promoted, SplitK
from fpsim.codec import ML_DTYPES, Array, as_codes, decode, encode
from fpsim.formats import Format, container, scalar_format
from fpsim.reference import ENGINE_NAN
from fpsim.reference import dot as reference_dot
from fpsim.spec import MatmulSpec

BACKENDS = ("cpu", "cuda", "reference")

#: result format -> numpy dtype of the array that comes out; results in other formats are codes
RESULT_DTYPES: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(kind) for kind, name in ML_DTYPES.items() if not hasattr(ml_dtypes, kind)},
    **{name: np.dtype(getattr(ml_dtypes, kind)) for kind, name in ML_DTYPES.items() if hasattr(ml_dtypes, kind)},
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
}


def result_dtype(fmt: str) -> np.dtype[Any]:
    """numpy dtype of results in a format: the float type of that layout, else that of its codes."""
    return RESULT_DTYPES.get(fmt) or np.dtype(container(fmt).code_dtype)


def matmul(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    spec: MatmulSpec,
    c: npt.ArrayLike | None = None,
    *,
    a_scale: npt.ArrayLike | None = None,
    b_scale: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    out: Array | None = None,
    backend: str | None = None,
) -> Any:
    """a @ b + c, every bit as the engine of `spec` computes it.

    a : codes of spec.a, shape (..., M, K). b : codes of spec.b, shape (..., K, N). Leading axes broadcast. Integer
        formats take the integers themselves; float16/32/64 and ml_dtypes arrays are taken as their own formats.
        Arrays on a GPU (CuPy, Numba, torch) are multiplied there; b then has no leading axes, or as many matrices as a.
    c : the value the accumulator starts from, of the accumulator's dtype, broadcastable to (..., M, N); None is zero.
    a_scale, b_scale : block-scaled engines: codes of spec.scale, (..., M, K/block) and (..., K/block, N), rounded up.
        Library engines: float32, scalars or (M, 1) and (1, N); DeepGEMM: (M, K/128) and (K/128, N).
    bias : library engines: float32, broadcastable to (M, N), added after scaling.
    out : optional host array for the result.
    backend : "cpu", "cuda" or "reference"; by default "cuda" for arrays on a GPU, otherwise "cpu".
    Returns (..., M, N) in the output's dtype: float32, float16, float64, int32, int64, an ml_dtypes type, or the codes
    of a format that has none of these (`result_dtype`). c has the dtype of the accumulator's format likewise.
    Operands on a GPU give a result there: a torch tensor if a is one, else a Numba device array.

    Raises ValueError for shapes, dtypes, codes or scales that do not fit, OverflowError for an integer accumulator with
    overflow="error" that leaves its range, MemoryError for a product that does not fit.
    """
    if not isinstance(spec, MatmulSpec):
        raise ValueError(f"spec is {spec!r}; allowed: a MatmulSpec, such as fpsim.engine(name, a, b) makes")
    if chosen_backend(backend, a, b, c) == "device":
        if out is not None:
            raise ValueError("out= is for host arrays; results of arrays on a GPU are new arrays on the GPU")
        from fpsim._cuda import entry  # only where it is asked for: it needs a driver

        dtypes = result_dtype(spec.out), result_dtype(container(spec.accumulator.output).name)
        return entry.matmul(a, b, spec, c, a_scale, b_scale, bias, *dtypes)
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
    if spec.epilogue is not None and c is not None:
        raise ValueError(f"{spec.engine or 'a spec with an epilogue'} starts from zero; add with bias= instead of c=")
    start = _start(c, held, shape)
    scales = _block_scales(a_scale, b_scale, spec, x.shape, y.shape)
    if y.ndim == 2 and scales is None:  # one b for all: its batch of a is more rows
        count = math.prod(shape[:-1])
        rows = start.reshape(count, shape[-1])
        _product(x.reshape(count, x.shape[-1]), y, rows, spec, None, backend or "cpu")
    else:
        xs, ys = np.broadcast_to(x, (*batch, *x.shape[-2:])), np.broadcast_to(y, (*batch, *y.shape[-2:]))
        for index in np.ndindex(batch):
            here = None if scales is None else tuple(_at(s, batch, index) for s in scales)
            _product(
                np.ascontiguousarray(xs[index]),
                np.ascontiguousarray(ys[index]),
                start[index],
                spec,
                here,
                backend or "cpu",
            )
    result = start.view(result_dtype(held.name))
    if spec.epilogue is not None:
        result = scale_and_bias(_values(result, held), a_scale, b_scale, bias)
    elif bias is not None or (scales is None and (a_scale is not None or b_scale is not None)):
        raise ValueError(f"{spec.engine or 'this spec'} takes no a_scale, b_scale or bias")
    return _finish(result, held, spec, out)


def chosen_backend(backend: str | None, *operands: Any) -> str:
    """ "device" for operands that are on a GPU and stay there, else the backend; ValueError for one that is not."""
    if backend is not None and backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if any(on_device(x) for x in operands):
        if backend not in (None, "cuda"):
            raise ValueError(f"the operands are on a GPU; backend={backend!r} takes host arrays: copy them first")
        return "device"
    return backend or "cpu"


def _block_scales(
    a_scale: npt.ArrayLike | None,
    b_scale: npt.ArrayLike | None,
    spec: MatmulSpec,
    a_shape: tuple[int, ...],
    b_shape: tuple[int, ...],
) -> tuple[Array, Array] | None:
    """The scales that take part in the accumulation, checked: codes, or float32 for scaled promotions."""
    kind = spec.accumulator
    inner = kind.inner if isinstance(kind, SplitK) else kind
    promoted = isinstance(inner, Promoted) and inner.scaled
    if spec.scale is None and not promoted:
        return None
    if a_scale is None or b_scale is None:
        raise ValueError(f"{spec.engine or 'this spec'} is block-scaled: give a_scale and b_scale")
    if spec.scale is not None:
        row = scalar_format(spec.scale)
        left, right = as_codes(a_scale, row, "a_scale"), as_codes(b_scale, row, "b_scale")
    else:
        left, right = (np.asarray(s, np.float32) for s in (a_scale, b_scale))
    length = spec.block or (inner.every if isinstance(inner, Promoted) else 1)
    blocks = -(-a_shape[-1] // length)
    want_a, want_b = (a_shape[-2], blocks), (blocks, b_shape[-1])
    if left.shape[-2:] != want_a or right.shape[-2:] != want_b:
        raise ValueError(
            f"a_scale is {left.shape} and b_scale {right.shape}; with one scale per {length} of K = {a_shape[-1]} "
            f"they must end in {want_a} and {want_b}"
        )
    return left, right


def _at(scales: Array, batch: tuple[int, ...], index: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(np.broadcast_to(scales, (*batch, *scales.shape[-2:]))[index])


def scale_and_bias(
    result: Array, a_scale: npt.ArrayLike | None, b_scale: npt.ArrayLike | None, bias: npt.ArrayLike | None
) -> Array:
    """The epilogue of a library GEMM, each operation one float32 rounding (see `fpsim.spec.Epilogue`).

    result : (..., M, N) sums of any type that float32 holds; integers are converted, to nearest even.
    """
    result = result.astype(np.float32, copy=False)
    left = np.float32(1) if a_scale is None else np.asarray(a_scale, np.float32)
    right = np.float32(1) if b_scale is None else np.asarray(b_scale, np.float32)
    for name, scale, shape in (
        ("a_scale", left, (result.shape[-2], 1)),
        ("b_scale", right, (1, result.shape[-1])),
    ):
        if scale.size != 1 and scale.shape[-2:] != shape:
            raise ValueError(f"{name} is {scale.shape}; allowed: a scalar, or a shape that ends in {shape}")
    with np.errstate(all="ignore"):
        result = result * (left * right) if left.size == right.size == 1 else (result * right) * left
        if bias is not None:
            added, wanted = np.asarray(bias).astype(np.float32), result.shape[-2:]
            if added.ndim > 2 or any(n not in (1, m) for n, m in zip(added.shape[::-1], wanted[::-1], strict=False)):
                raise ValueError(f"bias is {added.shape}; allowed: a shape that broadcasts to the result's {wanted}")
            result = result + added
    return result


def _start(c: npt.ArrayLike | None, held: Format, shape: tuple[int, ...]) -> Array:
    """A fresh array of container codes (signed integers of the container's width) that holds c."""
    dtype = result_dtype(held.name)
    if c is None:
        return np.zeros(shape, dtype).view(f"i{dtype.itemsize}")
    array = np.asarray(c)
    if array.dtype != dtype:
        raise ValueError(f"c has dtype {array.dtype}; this accumulator starts from {dtype}")
    try:
        return np.broadcast_to(array, shape).copy().view(f"i{dtype.itemsize}")
    except ValueError as error:
        raise ValueError(f"c has shape {array.shape}, which does not broadcast to the result {shape}") from error


def _finish(result: Array, held: Format, spec: MatmulSpec, out: Array | None) -> Array:
    """The accumulator's values -> the array the caller gets, through the spec's output format."""
    if spec.out != (held.name if spec.epilogue is None else "f32"):  # an epilogue leaves float32
        if isinstance(spec.accumulator, IntegerAccumulator) and spec.accumulator.bits > 54 and spec.epilogue is None:
            raise ValueError(f"a {spec.accumulator} sum does not round to {spec.out!r} exactly; take out='int64'")
        values = _values(result, held)
        codes = encode(values, spec.out, conversion="ocp-nonsat")
        if spec.out in ENGINE_NAN:
            codes[np.isnan(values)] = ENGINE_NAN[spec.out]
        result = codes.view(result_dtype(spec.out))
    if out is None:
        return result
    if not isinstance(out, np.ndarray):
        raise ValueError(f"out is a {type(out).__name__}; it must be a numpy array")
    if out.shape != result.shape or out.dtype != result.dtype or not out.flags.writeable:
        raise ValueError(
            f"out is {out.dtype}{list(out.shape)}; it must be writeable {result.dtype}{list(result.shape)}"
        )
    out[...] = result
    return out


def _values(result: Array, held: Format) -> Array:
    """What a result stands for: itself, unless it is codes of a format that numpy has not."""
    return decode(result, held) if result.dtype.kind == "u" else result


def _product(a: Array, b: Array, c: Array, spec: MatmulSpec, scales: tuple[Array, ...] | None, backend: str) -> None:
    """One 2-D product of codes; c holds the start and becomes the result."""
    if c.size == 0:
        return
    pair = None if scales is None else (scales[0], scales[1])
    if backend == "reference":
        _reference_product(a, b, c, spec, pair)
    elif backend == "cuda":
        from fpsim import _cuda  # only where it is asked for: it needs a driver

        _cuda.accumulate(a, b, c, spec, pair)
    else:
        _cpu.accumulate(a, b, c, spec, pair)


def _reference_product(a: Array, b: Array, c: Array, spec: MatmulSpec, scales: tuple[Array, Array] | None) -> None:
    held = container(spec.accumulator.output)
    inner = MatmulSpec(spec.a, spec.b, spec.accumulator, held.name, spec.scale, spec.block)
    mask = (1 << 8 * c.dtype.itemsize) - 1 if held.kind == "float" else -1
    left, right = scales or (np.zeros((a.shape[0], 0), np.uint8), np.zeros((0, b.shape[1]), np.uint8))
    if left.dtype == np.float32:
        left, right = np.ascontiguousarray(left).view(np.uint32), np.ascontiguousarray(right).view(np.uint32)
    columns = [(b[:, j].tolist(), right[:, j].tolist()) for j in range(b.shape[1])]
    for i in range(a.shape[0]):
        row, row_scales = a[i].tolist(), left[i].tolist()
        for j, (column, column_scales) in enumerate(columns):
            code = reference_dot(row, column, int(c[i, j]) & mask, inner, row_scales, column_scales)
            c[i, j] = np.array(code & ((1 << 64) - 1), np.uint64).astype(c.dtype)
