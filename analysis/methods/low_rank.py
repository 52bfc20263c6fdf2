"""Low-rank: the largest singular directions run in full precision, only the rest of the weight is quantized.

SVDQuant, Li et al., arXiv:2411.05007, with smoothing before and GPTQ on the residual.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module

AXES = _axes.Axes(transform="smooth", rounding="gptq", rank=16)


def quantize(request: Request) -> "Mapping[str, Module]":
    """Smoothed, a rank-16 branch split off, GPTQ on the rest."""
    return _axes.quantize(request, AXES.over(request.options))
