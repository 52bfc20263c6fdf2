"""Overflow-aware quantization: coarser steps until calibration inputs no longer overflow a narrow accumulator.

After Xie et al., arXiv:2005.13297, who enlarge the range of a network's grids (a factor alpha on its steps) while they
train it. Here alpha is searched layer by layer: the least power of 2**(1/8), at least 1, with which no partial sum of
the calibration rows, in the engine's order, leaves the register. Nothing is promised for other inputs; A2Q does that.
The paper counts results against a register one bit narrower, because it does not see partial sums; they are seen here.

Options: bits (or the width of the layer's own engine); tile, outer: two-level registers; enlarge: "weight",
"activation" (static ones) or "both"; tolerance: share of the rows' outputs that may overflow; rows: per layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from analysis.accumulators.registers import Register
from analysis.methods import Layer, Request, _bound
from fpsim._names import unknown

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fpsim.nn.layer import QuantizedLayer

Enlarge = Literal["weight", "activation", "both"]

#: alpha = 2 ** (index / 8)
PER_OCTAVE = 8
OCTAVES = 8


@dataclass(frozen=True, kw_only=True)
class Options:
    """The method's settings, see the module."""

    bits: int | None = None
    tile: int | None = None
    outer: int | None = None
    enlarge: Enlarge = "weight"
    tolerance: float = 0.0
    rows: int = 2048

    def __post_init__(self) -> None:
        if self.enlarge not in get_args(Enlarge):
            raise unknown("enlarge", self.enlarge, get_args(Enlarge))
        if not 0 <= self.tolerance < 1 or self.rows < 1:
            raise ValueError(f"tolerance is a share below 1 and rows at least 1, not {self.tolerance} and {self.rows}")

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
    """Layers that do not overflow on calibration inputs. ValueError for operands that are no integers, without
    calibration, and naming the layer, where not even the coarsest grid avoids overflow."""
    from analysis.runner.statistics import statistics

    options = AXES.over(request.options)
    registers = {
        layer.path: _bound.wanted(layer, options.bits, options.tile, options.outer) for layer in request.layers
    }
    if request.calibration is None:
        raise ValueError("oaq looks at calibration inputs: pass calibration= a list of captions or a Calibration")
    found = statistics(request.pipe, request.layers, request.calibration, options.rows, options.rows)
    return {layer.path: enlarged(request, layer, registers[layer.path], options, seen.rows)[0] for layer, seen in found}


def enlarged(
    request: Request, layer: Layer, register: Register, options: Options, rows: "Tensor"
) -> "tuple[QuantizedLayer, float]":
    """(the layer, alpha): the finest steps tried with which `rows` (R, K) do not overflow `register`."""
    worst, most = -1, PER_OCTAVE * OCTAVES  # bisection first: finer grids overflow more, but not strictly so
    best = most
    while best - worst > 1:
        middle = (worst + best) // 2
        if _fits(_built(request, layer, options, middle), register, options.tolerance, rows):
            best = middle
        else:
            worst = middle
    for index in range(best, most + 1):
        made = _built(request, layer, options, index)
        if _fits(made, register, options.tolerance, rows):
            return made, 2 ** (index / PER_OCTAVE)
    raise ValueError(
        f"layer {layer.path}: overflows {register.label} even with {2**OCTAVES} times the step; give it more"
    )


def _built(request: Request, layer: Layer, options: Options, index: int) -> "QuantizedLayer":
    from fpsim.nn import scaling

    plain = request.build(layer)
    factor = 2 ** (index / PER_OCTAVE / (2 if options.enlarge == "both" else 1))
    better: dict[str, Any] = {}
    if options.enlarge != "activation":
        scales = plain.weight_scales
        if scales is not None:
            better["scales"] = replace(scales, step=scales.step * factor)
    if options.enlarge != "weight":
        if plain.input_step is None:
            raise ValueError(f"layer {layer.path}: activations without a static step cannot be enlarged")
        better["input_scales"] = scaling.Scales(step=plain.input_step * factor, zero=plain.input_zero)
    return request.build(layer, **better)


def _fits(layer: "QuantizedLayer", register: Register, tolerance: float, rows: "Tensor") -> bool:
    from analysis.accumulators.partial_sums import beyond, matrix, row_codes, stretch

    codes, weights = row_codes(layer, rows), matrix(layer)
    count = beyond(codes, weights, register, stretch(layer), most=int(tolerance * len(codes) * len(weights)))
    return count <= tolerance * len(codes) * len(weights)
