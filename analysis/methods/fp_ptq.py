"""Search of exponent/mantissa split and clip value for weights and activations; learned rounding of 4-bit weights.

The search of Chen, Giannoula, Moshovos, arXiv:2408.06995 (quantizer of Kuzmin et al., arXiv:2208.09225): every split of
the format's bits, every clip value on a geometric grid. Weights by output error, activations by their own. Integer
formats search the clip value alone; block formats keep their scale rule.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module

AXES = _axes.Axes(weights="output-error", activations="tensor-error", split=True, rounding="learned")


def quantize(request: Request) -> "Mapping[str, Module]":
    """Searched formats and clips; weights of at most 4 bits by learned rounding (option rounding=), others nearest."""
    return _axes.quantize(request, AXES.over(request.options))
