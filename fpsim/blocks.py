"""Block formats: values that share a scale.

MX (OCP Microscaling 1.0): 32 elements share a power of two X, stored as E8M0. The OCP rule ("floor") is
X = 2**(floor(log2(amax)) - emax) with emax the exponent of the largest element value; elements are then rounded with
saturation. The floor of the logarithm is read off the exponent field of amax: computed as floor(log2(amax)) in float32
it is wrong just below powers of two (log2(15.999999) rounds to 4), and the whole block comes out wrong. Block floating
point is the same with integer elements.

NVFP4: 16 elements share an UE4M3 scale, and the tensor a float32 one. All in float32, nearest even, in this order:
tensor scale t = amax(tensor) / (6 * 448); block scale code s = ue4m3((amax(block) / 6) / t), saturating; elements
e2m1(x / (t * s)), saturating; a value decodes to element * (t * s). A block whose scale rounds to zero is all zeros.
Weights may share a scale per 16 x 16 (the scale code is then repeated for each row, as matrix engines want it).

Four over six (arXiv:2512.02010): t = amax(tensor) / (6 * 256), and each block takes the scale that sends its maximum to
6 or the one that sends it to 4, whichever leaves the smaller squared error (sums in float64; 6 if equal).

Groups (int4-g128 and the like): one scale in a float format, s = scale(amax / largest element), elements x / s.
Asymmetric ones: s = scale((max - min) / (2**n - 1)) where the range is widened to include zero, zero point
z = clamp(round(-min / s)), codes clamp(round(x / s) + z), values (code - z) * s; float32 operations, nearest even.

A block that holds NaN or Inf gets the NaN scale, and so decodes to NaN everywhere (the OCP text leaves it open).
An all-zero block gets the smallest scale.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim import _jit
from fpsim._kernels import block as kernels
from fpsim._kernels.lanes import LANES
from fpsim.codec import decode as decode_scalar
from fpsim.codec import encode as encode_scalar
from fpsim.codec import real_array
from fpsim.formats import BlockFormat, Format, ScaleRule, alike
from fpsim.formats import format as find_format
from fpsim.rounding import Rounding
from fpsim.rounding import rounding as find_rounding

Array = npt.NDArray[Any]

_GRAIN = 2048  # blocks per thread below which splitting costs more than it gives


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A tensor in a block format.

    codes : element codes, shape of the tensor.
    scales : scale codes, the same shape with `axis` shortened to ceil(length / block).
    tensor_scale : second-level scale (1.0 where the format has none).
    zero_points : asymmetric formats: codes of zero, shaped like `scales`; else None.
    """

    format: BlockFormat
    codes: Array
    scales: Array
    axis: int
    tensor_scale: float = 1.0
    zero_points: Array | None = None


