"""One layer at a point of the axes: its scales, the grid of its weight, and where GPTQ puts each weight on it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from analysis.methods import Layer, Request, _ranges, _transform

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from analysis.methods._axes import Axes
    from analysis.runner.statistics import Statistics
    from fpsim.formats import Format
    from fpsim.nn.quantizer import Quantizer
    from fpsim.nn.scaling import Scales
    from fpsim.nn.transforms import Chain


@dataclass(frozen=True, kw_only=True)
class Part:
    """Input channels `start` to `stop` with scales of their own. Most layers have one part, all channels.

    scales       : of the weight, None for a cast
    input_scales : of static activations, None for others and where calibrated extremes serve
    """

    start: int
    stop: int
    weight: "Quantizer"
    scales: "Scales | None"
    activation: "Quantizer | None"
    input_scales: "Scales | None"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A layer on its way.

    values    : float32 what is quantized, in the shape of the weight
    rounded   : values on the grid; None: the nearest ones
    transform : of the input; branch : side branch; both or either None
    """

    layer: Layer
    parts: tuple[Part, ...]
    values: "Tensor"
    rounded: "Tensor | None" = None
    transform: "Chain | None" = None
    branch: "Module | None" = None

    @property
    def row(self) -> "Format":
        """The format of the weight's codes."""
        from fpsim.nn.layer import element_format

        return element_format(self.parts[0].weight)

    def spread(self, of: "Callable[[Scales], Tensor | None]") -> "Tensor | None":
        """A step or zero point for each element of the weight; None where there is none."""
        import torch

        from fpsim.nn import scaling

        pieces = []
        for part in self.parts:
            value = None if part.scales is None else of(part.scales)
            if value is None:
                return None
            shape = torch.Size((self.values.shape[0], part.stop - part.start, *self.values.shape[2:]))
            pieces.append(scaling.spread(value, part.weight, shape))
        return torch.cat(pieces, 1)

    def received(self, x: "Tensor") -> "Tensor":
        """What the weight is multiplied by for the layer input `x`: transformed and on the grid."""
        import torch

        axis = -1 if self.layer.kind == "Linear" else 1
        values = x if self.transform is None else self.transform(x)
        pieces = [on_grid(part, values.narrow(axis, part.start, part.stop - part.start), axis) for part in self.parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)

    def received_rows(self, rows: "Tensor", quantized: bool = True) -> "Tensor":
        """The same for rows of the input as a matrix, (n, taps * channels), or transformed alone."""
        import torch

        values = _transform.turn(self.transform, rows, self.values)
        if not quantized:
            return values
        shaped = values.view(len(values), -1, self.values.shape[1])
        pieces = [on_grid(part, shaped.narrow(-1, part.start, part.stop - part.start), -1) for part in self.parts]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)).flatten(1)

    @property
    def needs_samples(self) -> bool:
        """Whether a row is quantized with a scale that belongs to all of its sample."""
        return any(
            part.activation is not None
            and part.input_scales is None
            and not part.activation.is_cast
            and (part.activation.granularity == "tensor" or getattr(part.activation.row, "tensor_scale", False))
            for part in self.parts
        )

    def build(self, request: Request) -> "Module":
        """The quantized layer. ValueError, naming it, for what is not supported."""
        from fpsim.nn.concat import Concatenated, sliced

        if len(self.parts) == 1:
            return request.build(self.layer, **self._options(self.parts[0]))
        made = []
        for part in self.parts:
            cut = replace(self.layer, module=sliced(self.layer.module, part.start, part.stop))
            made.append(request.build(cut, **self._options(part)))
        return Concatenated(made)

    def _options(self, part: Part) -> dict[str, Any]:
        cut = (slice(None), slice(part.start, part.stop))
        return {
            "weight": part.weight,
            "activation": part.activation,
            "scales": part.scales,
            "input_scales": part.input_scales,
            "values": self.values[cut],
            "rounded": None if self.rounded is None else self.rounded[cut],
            "transform": self.transform,
            "branch": self.branch,
        }


