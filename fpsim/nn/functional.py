"""Putting torch tensors on a format's grid, on the device they are on.

`quantize(x, fmt, axis)` equals `fpsim.quantize` on every bit, NaN and the sign of zero included; tests hold the two
against each other. It is written for speed with a handful of whole-tensor operations, because a fake-quantized layer
pays for it on every call.

How a float is rounded to M fraction bits without a loop (Knuth's trick): adding 1.5 * 2**(e + 23 - M) to a float32
whose exponent is e pushes the bits below 2**(e - M) out of the 24-bit significand, and the addition itself rounds them
to nearest, ties to even; subtracting the constant again is exact. Holding e at the format's smallest exponent makes the
same two operations round subnormals. The constant is built from the exponent field of x by integer operations on the
same memory. bf16 and f16 are casts that torch has in one instruction; tf32 and its like, whose exponent range leaves no
room for the constant, are rounded by adding half a unit to the bit pattern.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

import fpsim
from fpsim.formats import BlockFormat, Format, alike
from fpsim.formats import format as format_row

_EXPONENT_FIELD = 0x7F800000
_HALF_AGAIN = 0x00400000  # the mantissa bit that turns 2**n into 1.5 * 2**n
_VAST = 2.0**127
_CASTS = {"bf16": torch.bfloat16, "f16": torch.float16}
_ROOM = 21  # fraction bits at most, so that |x| stays below half the constant


def divided(x: Tensor, by: float) -> Tensor:
    """x / by, rounded once on every device: with a Python number torch multiplies by its reciprocal on a GPU."""
    return x / torch.full((), by, dtype=x.dtype, device=x.device)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What the kernels need to know of a scalar format, worked out once.

    way           : "identity", "cast", "integer", "bits" (exponent range of float32) or "constant" (Knuth's trick)
    low, high     : saturation bounds
    unit          : value of an integer format's last bit
    floor         : exponent field of the smallest normal value, in place in a float32 pattern
    lift          : what turns an exponent field into the constant
    drop          : low bits of a float32 that the format does not have
    negative_zero : whether the format has a code for it
    """

    way: str
    low: float
    high: float
    unit: float = 1.0
    floor: int = 0
    lift: int = 0
    drop: int = 0
    negative_zero: bool = True


@cache
def grid(row: Format) -> Grid:
    """The constants of a scalar format. ValueError for one that float32 tensors cannot be rounded to."""
    if row.kind == "codebook":
        raise ValueError(f"{row.name!r} has no uniform grid; use a float or integer format")
    if row.kind == "int":
        if row.precision > 24:
            raise ValueError(f"{row.name!r} has values that float32 does not hold; at most 24 magnitude bits fit")
        return Grid(way="integer", low=row.min, high=row.max, unit=2.0**-row.bias, negative_zero=False)
    keeps_zero = row.signed and row.nan != "negative-zero"
    if row.name in _CASTS:
        return Grid(way="cast", low=row.min, high=row.max)
    if row.exponent_bits == 8 and row.bias == 127 and row.zero and row.mantissa_bits <= 23:
        way = "identity" if row.mantissa_bits == 23 else "bits"
        return Grid(way=way, low=row.min, high=row.max, drop=23 - row.mantissa_bits)
    top = int(np.frexp(row.max)[1]) - 1
    if not row.zero or row.mantissa_bits > _ROOM or row.minimum_exponent < -126 or top + 23 - row.mantissa_bits > 127:
        raise ValueError(f"{row.name!r} cannot be rounded in float32 arithmetic; use fpsim.quantize")
    return Grid(
        way="constant",
        low=row.min,
        high=row.max,
        floor=(row.minimum_exponent + 127) << 23,
        lift=((23 - row.mantissa_bits) << 23) | _HALF_AGAIN,
        negative_zero=keeps_zero,
    )


def round_(x: Tensor, fmt: Format) -> Tensor:
    """Round float32 `x` to the grid of a scalar format **in place**: nearest, ties to even, saturating.

    The fast half of `quantize`: NaN stays NaN in every format and the sign of zero is not kept. `x` must be contiguous
    or at least dense, owned by the caller.
    """
    row = grid(fmt)
    if row.way == "identity":
        return x.clamp_(row.low, row.high)
    if row.way == "integer":
        if row.unit != 1.0:
            return x.clamp_(row.low, row.high).mul_(1.0 / row.unit).round_().mul_(row.unit)
        return x.clamp_(row.low, row.high).round_()
    if row.way == "cast":
        return x.copy_(x.clamp_(row.low, row.high).to(_CASTS[fmt.name]))
    if row.way == "bits":
        x.copy_(torch.where(x == x, x, torch.nan))  # the largest NaN patterns would wrap around below
        pattern = x.view(torch.int32)
        pattern += ((pattern >> row.drop) & 1).add_((1 << (row.drop - 1)) - 1)
        pattern &= -(1 << row.drop)
        return x.clamp_(row.low, row.high)
    x.clamp_(row.low, row.high)
    constant = x.view(torch.int32).bitwise_and(_EXPONENT_FIELD).clamp_(min=row.floor).add_(row.lift).view(torch.float32)
    return x.add_(constant).sub_(constant)


