"""Block formats: values that share a scale.

MX (OCP Microscaling 1.0): 32 elements share a power of two X, stored as E8M0. The OCP rule ("floor") is
X = 2**(floor(log2(amax)) - emax) with emax the exponent of the largest element value; elements are then rounded with
saturation. The floor of the logarithm is read off the exponent field of amax: computed as floor(log2(amax)) in float32
it is wrong just below powers of two (log2(15.999999) rounds to 4), and the whole block comes out wrong.

NVFP4: 16 elements share an UE4M3 scale, and the tensor a float32 one. All in float32, nearest even, in this order:
tensor scale t = amax(tensor) / (6 * 448); block scale code s = ue4m3((amax(block) / 6) / t), saturating; elements
e2m1(x / (t * s)), saturating; a value decodes to element * (t * s). A block whose scale rounds to zero is all zeros.

A block that holds NaN or Inf gets the NaN scale, and so decodes to NaN everywhere (the OCP text leaves it open).
An all-zero block gets the smallest scale.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim.codec import decode as decode_scalar
from fpsim.codec import encode as encode_scalar
from fpsim.codec import real_array
from fpsim.formats import BlockFormat
from fpsim.formats import format as find_format
from fpsim.rounding import Rounding

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A tensor in a block format.

    codes : element codes, shape of the tensor.
    scales : scale codes, the same shape with `axis` shortened to ceil(length / block).
    tensor_scale : second-level scale (1.0 where the format has none).
    """

    format: BlockFormat
    codes: Array
    scales: Array
    axis: int
    tensor_scale: float = 1.0


def block_format(fmt: str | BlockFormat) -> BlockFormat:
    """The block format called `fmt`; ValueError if it is a scalar one."""
    row = find_format(fmt)
    if not isinstance(row, BlockFormat):
        raise ValueError(f"{row.name!r} is a scalar format; a block format is needed here (mxfp8, mxfp4, nvfp4, ...)")
    return row


def encode(x: npt.ArrayLike, fmt: str | BlockFormat, axis: int = -1, *, rounding: str | Rounding = "rne") -> Blocks:
    """Choose the scales of `x` along `axis` by the format's rule and encode the elements (saturating).

    x : real array with at least one axis; a length that is no multiple of the block leaves a short last block.
    Raises ValueError for a scalar format, a zero-dimensional `x` or an axis it does not have.
    """
    row = block_format(fmt)
    values = real_array(x)
    if not -values.ndim <= axis < values.ndim:
        raise ValueError(f"axis is {axis}, but x has {values.ndim} axes")
    blocked, length = _to_blocks(values.astype(np.float32, copy=False), axis, row.block)
    amax = np.max(np.abs(blocked), axis=-1)
    if row.rule == "amax":
        tensor_scale, scales, step = _two_level_scales(amax, row)
    else:
        tensor_scale, scales, step = 1.0, *_power_of_two_scales(amax, row)
    with np.errstate(all="ignore"):
        scaled = blocked / step[..., None]
    scaled[step == 0] = 0.0
    codes = encode_scalar(scaled, row.element, rounding=rounding)
    return Blocks(
        format=row,
        codes=_from_blocks(codes, axis, length, values.shape),
        scales=np.moveaxis(scales, -1, axis),
        axis=axis,
        tensor_scale=tensor_scale,
    )


def decode(blocks: Blocks) -> Array:
    """The values of a block-encoded tensor, float32."""
    row = blocks.format
    elements, length = _to_blocks(decode_scalar(blocks.codes, row.element).astype(np.float32), blocks.axis, row.block)
    scales = decode_scalar(np.moveaxis(blocks.scales, blocks.axis, -1), row.scale).astype(np.float32)
    values = elements * (np.float32(blocks.tensor_scale) * scales)[..., None]
    return _from_blocks(values, blocks.axis, length, blocks.codes.shape)


def quantize_blocks(
    x: npt.ArrayLike, fmt: str | BlockFormat, axis: int = -1, *, rounding: str | Rounding = "rne"
) -> Array:
    """`decode(encode(x))`: the values of `x` on the grid of its blocks, float32."""
    return decode(encode(x, fmt, axis, rounding=rounding))


def _power_of_two_scales(amax: Array, row: BlockFormat) -> tuple[Array, Array]:
    """E8M0 codes and values by the OCP floor rule, from the exponent field of amax."""
    emax = int(np.frexp(row.element.max)[1]) - 1
    field = (amax.view(np.uint32) >> 23).astype(np.int32)
    codes = np.clip(field - emax, 0, 254).astype(np.uint8)
    codes[field == 255] = 255
    return codes, decode_scalar(codes, row.scale).astype(np.float32)


def _two_level_scales(amax: Array, row: BlockFormat) -> tuple[float, Array, Array]:
    finite = amax[np.isfinite(amax)]
    largest = np.float32(finite.max()) if finite.size else np.float32(0)
    top = np.float32(row.element.max)
    tensor = largest / np.float32(row.element.max * row.scale.max)
    if tensor == 0 or not row.tensor_scale:
        tensor = np.float32(1)
    with np.errstate(all="ignore"):
        scales = encode_scalar(amax / top / tensor, row.scale)
    scales[~np.isfinite(amax)] = row.scale.nan_code
    step = tensor * decode_scalar(scales, row.scale).astype(np.float32)
    return float(tensor), scales, step


def _to_blocks(x: Array, axis: int, block: int) -> tuple[Array, int]:
    """(..., length) with `axis` last -> (..., blocks, block), padded with zeros."""
    moved = np.moveaxis(x, axis, -1)
    length = moved.shape[-1]
    pad = -length % block
    if pad:
        moved = np.concatenate([moved, np.zeros((*moved.shape[:-1], pad), x.dtype)], axis=-1)
    return np.ascontiguousarray(moved).reshape(*moved.shape[:-1], (length + pad) // block, block), length


def _from_blocks(blocked: Array, axis: int, length: int, shape: tuple[int, ...]) -> Array:
    flat = blocked.reshape(*blocked.shape[:-2], blocked.shape[-2] * blocked.shape[-1])[..., :length]
    return np.ascontiguousarray(np.moveaxis(flat, -1, axis)).reshape(shape)
