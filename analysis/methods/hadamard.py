"""Hadamard: blocks of input channels are rotated, so that no single one needs the range; then GPTQ.

QuaRot (arXiv:2404.00456) applied online to blocks of channels as in ConvRot (arXiv:2512.03673), because the per-sample
affine of adaLN and GroupNorm keeps a rotation from being folded into the layer before.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module

AXES = _axes.Axes(transform="hadamard", rounding="gptq")


def quantize(request: Request) -> "Mapping[str, Module]":
    """Rotated inputs and weights, GPTQ rounding."""
    return _axes.quantize(request, AXES.over(request.options))
