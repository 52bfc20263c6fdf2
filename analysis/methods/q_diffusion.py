"""Q-Diffusion: searched ranges, split skip concatenations, rounding and activation steps learned block by block.

Li et al., arXiv:2302.04304, the integer baseline; every part works for float formats too. Differences from the paper's
code, which learns 20,000 steps per block on 5,000 samples: weight ranges by the layer's output error instead of an
error norm of 2.4, rounding starts from GPTQ, steps and rounding are learned together.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module

AXES = _axes.Axes(
    weights="output-error",
    activations="tensor-error",
    concat=True,
    rounding="learned",
    inputs="quantized",
    learn_steps=True,
)


def quantize(request: Request) -> "Mapping[str, Module]":
    """Searched ranges; learned rounding of weights with at most 4 bits and learned steps of static activations."""
    return _axes.quantize(request, AXES.over(request.options))
