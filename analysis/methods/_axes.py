"""The axes that methods combine: transform, scales, rounding, activation ranges, side branch, where inputs come from.

A method is a named point on these axes; every axis works for float, integer and block formats unless it says otherwise,
and every one can be set from outside: `quantize(pipe, scheme, method="gptq", transform="hadamard")`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from analysis.methods import Request
from analysis.methods._ranges import Ranges
from analysis.methods._transform import Transform
from fpsim._names import unknown

if TYPE_CHECKING:
    from torch.nn import Module

    from analysis.methods._learned import Budget

Rounding = Literal["nearest", "gptq", "learned"]
Inputs = Literal["full-precision", "quantized"]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """One point of the space.

    transform   : of the input channels, before quantizing (`fpsim.nn.transforms`)
    weights     : weight scales from the largest magnitude, or searched for the least squared error of the weight or of
                  the layer's output (scalar formats)
    activations : static activation ranges from the extremes, or searched likewise
    split       : whether the searches also choose between exponent and mantissa bits, per tensor (float formats)
    concat      : separate scales for the two halves of a skip concatenation
    rounding    : nearest; gptq; or learned: gptq, then weights of at most 4 bits block by block (`_learned`)
    inputs      : what calibration statistics are of: inputs in full precision, or those that a layer meets when all
                  before it are quantized; rounding then aims at the full-precision output all the same
    learn_steps : learned rounding also learns the steps of static activations
    rank        : of a full-precision side branch that takes the largest singular directions of the weight; 0: none
    block       : channels per Hadamard rotation at most
    gram_rows, kept_rows : calibration rows per layer (`analysis.runner.statistics`)
    samples     : images replayed for learned rounding and quantized inputs (`analysis.runner.samples`)
    budget      : of learned rounding, "short" or "long" (`_learned.BUDGETS`); steps: per unit, in place of the budget's
    """

    transform: Transform = "none"
    weights: Ranges = "max-abs"
    activations: Ranges = "max-abs"
    split: bool = False
    concat: bool = False
    rounding: Rounding = "nearest"
    inputs: Inputs = "full-precision"
    learn_steps: bool = False
    rank: int = 0
    block: int = 64
    gram_rows: int = 16384
    kept_rows: int = 1024
    samples: int = 160
    budget: Literal["short", "long"] = "short"
    steps: int | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("transform", Transform),
            ("weights", Ranges),
            ("activations", Ranges),
            ("rounding", Rounding),
            ("inputs", Inputs),
            ("budget", Literal["short", "long"]),
        ):
            if getattr(self, name) not in get_args(kind):
                raise unknown(name, getattr(self, name), get_args(kind))
        counts = (self.block, self.gram_rows, self.kept_rows, self.samples, 1 if self.steps is None else self.steps)
        if self.rank < 0 or min(counts) < 1:
            raise ValueError("rank must be at least 0; block, gram_rows, kept_rows, samples and steps at least 1")
        if self.concat and (self.transform != "none" or self.rank):
            raise ValueError("concat=True cuts layers in two; it goes with no transform and no side branch (rank=0)")

    @property
    def needs_statistics(self) -> bool:
        """Whether calibration inputs have to be looked at."""
        return self != replace(Axes(), rank=self.rank, block=self.block, split=self.split)

    @property
    def chooses_inputs(self) -> bool:
        """Whether how a layer's input is transformed and quantized depends on what it is."""
        return self.activations != "max-abs" or self.transform.startswith("smooth")

    @property
    def in_order(self) -> bool:
        """Whether layers are quantized one after the other, each seeing what became of those before."""
        return self.rounding == "learned" or self.inputs == "quantized"

    def of(self, budgets: "Mapping[str, Budget]") -> "Budget":
        """The budget of learned rounding, from a table by name."""
        return budgets[self.budget] if self.steps is None else replace(budgets[self.budget], steps=self.steps)

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
    from analysis.methods import _in_order
    from analysis.methods._prepare import prepare
    from analysis.runner.folding import fold
    from analysis.runner.statistics import PER_COLUMN, statistics

    if not axes.needs_statistics:
        return {layer.path: prepare(request, layer, axes, None).build(request) for layer in request.layers}
    changed: dict[str, Module] = {}
    if axes.transform.startswith("smooth"):
        request, changed = fold(request)
    if request.calibration is None:
        raise ValueError(
            "this method looks at calibration inputs: pass calibration= a list of captions or a Calibration"
        )
    if axes.in_order:
        return changed | _in_order.quantize(request, request.calibration, axes)
    found = statistics(
        request.pipe, request.layers, request.calibration, axes.gram_rows, axes.kept_rows, per_column=PER_COLUMN
    )
    return changed | {layer.path: prepare(request, layer, axes, seen).build(request) for layer, seen in found}