def on_grid(part: Part, values: "Tensor", axis: int) -> "Tensor":
    """The input channels of one part, quantized as the part says; `axis` is that of the channels."""
    from fpsim.nn import scaling

    if part.activation is None:
        return values
    scales = part.input_scales
    if scales is None or part.activation.steps > 1:
        scales = scaling.find(values, replace(part.activation, steps=1), axis, 0)
    return scaling.fake_quantize(values, part.activation, scales, axis)


def prepare(
    request: Request, layer: Layer, axes: "Axes", seen: "Statistics | None", given: Prepared | None = None
) -> Prepared:
    """`layer` at a point of the axes; without statistics only what needs none.

    given : the layer with its transform and its input scales, if these are known and `seen` is of inputs `received`
    """
    weight = layer.module.get_parameter("weight").detach().float()
    if not bool(weight.isfinite().all()):
        raise ValueError(f"layer {layer.path}: the weight has NaN or Inf")
    grouped = getattr(layer.module, "groups", 1) != 1  # the weight of such a convolution is no single matrix
    turned = given.transform if given is not None else _transform.find(layer, weight, axes.transform, axes.block, seen)
    branch = None
    if turned is not None:
        weight = turned.weight(weight)
    if axes.rank and not grouped:
        branch, weight = _transform.low_rank(layer, weight, axes.rank)
    gram = rows = None
    if seen is not None and not grouped:
        ready = None if given is not None else turned
        gram = _transform.turn(ready, _transform.turn(ready, seen.gram, weight).T, weight).T
        rows = _transform.turn(ready, seen.rows, weight)
        if seen.cross is not None and branch is None:
            weight = _aimed(weight, gram, ready, seen)
    bounds = _bounds(request, layer, axes)
    asked = layer if given is None else replace(layer, activation=None)  # input scales are there already
    parts = tuple(_part(request, asked, axes, seen, weight, gram, rows, start, stop, turned) for start, stop in bounds)
    if len({part.weight.format for part in parts}) > 1:  # one grid for the whole weight: the first half's split
        chosen = replace(axes, split=False)
        like = replace(layer, weight=parts[0].weight)
        again = [_part(request, like, chosen, seen, weight, gram, rows, *ends, None) for ends in bounds]
        parts = tuple(
            replace(one, scales=other.scales, weight=other.weight) for one, other in zip(parts, again, strict=True)
        )
    if given is not None:
        parts = tuple(
            replace(one, activation=other.activation, input_scales=other.input_scales)
            for one, other in zip(parts, given.parts, strict=True)
        )
    made = Prepared(layer=layer, parts=parts, values=weight, transform=turned, branch=branch)
    return replace(made, rounded=_gptq(made, gram)) if axes.rounding != "nearest" and gram is not None else made


def _bounds(request: Request, layer: Layer, axes: "Axes") -> tuple[tuple[int, int], ...]:
    channels = layer.module.get_parameter("weight").shape[1]
    cut = request.calibration.splits.get(layer.path) if axes.concat and request.calibration is not None else None
    return ((0, channels),) if cut is None else ((0, cut), (cut, channels))


def _part(
    request: Request,
    layer: Layer,
    axes: "Axes",
    seen: "Statistics | None",
    weight: "Tensor",
    gram: "Tensor | None",
    rows: "Tensor | None",
    start: int,
    stop: int,
    turned: "Chain | None",
) -> Part:
    """Scales of one run of input channels."""
    from analysis.runner.statistics import as_matrix

    taps = weight[0, 0].numel()
    whole = stop - start == weight.shape[1]
    mine, kept, values = gram, rows, weight
    if not whole:
        values = weight[:, start:stop]
        kept = None if rows is None else rows.view(len(rows), taps, -1)[:, :, start:stop].flatten(1)
        if gram is not None:
            size = taps * (stop - start)
            mine = gram.view(taps, weight.shape[1], taps, -1)[:, start:stop, :, start:stop].reshape(size, size)
    quantizer, scales = _ranges.of_weight(layer.weight, values, axes.weights, axes.split, mine)
    activation, input_scales = layer.activation, None
    if activation is not None and activation.needs_calibration and seen is not None and kept is not None:
        low, high = float(seen.channel_low[start:stop].amin()), float(seen.channel_high[start:stop].amax())
        if whole and turned is None and request.calibration is not None:  # which saw more images than a sample did
            before = request.calibration.range(layer.path)
            low, high = min(low, before[0]), max(high, before[1])
        ends: tuple[tuple[float, float], ...] = ((low, high),)
        if turned is not None:
            ends = (_transformed_ends(turned, seen, kept),)
        if activation.steps > 1:
            if turned is not None or not whole:
                raise ValueError(f"layer {layer.path}: timestep groups go with no transform and uncut inputs")
            ends = request.ranges(layer)
        activation, input_scales = _ranges.of_activation(
            activation, kept, axes.activations, axes.split, as_matrix(values), ends
        )
    return Part(
        start=start, stop=stop, weight=quantizer, scales=scales, activation=activation, input_scales=input_scales
    )


