"""Search of exponent/mantissa split, clip value and sign for weights and activations; nearest rounding.

The search half of `fp-ptq`, for judging what its rounding adds.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module

AXES = _axes.Axes(weights="output-error", activations="tensor-error", split=True)


def quantize(request: Request) -> "Mapping[str, Module]":
    """Searched formats and clips, nearest rounding."""
    return _axes.quantize(request, AXES.over(request.options))
