"""Round to nearest with max-abs scales: no optimization at all, the baseline of every table.

Weights: each group's scale puts its largest magnitude on the format's largest value (MX and NVFP4: their own rule).
Static activations: the same with the largest magnitude seen in calibration. Nothing else is done.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request

if TYPE_CHECKING:
    from torch.nn import Module


def quantize(request: Request) -> "Mapping[str, Module]":
    """The scheme's own quantizers, layer by layer."""
    return {layer.path: request.build(layer) for layer in request.layers}
