"""GPTQ: columns of the weight are rounded in turn, each making up for what the ones before lost.

Frantar et al., arXiv:2210.17323, on any format: float, integer, MX and NVFP4 with their scales fixed beforehand. The
inputs' second moments come from the calibration trajectories. See `fpsim.nn.rounding.gptq` for the algorithm.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module

AXES = _axes.Axes(rounding="gptq")


def quantize(request: Request) -> "Mapping[str, Module]":
    """Max-abs scales, GPTQ rounding."""
    return _axes.quantize(request, AXES.over(request.options))
