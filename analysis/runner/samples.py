"""Calls of the denoiser that methods replay: some images of every step of the calibration trajectories.

A trajectory visits the denoiser once per step with a batch of images, both halves of guidance in it or one after the
other. From each visit a few images are kept, uniformly drawn, with the timestep and the conditioning they came with.
Replaying them is much cheaper than running the trajectories again, and it holds the inputs of the full-precision and of
a partly quantized denoiser side by side, image for image.

How many are kept is bounded by a count and by bytes. The draw depends on the seed alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from analysis.runner.calibrate import Calibration
from analysis.runner.load import denoiser_name
from analysis.runner.padding import unpadded
from analysis.runner.sample import call

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

BATCH = 16  # captions per call of the pipeline


@dataclass(frozen=True, kw_only=True)
class Call:
    """Arguments of one call of a module, `images` of them along the first axis of every tensor that has a batch.

    halves : 2 if the first half of the images is without, the second, in the same order, with the condition
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    images: int
    halves: int = 1


def collect(
    pipe: "DiffusionPipeline", calibration: Calibration, count: int, budget: int = 1 << 30, seed: int = 0
) -> tuple[Call, ...]:
    """About `count` images spread evenly over the trajectories of `calibration`, in at most `budget` bytes.

    The same images for the same arguments; where a call has both halves of guidance, both of every image drawn. Raises
    ValueError if not even one image per visit fits the budget.
    """
    import torch

    captions, seeds = calibration.captions, calibration.seeds
    denoiser = getattr(pipe, denoiser_name(pipe))
    visits = -(-len(captions) // BATCH) * calibration.steps
    generator = torch.Generator().manual_seed(seed)
    kept: list[Call] = []
    batch = 0

    def keep(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        size = len(first(output))
        halves = 2 if calibration.guidance != 1 and size == 2 * batch else 1
        whole = Call(args=args, kwargs=kwargs, images=size, halves=halves)
        room = budget // visits * size // max(_bytes(whole), 1) // halves
        if room < 1:
            raise ValueError(f"{budget} bytes do not hold one image of each of {visits} visits to the denoiser")
        wanted = min(-(-count // visits // halves), room)
        chosen = torch.randperm(size // halves, generator=generator)[:wanted].sort().values
        kept.append(take(whole, torch.cat([chosen + half * (size // halves) for half in range(halves)])))

    handle = denoiser.register_forward_hook(keep, with_kwargs=True)
    try:
        with unpadded(denoiser):
            for start in range(0, len(captions), BATCH):
                part = slice(start, start + BATCH)
                batch = len(captions[part])
                call(pipe, captions[part], seeds[part], calibration.steps, calibration.guidance, output="latent")
    finally:
        handle.remove()
    return tuple(kept)


def replay(
    denoiser: "Module", calls: Sequence[Call], hooks: "Mapping[Module, Callable[..., Any]]", last: "Module | None"
) -> None:
    """Run `calls` through `denoiser` with forward hooks (module, args, kwargs, output) on some modules of it.

    last : a module after whose output a call need not go on; None: run to the end
    """
    import torch

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hooks.items()]
    if last is not None:
        handles.append(last.register_forward_hook(_stop))
    try:
        with torch.no_grad():
            for one in calls:
                try:
                    denoiser(*one.args, **one.kwargs)
                except _Reached:
                    continue
    finally:
        for handle in handles:
            handle.remove()


class _Reached(BaseException):
    """What was wanted of a call has been seen; BaseException so that no library code takes it for a failure."""


def _stop(*_: Any) -> None:
    raise _Reached


def first(output: Any) -> "Tensor":
    """The tensor that a module's output is or begins with."""
    made: Tensor = output if hasattr(output, "shape") else output[0]
    return made


def take(whole: Call, chosen: "Tensor") -> Call:
    """Some images of a call."""
    import torch

    def cut(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == whole.images:
            return value.detach()[chosen.to(value.device)].clone()
        if isinstance(value, dict):
            return {name: cut(entry) for name, entry in value.items()}
        return value

    args, kwargs = tuple(cut(value) for value in whole.args), {name: cut(value) for name, value in whole.kwargs.items()}
    return replace(whole, args=args, kwargs=kwargs, images=len(chosen))


def singles(whole: Call) -> Iterator[Call]:
    """The images of a call, one by one."""
    import torch

    for index in range(whole.images):
        yield replace(take(whole, torch.tensor([index])), halves=1)


def joined(calls: Sequence[Call]) -> Call:
    """Calls of `singles` as one call, in their order."""
    import torch

    def together(values: list[Any]) -> Any:
        if isinstance(values[0], torch.Tensor) and values[0].ndim and len(values[0]) == calls[0].images:
            return torch.cat(values)
        if isinstance(values[0], dict):
            return {name: together([value[name] for value in values]) for name in values[0]}
        return values[0]

    args = tuple(together([one.args[i] for one in calls]) for i in range(len(calls[0].args)))
    kwargs = {name: together([one.kwargs[name] for one in calls]) for name in calls[0].kwargs}
    return Call(args=args, kwargs=kwargs, images=sum(one.images for one in calls), halves=calls[0].halves)


def _bytes(value: Any) -> int:
    if isinstance(value, Call):
        return _bytes(value.args) + _bytes(dict(value.kwargs))
    if isinstance(value, dict):
        return sum(_bytes(entry) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_bytes(entry) for entry in value)
    return value.numel() * value.element_size() if hasattr(value, "element_size") else 0
