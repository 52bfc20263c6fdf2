"""The transform axis: maps of the input channels that are undone in the weight, and the low-rank side branch."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from analysis.methods import Layer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from analysis.runner.statistics import Statistics
    from fpsim.nn.transforms import Chain

Transform = Literal["none", "smooth", "hadamard", "smooth-hadamard"]

_ALPHAS = tuple(i / 10 for i in range(11))
_ROWS = 256  # of the inputs that factors are judged on


def find(layer: Layer, weight: "Tensor", wanted: Transform, block: int, seen: "Statistics | None") -> "Chain | None":
    """The input transform of one layer; None if there is none or the layer does not allow it."""
    from fpsim.nn.transforms import Chain, Hadamard, Smooth, largest_block

    if wanted == "none" or getattr(layer.module, "groups", 1) != 1:
        return None
    axis = -1 if layer.kind == "Linear" else 1
    parts: list[Smooth | Hadamard] = []
    if wanted.startswith("smooth") and seen is not None and not layer.smoothed:
        factor = smooth_factor(layer, weight, seen)
        if factor is not None:
            parts.append(Smooth(factor, axis))
    if wanted.endswith("hadamard"):
        block = largest_block(weight.shape[1], block)
        if block > 1:
            parts.append(Hadamard(weight.shape[1], block, axis).to(weight.device))
    return Chain(*parts) if parts else None


def smooth_factor(layer: Layer, weight: "Tensor", seen: "Statistics", powers: bool = False) -> "Tensor | None":
    """s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), alpha from a grid by the error of the quantized product on a sample.

    powers : round factors to powers of two, for folding
    None if no factor has a smaller error than no smoothing; alpha 0 (weights evened out) and 1 are on the grid.

    Each candidate is judged as it will run: static activations with the range that calibration saw behind the factor,
    not with that of the sample.
    """
    import torch

    from analysis.runner.statistics import as_matrix

    x_max = seen.channel_max.clamp(min=1e-5)
    w_max = weight.abs().amax([dim for dim in range(weight.ndim) if dim != 1]).clamp(min=1e-5)
    rows = seen.rows[:: max(1, len(seen.rows) // _ROWS)][:_ROWS]  # of the whole trajectory
    wanted = rows @ as_matrix(weight).T
    best, chosen = smoothing_error(layer, weight, seen, rows, wanted, torch.ones_like(x_max)), None
    for alpha in _ALPHAS:
        factor = x_max**alpha / w_max ** (1 - alpha)
        factor = factor / (factor.max() * factor.min()).sqrt()
        if powers:
            factor = torch.exp2(torch.round(torch.log2(factor)))
        error = smoothing_error(layer, weight, seen, rows, wanted, factor)
        if error < best:
            best, chosen = error, factor
    return chosen


def smoothing_error(
    layer: Layer, weight: "Tensor", seen: "Statistics", rows: "Tensor", wanted: "Tensor", factor: "Tensor"
) -> float:
    """Mean squared error of the layer's outputs for `rows`, `wanted` in full precision, with one smoothing factor."""
    from analysis.methods import _ranges
    from analysis.runner.statistics import as_matrix
    from fpsim.nn import scaling

    w = weight * factor.view(1, -1, *(1,) * (weight.ndim - 2))
    w = scaling.fake_quantize(w, layer.weight, scaling.find(w, layer.weight, 1), 1)
    x = (rows.view(len(rows), -1, len(factor)) / factor).view_as(rows)
    if layer.activation is not None:
        ends = float((seen.channel_low / factor).min()), float((seen.channel_high / factor).max())
        activation = replace(layer.activation.seen(*ends), steps=1)
        shaped = x.view(len(x), -1, len(factor))
        if activation.is_static and not activation.is_block:
            scales: Any = _ranges.static(activation, (ends,), rows)
        else:
            scales = scaling.find(shaped, activation, -1)
        x = scaling.fake_quantize(shaped, activation, scales, -1).flatten(1)
    return float((x @ as_matrix(w).T - wanted).square().mean())


def turn(transform: "Chain | None", rows: "Tensor", weight: "Tensor") -> "Tensor":
    """`rows` (n, taps * channels) as the transformed layer sees them."""
    if transform is None:
        return rows
    from fpsim.nn.transforms import Chain, Hadamard, Smooth

    last: list[Any] = []
    for part in transform.parts:
        if isinstance(part, Smooth):
            last.append(Smooth(part.factor, -1))
        elif isinstance(part, Hadamard):
            last.append(Hadamard(weight.shape[1], part.block, -1).to(rows.device))
    shaped = rows.reshape(len(rows), -1, weight.shape[1])
    return Chain(*last)(shaped).flatten(1)


def low_rank(layer: Layer, weight: "Tensor", rank: int) -> "tuple[Module, Tensor]":
    """(side branch with the `rank` largest singular directions, what is left of the weight).

    SVDQuant, Li et al., arXiv:2411.05007: the residual has a smaller range, so it loses less on a coarse grid.
    """
    import torch

    from analysis.runner.statistics import as_matrix, as_weight
    from fpsim.nn.conv import QuantizedConv2d
    from fpsim.nn.linear import QuantizedLinear

    matrix = as_matrix(weight)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    rank = min(rank, len(s))
    up, down = u[:, :rank] * s[:rank].sqrt(), v[:rank] * s[:rank].sqrt()[:, None]
    source: Any = layer.module
    made: Any = (QuantizedLinear if layer.kind == "Linear" else QuantizedConv2d).blank_branch(source, rank)
    shapes = (as_weight(down, (rank, *weight.shape[1:])), up if layer.kind == "Linear" else up[:, :, None, None])
    for module, value in zip(made, shapes, strict=True):
        # kernels round differently for other memory layouts, and a file keeps none
        module.weight = torch.nn.Parameter(value.clone(memory_format=torch.contiguous_format), requires_grad=False)
    return made, as_weight(matrix - up @ down, weight.shape)
