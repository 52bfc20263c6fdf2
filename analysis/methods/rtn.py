"""Round to nearest with max-abs scales: no optimization at all, the baseline of every table.

Weights: each group's scale puts its largest magnitude on the format's largest value (MX and NVFP4: their own rule).
Static activations: the same with the largest magnitude seen in calibration. Nothing else is done, unless options say
so: `rank=32`, `concat=True` and the like, see `_axes`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from analysis.methods import Request, _axes

if TYPE_CHECKING:
    from torch.nn import Module


AXES = _axes.Axes()


def quantize(request: Request) -> "Mapping[str, Module]":
    """The scheme's own quantizers, layer by layer. ValueError for an option that is no axis."""
    if request.options:
        return _axes.quantize(request, AXES.over(request.options))
    return {layer.path: request.build(layer) for layer in request.layers}