def _transformed_ends(turned: "Chain", seen: "Statistics", kept: "Tensor") -> tuple[float, float]:
    """Range of a layer's transformed input: of everything that passed if channels are only scaled, else of a sample."""
    from fpsim.nn.transforms import Smooth

    low, high = seen.channel_low, seen.channel_high
    for part in turned.parts:
        if not isinstance(part, Smooth):
            return float(kept.min()), float(kept.max())
        low, high = low / part.factor, high / part.factor
    return float(low.min()), float(high.max())


def _gptq(made: Prepared, gram: "Tensor") -> "Tensor | None":
    """Weights on the grid; a grid with zero points is one without, moved. None for casts."""
    from analysis.runner.statistics import as_matrix, as_weight
    from fpsim.nn import rounding

    step = made.spread(lambda scales: scales.step)
    if step is None:
        return None
    zero = made.spread(lambda scales: scales.zero)
    shift = 0.0 if zero is None else zero * step
    rounded = rounding.gptq(as_matrix(made.values + shift), as_matrix(step), made.row, gram)
    return as_weight(rounded, made.values.shape) - shift


def _aimed(weight: "Tensor", gram: "Tensor", turned: "Chain | None", seen: "Statistics") -> "Tensor":
    """The weight to round: as far towards `compensated` as calls that it was not made from bear out."""
    from analysis.runner.statistics import as_matrix, as_weight

    def moved(matrix: "Tensor") -> "Tensor":
        return _transform.turn(turned, _transform.turn(turned, matrix, weight).T, weight).T

    if seen.cross is None:
        return weight
    matrix = as_matrix(weight)
    found = compensated(matrix, gram, moved(seen.cross))
    if seen.halves is None:
        return as_weight(found, weight.shape)
    halves = [tuple(moved(one) for one in half) for half in seen.halves]
    share = 0.0
    for (gram_a, cross_a), (gram_b, cross_b) in (halves, halves[::-1]):
        change = compensated(matrix, gram_a, cross_a) - matrix
        gain = (change * (matrix @ cross_b.T - matrix @ gram_b)).sum()
        share += float(gain / ((change @ gram_b) * change).sum().clamp(min=2.0**-126)) / 2
    return as_weight(matrix + min(max(share, 0.0), 1.0) * (found - matrix), weight.shape)


def compensated(weight: "Tensor", gram: "Tensor", cross: "Tensor") -> "Tensor":
    """(out, K): the weight whose outputs on the inputs at hand come closest to those of `weight` in full precision.

    argmin |V X - W Z|^2 = W (Z X^T) (X X^T)^-1 with X the quantized inputs, Z the full-precision ones (the asymmetric
    calibration of GPTAQ, arXiv:2504.02692), damped towards W by 1 % of the mean of diag(X X^T).
    """
    import torch

    h = gram.double()
    damping = 0.01 * h.diagonal().mean()
    if damping <= 0:
        return weight
    ridge = damping * torch.eye(len(h), dtype=h.dtype, device=h.device)
    wanted = weight.double() @ (cross.double().T + ridge)
    return torch.cholesky_solve(wanted.T, torch.linalg.cholesky(h + ridge)).T.float()
