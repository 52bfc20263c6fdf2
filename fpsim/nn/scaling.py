"""Scale factors of torch tensors: who shares one, what it is, and rounding with it.

Signed formats: a group's largest magnitude maps to the format's largest value, step = amax / max in float32. Unsigned
formats: lowest and highest value (0 included) map to the ends, step = (high - low) / max, and x / step is shifted by a
zero point before rounding, x -> (round(x / step + zero) - zero) * step. The zero point is a value of the format, the
one nearest to -low / step: so 0 stays 0. For integers this is the usual affine quantization; for floats the fine part
of the grid comes to lie at the lower end, where SiLU and GELU put most of their values. Against a real-valued zero
point it loses at most 0.1 dB of SQNR on SiLU and GELU of Gaussians, at 4 bits and a deviation of 4 up to 1 dB.
MX and NVFP4 choose their scales as `fpsim.quantize` does. `axis` is always the axis of the input channels: -1 for the
operands of a Linear, 1 for those of a convolution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fpsim.formats import BlockFormat, Format
from fpsim.nn import functional, fused
from fpsim.nn.quantizer import Quantizer

#: Scales below the smallest normal float32 would make reciprocals infinite; an all-zero group gets this one.
TINY = 2.0**-126


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The scales of one tensor.

    step   : float32, what a value is divided by; broadcasts against the tensor, or for blocks against its blocked view
    codes  : codes of the block scales (MX, NVFP4), without the axis of length 1 inside a block; None otherwise
    tensor : NVFP4's float32 scale above the block scales; None otherwise
    zero   : unsigned formats: float32, the value of the format that stands for 0, shaped like `step`; None otherwise
    """

    step: Tensor
    codes: Tensor | None = None
    tensor: Tensor | None = None
    zero: Tensor | None = None


def max_abs(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """Largest magnitude over `dims`, which stay with length 1; None: over everything, a scalar. NaN wins."""
    if dims is None:
        low, high = torch.aminmax(x)
        return torch.maximum(high, -low)
    return torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))


def find(x: Tensor, quantizer: Quantizer, axis: int, sample_axis: int | None = None) -> Scales | None:
    """Scales of `x` from its own values; None for a cast. float16 and bfloat16 serve for scalar formats.

    sample_axis : with granularity "tensor", the axis whose entries get a scale each (dynamic activations); None: one
    """
    if quantizer.is_cast:
        return None
    row = quantizer.row
    if isinstance(row, BlockFormat):
        keep = sample_axis if row.tensor_scale else None
        step, codes, tensor = functional.block_scales(x, row, axis, keep)
        return Scales(step=step, codes=codes, tensor=tensor)
    if not row.signed:
        return from_range(*group_range(x, quantizer, axis, sample_axis), row)
    return Scales(step=from_max_abs(group_max_abs(x, quantizer, axis, sample_axis), row.max))


def group_max_abs(x: Tensor, quantizer: Quantizer, axis: int, sample_axis: int | None = None) -> Tensor:
    """Largest magnitude of each group of a scalar-format quantizer; broadcasts like `Scales.step`."""
    parts, dims = _groups(x, quantizer, axis, sample_axis)
    return parts.abs() if dims == () else max_abs(parts, dims)


def group_range(x: Tensor, quantizer: Quantizer, axis: int, sample_axis: int | None = None) -> tuple[Tensor, Tensor]:
    """(lowest, highest) value of each group of a scalar-format quantizer; they broadcast like `Scales.step`."""
    parts, dims = _groups(x, quantizer, axis, sample_axis)
    if dims is None:
        low, high = torch.aminmax(parts)
        return low, high
    return (parts, parts) if dims == () else (parts.amin(dims, keepdim=True), parts.amax(dims, keepdim=True))


def _groups(
    x: Tensor, quantizer: Quantizer, axis: int, sample_axis: int | None
) -> tuple[Tensor, tuple[int, ...] | None]:
    """(x or its blocked view, the axes that run over one group); None for all of them."""
    axis = axis % x.ndim
    if quantizer.block is not None:
        return functional.blocked(x, quantizer.block, axis), (axis + 1,)
    if quantizer.granularity == "token":
        return x, (axis,)
    kept = 0 if quantizer.granularity == "channel" else sample_axis
    return x, None if kept is None else tuple(dim for dim in range(x.ndim) if dim != kept)


