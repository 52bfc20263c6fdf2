"""Matrix products of codes on an emulated engine, dequantized as a kernel's epilogue does it.

Scales that belong to whole rows (per tensor, per token of a Linear, per output channel) leave the sum: one product of
codes, times the two scales in float32. Scales that change along K do not:

- an engine with block scales of its own (MX, NVFP4) takes the scale codes into the product;
- otherwise each stretch of K with constant scales is one product on the engine, and the stretches are added in float32
  after scaling, in ascending order of K: the promotion of two-level kernels (DeepGEMM's, per 128 of K).

K runs (tap, input channel), a tap being one position of a convolution's kernel in row-major order and a Linear having
one tap. Convolutions without scales along K go through `fpsim.conv2d` instead (see `conv.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fpsim
from fpsim.formats import BlockFormat, Format
from fpsim.nn import counting, functional
from fpsim.nn.layer import element_format
from fpsim.nn.quantizer import Quantizer
from fpsim.nn.scaling import Scales
from fpsim.spec import MatmulSpec

#: Operands of more than 8 bits that narrower ones can be widened to: 16 bits as bit patterns, float32 as itself.
_WIDE: Mapping[str, torch.dtype] = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Operand:
    """One side of a product: rows are tokens, pixels or output channels.

    codes  : (rows, taps, channels)
    format : what the codes are in
    step   : float32 scales, broadcasting against (rows, taps, blocks)
    block  : channels per entry of the last axis of `step`; None: that axis has length 1
    scale_codes, scale_format : (rows, taps, blocks) codes of MX and NVFP4 block scales, None otherwise
    tensor : (rows or 1,) float32 scale above `scale_codes`, None if there is none
    """

    codes: Tensor
    format: Format
    step: Tensor
    block: int | None = None
    scale_codes: Tensor | None = None
    scale_format: Format | None = None
    tensor: Tensor | None = None

    @property
    def varies(self) -> bool:
        """Whether scales change along K."""
        return self.block is not None or self.step.shape[1] > 1


def operand(
    codes: Tensor,
    quantizer: Quantizer,
    scales: Scales | None,
    axis: int,
    lay: Callable[[Tensor], Tensor],
) -> Operand:
    """An operand from a tensor of codes and its scales.

    axis : of the input channels in `codes`
    lay  : turns a tensor with channels on `axis` (any number of them) into (rows, taps, channels)
    """
    row = quantizer.row
    laid = lay(codes)
    if scales is None:
        return Operand(codes=laid, format=element_format(quantizer), step=torch.ones(1, 1, 1, device=laid.device))

    def spread(scale: Tensor) -> Tensor:
        if scale.numel() == 1:
            return scale.reshape(1, 1, 1)
        if scale.numel() == scale.shape[0]:  # one per sample or output channel: constant along K
            return scale.reshape(-1, 1, 1).repeat_interleave(laid.shape[0] // scale.shape[0], 0)
        return lay(scale)

    return Operand(
        codes=laid,
        format=element_format(quantizer),
        step=spread(scales.step if quantizer.block is None else scales.step.squeeze(axis % codes.ndim + 1)),
        block=quantizer.block,
        scale_codes=None if scales.codes is None else lay(scales.codes),
        scale_format=row.scale if isinstance(row, BlockFormat) else None,
        tensor=None if scales.tensor is None else spread(scales.tensor).flatten(),
    )


def product(a: Operand, b: Operand, spec: MatmulSpec) -> Tensor:
    """float32 (rows of a, rows of b): the product of the values, products and sums on `spec`.

    Raises ValueError for formats the spec does not take and block lengths that do not nest.
    """
    a, b = _accepted(a, spec.a, "activation"), _accepted(b, spec.b, "weight")
    if spec.scale is not None:
        return _block_scaled(a, b, spec)
    if not a.varies and not b.varies:
        return _matmul(a.codes.flatten(1), b.codes.flatten(1), spec).mul_(_pair(a.step, b.step))
    return _promoted(a, b, spec)


def _promoted(a: Operand, b: Operand, spec: MatmulSpec) -> Tensor:
    _, taps, channels = a.codes.shape
    blocks = [operand.block for operand in (a, b) if operand.block is not None]
    width = min(blocks, default=channels)
    if any(block % width for block in blocks):
        raise ValueError(f"blocks of {max(blocks)} and {width} do not nest; one must be a multiple of the other")
    total = torch.zeros(a.codes.shape[0], b.codes.shape[0], device=a.codes.device)
    for tap in range(taps):
        for start in range(0, channels, width):
            stop = min(start + width, channels)
            part = _matmul(a.codes[:, tap, start:stop], b.codes[:, tap, start:stop], spec)
            total += part.mul_(_pair(_at(a, tap, start), _at(b, tap, start)))
    return total


def _at(operand: Operand, tap: int, channel: int) -> Tensor:
    """The (rows or 1, 1, 1) scales in force at one tap and channel."""
    step = operand.step
    tap = tap if step.shape[1] > 1 else 0
    block = channel // operand.block if operand.block is not None else 0
    return step[:, tap : tap + 1, block : block + 1]


def _block_scaled(a: Operand, b: Operand, spec: MatmulSpec) -> Tensor:
    if a.scale_codes is None or b.scale_codes is None or spec.block is None:
        raise ValueError(f"engine {spec.engine!r} takes block-scaled operands; quantize both in its block format")
    for operand in (a, b):
        if operand.scale_format is None or operand.scale_format.name != spec.scale:
            raise ValueError(
                f"engine {spec.engine!r} takes {spec.scale} scales, not those of the operands' block format"
            )
    if not a.block == b.block == spec.block:
        raise ValueError(
            f"engine {spec.engine!r} has blocks of {spec.block}, the operands have {a.block} and {b.block}"
        )
    made = _matmul(_padded(a), _padded(b), spec, (a.scale_codes.flatten(1), b.scale_codes.flatten(1)))
    for operand, shape in ((a, (-1, 1)), (b, (1, -1))):
        if operand.tensor is not None:
            made *= operand.tensor.reshape(shape)
    return made


def _padded(operand: Operand) -> Tensor:
    """(rows, taps * channels) with the channels of each tap filled up to whole blocks by code 0, which is +0."""
    block = operand.block or 1
    return torch.nn.functional.pad(operand.codes, (0, -operand.codes.shape[2] % block)).flatten(1)


def _matmul(a: Tensor, b: Tensor, spec: MatmulSpec, scales: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """float32 a @ b.T on the device the codes are on: a GPU's stay there, others go through numpy."""
    x, y = _plain(a), _plain(b)
    sides = {} if scales is None else {"a_scale": _plain(scales[0]), "b_scale": _plain(scales[1]).T}
    y = y.T if a.is_cuda else np.ascontiguousarray(y.T)
    made = fpsim.matmul(x, y, spec, **sides)
    counting.note(x, y, spec, sides)
    return made.float() if a.is_cuda else torch.from_numpy(np.ascontiguousarray(made, dtype=np.float32))


