"""What comes after the accumulator: zero points, bias, scales, activation, the cast to the output.

Three places do it, each operation one rounding that is named:

- Library engines (`fpsim.engine("hopper/scaled_mm", ...)`, any spec with `epilogue=Epilogue()`): float32 scales and
  bias and the cast to f32, bf16, f16 or FP8, inside `fpsim.matmul`.
- `dequantize`: the same float32 operations on sums at hand, with a clamp (ReLU: low=0) and any output format.
- `epilogue`: integers only. int32 sums, plus the correction for zero points, plus an int32 bias, all modulo 2**32; then
  `requantize`, with a clamp (a fused activation) in output codes.

Zero points. Asymmetric operands stand for a - za and b - zb. The products of engines are of codes, and
sum (a - za)(b - zb) = sum a b - zb sum a - za sum b + K za zb: `zero_points` is what follows the first term, computed
modulo 2**32, so that adding it to a wrapping accumulator is exact whenever the true sum fits. A convolution pads with
za (`fpsim.conv2d(..., pad_code=za)`), so that the padding stands for zeros and counts in the sums like any other code;
`conv2d_zero_points` is its correction.

Requantization. A real scale is a multiplier below one times a power of two. Libraries agree on that and differ in how
they round:

- "gemmlowp": two roundings. A doubling high multiplication (x * multiplier * 2 / 2**32, half toward +inf), then a
  division by a power of two (half away from zero). Jacob et al., arXiv:1712.05877, and gemmlowp's fixedpoint.h.
- "tflite-single": one rounding of the 64-bit product, half toward +inf (TFLITE_SINGLE_ROUNDING; also CMSIS-NN's).
- "dyadic": x * m / 2**n with any integer m (HAWQ-V3, arXiv:2011.10680), half toward +inf.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim._names import unknown
from fpsim.accumulators import IntegerAccumulator
from fpsim.codec import as_codes, encode
from fpsim.conv import conv2d
from fpsim.formats import Format, scalar_format
from fpsim.gemm import result_dtype, scale_and_bias
from fpsim.spec import MatmulSpec

Array = npt.NDArray[Any]

METHODS = ("gemmlowp", "tflite-single", "dyadic")


def zero_points(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    a_format: str | Format,
    b_format: str | Format,
    a_zero: npt.ArrayLike = 0,
    b_zero: npt.ArrayLike = 0,
) -> Array:
    """What asymmetric operands add to the product of codes a (..., M, K) and b (..., K, N): int32 (..., M, N), wrapped.

    a_zero : zero point of a, an integer or one per row (M, 1). b_zero : of b, an integer or one per column (1, N).
    Raises ValueError for codes outside the formats, or zero points that are not such integers.
    """
    x, y = (_integers(codes, row, name) for codes, row, name in ((a, a_format, "a"), (b, b_format, "b")))
    if min(x.ndim, y.ndim) < 2 or x.shape[-1] != y.shape[-2]:
        raise ValueError(f"a is {x.shape} and b is {y.shape}; allowed: (..., M, K) and (..., K, N)")
    left = _zero(a_zero, (x.shape[-2], 1), "a_zero")
    right = _zero(b_zero, (1, y.shape[-1]), "b_zero")
    rows, columns = x.sum(axis=-1, keepdims=True), y.sum(axis=-2, keepdims=True)
    return _wrapped(left * right * x.shape[-1] - right * rows - left * columns)


def conv2d_zero_points(
    x: npt.ArrayLike,
    w: npt.ArrayLike,
    x_format: str | Format,
    w_format: str | Format,
    x_zero: int = 0,
    w_zero: npt.ArrayLike = 0,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Array:
    """The same for `fpsim.conv2d(x, w, ..., pad_code=x_zero)`: int32 (N, O, H', W').

    w_zero : zero point of the weights, an integer or one per output channel (O,). The rest as in `conv2d`.
    """
    images, weights = _integers(x, x_format, "x"), _integers(w, w_format, "w")
    if images.ndim != 4 or weights.ndim != 4:
        raise ValueError(f"x must be (N, C, H, W) and w (O, C/groups, KH, KW), got {images.shape} and {weights.shape}")
    outputs, depth = weights.shape[0], weights.shape[1] * weights.shape[2] * weights.shape[3]
    right = _zero(np.asarray(w_zero)[:, None, None] if np.ndim(w_zero) else w_zero, (outputs, 1, 1), "w_zero")
    ones = np.ones((groups, *weights.shape[1:]), np.int32)  # one output per group: the sum of its patch
    patches = conv2d(
        images.astype(np.int32),
        ones,
        MatmulSpec("int32", "int32", IntegerAccumulator(32, "wrap")),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        pad_code=int(x_zero),
    )
    patches = np.repeat(patches.astype(np.int64), outputs // groups, axis=1)
    sums = weights.sum(axis=(1, 2, 3)).reshape(outputs, 1, 1)
    return _wrapped(right * int(x_zero) * depth - right * patches - sums * int(x_zero))


def _integers(codes: npt.ArrayLike, fmt: str | Format, name: str) -> Array:
    row = scalar_format(fmt)
    if row.kind != "int" or row.bits > 32:
        raise ValueError(f"zero points are for integer formats of at most 32 bits, but {name} is in {row.name!r}")
    return as_codes(codes, row, name).astype(np.int64)


def _zero(zero: npt.ArrayLike, shape: tuple[int, ...], name: str) -> Array:
    array = np.asarray(zero)
    if array.dtype.kind not in "iu" or (array.size != 1 and array.shape != shape):
        raise ValueError(f"{name} is {array.dtype}{array.shape}; allowed: an integer, or integers of shape {shape}")
    return array.astype(np.int64).reshape(shape if array.size != 1 else (1,) * len(shape))


def _wrapped(x: Array) -> Array:
    """int64 modulo 2**32, as int32."""
    return (x & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def epilogue(
    x: npt.ArrayLike,
    multiplier: npt.ArrayLike,
    shift: npt.ArrayLike,
    *,
    correction: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    zero_point: int = 0,
    out: str = "int8",
    method: str = "tflite-single",
    low: int | None = None,
    high: int | None = None,
) -> Array:
    """An integer layer's output from its int32 sums: x + correction + bias modulo 2**32, then `requantize`.

    correction : from `zero_points` or `conv2d_zero_points`. bias : int32, broadcast against x.
    The rest as in `requantize`, which see for the errors too.
    """
    total = np.asarray(x)
    for name, term in (("correction", correction), ("bias", bias)):
        if term is not None:
            added = np.asarray(term)
            if added.dtype != np.int32:
                raise ValueError(f"{name} has dtype {added.dtype}; allowed: int32, the type of the sums")
            total = _wrapped(total.astype(np.int64) + added) if total.dtype == np.int32 else total
    return requantize(total, multiplier, shift, zero_point=zero_point, out=out, method=method, low=low, high=high)


def dequantize(
    x: npt.ArrayLike,
    a_scale: npt.ArrayLike | None = None,
    b_scale: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    out: str = "f32",
    conversion: str = "ocp-nonsat",
) -> Array:
    """Sums (..., M, N) -> values: to float32, times the scales, plus the bias (`fpsim.spec.Epilogue`), clamped, cast.

    a_scale, b_scale : float32, scalars or (M, 1) and (1, N). bias : float32, broadcastable to (M, N).
    low, high : a fused activation, in float32 (ReLU: low=0; ReLU6: high=6 too); NaN stays.
    out, conversion : format of the result and the named conversion to it, to nearest even.
    Returns the float type of `out` (`fpsim.gemm.result_dtype`).
    """
    array = np.asarray(x)
    if array.ndim < 2 or (array.dtype.kind not in "if" and array.dtype.name != "bfloat16"):
        raise ValueError(f"dequantize takes sums (..., M, N) of integers or floats, got {array.dtype}{array.shape}")
    result = scale_and_bias(array, a_scale, b_scale, bias)
    if low is not None:
        result = np.maximum(result, np.float32(low))
    if high is not None:
        result = np.minimum(result, np.float32(high))
    return result if out == "f32" else encode(result, out, conversion=conversion).view(result_dtype(out))


def quantize_multiplier(scale: npt.ArrayLike) -> tuple[Array, Array]:
    """A positive real scale as (multiplier, shift): scale = multiplier / 2**31 * 2**shift, 2**30 <= multiplier < 2**31.

    The multiplier is rounded half away from zero, as TFLite's QuantizeMultiplier does. Raises ValueError for a scale
    that is not positive and finite.
    """
    values = np.asarray(scale, np.float64)
    if values.size and not (np.isfinite(values).all() and (values > 0).all()):
        raise ValueError(f"scales must be positive and finite, got {values.min()} to {values.max()}")
    fraction, shift = np.frexp(values)
    multiplier = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
    full = multiplier == 1 << 31
    return np.where(full, 1 << 30, multiplier), (shift + full).astype(np.int64)


def requantize(
    x: npt.ArrayLike,
    multiplier: npt.ArrayLike,
    shift: npt.ArrayLike,
    *,
    zero_point: int = 0,
    out: str = "int8",
    method: str = "tflite-single",
    low: int | None = None,
    high: int | None = None,
) -> Array:
    """x * multiplier * 2**shift, rounded by `method`, plus the zero point, clamped to `out` (and to low .. high).

    x : int32 accumulators. multiplier, shift : from `quantize_multiplier` (scale = multiplier / 2**31 * 2**shift), one
        or per channel, broadcast against x; for "dyadic" the scale is multiplier / 2**shift.
    low, high : a fused activation, in output codes: low=zero_point is ReLU.

    Raises ValueError for an unknown method, a dtype that is not int32, or a float `out`.
    """
    array, row = np.asarray(x), scalar_format(out)
    if method not in METHODS:
        raise unknown("requantization", method, METHODS)
    if array.dtype != np.int32 or row.kind != "int":
        raise ValueError(
            f"requantize takes int32 accumulators into an integer format, got {array.dtype} into {row.name}"
        )
    wide, m, s = array.astype(np.int64), np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
    if method == "dyadic":
        scaled = _shift_half_up(wide * m, s)
    elif method == "tflite-single":
        scaled = _shift_half_up(wide * m, 31 - s)
    else:
        left, right = np.maximum(s, 0), np.maximum(-s, 0)
        shifted = (wide << left).astype(np.int32).astype(np.int64)  # gemmlowp shifts in int32
        scaled = _divide_half_away(_doubling_high(shifted, m), right)
    least = max(int(row.min), int(row.min) if low is None else low)
    most = min(int(row.max), int(row.max) if high is None else high)
    return np.clip(scaled + zero_point, least, most).astype(row.code_dtype)


def _shift_half_up(x: Array, shift: Array) -> Array:
    """x / 2**shift, half toward +inf; shift >= 1."""
    if shift.size and shift.min() < 1:
        raise ValueError(f"the right shift must be 1 or more, got {int(shift.min())}")
    return (x + (np.int64(1) << (shift - 1))) >> shift


def _doubling_high(x: Array, y: Array) -> Array:
    """gemmlowp's SaturatingRoundingDoublingHighMul: the high 32 bits of 2xy, half toward +inf."""
    product = x * y
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    return np.minimum(np.sign(nudged) * (np.abs(nudged) >> 31), (1 << 31) - 1)


def _divide_half_away(x: Array, shift: Array) -> Array:
    """gemmlowp's RoundingDivideByPOT: x / 2**shift, half away from zero."""
    mask = (np.int64(1) << shift) - 1
    return (x >> shift) + ((x & mask) > (mask >> 1) + (x < 0))