#: scale rule -> what it does, with m = largest element value and emax its exponent
RULES: dict[str, str] = {
    "floor": "2**(floor(log2(amax)) - emax): OCP MX 1.0, section 6.3; elements may saturate",
    "ceil": "2**(ceil(log2(amax)) - emax): one more where amax is no power of two; nothing saturates for long",
    "rceil": "2**ceil(log2(amax / m)), the quotient in float32: the smallest one without saturation (PTX cvt.rp)",
    "even": "floor, after rounding amax to the element's precision (half up)",
    "mse": "of floor's scale, half and twice of it, the one with the smallest squared error of the block (first wins)",
    "amax": "amax / m in the scale's format, over the tensor scale if there is one",
    "four-over-six": "amax, or amax / (the value below m), whichever has the smaller squared error (amax if equal)",
    "range": "(max - min) / (levels - 1) with a zero point",
}


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

    rule : power-of-two scales: "floor", "ceil", "rceil", "even" or "mse" (see RULES); float scales: "amax" or
        "four-over-six"; asymmetric ones: "range".
    x : real array with at least one axis (two for 2-D blocks); a length that is no multiple of the block leaves a short
        last block.
    Raises ValueError for a scalar format, an axis `x` does not have, a rule that is not the format's kind, or a
    stochastic rounding (encode the elements yourself for that).
    """
    row = block_format(fmt)
    values = real_array(x)
    wanted = _checked(row, values, axis, rounding, rule)
    blocked, length = _to_blocks(values.astype(np.float32, copy=False), axis, row.block)
    tensor, scales, zeros = _scales(blocked, row, wanted)
    step = _steps(scales, row.scale, tensor)
    with np.errstate(all="ignore"):
        scaled = blocked / step[..., None]
    scaled[step == 0] = 0.0
    if zeros is None:
        codes = encode_scalar(scaled, row.element, rounding=rounding)
    else:
        whole = encode_scalar(scaled, "int24", rounding=rounding).astype(np.int64) + zeros[..., None]
        codes = np.clip(whole, 0, row.element.max_code).astype(row.element.code_dtype)
    return Blocks(
        format=row,
        codes=_from_blocks(codes, axis, length, values.shape),
        scales=np.moveaxis(scales, -1, axis),
        axis=axis,
        tensor_scale=float(tensor),
        zero_points=None if zeros is None else np.moveaxis(zeros, -1, axis),
    )


def decode(blocks: Blocks) -> Array:
    """The values of a block-encoded tensor, float32."""
    row = blocks.format
    elements, length = _to_blocks(decode_scalar(blocks.codes, row.element).astype(np.float32), blocks.axis, row.block)
    if blocks.zero_points is not None:
        elements = elements - np.moveaxis(blocks.zero_points, blocks.axis, -1).astype(np.float32)[..., None]
    step = _steps(np.moveaxis(blocks.scales, blocks.axis, -1), row.scale, np.float32(blocks.tensor_scale))
    return _from_blocks(elements * step[..., None], blocks.axis, length, blocks.codes.shape)


def quantize_blocks(
    x: npt.ArrayLike,
    fmt: str | BlockFormat,
    axis: int = -1,
    *,
    rounding: str | Rounding = "rne",
    rule: ScaleRule | None = None,
    out: Array | None = None,
) -> Array:
    """`decode(encode(x))`: the values of `x` on the grid of its blocks, float32 (into `out` if given).

    The common cases run in one or two passes over the data without codes in between, see `fpsim._kernels.block`.
    """
    row = block_format(fmt)
    values = real_array(x).astype(np.float32, copy=False)
    wanted = _checked(row, values, axis, rounding, rule)
    element = _fast_element(row.element)
    if (
        element is None
        or find_rounding(rounding).name != "rne"
        or row.block % LANES
        or wanted not in ("floor", "amax", "four-over-six")
        or (wanted == "floor" and row.rows > 1)
    ):
        result = decode(encode(values, row, axis, rounding=rounding, rule=rule))
        result[np.isnan(result)] = np.nan  # one NaN, whichever road is taken
        return _put(result, out)
    if out is not None and np.may_share_memory(out, values) and out.ctypes.data != values.ctypes.data:
        values = values.copy()  # blocks would be written over others that are still to be read
    blocked, length = _to_blocks(values, axis, row.block)
    whole = blocked.size == values.size and np.shares_memory(blocked, values)
    made = out.reshape(blocked.shape) if out is not None and whole else np.empty(blocked.shape, np.float32)
    flat, target, count = blocked.reshape(-1), made.reshape(-1), blocked.size // row.block
    words = flat.view(np.int32)
    if wanted == "floor":
        plain = (flat, words, row.block, element, target)
        _jit.parallel(lambda i, j: kernels.quantize_power_of_two(*plain, i, j), count, _GRAIN)
    else:
        steps = _float_steps(flat, row, wanted, blocked.shape[:-1]).reshape(-1)
        args = (flat, row.block, element, steps, target)
        _jit.parallel(lambda i, j: kernels.quantize_by_steps(*args, i, j), count, _GRAIN)
    if whole and out is not None:
        return out
    return _put(_from_blocks(made, axis, length, values.shape), out)


def _put(result: Array, out: Array | None) -> Array:
    if out is None:
        return result
    out[...] = result
    return out


def _checked(row: BlockFormat, x: Array, axis: int, rounding: str | Rounding, rule: ScaleRule | None) -> ScaleRule:
    """The rule to use; ValueError for arguments that make no sense together."""
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis is {axis}, but x has {x.ndim} axes")
    if row.rows > 1 and x.ndim < 2:
        raise ValueError(f"{row.name!r} has blocks of {row.rows} x {row.block}; x needs two axes, got shape {x.shape}")
    if find_rounding(rounding).stochastic:
        raise ValueError(f"block formats round deterministically, got {rounding!r}; encode x / scale in the element")
    wanted = rule or row.rule
    allowed = alike(row.rule)
    if wanted not in allowed:
        raise ValueError(f"unknown scale rule {wanted!r} for {row.name!r} (known: {', '.join(allowed)})")
    return wanted


# -- choosing scales ----------------------------------------------------------------------------------------------


def _scales(blocked: Array, row: BlockFormat, rule: ScaleRule) -> tuple[np.float32, Array, Array | None]:
    """Tensor scale, scale codes (..., blocks) and zero points of (..., blocks, block)."""
    if rule == "range":
        codes, zeros = _range_codes(blocked, row)
        return np.float32(1), codes, zeros
    amax = _pooled(np.max(np.abs(blocked), axis=-1, initial=0), row.rows, np.maximum)
    if rule in ("amax", "four-over-six"):
        tensor = _tensor_scale(_largest_finite(amax), row)
        candidates = [_float_codes(amax, row, top, tensor) for top in _tops(row, rule)]
        return tensor, _least_error(blocked, row, tensor, candidates), None
    if rule == "mse":
        floor = _exponent_codes(amax, row, "floor")
        around = [np.where(floor == 255, 255, np.clip(floor.astype(np.int64) + d, 0, 254)) for d in (0, -1, 1)]
        return np.float32(1), _least_error(blocked, row, np.float32(1), [c.astype(np.uint8) for c in around]), None
    return np.float32(1), _exponent_codes(amax, row, rule), None


def _steps(codes: Array, scale: Format, tensor: np.float32) -> Array:
    """What one element is worth, per block: tensor scale times block scale, one float32 rounding."""
    steps: Array = tensor * decode_scalar(codes, scale).astype(np.float32)
    return steps


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
        field = field + ((words & 0x7FFFFF) > np.where(field, 0, 0x400000))  # a subnormal up to 2**-127 needs no more
    codes = np.clip(field - emax, 0, 254).astype(np.uint8)
    codes[~finite] = 255
    return codes


def _largest_finite(amax: Array) -> np.float32:
    return np.float32(np.max(amax, initial=0, where=np.isfinite(amax)))


def _tensor_scale(largest: np.float32, row: BlockFormat) -> np.float32:
    if not row.tensor_scale:
        return np.float32(1)
    tensor = np.float32(largest / np.float32(row.element.max * (row.scale_top or row.scale.max)))
    return tensor if tensor > 0 else np.float32(1)


def _tops(row: BlockFormat, rule: ScaleRule) -> tuple[np.float32, ...]:
    """Element values that a block's maximum may be sent to."""
    top = np.float32(row.element.max)
    return (top,) if rule == "amax" else (top, np.float32(row.element.magnitude(row.element.max_code - 1)))


