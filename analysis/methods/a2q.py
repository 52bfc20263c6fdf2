"""A2Q bound, post-training: integer weights that cannot overflow a narrow accumulator, whatever the input.

Colbert et al., arXiv:2301.13376, without their training: weights on the grid of round to nearest are projected onto the
L1 ball that the accumulator's width leaves (`_bound`) and rounded toward zero, as their quantizer does. Narrow
registers leave little of a network that was not trained for them; `analysis.accumulators.a2q_training` does that
training, and `trained=` takes what it made.

Options: bits (or the width of the layer's own engine); tile, outer: two-level registers; sign_aware: the exact
conditions instead of the one ball, A2Q+'s bound for inputs without a sign; rounding="nearest": better, as guaranteed;
search: the step of each channel that loses least in the ball, instead of the one that holds its largest weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.accumulators.registers import Register
from analysis.methods import Layer, Request, _bound
from analysis.methods._bound import Rounding, fitted
from fpsim._names import unknown

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fpsim.nn.layer import QuantizedLayer
    from fpsim.nn.scaling import Scales

#: Steps that `search` tries, relative to the one of the largest weight.
STEPS = tuple(2 ** (i / 3) for i in range(19))
_CHUNK = 1 << 23  # weights looked at together, all steps counted


@dataclass(frozen=True, kw_only=True)
class Options:
    """The method's settings, see the module."""

    bits: int | None = None
    tile: int | None = None
    outer: int | None = None
    sign_aware: bool = False
    rounding: Rounding = "toward-zero"
    search: bool = False
    trained: str | None = None

    def over(self, options: Mapping[str, Any]) -> "Options":
        """These settings with some set from outside. ValueError for a name that is no option."""
        known = [field.name for field in fields(self)]
        for key in options:
            if key not in known:
                raise unknown("option", key, known)
        return replace(self, **options)


#: The method's own point among its options; experiment files are checked against it.
AXES = Options()


def quantize(request: Request) -> "Mapping[str, Module]":
    """Layers whose weights fit. ValueError for operands that are no integers, unknown options, other checkpoints."""
    options = AXES.over(request.options)
    trained = None if options.trained is None else _read(Path(options.trained), request)
    made = {}
    for layer in request.layers:
        register = _bound.wanted(layer, options.bits, options.tile, options.outer)
        if trained is not None:
            made[layer.path] = _load(request, layer, register, trained)
        else:
            made[layer.path] = project(request, layer, register, options)
    return made


def project(request: Request, layer: Layer, register: Register, options: Options) -> "QuantizedLayer":
    """One layer, its weights projected. ValueError, naming it, for weights without steps."""
    from analysis.runner.statistics import as_matrix, as_weight
    from fpsim.nn import scaling

    weight = layer.module.get_parameter("weight").detach().float()
    scales = scaling.find(weight, layer.weight, 1)
    if scales is None:
        raise ValueError(f"layer {layer.path}: weights {layer.weight} have no steps")
    if options.search and layer.weight.granularity == "channel":
        scales = replace(scales, step=_searched(layer, weight, scales, register, options))
    step = scales.step.reshape(-1, 1) if scales.step.ndim else scales.step
    codes = as_weight(_codes(layer, as_matrix(weight.double()), step, register, options), weight.shape)
    return request.build(layer, scales=scales, rounded=codes.float() * scales.step)


def _codes(layer: Layer, weight: "Tensor", step: "Tensor", register: Register, options: Options) -> "Tensor":
    """float64 (out, K) codes that fit, for float64 weights (out, K) and a step that broadcasts against them."""
    from analysis.accumulators.partial_sums import ends

    row: Any = layer.weight.row
    low, high = input_ends(layer)
    steps = (weight / step.double()).clamp(*ends(row))
    return fitted(steps, low, high, register, sign_aware=options.sign_aware, rounding=options.rounding)


def input_ends(layer: Layer) -> tuple[int, int]:
    """(lowest, highest) code of a layer's activations."""
    from analysis.accumulators.partial_sums import ends

    row: Any = None if layer.activation is None else layer.activation.row
    return ends(row)


def _searched(layer: Layer, weight: "Tensor", scales: "Scales", register: Register, options: Options) -> "Tensor":
    """The step of each channel with the least squared error of its weights."""
    import torch

    from analysis.runner.statistics import as_matrix

    wanted, base = as_matrix(weight.double()), scales.step.reshape(-1, 1)
    factors = torch.tensor(STEPS, device=weight.device).reshape(-1, 1, 1)
    found = []
    for rows in range(0, len(wanted), per := max(1, _CHUNK // (len(STEPS) * wanted.shape[1]))):
        part, steps = wanted[rows : rows + per], factors * base[rows : rows + per]
        whole = part.expand(len(STEPS), -1, -1).flatten(0, 1)
        codes = _codes(layer, whole, steps.flatten(0, 1), register, options)
        error = (codes * steps.flatten(0, 1).double() - whole).square().sum(-1).reshape(len(STEPS), -1)
        found.append(steps[..., 0].gather(0, error.argmin(0, keepdim=True))[0])
    return torch.cat(found).reshape(scales.step.shape)


def _read(file: Path, request: Request) -> "dict[str, Tensor]":
    """The tensors that training left, checked against the layers."""
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(
            f"no trained weights {str(file)!r}; make them with python -m analysis.accumulators.a2q_training"
        )
    found = load_file(file)
    missing = [layer.path for layer in request.layers if f"{layer.path}/codes" not in found]
    if missing:
        raise ValueError(f"{file} was trained with another scheme or pipeline: it has no layer {missing[0]}")
    return found


def _load(request: Request, layer: Layer, register: Register, trained: "Mapping[str, Tensor]") -> "Module":
    """A trained layer. Raises ValueError if its weights do not fit the register after all."""
    import torch

    from analysis.runner.statistics import as_matrix
    from fpsim.nn.scaling import Scales

    weight = layer.module.get_parameter("weight")
    codes, step, input_step = (trained[f"{layer.path}/{name}"].to(weight.device) for name in ("codes", "step", "input"))
    if codes.shape != weight.shape:
        raise ValueError(f"layer {layer.path}: trained weights are {list(codes.shape)}, not {list(weight.shape)}")
    whole = as_matrix(codes.double())
    if not torch.equal(fitted(whole, *input_ends(layer), register, sign_aware=True), whole):
        raise ValueError(
            f"layer {layer.path}: the trained weights do not fit {register.label}; they are for a wider one"
        )
    better: dict[str, Any] = {"scales": Scales(step=step), "rounded": codes.float() * step}
    if layer.activation is not None and layer.activation.is_static and not layer.activation.has_zero:
        better["input_scales"] = Scales(step=input_step)
    made = request.build(layer, **better)
    if f"{layer.path}/bias" in trained:
        made.bias = torch.nn.Parameter(trained[f"{layer.path}/bias"].to(weight.device), requires_grad=False)
    return made
