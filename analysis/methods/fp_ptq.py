"""Floating-point PTQ: search of exponent/mantissa split, clip value and sign; learned rounding of 4-bit weights.

Chen, Giannoula, Moshovos, arXiv:2408.06995 (quantizer of Kuzmin et al., arXiv:2208.09225): every split of the format's
bits, every clip value on a geometric grid, which is a real-valued exponent bias. Weights by output error, activations
by their own. Integer formats search the clip value alone; block formats keep their scale rule. Unlike the paper,
rounding starts from GPTQ on the inputs behind the layers quantized before (`gptaq`), see `_learned.py` for why.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module

AXES = _axes.Axes(
    weights="output-error", activations="tensor-error", split=True, rounding="learned", inputs="quantized"
)


def quantize(request: Request) -> "Mapping[str, Module]":
    """Searched formats and clips; weights of at most 4 bits by learned rounding (option rounding=), others nearest."""
    return _axes.quantize(request, AXES.over(request.options))
