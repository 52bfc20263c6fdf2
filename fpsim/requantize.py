"""From int32 accumulators to 8-bit outputs with integers only: the fixed-point epilogues of integer inference.

A real scale is a multiplier below one times a power of two. Libraries agree on that and differ in how they round:

- "gemmlowp": two roundings. A doubling high multiplication (x * multiplier * 2 / 2**32, half toward +inf), then a
  division by a power of two (half away from zero). Jacob et al., arXiv:1712.05877, and gemmlowp's fixedpoint.h.
- "tflite-single": one rounding of the 64-bit product, half toward +inf (TFLITE_SINGLE_ROUNDING; also CMSIS-NN's).
- "dyadic": x * m / 2**n with any integer m (HAWQ-V3, arXiv:2011.10680), half toward +inf.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim._names import unknown
from fpsim.formats import scalar_format

Array = npt.NDArray[Any]

METHODS = ("gemmlowp", "tflite-single", "dyadic")


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
