"""Layers that see nothing but the timestep, and their outputs as tables.

Which layers these are differs between architectures: in Stable Diffusion the whole time embedding and its projection in
every residual block, in SDXL only the first two layers, because text and image sizes are added to the embedding; in
PixArt also the modulation that all blocks share, in DiT and SD3 not. So it is not read off names or classes: the
denoiser is called twice at one timestep, the second time with every other argument changed, and a layer whose input is
the same bits in both calls depends on the timestep alone.

The tables are filled by one run of the pipeline itself, so they hold what it computes, at the timesteps its scheduler
gives out. With the same number of rows per call they return the layer's own bits; with another number the first row
serves for all, and a matrix library may have summed it in another order, as it may between any two batch sizes.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from analysis.runner.load import denoiser_name
from analysis.runner.sample import call
from fpsim.nn.clock import Now
from fpsim.nn.tabled import TabledLinear

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

    from hwmodels import Workload


def tabled(
    pipe: "DiffusionPipeline", steps: int = 20, guidance: float = 3.0, batch_size: int = 1, prompt: str = "a red circle"
) -> "DiffusionPipeline":
    """`pipe` with tables in place of the layers that depend on the timestep alone; the given one is untouched.

    steps, guidance, batch_size : as it will be sampled; other timesteps are computed, slower and just as exact

    Quantizing the result leaves those layers in full precision. Raises ValueError if there are no such layers.
    """
    from analysis.runner.quantize import replaced, with_denoiser

    name = denoiser_name(pipe)
    denoiser: Module = getattr(pipe, name)
    prompts, seeds = [prompt] * batch_size, list(range(batch_size))
    first: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []

    def keep(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not first:
            first.append((args, kwargs))

    handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        call(pipe, prompts, seeds, 1, guidance, output="latent")
    finally:
        handle.remove()
    paths = time_only(denoiser, *first[0])
    if not paths:
        raise ValueError(f"no layer of the {name} depends on the timestep alone")
    now = Now()
    outputs: dict[str, dict[float, Tensor]] = {path: {} for path in paths}
    copied = replaced(denoiser, {})
    now.attach(copied)
    handles = [copied.get_submodule(path).register_forward_hook(_filler(outputs[path], now)) for path in paths]
    made = with_denoiser(pipe, name, copied)
    call(made, prompts, seeds, steps, guidance, output="latent")
    for handle in handles:
        handle.remove()
    for path in paths:
        source: Any = copied.get_submodule(path)
        copied.set_submodule(path, TabledLinear.from_float(source, outputs[path], now))
    return made


def _filler(outputs: "dict[float, Tensor]", now: Now) -> Any:
    def fill(_: Any, args: tuple[Any, ...], output: "Tensor") -> None:
        if now.timestep is not None:
            outputs[now.timestep] = output.detach().clone()

    return fill


def time_only(denoiser: "Module", args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the Linear layers of `denoiser` whose input depends on no argument but the timestep.

    args, kwargs : of one call
    """
    once = _inputs(denoiser, args, kwargs)
    generator = torch.Generator().manual_seed(0)
    others = tuple(value if i == 1 else _changed(value, generator) for i, value in enumerate(args))
    named = {key: value if key == "timestep" else _changed(value, generator) for key, value in kwargs.items()}
    again = _inputs(denoiser, others, named)
    return tuple(path for path, seen in once.items() if seen == again.get(path))


def _inputs(denoiser: "Module", args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, int]:
    """A checksum of the input of each Linear that is called once."""
    seen: dict[str, list[Tensor]] = {}

    def watch(path: str) -> Any:
        return lambda _, args: seen.setdefault(path, []).append(_checksum(args[0]))

    handles = [
        layer.register_forward_pre_hook(watch(path))
        for path, layer in denoiser.named_modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    try:
        with torch.no_grad():
            denoiser(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return {path: int(sums[0]) for path, sums in seen.items() if len(sums) == 1}


_PATTERNS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _checksum(x: "Tensor") -> "Tensor":
    """Sum of all bit patterns, each times its place, modulo 2^64: what is compared are bits, kept are 8 bytes."""
    patterns = x.detach().contiguous().view(_PATTERNS[x.element_size()]).flatten().long()
    return (patterns * torch.arange(1, len(patterns) + 1, device=x.device)).sum()


def _changed(value: Any, generator: torch.Generator) -> Any:
    """An argument like `value` with other numbers: noise added to floats, 0 and 1 for whole numbers and masks."""
    if isinstance(value, dict):
        return {key: _changed(entry, generator) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_changed(entry, generator) for entry in value)
    if not isinstance(value, torch.Tensor):
        return value
    if not value.is_floating_point():
        return (value == 0).to(value.dtype)
    noise = torch.randn(value.shape, generator=generator).to(value.device, value.dtype)
    return value + noise * (1 + value.abs().amax() if value.numel() else 1)


def without(workload: "Workload", paths: Collection[str]) -> "Workload":
    """`workload` less the operations at `paths`: what is left to run when those layers are tables."""
    return replace(workload, ops=tuple(op for op in workload.ops if op.path not in paths))
