"""AdaRound: each 4-bit weight goes up or down, learned block by block from the full-precision outputs.

Nagel et al., arXiv:2004.10568, with the element-wise step of float formats (arXiv:2408.06995, arXiv:2503.15465) and
block reconstruction (arXiv:2102.05426). Works on float, integer and block formats; see `_learned.py`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module

AXES = _axes.Axes(rounding="learned", inputs="quantized")


def quantize(request: Request) -> "Mapping[str, Module]":
    """Max-abs scales, learned rounding of weights with at most 4 bits, nearest for others."""
    return _axes.quantize(request, AXES.over(request.options))
