"""Low-rank: the largest singular directions run in full precision, only the rest of the weight is quantized.

SVDQuant, Li et al., arXiv:2411.05007, with smoothing before and GPTQ on the residual.

What it wins with 4-bit activations is the input's error more than the weight's: the branch takes its input
unquantized, and what is quantized meets a residual that is small. Not for free: beside in x out multiplications of
4-bit operands there are rank x (in + out) in 16 bits, and as many weights to store. Rank 16 in the embedded transformer
(layers 160 and 640 wide) is 16 % more multiplications and 61 % more bytes than MXFP4's; in layers 1280 wide, as SDXL
has them, 2.5 % and 9 %. Estimates of a scheme's speed do not count the branch.

Measured on the embedded transformer (H200, 2026-11-22, 2,048 prompts, edges kept, change of prompts obeyed in points):

    MXFP4   GPTAQ behind a rotation -3.5    rank 16 -1.5    smooth-hadamard, scales by error: rank 16 -0.7, rank 8 -0.8
    NVFP4   GPTAQ behind a rotation -0.9    rank 16 -0.5    smooth-hadamard, scales by error: rank 16 -0.3, rank 8 -0.3
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
