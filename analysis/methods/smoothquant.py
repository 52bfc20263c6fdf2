"""SmoothQuant: outlier channels of the activations are scaled down, the weight's columns up.

Xiao et al., arXiv:2211.10438. The exponent alpha is chosen per layer from a grid, by the error of the quantized product
on calibration rows (Q-Diffusion's descendants need this: one alpha for a U-Net is harmful, arXiv:2507.12933).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module

AXES = _axes.Axes(transform="smooth")


def quantize(request: Request) -> "Mapping[str, Module]":
    """A smoothing factor per layer, nearest rounding."""
    return _axes.quantize(request, AXES.over(request.options))