def quantize(x: Tensor, fmt: str | Format | BlockFormat, axis: int = -1) -> Tensor:
    """`x` on the grid of `fmt`: round to nearest even, saturate ("ocp-sat"), float32, same shape and device.

    x    : any floating-point tensor; float64 is not accepted because float32 would round it twice
    axis : along which a block format takes its blocks; a last short block is allowed. Scalar formats ignore it

    Equal to `fpsim.quantize` on every bit. Raises ValueError for an unknown format or one without a uniform grid.
    """
    row = format_row(fmt)
    values = _float32(x)
    if isinstance(row, BlockFormat):
        step, _, _ = block_scales(values, row, axis)
        parts = blocked(values, row.block, axis)
        made = quantize(parts / step, row.element).mul_(step)
        if row.tensor_scale:
            made = made.masked_fill_(step == _VAST, 0)  # a block whose scale is 0 is all +0
        lost = torch.isnan(step)
        made = made.masked_fill_(lost, torch.nan)  # NaN or Inf in a block: NaN throughout
        return unblocked(made, x.shape[axis], axis)
    rounded = round_(values.clone(), row)
    here = grid(row)
    if here.negative_zero:
        rounded = rounded.copysign_(values)
    else:
        rounded += 0.0  # -0 + 0 is +0
    missing = torch.isnan(values)
    return rounded.where(~missing, _not_a_number(values, row)) if bool(missing.any()) else rounded


def _not_a_number(x: Tensor, row: Format) -> Tensor:
    """What NaN becomes ("ocp-sat"): the format's own NaN; without one the largest value, and 0 in integers."""
    if row.kind == "int":
        return torch.zeros_like(x)
    if row.nan_code is None:
        return torch.full_like(x, row.max)
    if row.nan == "negative-zero":
        return torch.full_like(x, -torch.nan).copysign_(torch.tensor(-1.0))  # its code has the sign bit
    return torch.full_like(x, torch.nan).copysign_(x if row.signed else torch.tensor(1.0))


def encode(x: Tensor, fmt: str | Format) -> Tensor:
    """Codes of `x` in a scalar format of at most 8 bits, as `fpsim.encode`: uint8, int8 for signed integers.

    bf16 and f16 are taken too; their 16-bit patterns come as int16, which torch computes with more readily than uint16.
    """
    row = format_row(fmt)
    if row.name in _CASTS:
        return quantize(x, row).to(_CASTS[row.name]).view(torch.int16)
    if isinstance(row, BlockFormat) or row.bits > 8:
        raise ValueError(f"codes of {row.name!r} are not kept in torch tensors; use fpsim.encode")
    values = quantize(x, row)
    if row.kind == "int":
        whole = values if row.bias == 0 else values * 2.0**row.bias
        return whole.to(torch.int8 if row.signed else torch.uint8)
    pattern = values.view(torch.int32) & 0x7FFFFFFF
    normal = (pattern >> (23 - row.mantissa_bits)) - ((127 - row.bias) << row.mantissa_bits)
    small = divided(values.abs(), row.smallest_subnormal).to(torch.int32)
    codes = torch.where(values.abs() >= row.smallest_normal, normal, small)
    if row.nan_code is not None:
        codes = torch.where(torch.isnan(values), row.nan_code, codes)
    if row.signed:
        negative = torch.signbit(values)
        codes = torch.where(negative, codes | row.sign_bit, codes)
    return codes.to(torch.uint8)


def decode(codes: Tensor, fmt: str | Format) -> Tensor:
    """float32 values of `encode`'s codes, as `fpsim.decode`: a look-up."""
    row = format_row(fmt)
    if row.name in _CASTS:
        return codes.view(_CASTS[row.name]).float()
    if isinstance(row, BlockFormat) or row.bits > 8:
        raise ValueError(f"codes of {row.name!r} are not kept in torch tensors; use fpsim.decode")
    if row.kind == "int":
        values = codes.to(torch.float32)
        return values if row.bias == 0 else values.mul_(2.0**-row.bias)
    return _values(row).to(codes.device)[codes.int()]


@cache
def _values(row: Format) -> Tensor:
    """The value of each of the 256 patterns of a byte; bits above the format's own do not count."""
    patterns = np.arange(256, dtype=np.uint8)
    return torch.from_numpy(np.asarray(fpsim.decode(patterns & ((1 << row.bits) - 1), row), dtype=np.float32))


def blocked(x: Tensor, block: int, axis: int) -> Tensor:
    """`x` with `axis` split into (blocks, block); a last short block is filled with zeros."""
    axis = axis % x.ndim
    short = -x.shape[axis] % block
    if short:
        x = torch.nn.functional.pad(x, (0, 0) * (x.ndim - 1 - axis) + (0, short))
    return x.unflatten(axis, (-1, block))