def _plain(x: Tensor) -> Any:
    """Codes as `fpsim.matmul` takes them: a tensor on a GPU, a numpy array otherwise; bit patterns are unsigned."""
    x = x.detach()
    if x.dtype == torch.int16:
        x = x.view(torch.uint16)
    return x if x.is_cuda else np.ascontiguousarray(x.numpy())


def _pair(a: Tensor, b: Tensor) -> Tensor:
    """(rows of a or 1, rows of b or 1) product of two scales that are constant along K."""
    return a[:, 0, :1] * b[:, 0, :1].T


def _accepted(operand: Operand, wanted: Format, role: str) -> Operand:
    """`operand` in the format the engine takes: itself, or widened when every value is also a value of `wanted`."""
    if operand.format == wanted:
        return operand
    return replace(operand, codes=recode(operand.codes, operand.format, wanted, role), format=wanted)


@cache
def holds(wide: Format, narrow: Format) -> bool:
    """Whether every value of `narrow` is a value of `wide` (a kernel can widen the operand without rounding)."""
    if wide == narrow:
        return True
    if narrow.bits > 8 or (wide.bits > 8 and wide.name not in _WIDE) or (wide.kind == "int") != (narrow.kind == "int"):
        return False
    dtype = torch.int8 if narrow.kind == "int" and narrow.signed else torch.uint8
    low = -(1 << (narrow.bits - 1)) if dtype == torch.int8 else 0
    codes = torch.arange(low, low + (1 << narrow.bits)).to(dtype)
    values = functional.decode(codes, narrow)
    values = values[values.isfinite()]
    return bool((functional.quantize(values, wide) == values).all())


def recode(codes: Tensor, have: Format, want: Format, role: str = "operand") -> Tensor:
    """`codes` of one format as codes of another that holds all its values. ValueError if it does not."""
    if not holds(want, have):
        raise ValueError(f"the engine takes {want.name} for the {role}, which does not hold every value of {have.name}")
    values = functional.decode(codes, have)
    if want.name not in _WIDE:
        return functional.encode(values, want)
    made = values.to(_WIDE[want.name])
    return made if want.name == "f32" else made.view(torch.int16)
