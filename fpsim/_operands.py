"""Operands of a fused dot product, taken apart: significands and exponents, or float32 values and exponents."""

from functools import cache
from typing import Any

import numpy as np

from fpsim._kernels.accumulate import INFINITE, NAN, ZERO
from fpsim.codec import Array, decode
from fpsim.formats import Format


def unpack(codes: Array, row: Format) -> tuple[Array, Array]:
    """Signed significands (int32) and exponents (int16, with the marks of `_kernels.accumulate`) of an array of codes.

    The exponent is that of the format's leading bit: a subnormal has the smallest exponent and a small significand.
    """
    if row.bits <= 16:
        significands, exponents = _unpack_table(row)
        index = codes & ((1 << row.bits) - 1)
        return significands[index], exponents[index]
    if row.mantissa_bits > 23:
        raise ValueError(f"{row.name!r} has {row.mantissa_bits} mantissa bits; a fused dot takes at most 23")
    return _unpack_codes(codes >> row.shift, row)


def unpack_wide(codes: Array, row: Format) -> tuple[Array, Array]:
    """`unpack` for float64 codes: int64 significands."""
    return _unpack_codes(codes >> row.shift, row, np.int64)


@cache
def _unpack_table(row: Format) -> tuple[Array, Array]:
    return _unpack_codes(np.arange(1 << row.bits), row)


def _unpack_codes(codes: Array, row: Format, dtype: type[np.signedinteger[Any]] = np.int32) -> tuple[Array, Array]:
    word = codes.astype(np.int64)
    magnitude = word & ((1 << (row.exponent_bits + row.mantissa_bits)) - 1)
    field, mantissa = magnitude >> row.mantissa_bits, magnitude & ((1 << row.mantissa_bits) - 1)
    subnormal = (field == 0) & row.zero
    significand = np.where(subnormal, mantissa, mantissa + (1 << row.mantissa_bits))
    exponent = np.where(subnormal, 1, field) - row.bias
    values = _class_of(word, row)
    exponent[significand == 0] = ZERO
    exponent[np.isinf(values)] = INFINITE
    exponent[np.isnan(values)] = NAN
    significand[~np.isfinite(values)] = 1
    negative = word < 0 if row.bits == 64 else (word & row.sign_bit) != 0
    return np.where(negative, -significand, significand).astype(dtype), exponent.astype(np.int16)


def _class_of(word: Array, row: Format) -> Array:
    """Values that are NaN and Inf where the codes are (their finite values do not matter here)."""
    return decode((word << row.shift).astype(row.code_dtype), row)
