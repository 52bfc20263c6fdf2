"""The axes that methods combine: transform, scales, rounding, activation ranges, side branch.

A method is a named point on these axes; every axis works for float, integer and block formats unless it says otherwise,
and every one can be set from outside: `quantize(pipe, scheme, method="gptq", transform="hadamard")`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from analysis.methods import Layer, Request
from fpsim._names import unknown

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from analysis.runner.calibrate import Calibration
    from analysis.runner.statistics import Statistics
    from fpsim.nn.quantizer import Quantizer
    from fpsim.nn.scaling import Scales
    from fpsim.nn.transforms import Chain

Transform = Literal["none", "smooth", "hadamard", "smooth-hadamard"]
Ranges = Literal["max-abs", "search"]
Rounding = Literal["nearest", "gptq", "learned"]

LEARNED_BITS = 4
_ALPHAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True, kw_only=True)
class Axes:
    """One point of the space.

    transform   : of the input channels, before quantizing (`fpsim.nn.transforms`)
    weights     : weight scales from the largest magnitude, or searched for the least output error (scalar formats)
    activations : static activation ranges from the largest magnitude, or searched for the least squared error
    split       : whether the searches also choose between exponent and mantissa bits, per tensor (float formats)
    rounding    : nearest; gptq; or learned: gptq, then weights of at most 4 bits block by block
                  (`analysis.methods._learned`)
    rank        : of a full-precision side branch that takes the largest singular directions of the weight; 0: none
    block       : channels per Hadamard rotation at most
    gram_rows, kept_rows : calibration rows per layer (`analysis.runner.statistics`)
    steps       : of learned rounding, per block
    """

    transform: Transform = "none"
    weights: Ranges = "max-abs"
    activations: Ranges = "max-abs"
    split: bool = False
    rounding: Rounding = "nearest"
    rank: int = 0
    block: int = 64
    gram_rows: int = 16384
    kept_rows: int = 1024
    steps: int = 300

    def __post_init__(self) -> None:
        for name, kind in (
            ("transform", Transform),
            ("weights", Ranges),
            ("activations", Ranges),
            ("rounding", Rounding),
        ):
            if getattr(self, name) not in get_args(kind):
                raise unknown(name, getattr(self, name), get_args(kind))
        if self.rank < 0 or min(self.block, self.gram_rows, self.kept_rows, self.steps) < 1:
            raise ValueError("rank must be at least 0; block, gram_rows, kept_rows and steps at least 1")
        if self.rounding == "learned" and self.transform != "none":
            raise ValueError(
                f"learned rounding works on untransformed inputs; transform {self.transform!r} goes with gptq"
            )

    @property
    def needs_statistics(self) -> bool:
        """Whether calibration inputs have to be looked at."""
        return self != replace(Axes(), rank=self.rank, block=self.block, split=self.split)

    def over(self, options: Mapping[str, Any]) -> "Axes":
        """These axes with some set from outside. ValueError for a name that is no axis."""
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                raise unknown("option", name, known)
        return replace(self, **options)


def quantize(request: Request, axes: Axes) -> "Mapping[str, Module]":
    """Replacements for `request.layers` at one point of the axes.

    Raises ValueError without calibration where statistics are needed.
    """
    from analysis.runner.statistics import statistics

    if not axes.needs_statistics:
        prepared = [_prepare(request, layer, axes, None) for layer in request.layers]
        return {one.layer.path: request.build(one.layer, **one.better) for one in prepared}
    if request.calibration is None:
        raise ValueError(
            "this method looks at calibration inputs: pass calibration= a list of captions or a Calibration"
        )
    found = statistics(request.pipe, request.layers, request.calibration, axes.gram_rows, axes.kept_rows)
    prepared = [_prepare(request, layer, axes, seen) for layer, seen in found]
    rounded = _learned_roundings(request, request.calibration, axes, prepared) if axes.rounding == "learned" else {}
    made = {}
    for one in prepared:
        path = one.layer.path
        extra = {"rounded": rounded[path]} if path in rounded else {}
        made[path] = request.build(one.layer, **{**one.better, **extra})
    return made


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A layer, what `Request.build` is to be told about it, and the float32 weight that is quantized."""

    layer: Layer
    better: Mapping[str, Any]
    values: "Tensor"


def _prepare(request: Request, layer: Layer, axes: Axes, seen: "Statistics | None") -> _Prepared:
    from analysis.runner.statistics import as_matrix, as_weight
    from fpsim.nn import rounding, scaling
    from fpsim.nn.layer import element_format

    weight = layer.module.get_parameter("weight").detach().float()
    better: dict[str, Any] = {}
    turned = _transform(layer, weight, axes, seen)
    if turned is not None:
        weight = turned.weight(weight)
        better |= {"values": weight, "transform": turned}
    if axes.rank and not _grouped(layer):
        branch, weight = _low_rank(layer, weight, axes.rank)
        better |= {"values": weight, "branch": branch}
    gram = None if seen is None or _grouped(layer) else _turn(turned, _turn(turned, seen.gram, weight).T, weight).T
    quantizer, scales = _weight_scales(layer.weight, weight, axes, gram)
    better |= {"scales": scales, "weight": quantizer}
    if axes.rounding != "nearest" and gram is not None and scales is not None:
        step = as_matrix(scaling.spread(scales, quantizer, weight.shape))
        rounded = rounding.gptq(as_matrix(weight), step, element_format(quantizer), gram)
        better["rounded"] = as_weight(rounded, weight.shape)
    activation = layer.activation
    if activation is not None and activation.needs_calibration and seen is not None:
        rows = _turn(turned, seen.rows, weight)
        better |= _activation_range(request, layer, axes, rows, turned is not None)
    return _Prepared(layer=layer, better=better, values=weight)