def from_max_abs(amax: Tensor, largest: float) -> Tensor:
    """amax / largest in float32, at least `TINY`; `largest` is the format's largest value."""
    return functional.divided(amax.float(), largest).clamp_(min=TINY)


def from_range(low: Tensor, high: Tensor, row: Format) -> Scales:
    """Scales that map `low` to `high`, 0 included, onto a scalar format; a signed one takes the larger magnitude."""
    if row.signed:
        return Scales(step=from_max_abs(torch.maximum(high, -low), row.max))
    low = low.float().clamp(max=0.0)
    step = from_max_abs(high.float().clamp(min=0.0) - low, row.max)
    return Scales(step=step, zero=functional.round_(-low / step, row))


def fake_quantize(
    x: Tensor, quantizer: Quantizer, scales: Scales | None, axis: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`x` on its scaled grid: round(x / step) * step in float32, then in `dtype`; a new tensor of the same shape."""
    element = _element(quantizer)
    if scales is None:
        return functional.round_(x.to(torch.float32, copy=True), element).to(dtype)
    if quantizer.block is None:
        return rounded(x, scales, element, dtype)
    axis = axis % x.ndim
    parts = rounded(functional.blocked(x, quantizer.block, axis), scales, element, dtype)
    return functional.unblocked(parts, x.shape[axis], axis)


def self_scaled(
    x: Tensor, quantizer: Quantizer, axis: int, sample_axis: int | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """`x` quantized with the scales that `find` takes from it: dynamic activations."""
    token = quantizer.granularity == "token" and not quantizer.is_cast
    size = x.shape[axis] if token else quantizer.block
    if size is not None and sample_axis in (None, 0):
        made = fused.found(x, quantizer.row, size, axis, 1 if sample_axis is None else x.shape[0], dtype)
        if made is not None:
            return made
    values = x.float() if quantizer.is_block else x
    return fake_quantize(values, quantizer, find(values, quantizer, axis, sample_axis), axis, dtype)


def rounded(x: Tensor, scales: Scales, row: Format, dtype: torch.dtype = torch.float32) -> Tensor:
    """`x` on the grid of `row` under `scales` that broadcast against it, a new tensor of `dtype`."""
    made = fused.given(x, scales.step, scales.zero, row, dtype)
    if made is None:
        made = _restored(functional.round_(_scaled(x.float(), scales), row), scales).to(dtype)
    return made


def encode(x: Tensor, quantizer: Quantizer, scales: Scales | None, axis: int) -> Tensor:
    """Codes of float32 `x` under `scales`, in the shape of `x`: `fpsim.encode(x / step)` on the tensor's device."""
    element = _element(quantizer)
    if scales is None:
        return functional.encode(x, element)
    if quantizer.block is None:
        return functional.encode(_scaled(x, scales), element)
    axis = axis % x.ndim
    codes = functional.encode(_scaled(functional.blocked(x, quantizer.block, axis), scales), element)
    return functional.unblocked(codes, x.shape[axis], axis)


def decode(codes: Tensor, quantizer: Quantizer, scales: Scales | None, axis: int) -> Tensor:
    """The float32 values of `codes` under `scales`."""
    values = functional.decode(codes, _element(quantizer))
    if scales is None:
        return values
    if quantizer.block is None:
        return _restored(values, scales)
    axis = axis % codes.ndim
    return functional.unblocked(
        _restored(functional.blocked(values, quantizer.block, axis), scales), codes.shape[axis], axis
    )


def _element(quantizer: Quantizer) -> Format:
    return quantizer.row.element if isinstance(quantizer.row, BlockFormat) else quantizer.row


def _scaled(x: Tensor, scales: Scales) -> Tensor:
    """`x` as the format sees it, a new tensor."""
    made = x / scales.step
    return made if scales.zero is None else made.add_(scales.zero)


def _restored(values: Tensor, scales: Scales) -> Tensor:
    """Undo `_scaled`, in place."""
    return (values if scales.zero is None else values.sub_(scales.zero)).mul_(scales.step)


def spread(scale: Tensor, quantizer: Quantizer, shape: torch.Size) -> Tensor:
    """A step (or zero point) for every element of a weight of `shape` (input channels on axis 1)."""
    if quantizer.block is None:
        return scale.expand(shape)
    whole = list(shape)
    whole[1:2] = [-(-shape[1] // quantizer.block), quantizer.block]
    return functional.unblocked(scale.expand(whole), shape[1], 1)
