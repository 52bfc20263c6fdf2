"""`matmul` and `conv2d` for arrays that are on the device, and stay there: check, multiply, scale, cast."""

import math
from typing import Any

import numpy as np
from numba import cuda

from fpsim._cuda import need_device, run
from fpsim._cuda.arrays import Codes, codes, empty, launch, native, new, zeros
from fpsim._kernels import cuda_arrays
from fpsim.accumulators import Promoted
from fpsim.formats import Format, container, scalar_format
from fpsim.reference import ENGINE_NAN
from fpsim.rounding import conversion, rounding
from fpsim.spec import MatmulSpec
from fpsim.target import float_target


def matmul(
    a: Any,
    b: Any,
    spec: MatmulSpec,
    c: Any,
    a_scale: Any,
    b_scale: Any,
    bias: Any,
    out_dtype: np.dtype[Any],
    held_dtype: np.dtype[Any],
) -> Any:
    """`fpsim.matmul` for operands on the device; the result is there too, a tensor if `a` is one.

    Leading axes: those of a; b has none, or the same number of matrices (or a has none and b some).
    """
    need_device()
    given = a if hasattr(a, "__cuda_array_interface__") or hasattr(a, "is_cuda") else b
    x, y = codes(a, spec.a, "a"), codes(b, spec.b, "b")
    if x.shape[2] != y.shape[1]:
        raise ValueError(f"a is {a.shape} and b is {b.shape}: a's last axis must be as long as b's second to last (K)")
    if 1 not in (x.shape[0], y.shape[0]) and x.shape[0] != y.shape[0]:
        raise ValueError(f"leading axes of a {tuple(a.shape)} and b {tuple(b.shape)} do not match")
    leading = tuple(a.shape[:-2]) if x.shape[0] > 1 or y.shape[0] == 1 else tuple(b.shape[:-2])
    shape = (*leading, x.shape[1], y.shape[2])
    scales = _accumulated_scales(a_scale, b_scale, spec)
    if y.shape[0] == 1 and scales is None and x.strides[0] == x.shape[1] * x.strides[1]:
        x = Codes(x.words, (0, *x.strides[1:]), (1, x.shape[0] * x.shape[1], x.shape[2]))
    if x.shape[0] == 1 and y.shape[0] > 1:
        x = Codes(x.words, x.strides, (y.shape[0], *x.shape[1:]))  # a stride of zero: the same matrix every time
    held = container(spec.accumulator.output)
    result, words = _start(given, c, shape, held_dtype, held)
    flat = words.reshape(x.shape[0], x.shape[1], shape[-1])
    run(x, y, flat, spec, scales)
    if spec.epilogue is not None:
        if held.name != "f32":
            raise ValueError(f"backend='cuda' scales float32 sums only, not {held.name}; copy the operands to the CPU")
        _epilogue(flat, a_scale, b_scale, bias)
    elif bias is not None or (scales is None and (a_scale is not None or b_scale is not None)):
        raise ValueError(f"{spec.engine or 'this spec'} takes no a_scale, b_scale or bias")
    if spec.out == held.name:
        return result
    target, cast = empty(given, shape, out_dtype)
    _cast(flat, cast, spec, held)
    return target


def _start(given: Any, c: Any, shape: tuple[int, ...], dtype: np.dtype[Any], held: Format) -> tuple[Any, Any]:
    """A fresh result that holds c, and its words (unsigned for floats)."""
    result, array = empty(given, shape, dtype)
    kind = "i" if held.kind == "int" else "u"
    words = array.view(f"{kind}{dtype.itemsize}")
    if c is None:
        flat = words.reshape(words.size)
        launch(cuda_arrays.clear, flat.size, flat)
        return result, words
    source = native(c)
    if source.dtype.itemsize != dtype.itemsize or tuple(source.shape) != shape or not source.is_c_contiguous():
        raise ValueError(f"c is {source.dtype}{list(source.shape)}; it must be contiguous {dtype}{list(shape)}")
    words.copy_to_device(source.view(words.dtype))
    return result, words


def _accumulated_scales(a_scale: Any, b_scale: Any, spec: MatmulSpec) -> tuple[Codes, Codes] | None:
    """Scales that take part in the accumulation: codes, or float32 for scaled promotions."""
    kind = spec.accumulator
    promoted = isinstance(kind, Promoted) and kind.scaled
    if spec.scale is None and not promoted:
        return None
    if a_scale is None or b_scale is None:
        raise ValueError(f"{spec.engine or 'this spec'} is block-scaled: give a_scale and b_scale")
    row = scalar_format(spec.scale or "f32")
    return codes(a_scale, row, "a_scale"), codes(b_scale, row, "b_scale")


