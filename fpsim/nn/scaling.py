"""Scale factors of torch tensors: who shares one, what it is, and rounding with it.

Symmetric scales only: a group's largest magnitude maps to the format's largest value, scale = amax / max in float32.
MX and NVFP4 choose their scales as `fpsim.quantize` does. `axis` is always the axis of the input channels: -1 for the
operands of a Linear, 1 for those of a convolution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fpsim.formats import BlockFormat
from fpsim.nn import functional
from fpsim.nn.quantizer import Quantizer

#: Scales below the smallest normal float32 would make reciprocals infinite; an all-zero group gets this one.
TINY = 2.0**-126


@dataclass(frozen=True, kw_only=True)
class Scales:
    """The scales of one tensor.

    step   : float32, what a value is divided by; broadcasts against the tensor, or for blocks against its blocked view
    codes  : codes of the block scales (MX, NVFP4), without the axis of length 1 inside a block; None otherwise
    tensor : NVFP4's float32 scale above the block scales; None otherwise
    """

    step: Tensor
    codes: Tensor | None = None
    tensor: Tensor | None = None


def max_abs(x: Tensor, dims: tuple[int, ...] | None = None) -> Tensor:
    """Largest magnitude over `dims`, which stay with length 1; None: over everything, a scalar. NaN wins."""
    if dims is None:
        low, high = torch.aminmax(x)
        return torch.maximum(high, -low)
    return torch.maximum(x.amax(dims, keepdim=True), -x.amin(dims, keepdim=True))


def find(x: Tensor, quantizer: Quantizer, axis: int, sample_axis: int | None = None) -> Scales | None:
    """Scales of float32 `x` from its own values; None for a cast.

    sample_axis : with granularity "tensor", the axis whose entries get a scale each (dynamic activations); None: one
    """
    if quantizer.is_cast:
        return None
    row = quantizer.row
    if isinstance(row, BlockFormat):
        keep = sample_axis if row.tensor_scale else None
        step, codes, tensor = functional.block_scales(x, row, axis, keep)
        return Scales(step=step, codes=codes, tensor=tensor)
    return Scales(step=from_max_abs(group_max_abs(x, quantizer, axis, sample_axis), row.max))


def group_max_abs(x: Tensor, quantizer: Quantizer, axis: int, sample_axis: int | None = None) -> Tensor:
    """Largest magnitude of each group of a scalar-format quantizer; broadcasts like `Scales.step`."""
    axis = axis % x.ndim
    if quantizer.block is not None:
        return max_abs(functional.blocked(x, quantizer.block, axis), (axis + 1,))
    if quantizer.granularity == "token":
        return max_abs(x, (axis,))
    kept = 0 if quantizer.granularity == "channel" else sample_axis
    if kept is None:
        return max_abs(x)
    return max_abs(x, tuple(dim for dim in range(x.ndim) if dim != kept)) if x.ndim > 1 else x.abs()


def from_max_abs(amax: Tensor, largest: float) -> Tensor:
    """amax / largest in float32, at least `TINY`; `largest` is the format's largest value."""
    return (amax / largest).clamp_(min=TINY)


def fake_quantize(x: Tensor, quantizer: Quantizer, scales: Scales | None, axis: int) -> Tensor:
    """float32 `x` on its scaled grid: round(x / step) * step, a new tensor of the same shape."""
    row = quantizer.row
    element = row.element if isinstance(row, BlockFormat) else row
    if scales is None:
        return functional.round_(x.clone(), element)
    if quantizer.block is None:
        return functional.round_(x / scales.step, element).mul_(scales.step)
    axis = axis % x.ndim
    made = functional.round_(functional.blocked(x, quantizer.block, axis) / scales.step, element).mul_(scales.step)
    return functional.unblocked(made, x.shape[axis], axis)


def encode(x: Tensor, quantizer: Quantizer, scales: Scales | None, axis: int) -> Tensor:
    """Codes of float32 `x` under `scales`, in the shape of `x`: `fpsim.encode(x / step)` on the tensor's device."""
    row = quantizer.row
    element = row.element if isinstance(row, BlockFormat) else row
    if scales is None:
        return functional.encode(x, element)
    if quantizer.block is None:
        return functional.encode(x / scales.step, element)
    axis = axis % x.ndim
    codes = functional.encode(functional.blocked(x, quantizer.block, axis) / scales.step, element)
    return functional.unblocked(codes, x.shape[axis], axis)


def decode(codes: Tensor, quantizer: Quantizer, scales: Scales | None, axis: int) -> Tensor:
    """The float32 values of `codes` under `scales`."""
    row = quantizer.row
    element = row.element if isinstance(row, BlockFormat) else row
    values = functional.decode(codes, element)
    if scales is None:
        return values
    if quantizer.block is None:
        return values.mul_(scales.step)
    axis = axis % codes.ndim
    return functional.unblocked(
        functional.blocked(values, quantizer.block, axis).mul(scales.step), codes.shape[axis], axis
    )


def spread(scales: Scales, quantizer: Quantizer, shape: torch.Size) -> Tensor:
    """The step of every element of a weight of `shape` (input channels on axis 1)."""
    if quantizer.block is None:
        return scales.step.expand(shape)
    whole = list(shape)
    whole[1:2] = [-(-shape[1] // quantizer.block), quantizer.block]
    return functional.unblocked(scales.step.expand(whole), shape[1], 1)