def _float_codes(amax: Array, row: BlockFormat, top: np.float32, tensor: np.float32) -> Array:
    """Scale codes that send amax to `top`."""
    with np.errstate(all="ignore"):
        codes = encode_scalar(amax / top / tensor, row.scale)
    codes[~np.isfinite(amax)] = row.scale.nan_code
    return codes


def _range_codes(blocked: Array, row: BlockFormat) -> tuple[Array, Array]:
    """Scale codes and zero points of asymmetric integers."""
    zero = row.zero_point or row.element
    low = _pooled(np.min(blocked, axis=-1, initial=0), row.rows, np.minimum)
    high = _pooled(np.max(blocked, axis=-1, initial=0), row.rows, np.maximum)
    with np.errstate(all="ignore"):
        width = (high - low) / np.float32(row.element.max)
        scales = encode_scalar(width, row.scale)
        scales[~np.isfinite(low + high)] = row.scale.nan_code
        step = _steps(scales, row.scale, np.float32(1))
        points = -low / step
    points[step == 0] = 0
    return scales, encode_scalar(points, zero)


def _least_error(blocked: Array, row: BlockFormat, tensor: np.float32, candidates: list[Array]) -> Array:
    """Per block, the first of the scale codes with the smallest squared error (in float64, ascending)."""
    best = candidates[0].copy()
    if len(candidates) == 1:
        return best
    least = _errors(blocked, row, _steps(best, row.scale, tensor))
    for codes in candidates[1:]:
        error = _errors(blocked, row, _steps(codes, row.scale, tensor))
        better = error < least
        best[better], least[better] = codes[better], error[better]
    return best