def _vector(x: Any, length: int, name: str) -> Any:
    """float32 values on the device as one axis: one value, or `length` of them."""
    if x is None or np.isscalar(x):
        return cuda.to_device(np.full(1, 1.0 if x is None else x, np.float32))
    if hasattr(x, "is_cuda"):
        x = x.detach().float().contiguous()
    array = native(x) if hasattr(x, "__cuda_array_interface__") else cuda.to_device(np.asarray(x, np.float32))
    if array.size not in (1, length) or array.dtype != np.float32:
        raise ValueError(f"{name} is {array.dtype}{list(array.shape)}; allowed: float32, one value or {length}")
    return array.reshape(array.size)


def _epilogue(words: Any, a_scale: Any, b_scale: Any, bias: Any) -> None:
    left, right = _vector(a_scale, words.shape[1], "a_scale"), _vector(b_scale, words.shape[2], "b_scale")
    added = cuda.to_device(np.zeros(0, np.float32)) if bias is None else _vector(bias, words.shape[2], "bias")
    scalar = left.size == right.size == 1
    launch(cuda_arrays.epilogue, words.size, words, left, right, added, scalar, words.view(np.float32))


def _cast(words: Any, out: Any, spec: MatmulSpec, held: Format) -> None:
    """The accumulator's values in the spec's output format, to nearest even."""
    row, named = scalar_format(spec.out), conversion("ocp-nonsat")
    if held.name not in ("f32", "f64") or row.kind != "float" or row.bits > 32:
        raise ValueError(f"backend='cuda' does not turn {held.name} into {spec.out}; take out={held.name!r} or the CPU")
    target = float_target(row, rounding("rne"), named.overflow_for(row.name), named)
    if row.name in ENGINE_NAN:
        target = target._replace(nan=ENGINE_NAN[row.name], negative_nan=ENGINE_NAN[row.name], payload_shift=63)
    codes_out = out.view(f"u{out.dtype.itemsize}").reshape(words.shape)
    launch(
        cuda_arrays.cast, words.size, words.view(np.float32 if held.name == "f32" else np.float64), target, codes_out
    )


def conv2d(
    x: Any,
    w: Any,
    spec: MatmulSpec,
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    pad_code: int,
    kernel_last: bool,
    held_dtype: np.dtype[Any],
) -> Any:
    """`fpsim.conv2d` for contiguous codes on the device; `size` is that of the output. One product per group."""
    need_device()
    images, weights = native(x), native(w)
    for array, row, name in ((x, spec.a, "x"), (w, spec.b, "w")):
        codes(array, row, name)  # checks them
    held = container(spec.accumulator.output)
    if spec.out != held.name or spec.epilogue is not None:
        raise ValueError(f"conv2d on the device gives the accumulator's own format, {held.name}, not {spec.out}")
    (n, _, _, _), (outputs, depth, kh, kw) = images.shape, weights.shape
    result, words = _start(x, None, (n, outputs, *size), held_dtype, held)
    each, k = outputs // groups, depth * kh * kw
    for group in range(groups):
        pixels = new((1, n * math.prod(size), k), images.dtype)
        taps = new((1, each, k), weights.dtype)
        part = images[:, group * depth : (group + 1) * depth]
        kernel = weights[group * each : (group + 1) * each]
        geometry = (stride, padding, dilation, size, kernel_last)
        launch(cuda_arrays.patches, pixels.size, part, (kh, kw), pad_code, *geometry, pixels)
        still = ((1, 1), (0, 0), (1, 1), (1, 1), kernel_last)
        launch(cuda_arrays.patches, taps.size, kernel, (kh, kw), 0, *still, taps)
        made = zeros((1, pixels.shape[1], each), words.dtype)
        run(_whole(pixels), _whole(taps).transposed(), made, spec)
        launch(cuda_arrays.channels_first, made.size, made, math.prod(size), group * each, words)
    return result


def _whole(array: Any) -> Codes:
    _, rows, depth = array.shape
    flat = array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "f" else array
    return Codes(flat.reshape(array.size), (0, depth, 1), (1, rows, depth))
