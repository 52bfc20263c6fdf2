"""Arrays of numbers to arrays of codes and back.

`encode` rounds, `decode` is exact, `quantize` is one after the other (and knows block formats, see `fpsim.blocks`).
What happens to NaN, Inf, -0 and values out of range is said by a named conversion, see `fpsim.rounding`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim import _jit
from fpsim._kernels import cpu
from fpsim._kernels.scalar import FloatTarget
from fpsim._tensors import host_array
from fpsim.formats import BlockFormat, Format, scalar_format
from fpsim.formats import format as find_format
from fpsim.rounding import Conversion, Overflow, Rounding
from fpsim.rounding import conversion as find_conversion
from fpsim.rounding import overflow as find_overflow
from fpsim.rounding import rounding as find_rounding
from fpsim.target import addition_top, float_target, narrow, symmetric

Array = npt.NDArray[Any]

_GRAIN = 1 << 16  # elements per thread below which splitting costs more than it gives


def encode(
    x: npt.ArrayLike,
    fmt: str | Format,
    out: Array | None = None,
    *,
    rounding: str | Rounding = "rne",
    overflow: str | Overflow | None = None,
    conversion: str | Conversion = "ocp-sat",
    random: npt.ArrayLike | int | None = None,
    random_bits: int = 32,
) -> Array:
    """Codes of `x` in `fmt`, same shape, in the format's `code_dtype` (the integers themselves for integer formats).

    x : real array (float16/32/64, ml_dtypes, integers); read only, any layout.
    out : optional contiguous array of the right shape and dtype to write into.
    rounding, overflow, conversion : names from `fpsim.rounding`; `overflow` overrides the conversion's policy.
    random, random_bits : stochastic roundings only: an array like x of integers below 2**random_bits, or a seed from
        which value i takes the high bits of word i of a Philox4x32-10 stream (the same on every machine).

    Raises ValueError for unknown names, a block format, a non-real `x`, an unsuitable `out`, or random bits that are
    missing, too large, or not wanted.
    """
    row, named = scalar_format(fmt), find_conversion(conversion)
    how = named.rounding_for(row.name, rounding)
    policy = named.overflow_for(row.name) if overflow is None else find_overflow(overflow)
    values = real_array(x)
    codes = _output(out, values.shape, np.dtype(row.code_dtype))
    if out is not None and np.may_share_memory(values, out):
        values = values.copy()  # codes are not as wide as values: writing them would run ahead of reading
    words = _random_words(how, random, random_bits, values.shape)
    flat, target = values.reshape(-1), codes.reshape(-1)
    if row.kind == "int":
        _encode_integers(flat, row, how, words, random_bits, target)
    elif row.kind == "codebook":
        _encode_codebook(flat, row, target)
    elif row.bits == 64:
        target[:] = _float64(flat).view(np.uint64)  # every input is a float64 already
        nan = np.isnan(flat)
        target[nan] = np.uint64(row.nan_code or 0) | target[nan] & np.uint64(row.sign_bit)
    else:
        _encode_floats(flat, float_target(row, how, policy, named), words, random_bits, target)
    return codes


def decode(codes: npt.ArrayLike, fmt: str | Format) -> Array:
    """Exact values of `codes`: float32, or float64 where float32 cannot hold the format (f64, wide integers).

    Raises ValueError for a wrong dtype or a code with bits the format does not have.
    """
    row = scalar_format(fmt)
    array = as_codes(codes, row)
    if row.kind == "int":
        values = array.astype(row.value_dtype)
        return values if row.bias == 0 else values * np.dtype(row.value_dtype).type(2.0**-row.bias)
    if row.bits <= 16:
        out = np.empty(array.shape, row.value_dtype)
        table, source, flat = decode_table(row), array.reshape(-1), out.reshape(-1)
        _jit.parallel(lambda i, j: cpu.look_up(source, table, len(table) - 1, flat, i, j), source.size, _GRAIN)
        return out
    if row.name == "f64":
        return array.view(np.float64).copy()
    if row.exponent_bits == 8 and row.mantissa_bits + row.shift == 23 and row.nan == "ieee":
        return (array & np.uint32(0xFFFFFFFF << row.shift & 0xFFFFFFFF)).view(np.float32)
    if row.precision > 53:
        raise ValueError(f"{row.name!r} has {row.precision} significant bits; allowed: 53, those of float64")
    words = array.reshape(-1).astype(np.int64) >> row.shift
    return _decode_floats(words, row).astype(row.value_dtype).reshape(array.shape)


def quantize(
    x: npt.ArrayLike,
    fmt: str | Format | BlockFormat,
    axis: int = -1,
    *,
    rounding: str | Rounding = "rne",
    overflow: str | Overflow | None = None,
    conversion: str | Conversion = "ocp-sat",
    scale: npt.ArrayLike | None = None,
    out: Array | None = None,
) -> Array:
    """`x` on the grid of `fmt`: encode, then decode. Same shape; float32 (float64 for float64 input).

    axis : for block formats, the axis along which consecutive values share a scale.
    scale : for scalar formats, the size of one: quantize(x / scale) * scale, two roundings in the type of the result.
        A real-valued exponent bias B is the scale 2**(format.bias - B).
    out : optional contiguous array of the result's shape and dtype to write into (x itself is allowed).
    """
    row = find_format(fmt)
    values = real_array(x)
    if isinstance(row, BlockFormat):
        if scale is not None:
            raise ValueError(f"{row.name!r} chooses its own scales; scale= is for scalar formats")
        from fpsim.blocks import quantize_blocks  # blocks builds on this module

        target = None if out is None or out.dtype != np.float32 else _output(out, values.shape, np.dtype(np.float32))
        result = quantize_blocks(values, row, axis, rounding=rounding, out=target)
    else:
        unit = None if scale is None else np.asarray(scale, values.dtype)
        with np.errstate(all="ignore"):
            scaled = values if unit is None else values / unit
        result = decode(encode(scaled, row, rounding=rounding, overflow=overflow, conversion=conversion), row)
        result = result if unit is None else (result * unit).astype(values.dtype)
    result = result.astype(values.dtype, copy=False) if values.dtype == np.float64 else result
    if out is not None and out is not result:
        _output(out, result.shape, result.dtype)[...] = result
        return out
    return result


# -- arrays in and out --------------------------------------------------------------------------------------------


def real_array(x: npt.ArrayLike) -> Array:
    """`x` as a contiguous float32 or float64 array with the same values."""
    array = host_array(x)
    if array.dtype in (np.float32, np.float64):
        return np.ascontiguousarray(array).reshape(array.shape)
    if array.dtype.kind in "iub":
        wide = array.dtype.itemsize > 2
        return np.ascontiguousarray(array, dtype=np.float64 if wide else np.float32).reshape(array.shape)
    if array.dtype == np.float16 or array.dtype.name in ML_DTYPES:
        return np.ascontiguousarray(array.astype(np.float32)).reshape(array.shape)
    raise ValueError(
        f"x has dtype {array.dtype}; allowed: float16/32/64, integers, bool and the float types of ml_dtypes"
    )


#: ml_dtypes (and numpy) float type -> format name, where the layouts agree
ML_DTYPES = {
    "bfloat16": "bf16",
    "float16": "f16",
    "float32": "f32",
    "float64": "f64",
    "float8_e4m3fn": "e4m3",
    "float8_e5m2": "e5m2",
    "float8_e3m4": "e3m4",
    "float8_e4m3": "e4m3-ieee",
    "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e5m2fnuz": "e5m2fnuz",
    "float8_e4m3b11fnuz": "e4m3b11fnuz",
    "float8_e8m0fnu": "e8m0",
    "float6_e2m3fn": "e2m3",
    "float6_e3m2fn": "e3m2",
    "float4_e2m1fn": "e2m1",
}


def as_codes(codes: npt.ArrayLike, row: Format, name: str = "codes") -> Array:
    """`codes` as a contiguous array of the format's code dtype, checked against the format.

    Arrays of a float type that *is* the format (float32 for f32, ml_dtypes.float8_e4m3fn for e4m3) are viewed, and so
    are torch's: contiguous ones without a copy.
    """
    array = host_array(codes)
    wanted = np.dtype(row.code_dtype)
    same = ML_DTYPES.get(array.dtype.name)
    if same == row.name or (same == "f32" and row.kind == "float" and row.shift and wanted == np.uint32):
        return np.ascontiguousarray(array).reshape(array.shape).view(wanted)
    if array.dtype.name == row.name and row.kind == "int":  # the int2, int4, ... of ml_dtypes, one per byte
        array = array.astype(wanted)
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has dtype {array.dtype}, but codes of {row.name!r} are {wanted}"
            + (" (or an array of that float type)" if row.kind == "float" else "")
        )
    least, most = _code_range(row)
    room = np.iinfo(array.dtype)
    if array.size and (room.min < least or room.max > most):
        low, high = int(array.min()), int(array.max())
        if low < least or high > most:
            bad = low if low < least else high
            where = [int(i) for i in np.unravel_index(int(np.argmax(array == bad)), array.shape)]
            raise ValueError(
                f"{name}{where or ''} is {bad}, which is not a code of {row.name!r} (allowed: {least} to {most})"
            )
    return np.ascontiguousarray(array, dtype=wanted).reshape(array.shape)


def _code_range(row: Format) -> tuple[int, int]:
    """The smallest and the largest code."""
    if row.kind == "int":
        return int(row.min * 2**row.bias), row.max_code
    return 0, row.max_code if row.kind == "codebook" else (1 << row.bits + row.shift) - 1


def _output(out: Array | None, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray):
        raise ValueError(f"out is a {type(out).__name__}; it must be a numpy array, {dtype}{list(shape)}")
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"out is {out.dtype}{list(out.shape)}; it must be {dtype}{list(shape)}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError("out must be C-contiguous and writeable; pass a fresh array or leave it out")
    return out


# -- decode tables ------------------------------------------------------------------------------------------------


@cache
def decode_table(row: Format) -> Array:
    """Value of every code of a float or codebook format of at most 16 bits (padding bits ignored), read-only."""
    codes = np.arange(1 << row.bits)
    if row.kind == "codebook":
        values = np.array([row.values[min(c, len(row.values) - 1)] for c in range(1 << row.bits)], np.float64)
    else:
        values = _decode_floats(codes, row)
    table = values.astype(row.value_dtype)
    table.flags.writeable = False
    return table


def _decode_floats(codes: Array, row: Format) -> Array:
    magnitude = codes & ((1 << (row.exponent_bits + row.mantissa_bits)) - 1)
    negative = (codes & row.sign_bit) != 0
    field, mantissa = magnitude >> row.mantissa_bits, magnitude & ((1 << row.mantissa_bits) - 1)
    subnormal = (field == 0) & row.zero
    significand = np.where(subnormal, mantissa, mantissa + (1 << row.mantissa_bits)).astype(np.float64)
    values = np.ldexp(significand, np.where(subnormal, 1, field) - row.bias - row.mantissa_bits)
    if row.infinity_code is not None:
        values[magnitude == row.infinity_code] = np.inf
    values = np.where(negative, -values, values)
    nan_codes = {
        "ieee": (field == (1 << row.exponent_bits) - 1) & (mantissa != 0),
        "all-ones": magnitude == (1 << (row.exponent_bits + row.mantissa_bits)) - 1,
        "top": magnitude == (1 << (row.exponent_bits + row.mantissa_bits)) - 1,
        "negative-zero": negative & (magnitude == 0),
        "none": np.zeros(codes.shape, bool),
    }[row.nan]
    values[nan_codes] = np.copysign(np.nan, np.where(negative[nan_codes], -1.0, 1.0))
    return values


# -- encoders -----------------------------------------------------------------------------------------------------


def _encode_floats(x: Array, target: FloatTarget, random: Array, count: int, out: Array) -> None:
    if x.dtype == np.float32 and symmetric(target):
        words, top = x.view(np.int32), addition_top(target)
        if top is not None:
            _jit.parallel(lambda i, j: cpu.encode_by_addition(words, target, top, out, i, j), x.size, _GRAIN)
            return
        if target.minimum_exponent == -126 and target.negative_zero and target.negative_nan != target.nan:
            _jit.parallel(lambda i, j: cpu.encode_nearest_even(words, target, out, i, j), x.size, _GRAIN)
            return
    if x.dtype == np.float32 and narrow(target) and out.dtype.itemsize <= 2:
        words = x.view(np.int32)
        _jit.parallel(lambda i, j: cpu.encode_words(words, target, out, i, j), x.size, _GRAIN)
        return
    wide = _float64(x).view(np.int64)
    _jit.parallel(lambda i, j: cpu.encode_floats(wide, target, random, count, out, i, j), x.size, _GRAIN)


def _float64(x: Array) -> Array:
    with np.errstate(invalid="ignore"):  # a signalling NaN is as good as a quiet one here
        return x.astype(np.float64, copy=False)


def _encode_integers(x: Array, row: Format, how: Rounding, random: Array, count: int, out: Array) -> None:
    wide, scale = _float64(x), 2.0**row.bias
    low, high = int(row.min * scale), row.max_code
    _jit.parallel(
        lambda i, j: cpu.encode_integers(wide, scale, low, high, how.code, random, count, out, i, j), x.size, _GRAIN
    )


def _encode_codebook(x: Array, row: Format, out: Array) -> None:
    """The nearest value, ties to the even index; NaN counts as zero."""
    values = np.array(row.values, np.float64)
    wide = np.nan_to_num(_float64(x), nan=0.0, posinf=np.inf, neginf=-np.inf)
    upper = np.clip(np.searchsorted(values, wide), 1, len(values) - 1)
    to_upper, to_lower = values[upper] - wide, wide - values[upper - 1]
    up = (to_upper < to_lower) | ((to_upper == to_lower) & (upper % 2 == 0))
    out[:] = np.where(up, upper, upper - 1)


# -- random bits and flags ----------------------------------------------------------------------------------------


def random_words(seed: int, count: int, bits: int = 32) -> Array:
    """The first `count` words of the Philox4x32-10 stream of `seed`, `bits` high bits of each, as uint32."""
    if not 1 <= bits <= 32:
        raise ValueError(f"random_bits is {bits}; allowed: 1 to 32")
    out = np.empty(count, np.uint32)
    key = int(np.uint64(seed).astype(np.int64))
    _jit.parallel(lambda i, j: cpu.random_words(key, 32 - bits, out, i, j), count, _GRAIN)
    return out


def _random_words(how: Rounding, random: npt.ArrayLike | int | None, bits: int, shape: tuple[int, ...]) -> Array:
    if not how.stochastic:
        if random is not None:
            raise ValueError(f"rounding {how.name!r} takes no random bits; stochastic ones are sra, srb, src")
        return np.zeros(1, np.uint32)
    if random is None:
        raise ValueError(f"rounding {how.name!r} needs random=: a seed, or an array of integers below 2**{bits}")
    if isinstance(random, int):
        return random_words(random, int(np.prod(shape)), bits)
    words = np.asarray(random)
    if words.shape != shape or words.dtype.kind not in "iu" or not 1 <= bits <= 32:
        raise ValueError(f"random must be integers of shape {shape} with 1 to 32 bits, got {words.dtype}{words.shape}")
    if words.size and (int(words.min()) < 0 or int(words.max()) >= 1 << bits):
        raise ValueError(f"random holds values outside 0 .. 2**{bits} - 1; say random_bits=")
    return np.ascontiguousarray(words, np.uint32).reshape(-1)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """How many values of an array a conversion changed, and how."""

    values: int
    inexact: int  #: finite, and not representable
    underflow: int  #: inexact and below the smallest normal value (IEEE 754, 7.5: tininess before rounding)
    overflow: int  #: finite, and rounded beyond the largest finite value
    nan: int  #: NaN in the input


def flags(x: npt.ArrayLike, fmt: str | Format, *, rounding: str | Rounding = "rne") -> Flags:
    """Count what encoding `x` in `fmt` would do. Overflows count as inexact too, whatever the policy.

    Raises ValueError for a codebook (everything in it is nearest) or a stochastic rounding.
    """
    row, how = scalar_format(fmt), find_rounding(rounding)
    if row.kind == "codebook" or how.stochastic:
        raise ValueError(
            f"flags are for float and integer formats and deterministic roundings, got {row.name}, {how.name}"
        )
    values = _float64(real_array(x)).reshape(-1)
    finite = np.isfinite(values)
    kept = decode(encode(values, row, rounding=how, overflow="saturate"), row).astype(np.float64)
    inexact = finite & (kept != values)
    if row.kind == "int":
        with np.errstate(invalid="ignore"):
            beyond = finite & ((values > row.max) | (values < row.min)) & (np.abs(kept - values) >= 2.0**-row.bias / 2)
    else:
        target = float_target(row, how, find_overflow("saturate"), find_conversion("ocp-sat"))
        marked = np.empty(values.size, np.int64)
        mark = target._replace(overflow=-1, negative_overflow=-1, shift=0, infinity=0, negative_infinity=0)
        _encode_floats(values, mark, np.zeros(1, np.uint32), 32, marked)
        beyond = marked == -1
    tiny = inexact & (np.abs(values) < row.smallest_normal)
    counts = [int(np.count_nonzero(m)) for m in (inexact, tiny, beyond, np.isnan(values))]
    return Flags(values=values.size, inexact=counts[0], underflow=counts[1], overflow=counts[2], nan=counts[3])
