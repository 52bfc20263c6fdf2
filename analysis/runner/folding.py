"""Smoothing without a multiplication at run time: the factor of a layer's input goes into what comes before.

y = W x = (W s)(x / s), and where x is the output of a norm with affine weights, or of a linear map, x / s is that
module with other weights. Factors here are powers of two. Then nothing is rounded: every product of the two modules is
the same float as before, the denoiser in full precision returns the same bits, and only what is quantized in between
sees a flatter input. (An exponent is also what hardware shifts by; arXiv:2507.12933 uses 2^k on skip connections.) A
power of two is within a factor of 1.42 of any other factor, and the range it evens out spans powers of ten.

Because an exact fold changes no bit, whether one is possible need not be derived from an architecture's code: it is
tried. Candidates come from what is generally so: a norm whose output is the very tensor that layers are called with;
values of attention and the projection of its output, between which only sums over tokens lie; the value half of a gated
feed-forward. They are tried with random powers of two, all at once, then by halves, and those that change a bit of the
output are none: a norm whose output is also used elsewhere, a nonlinearity in between. Layers that share an input share
a factor.

float16 has few exponents: there, weights below 2^-14 lose a bit per halving, so places are looked for in float32.

Not folded: what lies behind SiLU and GELU, and the modulated norms of DiT, SD3 and PixArt, which have no weights of
their own that a checkpoint could hold. There the multiplication stays.
"""

import copy
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from analysis.runner.calibrate import Calibration
from analysis.runner.load import denoiser_name
from analysis.runner.padding import unpadded
from analysis.runner.quantize import replaced, with_denoiser
from analysis.runner.sample import call
from analysis.runner.statistics import Statistics, draw
from fpsim.nn.clock import timestep_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from analysis.methods import Layer, Request

ROWS = 256  #: of the inputs that factors are chosen on
BATCH = 16
_Call = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Fold:
    """A place where a factor per channel changes nothing: `source` divides, `targets` multiply.

    channels : number of factors; the first so many rows of a linear source
    """

    source: str
    targets: tuple[str, ...]
    channels: int


def fold(request: "Request") -> "tuple[Request, dict[str, nn.Module]]":
    """The request with smoothing folded wherever that is possible, and the changed modules that are none of its layers.

    Which layers those are is noted in `request.folded`, and their calibrated ranges are those of the smoothed inputs.
    Where no factor would make the layers' outputs better there is none, not at run time either.

    Raises ValueError without calibration.
    """
    from analysis.methods._transform import smooth_factor

    seen = request.calibration
    if seen is None:
        raise ValueError("smoothing looks at calibration inputs: pass calibration= a list of captions or a Calibration")
    name = denoiser_name(request.pipe)
    denoiser: nn.Module = getattr(request.pipe, name)
    layers = {layer.path: layer for layer in request.layers}
    found = [one for one in foldable(denoiser, one_call(request.pipe, seen)) if all(t in layers for t in one.targets)]
    if not found:
        return request, {}
    inputs = _inputs(request.pipe, seen, {one.targets[0]: layers[one.targets[0]] for one in found})
    working = replaced(denoiser, {})
    found.sort(key=lambda one: isinstance(denoiser.get_submodule(one.source), nn.Linear), reverse=True)
    ranges = dict(seen.ranges)
    for one in found:
        weights = torch.cat([_weight(working, target).detach().float() for target in one.targets])
        statistics, by_time = inputs[one.targets[0]]
        factor = smooth_factor(layers[one.targets[0]], weights, statistics, powers=True)
        if factor is None:
            continue
        apply(working, one, factor)
        request.folded.update(dict.fromkeys(one.targets, one.source))
        ranges |= dict.fromkeys(one.targets, _divided(by_time, factor))
    decided = {target for one in found for target in one.targets}
    moved = tuple(
        replace(layer, module=working.get_submodule(layer.path), smoothed=layer.path in decided)
        for layer in request.layers
    )
    sources = {one.source for one in found if one.source not in layers and one.targets[0] in request.folded}
    changed = {source: working.get_submodule(source) for source in sources}
    pipe = with_denoiser(request.pipe, name, working)
    return replace(request, pipe=pipe, layers=moved, calibration=replace(seen, ranges=ranges)), changed


