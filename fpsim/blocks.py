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

from fpsim import _jit
from fpsim._kernels import block
from fpsim.codec import decode as decode_scalar
from fpsim.codec import encode as encode_scalar
from fpsim.codec import real_array
from fpsim.formats import BlockFormat, ScaleRule
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


def encode(
    x: npt.ArrayLike,
    fmt: str | BlockFormat,
    axis: int = -1,
    *,
    rounding: str | Rounding = "rne",
    rule: ScaleRule | None = None,
) -> Blocks:
    """Choose the scales of `x` along `axis` by `rule` (the format's by default), encode the elements (saturating).

    rule : power-of-two scales: "floor", "ceil", "rceil", "even" or "mse" (see RULES); "amax" for NVFP4's two levels.
    x : real array with at least one axis; a length that is no multiple of the block leaves a short last block.
    Raises ValueError for a scalar format, a zero-dimensional `x` or an axis it does not have.
    """
    row = block_format(fmt)
    values = real_array(x)
    if not -values.ndim <= axis < values.ndim:
        raise ValueError(f"axis is {axis}, but x has {values.ndim} axes")
    blocked, length = _to_blocks(values.astype(np.float32, copy=False), axis, row.block)
    amax = np.max(np.abs(blocked), axis=-1)
    wanted = rule or row.rule
    if wanted not in RULES or (wanted == "amax") != (row.rule == "amax"):
        allowed = ["amax"] if row.rule == "amax" else [name for name in RULES if name != "amax"]
        raise ValueError(f"unknown scale rule {wanted!r} for {row.name!r} (known: {', '.join(allowed)})")
    if wanted == "amax":
        tensor_scale, scales, step = _two_level_scales(amax, row)
    else:
        codes_of = _mse_codes(blocked, amax, row) if wanted == "mse" else _exponent_codes(amax, row, wanted)
        tensor_scale, scales, step = 1.0, codes_of, decode_scalar(codes_of, row.scale).astype(np.float32)
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
    x: npt.ArrayLike,
    fmt: str | BlockFormat,
    axis: int = -1,
    *,
    rounding: str | Rounding = "rne",
    rule: ScaleRule | None = None,
) -> Array:
    """`decode(encode(x))`: the values of `x` on the grid of its blocks, float32."""
    row = block_format(fmt)
    element = _fast_element(row)
    if element is None or rounding != "rne" or (rule or row.rule) not in ("floor", "amax"):
        return decode(encode(x, row, axis, rounding=rounding, rule=rule))
    values = real_array(x).astype(np.float32, copy=False)
    if not -values.ndim <= axis < values.ndim:
        raise ValueError(f"axis is {axis}, but x has {values.ndim} axes")
    blocked, length = _to_blocks(values, axis, row.block)
    flat, out = blocked.reshape(-1), np.empty(blocked.shape, np.float32)
    words, result = flat.view(np.int32), out.reshape(-1)
    result_words, count, grain = result.view(np.int32), flat.size // row.block, 2048
    if row.rule == "amax":
        amax = np.empty(count, np.int32)
        _jit.parallel(lambda i, j: block.block_largest(words, row.block, amax, i, j), count, grain)
        tensor_scale, codes, _ = _two_level_scales(amax.view(np.float32), row)
        tensor, scales = np.float32(tensor_scale), decode_scalar(codes, row.scale)
        args = (flat, words, row.block, element, tensor, scales, result, result_words)
        _jit.parallel(lambda i, j: block.quantize_two_level(*args, i, j), count, grain)
    else:
        plain = (flat, words, row.block, element, result, result_words)
        _jit.parallel(lambda i, j: block.quantize_power_of_two(*plain, i, j), count, grain)
    return _from_blocks(out, axis, length, values.shape)


def _fast_element(row: BlockFormat) -> block.Element | None:
    """The element for the one-pass kernels: signed floats with -0; None otherwise."""
    e = row.element
    if e.kind != "float" or not e.signed or e.nan == "negative-zero" or e.mantissa_bits < 1:
        return None
    step = e.smallest_subnormal
    top = int(np.frexp(e.max)[1]) - 1
    return block.Element(23 - e.mantissa_bits, e.smallest_normal, step, 1 / step, e.max, top)


#: scale rule -> what it does, with m = largest element value and emax its exponent
RULES: dict[str, str] = {
    "floor": "2**(floor(log2(amax)) - emax): OCP MX 1.0, section 6.3; elements may saturate",
    "ceil": "2**(ceil(log2(amax)) - emax): one more where amax is no power of two; nothing saturates for long",
    "rceil": "2**ceil(log2(amax / m)), the quotient in float32: the smallest one without saturation (PTX cvt.rp)",
    "even": "floor, after rounding amax to the element's precision (half up)",
    "mse": "of floor's scale, half and twice of it, the one with the smallest squared error of the block (first wins)",
    "amax": "amax / m, in two levels (NVFP4)",
}


def _exponent_codes(amax: Array, row: BlockFormat, rule: str) -> Array:
    """E8M0 codes of the power-of-two rules, from the bits of amax: no logarithm is taken."""
    emax = int(np.frexp(row.element.max)[1]) - 1
    words = amax.view(np.uint32).astype(np.int64)
    finite = words < 0x7F800000
    if rule == "rceil":
        words = (amax / np.float32(row.element.max)).view(np.uint32).astype(np.int64)
        emax = 0
    elif rule == "even":
        words = words + (1 << (22 - row.element.mantissa_bits))
    field = words >> 23
    if rule in ("ceil", "rceil"):
        field = field + ((words & 0x7FFFFF) != 0)
    codes = np.clip(field - emax, 0, 254).astype(np.uint8)
    codes[~finite] = 255
    return codes


def _mse_codes(blocked: Array, amax: Array, row: BlockFormat) -> Array:
    """Of three neighbouring scales, the one with the smallest squared error, in float64."""
    floor = _exponent_codes(amax, row, "floor").astype(np.int64)
    best, least = floor.astype(np.uint8), np.full(floor.shape, np.inf)
    for shift in (0, -1, 1):
        codes = np.where(floor == 255, 255, np.clip(floor + shift, 0, 254)).astype(np.uint8)
        step = decode_scalar(codes, row.scale).astype(np.float32)[..., None]
        with np.errstate(all="ignore"):
            elements = decode_scalar(encode_scalar(blocked / step, row.element), row.element)
            error = np.square(elements.astype(np.float64) * step - blocked).sum(axis=-1)
        better = error < least
        best[better], least[better] = codes[better], error[better]
    return best


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


def _to_blocks(x: Array, axis: int, size: int) -> tuple[Array, int]:
    """(..., length) with `axis` last -> (..., blocks, block), padded with zeros."""
    moved = np.moveaxis(x, axis, -1)
    length = moved.shape[-1]
    pad = -length % size
    if pad:
        moved = np.concatenate([moved, np.zeros((*moved.shape[:-1], pad), x.dtype)], axis=-1)
    return np.ascontiguousarray(moved).reshape(*moved.shape[:-1], (length + pad) // size, size), length


def _from_blocks(blocked: Array, axis: int, length: int, shape: tuple[int, ...]) -> Array:
    flat = blocked.reshape(*blocked.shape[:-2], blocked.shape[-2] * blocked.shape[-1])[..., :length]
    return np.ascontiguousarray(np.moveaxis(flat, -1, axis)).reshape(shape)
