"""GPTAQ: GPTQ layer after layer, each on the inputs it will meet and aimed at the full-precision output.

Li et al., arXiv:2504.02692: min |V X - W Z|^2 over weights V on the grid, X the inputs behind quantized layers, Z those
in full precision. Here in two steps, the best V off the grid and then GPTQ from there; see `_prepare.py`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module

AXES = _axes.Axes(rounding="gptq", inputs="quantized")


def quantize(request: Request) -> "Mapping[str, Module]":
    """Max-abs scales, GPTQ in the order of execution."""
    return _axes.quantize(request, AXES.over(request.options))
