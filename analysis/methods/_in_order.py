"""Layers in the order of execution, unit by unit: what a unit meets is what the units before it made of the input.

A unit is a residual or transformer block with the layers inside, or a single layer outside of any. Stored calls of the
denoiser are run twice, unit by unit (`analysis.runner.lockstep`): in full precision for the outputs to aim at, and with
everything before the unit quantized for the inputs it will meet (or in full precision only, if `inputs` says so).
"""

import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Module

from analysis.methods import Layer, Request, _learned
from analysis.methods._learned import BUDGETS
from analysis.methods._prepare import Prepared, prepare
from analysis.runner.calibrate import Calibration
from analysis.runner.load import denoiser_name
from analysis.runner.lockstep import Lockstep
from analysis.runner.quantize import replaced
from analysis.runner.samples import BATCH, Call, collect, joined, replay, singles
from analysis.runner.statistics import PER_COLUMN, Tap, enough

if TYPE_CHECKING:
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
    """What a unit meets: its calls, one image each, in full precision and behind quantized layers (the same ones for
    full-precision inputs), the outputs wanted, (1, ...) each, and its layers in stages, see `_stages`.
    """

    full: Sequence[Call]
    calls: Sequence[Call]
    outputs: Sequence[Tensor]
    stages: Sequence[Sequence[Layer]]


def quantize(request: Request, calibration: Calibration, axes: "Axes") -> dict[str, Module]:
    """Replacements for `request.layers`.

    Raises ValueError for activations with ranges per part of the trajectory behind quantized layers: units are run by
    themselves on images of all timesteps together, which part an image belongs to is not known there.
    """
    for layer in request.layers:
        if axes.inputs == "quantized" and layer.activation is not None and layer.activation.steps > 1:
            raise ValueError(
                f"layer {layer.path}: {layer.activation.steps} timestep groups go with inputs='full-precision', "
                "or with a method that does not quantize in order (rtn, gptq)"
            )
    denoiser = getattr(request.pipe, denoiser_name(request.pipe))
    samples = collect(request.pipe, calibration, axes.samples)
    behind = axes.inputs == "quantized"
    working = replaced(denoiser, {}) if behind else denoiser
    made: dict[str, Module] = {}
    parts = units(denoiser, request.layers, calibration)
    with ExitStack() as stack:
        full = stack.enter_context(Lockstep(denoiser, samples, list(parts)))
        met = stack.enter_context(Lockstep(working, samples, list(parts))) if behind else full
        for path, layers in parts.items():
            seen = _meet(denoiser.get_submodule(path), path, layers, full, met)
            prepared: list[Prepared] = []
            plain = _taps(denoiser, path, layers, seen.full, axes, holds=behind)
            for stage in seen.stages if behind else [layers]:
                ready = _prepared(request, working, path, stage, seen, axes, plain)
                prepared += ready
                if behind:
                    _put(working, {one.layer.path: one.build(request) for one in ready})
            if axes.rounding == "learned":
                prepared = _learned.learn(denoiser.get_submodule(path), path, prepared, seen, axes, axes.of(BUDGETS))
            built = {one.layer.path: one.build(request) for one in prepared}
            made |= built
            if behind:
                _put(working, built)
            met.after(path)
    return made


def _prepared(
    request: Request,
    working: Module,
    path: str,
    layers: Sequence[Layer],
    seen: Seen,
    axes: "Axes",
    plain: Mapping[str, Tap],
) -> list[Prepared]:
    """Layers of one stage. Behind quantized layers, a layer's own input quantizer counts as one of them: the weight is
    fitted to what it is multiplied by. That takes two looks, because the quantizer is chosen in the first.

    plain : taps of the layers in full precision
    """
    if axes.inputs != "quantized":
        return [prepare(request, layer, axes, plain[layer.path].result()) for layer in layers]
    sketch = replace(axes, rounding="nearest", weights="max-abs")
    looks = axes.chooses_inputs or any(
        layer.activation is not None and layer.activation.needs_calibration for layer in layers
    )
    taps = _taps(working, path, layers, seen.calls, axes, holds=True)
    given = {
        layer.path: prepare(request, layer, sketch, taps[layer.path].result() if looks else None) for layer in layers
    }
    samples = {name: one for name, one in given.items() if one.needs_samples}
    if samples:
        some = [layer for layer in layers if layer.path in samples]
        taps |= _taps(working, path, some, seen.calls, axes, holds=True, given=samples)
    made = []
    for layer in layers:
        one = given[layer.path]
        here = _same if layer.path in samples else one.received_rows
        found = taps[layer.path].pair(plain[layer.path], here, partial(one.received_rows, quantized=False))
        made.append(prepare(request, layer, axes, found, one))
    return made


def _same(rows: Tensor) -> Tensor:
    return rows


def _put(model: Module, modules: Mapping[str, Module]) -> None:
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, module)


def units(denoiser: Module, layers: Sequence[Layer], calibration: Calibration) -> dict[str, list[Layer]]:
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


def _meet(unit: Module, path: str, layers: Sequence[Layer], full: Lockstep, met: Lockstep) -> Seen:
    """What the unit at `path` is called with in two runs, and what it makes of it in the one in full precision."""
    wanted = [one for call in full.before(path) for one in singles(call)]
    calls = [one for call in met.before(path) for one in singles(call)] if met is not full else wanted
    inputs: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def keep_input(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            inputs[name] = args[0]

        return keep_input

    watch = {layer.module: note(layer.path) for layer in layers if layer.module is not unit}
    if watch:
        replay(unit, wanted[:1], watch, None)
    outputs = [one for output in full.after(path) for one in output.split(1)]
    return Seen(full=wanted, calls=calls, outputs=outputs, stages=_stages(layers, inputs))


def _stages(layers: Sequence[Layer], inputs: Mapping[str, Tensor]) -> list[list[Layer]]:
    """Layers that are called with the very same tensor, such as the projections of queries, keys and values, together.

    What a layer makes up for must not be made up for again by the next, so stages are quantized one after the other.
    """
    stages: list[list[Layer]] = []
    for layer in layers:
        if stages and layer.path in inputs and inputs.get(stages[-1][0].path) is inputs[layer.path]:
            stages[-1].append(layer)
        else:
            stages.append([layer])
    return stages


def _taps(
    model: Module,
    path: str,
    layers: Sequence[Layer],
    calls: Sequence[Call],
    axes: "Axes",
    holds: bool,
    given: Mapping[str, Prepared] | None = None,
) -> dict[str, Tap]:
    """Taps of some layers of the unit at `path` as it is in `model`, which have seen `calls` of it.

    given : path -> the layer, for taps of what its weight is multiplied by instead of what it is called with
    """
    starts = range(0, len(calls), BATCH)
    taps = {
        layer.path: Tap(
            layer,
            (enough(layer, axes.gram_rows, PER_COLUMN), axes.kept_rows),
            len(starts),
            zlib.crc32(layer.path.encode()),  # the same rows whoever looks
            holds,
        )
        for layer in layers
    }

    def hook(name: str) -> Any:
        def see(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            taps[name](module, args if given is None else (given[name].received(args[0].float()),))

        return see

    hooks = {model.get_submodule(name): hook(name) for name in taps}
    for start in starts:
        replay(model.get_submodule(path), (joined(calls[start : start + BATCH]),), hooks, list(hooks)[-1])
    return taps
