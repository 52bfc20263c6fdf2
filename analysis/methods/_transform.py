"""The transform axis: maps of the input channels that are undone in the weight, and the low-rank side branch."""

from typing import TYPE_CHECKING, Any, Literal

from analysis.methods import Layer

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from analysis.runner.statistics import Statistics
    from fpsim.nn.transforms import Chain

Transform = Literal["none", "smooth", "hadamard", "smooth-hadamard"]

_ALPHAS = tuple(i / 10 for i in range(11))


def find(layer: Layer, weight: "Tensor", wanted: Transform, block: int, seen: "Statistics | None") -> "Chain | None":
    """The input transform of one layer; None if there is none or the layer does not allow it."""
    from fpsim.nn.transforms import Chain, Hadamard, Smooth, largest_block

    if wanted == "none" or getattr(layer.module, "groups", 1) != 1:
        return None
    axis = -1 if layer.kind == "Linear" else 1
    parts: list[Smooth | Hadamard] = []
    if wanted.startswith("smooth") and seen is not None and not layer.smoothed:
        parts.append(Smooth(smooth_factor(layer, weight, seen), axis))
    if wanted.endswith("hadamard"):
        block = largest_block(weight.shape[1], block)
        if block > 1:
            parts.append(Hadamard(weight.shape[1], block, axis).to(weight.device))
    return Chain(*parts) if parts else None


def smooth_factor(layer: Layer, weight: "Tensor", seen: "Statistics") -> "Tensor":
    """s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), alpha from a grid by the error of the quantized product on a sample.

    alpha 0 with the weights already even, or 1, are on the grid; so is no smoothing at all (s = 1).
    """
    import torch

    from analysis.runner.statistics import as_matrix
    from fpsim.nn import scaling

    x_max = seen.channel_max.clamp(min=1e-5)
    w_max = weight.abs().amax([dim for dim in range(weight.ndim) if dim != 1]).clamp(min=1e-5)
    taps = weight.numel() // (weight.shape[0] * weight.shape[1])
    rows = seen.rows[:256]
    wanted = rows @ as_matrix(weight).T
    activation = None if layer.activation is None else layer.activation.seen(float(rows.min()), float(rows.max()))
    best, chosen = float("inf"), torch.ones_like(x_max)
    for factor in [torch.ones_like(x_max), *(x_max**a / w_max ** (1 - a) for a in _ALPHAS)]:
        factor = factor / (factor.max() * factor.min()).sqrt()
        w = weight * factor.view(1, -1, *(1,) * (weight.ndim - 2))
        w = scaling.fake_quantize(w, layer.weight, scaling.find(w, layer.weight, 1), 1)
        x = rows / factor.repeat(taps)
        if activation is not None:
            shaped = x.view(len(x), taps, -1)
            x = scaling.fake_quantize(shaped, activation, scaling.find(shaped, activation, -1), -1).flatten(1)
        error = float((x @ as_matrix(w).T - wanted).square().mean())
        if error < best:
            best, chosen = error, factor
    return chosen


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
