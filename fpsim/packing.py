"""Dense storage of 4- and 6-bit codes (of any width, in fact).

Codes are packed little-endian: the first code takes the low bits of the first byte. For 4 bits that is the order of
PTX's e2m1x2 and of safetensors' float4_e2m1fn_x2; for 6 bits four codes take three bytes, with no padding.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim.codec import as_codes
from fpsim.formats import Format, scalar_format

Array = npt.NDArray[Any]


def pack(codes: npt.ArrayLike, fmt: str | Format) -> Array:
    """Codes (..., n) -> bytes (..., ceil(n * bits / 8)); the last byte is padded with zero bits.

    Integers are stored in two's complement. Raises ValueError for codes outside the format.
    """
    row = scalar_format(fmt)
    array = as_codes(codes, row)
    if array.ndim == 0:
        raise ValueError("pack needs at least one axis, got a single code")
    words = array.astype(np.int64) & ((1 << row.bits) - 1)
    bits = (words[..., None] >> np.arange(row.bits)) & 1
    return np.packbits(bits.reshape(*array.shape[:-1], -1).astype(np.uint8), axis=-1, bitorder="little")


def unpack(packed: npt.ArrayLike, fmt: str | Format, count: int) -> Array:
    """Bytes (..., m) -> the first `count` codes of each row, in the format's code dtype.

    Raises ValueError if the rows hold fewer codes.
    """
    row, array = scalar_format(fmt), np.asarray(packed)
    if array.dtype != np.uint8 or array.ndim == 0:
        raise ValueError(f"packed codes are rows of uint8, got {array.dtype} with {array.ndim} axes")
    if count < 0 or array.shape[-1] * 8 < count * row.bits:
        held = array.shape[-1] * 8 // row.bits
        raise ValueError(f"rows of {array.shape[-1]} bytes hold {held} codes of {row.name!r}, not {count}")
    bits = np.unpackbits(array, axis=-1, count=count * row.bits, bitorder="little")
    words = bits.reshape(*array.shape[:-1], count, row.bits).astype(np.int64) @ (1 << np.arange(row.bits))
    if row.kind == "int" and row.signed:
        words -= (words >> (row.bits - 1)) << row.bits
    return words.astype(row.code_dtype)
