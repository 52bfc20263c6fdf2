"""Rounding that gradients pass through, and a step that has one.

y = (round(x / s + z) - z) * s. Towards x the gradient is 1 inside the format's range and 0 outside (straight-through).
Towards s it is round(x / s + z) - (x / s + z) inside and the end of the range, less z, outside: Learned Step Size
Quantization, Esser et al., arXiv:1902.08153, equation 3, which holds for the uneven steps of float formats as well.
"""

from typing import Any

import torch
from torch import Tensor

from fpsim.formats import Format
from fpsim.nn import functional


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor | None, row: Format) -> Tensor:
        scaled = x / step if zero is None else x / step + zero
        code = functional.round_(scaled.clone(), row)
        inside = (scaled >= row.min) & (scaled <= row.max)
        base = code if zero is None else code - zero
        ctx.save_for_backward(inside, torch.where(inside, code - scaled, base))
        return base * step

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inside, slope = ctx.saved_tensors
        return gradients[0] * inside, (gradients[0] * slope).sum(), None, None


def rounded(x: Tensor, step: Tensor, zero: Tensor | None, row: Format) -> Tensor:
    """float32 `x` on the grid of `row` at a scalar `step` and zero point; differentiable in `x` and `step`."""
    made: Tensor = _Rounded.apply(x, step, zero, row)
    return made