def one_call(pipe: "DiffusionPipeline", seen: Calibration) -> _Call:
    """Arguments of a call of the denoiser, the first of the calibration trajectories."""
    kept: list[_Call] = []
    denoiser = getattr(pipe, denoiser_name(pipe))
    handle = denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: kept.append((args, dict(kwargs))) if not kept else None, with_kwargs=True
    )
    try:
        call(pipe, seen.captions[:1], seen.seeds[:1], 1, seen.guidance, output="latent")
    finally:
        handle.remove()
    return kept[0]


def foldable(denoiser: nn.Module, given: _Call) -> tuple[Fold, ...]:
    """Where factors can be folded, by trying: those candidates that change no bit of the denoiser's output."""
    if _output(denoiser, given).dtype == torch.float16:
        denoiser, given = copy.deepcopy(denoiser).float(), (_wide(given[0]), _wide(given[1]))
    wanted = _output(denoiser, given)

    def exact(some: Sequence[Fold]) -> bool:
        generator = torch.Generator().manual_seed(0)
        trial = replaced(denoiser, {})
        for one in some:
            powers = torch.randint(-2, 3, (one.channels,), generator=generator)
            apply(trial, one, torch.exp2(powers.to(_weight(denoiser, one.targets[0]).device, torch.float32)))
        return torch.equal(_output(trial, given), wanted)

    def kept(some: Sequence[Fold]) -> list[Fold]:
        if not some or exact(some):
            return list(some)
        half = len(some) // 2
        return [] if len(some) == 1 else kept(some[:half]) + kept(some[half:])

    return tuple(kept(_candidates(denoiser, given)))