def _errors(blocked: Array, row: BlockFormat, steps: Array) -> Array:
    """Sum of squared errors of each block at the given steps; of a 2-D block, of all its rows."""
    element = _fast_element(row.element)
    if element is not None and row.block % LANES == 0:
        flat, step, out = blocked.reshape(-1), steps.reshape(-1), np.empty(steps.size, np.float64)
        args = (flat, row.block, element, step, out)
        _jit.parallel(lambda i, j: kernels.squared_errors(*args, i, j), step.size, _GRAIN)
        errors = out.reshape(steps.shape)
    else:
        with np.errstate(all="ignore"):
            scaled = blocked / steps[..., None]
            scaled[steps == 0] = 0
            made = decode_scalar(encode_scalar(scaled, row.element), row.element).astype(np.float32) * steps[..., None]
            squares = np.square(blocked.astype(np.float64) - made)
        errors = np.add.accumulate(squares, axis=-1)[..., -1]
        errors[np.isnan(steps)] = np.inf
    return _pooled(errors, row.rows, np.add)


def _pooled(x: Array, rows: int, how: np.ufunc) -> Array:
    """(..., M, blocks) with `how` over each `rows` of M, repeated so that every row has its block's value."""
    if rows == 1:
        return x
    starts = np.arange(0, x.shape[-2], rows)
    pooled = how.reduceat(x, starts, axis=-2) if x.size else x
    return np.repeat(pooled, rows, axis=-2)[..., : x.shape[-2], :]


# -- the fast road ------------------------------------------------------------------------------------------------


def _fast_element(e: Format) -> kernels.Element | None:
    """The format for the one-pass kernels; None where they do not apply (no plain grid, or too wide for float32)."""
    if e.kind == "codebook" or (e.kind == "int" and e.bits > 22):
        return None
    if e.kind == "float" and (e.nan == "negative-zero" or not 1 <= e.mantissa_bits <= 21 or not e.zero):
        return None
    emax = int(np.frexp(e.max)[1]) - 1
    is_float = e.kind == "float"
    if is_float and (e.minimum_exponent < -126 or emax + 23 - e.mantissa_bits > 127):
        return None
    return kernels.Element(
        mantissa_bits=e.mantissa_bits if is_float else 0,
        minimum_exponent=e.minimum_exponent if is_float else -e.bias,
        fields=kernels.INFINITY if is_float else 0,
        sign=-(1 << 31) if is_float and e.signed else 0,
        low=e.min,
        high=e.max,
        emax=emax,
    )


def _float_steps(flat: Array, row: BlockFormat, rule: ScaleRule, shape: tuple[int, ...]) -> Array:
    """Steps of every block under a float scale, as `_scales` and `_steps` choose them."""
    words, amax = flat.view(np.int32), np.empty(shape, np.float32)
    count, found = amax.size, [0]
    bits = amax.reshape(-1).view(np.int32)
    _jit.parallel(lambda i, j: found.append(kernels.block_largest(words, row.block, bits, i, j)), count, _GRAIN)
    tensor = _tensor_scale(np.float32(np.array(max(found), np.int32).view(np.float32)), row)
    amax, scale = _pooled(amax, row.rows, np.maximum), _fast_element(row.scale)
    candidates = []
    for top in _tops(row, rule):
        if scale is None:
            candidates.append(_steps(_float_codes(amax, row, top, tensor), row.scale, tensor))
            continue
        steps = np.empty(shape, np.float32)
        _jit.parallel(partial(kernels.steps_of, amax.reshape(-1), top, tensor, scale, steps.reshape(-1)), count, _GRAIN)
        candidates.append(steps)
    chosen = candidates[0]
    if len(candidates) > 1:
        blocked = flat.reshape(*shape, row.block)
        better = _errors(blocked, row, candidates[1]) < _errors(blocked, row, chosen)
        chosen = np.where(better, candidates[1], chosen)
    return chosen


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