def _learned_roundings(
    request: Request, calibration: "Calibration", axes: Axes, prepared: list[_Prepared]
) -> "dict[str, Tensor]":
    """Learned weights of the layers that have at most `LEARNED_BITS`."""
    from analysis.methods import _learned
    from fpsim.nn import scaling
    from fpsim.nn.layer import element_format

    targets = []
    for one in prepared:
        quantizer, scales = one.better["weight"], one.better["scales"]
        row = element_format(quantizer)
        if scales is not None and row.bits <= LEARNED_BITS and not _grouped(one.layer):
            weight = one.layer.module.get_parameter("weight").detach().float()
            step = scaling.spread(scales, quantizer, weight.shape)
            rest = weight - one.values if "branch" in one.better else None
            start = one.better["rounded"]
            targets.append(
                _learned.Target(path=one.layer.path, values=one.values, step=step, row=row, start=start, rest=rest)
            )
    return _learned.learn(request, calibration, targets, _learned.Budget(steps=axes.steps))


def _transform(layer: Layer, weight: "Tensor", axes: Axes, seen: "Statistics | None") -> "Chain | None":
    """The input transform of one layer; None if there is none or the layer does not allow it."""
    from fpsim.nn.transforms import Chain, Hadamard, Smooth, largest_block

    if axes.transform == "none" or seen is None or _grouped(layer):
        return None
    axis = -1 if layer.kind == "Linear" else 1
    parts: list[Smooth | Hadamard] = []
    if axes.transform.startswith("smooth"):
        parts.append(Smooth(_smooth_factor(layer, weight, seen), axis))
    if axes.transform.endswith("hadamard"):
        block = largest_block(weight.shape[1], axes.block)
        if block > 1:
            parts.append(Hadamard(weight.shape[1], block, axis).to(weight.device))
    return Chain(*parts) if parts else None


def _smooth_factor(layer: Layer, weight: "Tensor", seen: "Statistics") -> "Tensor":
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
    best, chosen = float("inf"), torch.ones_like(x_max)
    for factor in [torch.ones_like(x_max), *(x_max**a / w_max ** (1 - a) for a in _ALPHAS)]:
        factor = factor / (factor.max() * factor.min()).sqrt()
        w = weight * factor.view(1, -1, *(1,) * (weight.ndim - 2))
        w = scaling.fake_quantize(w, layer.weight, scaling.find(w, layer.weight, 1), 1)
        x = rows / factor.repeat(taps)
        if layer.activation is not None:
            shaped = x.view(len(x), taps, -1)
            x = scaling.fake_quantize(shaped, layer.activation, scaling.find(shaped, layer.activation, -1), -1).flatten(
                1
            )
        error = float((x @ as_matrix(w).T - wanted).square().mean())
        if error < best:
            best, chosen = error, factor
    return chosen


def _turn(transform: "Chain | None", rows: "Tensor", weight: "Tensor") -> "Tensor":
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


def _low_rank(layer: Layer, weight: "Tensor", rank: int) -> "tuple[Module, Tensor]":
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
        module.weight = torch.nn.Parameter(value.clone(), requires_grad=False)
    return made, as_weight(matrix - up @ down, weight.shape)


def _weight_scales(
    quantizer: "Quantizer", weight: "Tensor", axes: Axes, gram: "Tensor | None"
) -> "tuple[Quantizer, Scales | None]":
    """Scales for a weight, and the quantizer with the split that was chosen."""
    from analysis.runner.statistics import as_matrix
    from fpsim.formats import BlockFormat
    from fpsim.nn import functional, scaling, search

    row = quantizer.row
    if axes.weights == "max-abs" or quantizer.is_cast or isinstance(row, BlockFormat):
        return quantizer, scaling.find(weight, quantizer, 1)
    rows = search.splits(row.bits) if axes.split and row.kind == "float" else (row,)
    if quantizer.block is None:
        shared = quantizer.granularity == "tensor"
        found = search.best_split(as_matrix(weight), rows, gram=gram, shared=shared, quick=True)
        shape: tuple[int, ...] = (-1, *(1,) * (weight.ndim - 1)) if quantizer.granularity == "channel" else ()
        clip = found.clip.reshape(shape)
    else:
        parts = functional.blocked(weight, quantizer.block, 1).movedim(2, -1)
        found = search.best_split(parts.reshape(-1, quantizer.block), rows, quick=True)
        clip = found.clip.reshape(parts.shape[:-1]).unsqueeze(2)
    return replace(quantizer, format=found.format.name), scaling.Scales(
        step=scaling.from_max_abs(clip, found.format.max)
    )


def _activation_range(request: Request, layer: Layer, axes: Axes, rows: "Tensor", transformed: bool) -> dict[str, Any]:
    """What `build` is told about static activations: a searched clip value and split, or the sample's maximum."""
    from fpsim.formats import BlockFormat
    from fpsim.nn import search

    quantizer = layer.activation
    if quantizer is None or isinstance(quantizer.row, BlockFormat):
        return {}
    if quantizer.steps > 1:
        if transformed or axes.activations == "search":
            raise ValueError(f"layer {layer.path}: timestep groups go with max-abs ranges and no transform")
        return {}
    if axes.activations == "max-abs":
        return {"input_max": float(rows.abs().max())} if transformed else {}
    centres, counts = search.histogram(rows)
    row = quantizer.row
    candidates = search.splits(row.bits) if axes.split and row.kind == "float" else (row,)
    found = search.best_split(centres[None], candidates, counts=counts)
    return {"input_max": float(found.clip), "activation": replace(quantizer, format=found.format.name)}


def _grouped(layer: Layer) -> bool:
    """Whether the layer is a grouped convolution, whose weight is no single matrix."""
    return getattr(layer.module, "groups", 1) != 1