def _wide(value: Any) -> Any:
    """float16 tensors in an argument as float32."""
    if isinstance(value, dict):
        return {key: _wide(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(_wide(entry) for entry in value)
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def apply(model: nn.Module, one: Fold, factor: Tensor) -> None:
    """Divide the source by `factor` (channels,) and multiply the targets, in `model`, whose parameters are replaced."""
    source: Any = model.get_submodule(one.source)
    rows = torch.ones(len(source.weight), device=factor.device)
    rows[: one.channels] = factor
    _set(source, "weight", source.weight / rows.to(source.weight.dtype).view(-1, *(1,) * (source.weight.ndim - 1)))
    if getattr(source, "bias", None) is not None:
        _set(source, "bias", source.bias / rows.to(source.bias.dtype))
    for path in one.targets:
        target: Any = model.get_submodule(path)
        columns = factor.to(target.weight.dtype).view(1, -1, *(1,) * (target.weight.ndim - 2))
        _set(target, "weight", target.weight * columns)


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    setattr(module, name, nn.Parameter(value.detach(), requires_grad=False))


def _weight(model: nn.Module, path: str) -> Tensor:
    return model.get_submodule(path).get_parameter("weight")


def _output(denoiser: nn.Module, given: _Call) -> Tensor:
    with torch.no_grad():
        made = denoiser(*given[0], **given[1])
    found: Tensor = made if isinstance(made, Tensor) else made[0]
    return found


def _candidates(denoiser: nn.Module, given: _Call) -> list[Fold]:
    """What may be foldable; no layer is the target of two."""
    found = _behind_norms(denoiser, given)
    for path, module in denoiser.named_modules():
        part: Any = module
        values, out = getattr(part, "to_v", None), getattr(part, "to_out", None)
        if isinstance(values, nn.Linear) and isinstance(out, nn.ModuleList) and isinstance(out[0], nn.Linear):
            found.append(Fold(source=f"{path}.to_v", targets=(f"{path}.to_out.0",), channels=values.out_features))
        net = getattr(part, "net", None)
        if isinstance(net, nn.ModuleList) and len(net) > 2 and isinstance(net[2], nn.Linear):
            gate = getattr(net[0], "proj", None)
            if isinstance(gate, nn.Linear) and gate.out_features == 2 * net[2].in_features:
                found.append(Fold(source=f"{path}.net.0.proj", targets=(f"{path}.net.2",), channels=net[2].in_features))
    unique: dict[str, Fold] = {}
    for one in found:
        fits = all(_weight(denoiser, path).shape[1] == one.channels for path in one.targets)
        if fits and not any(target in unique for target in one.targets):
            unique |= dict.fromkeys(one.targets, one)
    return list(dict.fromkeys(unique.values()))


def _behind_norms(denoiser: nn.Module, given: _Call) -> list[Fold]:
    """Norms with affine weights, and the layers that are called with the very tensor a norm returned."""
    made: dict[int, tuple[Any, str]] = {}
    behind: dict[str, list[str]] = {}

    def leave(path: str) -> Any:
        def hook(_: Any, __: Any, output: Tensor) -> None:
            made[id(output)] = (weakref.ref(output), path)

        return hook

    def enter(path: str) -> Any:
        def hook(_: Any, args: tuple[Tensor, ...]) -> None:
            reference, norm = made.get(id(args[0]), (None, ""))
            if reference is not None and reference() is args[0]:
                behind.setdefault(norm, []).append(path)

        return hook

    handles = []
    for path, module in denoiser.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            if getattr(module, "groups", 1) == 1:
                handles.append(module.register_forward_pre_hook(enter(path)))
        elif isinstance(weight, nn.Parameter) and weight.ndim == 1:
            handles.append(module.register_forward_hook(leave(path)))
    try:
        _output(denoiser, given)
    finally:
        for handle in handles:
            handle.remove()
    return [
        Fold(source=norm, targets=tuple(paths), channels=len(_weight(denoiser, norm)))
        for norm, paths in behind.items()
        if len(set(paths)) == len(paths)
    ]


#: One timestep's (lowest, highest) of each channel, by timestep.
_Ends = dict[float, tuple[Tensor, Tensor]]


def _inputs(
    pipe: "DiffusionPipeline", seen: Calibration, layers: "Mapping[str, Layer]"
) -> "dict[str, tuple[Statistics, _Ends]]":
    """Inputs of some layers along the calibration trajectories: rows, and each channel's ends; no Gram matrices."""
    starts = range(0, len(seen.captions), BATCH)
    count = -(-ROWS // (len(starts) * seen.steps))
    generator = torch.Generator().manual_seed(0)
    rows: dict[str, list[Tensor]] = {path: [] for path in layers}
    ends: dict[str, _Ends] = {path: {} for path in layers}
    denoiser: nn.Module = getattr(pipe, denoiser_name(pipe))
    now = [0.0]

    def tick(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        now[0] = timestep_of(args, kwargs)

    def hook(path: str) -> Any:
        def watch(module: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0].detach()
            flat = x.flatten(0, -2) if isinstance(module, nn.Linear) else x.movedim(1, -1).flatten(0, -2)
            low, high = flat.amin(0).float(), flat.amax(0).float()
            if now[0] in ends[path]:
                low, high = low.minimum(ends[path][now[0]][0]), high.maximum(ends[path][now[0]][1])
            ends[path][now[0]] = low, high
            rows[path].append(draw(module, x, count, generator).float())

        return watch

    handles = [denoiser.register_forward_pre_hook(tick, with_kwargs=True)]
    handles += [layer.module.register_forward_pre_hook(hook(path)) for path, layer in layers.items()]
    try:
        with unpadded(denoiser):
            for start in starts:
                part = slice(start, start + BATCH)
                call(pipe, seen.captions[part], seen.seeds[part], seen.steps, seen.guidance, output="latent")
    finally:
        for handle in handles:
            handle.remove()
    made = {}
    for path, by_time in ends.items():
        low = torch.stack([low for low, _ in by_time.values()]).amin(0)
        high = torch.stack([high for _, high in by_time.values()]).amax(0)
        some = Statistics(gram=low.new_empty(0, 0), rows=torch.cat(rows[path]), channel_low=low, channel_high=high)
        made[path] = some, by_time
    return made


def _divided(by_time: _Ends, factor: Tensor) -> tuple[tuple[float, float], ...]:
    """(lowest, highest) input at each timestep, ascending, of a layer whose channels are divided by `factor`: what
    calibrating again would see, to the bit, as powers of two round nothing."""
    return tuple(
        (float((low / factor).min()), float((high / factor).max())) for _, (low, high) in sorted(by_time.items())
    )