def unblocked(x: Tensor, length: int, axis: int) -> Tensor:
    """Undo `blocked`: join the axes again and drop the filling. `axis` counts in the joined tensor."""
    axis = axis if axis >= 0 else axis + x.ndim - 1
    joined = x.flatten(axis, axis + 1)
    return joined if joined.shape[axis] == length else joined.narrow(axis, 0, length)


def block_scales(
    x: Tensor, row: BlockFormat, axis: int = -1, sample_axis: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scales of a block format, by its own rule: (step, codes, tensor scale).

    step         : float32, broadcasts against `blocked(x, row.block, axis)`
                   (2**127 for a block whose scale is 0, so that dividing makes its values vanish)
    codes        : uint8 codes in row.scale, one per block, without the axis of the block's elements
    tensor scale : float32 for NVFP4 (one, or one per entry of `sample_axis`, broadcasting against the codes), else None

    Raises ValueError for a 2-D block or a scale rule that has no torch version.
    """
    powers = row.rule in alike("floor")
    if row.rows > 1 or not (powers or (row.rule in alike("amax") and row.tensor_scale)):
        raise ValueError(
            f"{row.name!r} ({row.rows} x {row.block}, rule {row.rule!r}) has no torch version; use fpsim.quantize"
        )
    axis = axis % x.ndim
    parts = blocked(x, row.block, axis)
    amax = torch.maximum(parts.amax(axis + 1, keepdim=True), -parts.amin(axis + 1, keepdim=True))
    lost = ~torch.isfinite(amax)
    whole = None
    if powers:
        tried = _power_codes(amax, lost, row)
    else:
        dims = tuple(dim for dim in range(amax.ndim) if dim != sample_axis)
        whole = amax.masked_fill(lost, 0).amax(dims, keepdim=True)
        whole = divided(whole, row.element.max * (row.scale_top or row.scale.max))
        whole.masked_fill_(whole == 0, 1)
        tried = [
            encode(divided(amax, top) / whole, row.scale).masked_fill_(lost, row.scale.nan_code or 0)
            for top in tops(row)
        ]
        whole = whole.squeeze(axis + 1)
    candidates = [codes.squeeze(axis + 1) for codes in tried]
    codes = candidates[0] if len(candidates) == 1 else _least_error(parts, candidates, whole, row, axis)
    return block_step(codes, whole, row, axis), codes, whole


def _power_codes(amax: Tensor, lost: Tensor, row: BlockFormat) -> list[Tensor]:
    """E8M0 codes that a rule of powers of two considers; E8M0 has the bias of float32: codes are exponent fields."""
    top = int(np.frexp(row.element.max)[1]) - 1
    if row.rule == "rceil":
        top, amax = 0, divided(amax, row.element.max)
    words = amax.view(torch.int32)
    if row.rule == "even":
        words = words + (1 << (22 - row.element.mantissa_bits))
    field = words >> 23
    if row.rule in ("ceil", "rceil"):
        field = field + ((words & 0x7FFFFF) > torch.where(field > 0, 0, 0x400000))  # a subnormal up to 2**-127: no more
    field = (field - top).clamp_(0, 254)
    around = (0, -1, 1) if row.rule == "mse" else (0,)
    return [(field + by).clamp_(0, 254).masked_fill_(lost, 255).to(torch.uint8) for by in around]


def tops(row: BlockFormat) -> tuple[float, ...]:
    """Element values that a rule of float scales sends a block's largest magnitude to."""
    return (
        (row.element.max,) if row.rule == "amax" else (row.element.max, row.element.magnitude(row.element.max_code - 1))
    )


def _least_error(parts: Tensor, candidates: list[Tensor], whole: Tensor | None, row: BlockFormat, axis: int) -> Tensor:
    """Per block, the first of the scale codes with the smallest squared error, summed in float64 in ascending order."""
    best, least = candidates[0], torch.empty(0)
    for codes in candidates:
        step = block_step(codes, whole, row, axis)
        squares = round_(parts / step, row.element).mul_(step).double().sub_(parts).square_()
        error = squares.select(axis + 1, 0).clone()
        for index in range(1, row.block):
            error += squares.select(axis + 1, index)
        if codes is best:
            least = error
            continue
        better = error < least
        best, least = torch.where(better, codes, best), torch.where(better, error, least)
    return best


def block_step(codes: Tensor, whole: Tensor | None, row: BlockFormat, axis: int) -> Tensor:
    """The step of `block_scales` from scale codes and tensor scale, as both are stored."""
    step = decode(codes, row.scale)
    if whole is not None:
        step = step * whole
        step = step.masked_fill(step == 0, _VAST)
    return step.unsqueeze(axis % codes.ndim + 1)


def _float32(x: Tensor) -> Tensor:
    if x.dtype == torch.float64 or not x.is_floating_point():
        raise ValueError(f"quantize takes float32, float16 or bfloat16 tensors, not {x.dtype}: convert it first")
    return x.float()
