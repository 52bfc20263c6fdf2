"""Layers in the order of execution, unit by unit: what a unit meets is what the units before it made of the input.

A unit is a residual or transformer block with the layers inside, or a single layer outside of any. For each, stored
calls of the denoiser are replayed twice, in full precision for the outputs to aim at and with everything before the
unit quantized for the inputs it will meet (or in full precision too, if `inputs` says so).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.methods import Layer, Request, _learned
from analysis.methods._prepare import prepare
from analysis.runner.calibrate import Calibration
from analysis.runner.load import denoiser_name
from analysis.runner.quantize import replaced
from analysis.runner.samples import Call, collect, first, replay, singles
from analysis.runner.statistics import Statistics, Tap

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from analysis.methods._axes import Axes

#: Classes of diffusers that are reconstructed as a whole.
BLOCKS = (
    "ResnetBlock2D",
    "BasicTransformerBlock",
    "JointTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a unit meets: its calls, one image each; the outputs wanted, (1, ...) each; statistics per layer path."""

    calls: Sequence[Call]
    outputs: "Sequence[Tensor]"
    statistics: Mapping[str, Statistics]


def quantize(request: Request, calibration: Calibration, axes: "Axes") -> "dict[str, Module]":
    """Replacements for `request.layers`."""
    denoiser = getattr(request.pipe, denoiser_name(request.pipe))
    samples = collect(request.pipe, calibration, axes.samples)
    behind = axes.inputs == "quantized"
    working = replaced(denoiser, {}) if behind else denoiser
    made: dict[str, Module] = {}
    for path, layers in units(denoiser, request.layers, calibration).items():
        seen = look(denoiser, working, path, layers, samples, axes)
        prepared = [prepare(request, layer, axes, seen.statistics[layer.path]) for layer in layers]
        if axes.rounding == "learned":
            prepared = _learned.learn(denoiser.get_submodule(path), path, prepared, seen, axes)
        for one in prepared:
            module = one.build(request)
            made[one.layer.path] = module
            if behind:
                parent, _, name = one.layer.path.rpartition(".")
                setattr(working.get_submodule(parent), name, module)
                for clock in request.clocks.values():
                    clock.attach(working)
    return made


def units(denoiser: "Module", layers: Sequence[Layer], calibration: Calibration) -> dict[str, list[Layer]]:
    """Unit path -> the layers inside, in the order of execution. ValueError for a layer that was never called."""
    blocks = [path for path, module in denoiser.named_modules() if type(module).__name__ in BLOCKS]
    order = {path: index for index, path in enumerate(calibration.ranges)}
    for layer in layers:
        calibration.range(layer.path)  # names the layer if it was not seen
    found: dict[str, list[Layer]] = {}
    for layer in sorted(layers, key=lambda one: order[one.path]):
        inside = next((path for path in blocks if layer.path.startswith(f"{path}.")), layer.path)
        found.setdefault(inside, []).append(layer)
    return found


def look(
    denoiser: "Module", working: "Module", path: str, layers: Sequence[Layer], samples: Sequence[Call], axes: "Axes"
) -> Seen:
    """Replay `samples` through both denoisers up to the unit at `path`."""
    wanted = _taps(layers, samples, axes)
    met = wanted if working is denoiser else _taps(layers, samples, axes)
    calls: list[Call] = []
    outputs: list[Tensor] = []

    def target(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        outputs.extend(first(output).detach().split(1))

    def entry(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        calls.extend(singles(Call(args=args, kwargs=kwargs, images=len(first(output)))))

    for one in samples:
        _run(denoiser, path, one, wanted, [target] if working is not denoiser else [target, entry])
        if working is not denoiser:
            _run(working, path, one, met, [entry])
            for layer in layers:
                met[layer.path].pair(wanted[layer.path])
    return Seen(calls=calls, outputs=outputs, statistics={path: tap.result() for path, tap in met.items()})


def _taps(layers: Sequence[Layer], samples: Sequence[Call], axes: "Axes") -> dict[str, Tap]:
    per_call = [-(-count // len(samples)) for count in (axes.gram_rows, axes.kept_rows)]
    return {layer.path: Tap(layer, per_call[0], per_call[1], seed) for seed, layer in enumerate(layers)}


def _run(denoiser: "Module", path: str, one: Call, taps: Mapping[str, Tap], hooks: Sequence[Any]) -> None:
    unit = denoiser.get_submodule(path)
    inner = {
        denoiser.get_submodule(name): (lambda module, args, kwargs, output, tap=tap: tap(module, args))
        for name, tap in taps.items()
    }

    def outer(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if unit in inner:
            inner[unit](module, args, kwargs, output)
        for hook in hooks:
            hook(module, args, kwargs, output)

    replay(denoiser, (one,), {**inner, unit: outer}, unit)
