"""Quantization methods: one file each, named after the method (underscores for hyphens).

A method is a module with one function,

    def quantize(request: Request) -> Mapping[str, Module]

that returns the replacement of each layer in `request.layers`, by path. It leaves the denoiser alone: `request.build`
makes a layer with the scheme's formats, and a method passes it what it knows better than nearest rounding with max-abs
scales does (scales, rounded weights). The first line of the module's docstring is what `fpsim list methods` shows.
To add a method, copy `rtn.py`.
"""

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from fpsim._names import unknown

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch.nn import Module

    from analysis.runner.calibrate import Calibration
    from fpsim.nn.clock import Clock
    from fpsim.nn.layer import QuantizedLayer, Range
    from fpsim.nn.quantizer import Quantizer
    from fpsim.spec import MatmulSpec


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer to quantize: where it sits, the module in full precision, and what its rule asks for.

    smoothed : whether its input comes divided by a smoothing factor already (`analysis.runner.folding`)
    """

    path: str
    kind: str
    module: "Module"
    weight: "Quantizer"
    activation: "Quantizer | None"
    spec: "MatmulSpec | None" = None
    smoothed: bool = False


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything a method is given. Nothing in it may be changed.

    pipe        : the pipeline in full precision
    layers      : what to quantize, in the order the denoiser defines it
    calibration : activation ranges, None if none was asked for
    options     : the method's own settings
    clocks      : filled by `clock`; the runner attaches them to the quantized denoiser
    folded      : filled by `analysis.runner.folding`: layer path -> the module that its smoothing went into
    """

    pipe: "DiffusionPipeline"
    layers: tuple[Layer, ...]
    calibration: "Calibration | None" = None
    options: Mapping[str, Any] = field(default_factory=dict)
    clocks: "dict[int, Clock]" = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)

    def build(self, layer: Layer, **better: Any) -> "QuantizedLayer":
        """The quantized layer of `layer`: nearest rounding and scales from ranges, except for what `better` says.

        better : keyword arguments of `QuantizedLayer.from_float` (scales, rounded, input_scales, ...)

        Raises ValueError, naming the layer, for bad weights, missing ranges and shapes that are not supported.
        """
        from analysis.runner.quantize import engine_for
        from fpsim.nn.conv import QuantizedConv2d
        from fpsim.nn.linear import QuantizedLinear

        classes: Mapping[str, type[QuantizedLayer]] = {"Linear": QuantizedLinear, "Conv2d": QuantizedConv2d}
        options: dict[str, Any] = {"weight": layer.weight, "activation": layer.activation, "spec": layer.spec} | better
        try:
            activation = options["activation"]
            if activation is not None and activation.one_sided is not None:
                activation = options["activation"] = activation.seen(*self.range(layer))
            if activation is not None and activation.is_static:
                options["clock"] = self.clock(activation.steps)
                if "input_range" not in options and options.get("input_scales") is None:
                    options["input_range"] = self.ranges(layer)
            if layer.spec is not None and activation is not None:  # a search may have chosen other formats by now
                options["spec"] = engine_for(layer.spec.engine, activation, options["weight"])
            return classes[layer.kind].from_float(layer.module, **options)
        except ValueError as error:
            raise ValueError(f"layer {layer.path}: {error}") from None

    def range(self, layer: Layer) -> "Range":
        """(lowest, highest) calibrated input of a layer."""
        if self.calibration is None:
            raise ValueError(
                f"activations {layer.activation} need ranges: pass calibration= a list of captions or a Calibration"
            )
        return self.calibration.range(layer.path)

    def ranges(self, layer: Layer) -> "tuple[Range, ...]":
        """The same, one per timestep group that the layer's activations have."""
        if self.calibration is None or layer.activation is None:
            raise ValueError(
                f"activations {layer.activation} are static: pass calibration= a list of captions or a Calibration"
            )
        if layer.activation.steps > 1:
            return self.calibration.range_by_group(layer.path, layer.activation.steps)
        return (self.calibration.range(layer.path),)

    def clock(self, steps: int) -> "Clock | None":
        """The clock that layers with `steps` timestep groups share; None for one group."""
        from fpsim.nn.clock import Clock

        if steps == 1 or self.calibration is None:
            return None
        if steps not in self.clocks:
            self.clocks[steps] = Clock(self.calibration.bounds(steps))
        return self.clocks[steps]


class Method(Protocol):
    """What a module of this package offers; one whose `AXES` are `_axes.Axes` also says when inputs do not matter."""

    def quantize(self, request: Request) -> "Mapping[str, Module]": ...


def looks_at_inputs(maker: Method, options: Mapping[str, Any]) -> bool:
    """Whether a method wants calibration even where the scheme's own ranges do not."""
    from analysis.methods._axes import Axes

    axes = getattr(maker, "AXES", None)
    return not isinstance(axes, Axes) or axes.over(options).needs_statistics


#: Method names, by walking this folder.
METHODS: tuple[str, ...] = tuple(
    sorted(row.name.replace("_", "-") for row in pkgutil.iter_modules(__path__) if not row.name.startswith("_"))
)


def method(name: str) -> Method:
    """The module of the method called `name`. Raises ValueError, naming the nearest, for an unknown one."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    module: Any = import_module(f"{__name__}.{name.replace('-', '_')}")
    return module
