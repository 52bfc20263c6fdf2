"""A model as its operations, from its configuration alone: no weights, no GPU, seconds.

`trace("sdxl-base", batch=2)` builds the module on torch's meta device, runs one call of one part, and returns every
operation that would take time as a `hwmodels.Workload`: shapes, types, layer paths, memory.  It takes the name of an
architecture in `analysis/models`, a pipeline directory or object of diffusers, or any
`torch.nn.Module` with its inputs.

Rows are those of one call: classifier-free guidance doubles what a user asks for.  Tracing is in bfloat16; operations a
model insists on doing in another type (a norm in float32) say so in `dtype`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.models import MODELS, PARTS, Input, Model, Part, Size, embedded, model
from analysis.models._components import from_directory, from_pipeline
from hwmodels.ops import Op
from hwmodels.workload import Workload

if TYPE_CHECKING:
    import torch

WARN_SHARE = 0.01


def trace(
    subject: str | Path | Model | torch.nn.Module | Any,
    batch: int = 1,
    part: str = "denoiser",
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    tokens: int | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> Workload:
    """The operations of one call of `part`.

    subject: a name of `analysis.models.MODELS` or of an embedded pipeline, a pipeline directory (model_index.json), a
    diffusers pipeline, a `Model`, or a module; batch: rows of the call; height, width, frames: pixels and frames
    instead of the model's default; tokens: text tokens; inputs: keyword arguments of a module's forward, as tensors or
    `analysis.models.Input` shapes (needed for modules of a class no rule is known for).
    Raises ValueError for unknown names and sizes the model does not take.
    """
    import torch

    if isinstance(subject, torch.nn.Module):
        return _trace_module(subject, inputs, batch, height, width, frames, tokens)
    found, name = _resolve(subject)
    parts = found.part(part)
    label = name if part == "denoiser" else f"{name}:{part}"
    works = []
    for index, one in enumerate(parts):
        size = found.size(batch, height, width, frames, one.tokens if tokens is None and one.tokens else tokens)
        shapes = inputs if inputs is not None else one.example_inputs(size)
        prefix = f"{one.class_name}{index}" if len(parts) > 1 else ""
        works.append(_run(one.build(), shapes, one.method, label, prefix))
    return works[0] if len(works) == 1 else _joined(label, works)


def _resolve(subject: Any) -> tuple[Model, str]:
    if isinstance(subject, Model):
        return subject, subject.title
    if isinstance(subject, str) and subject.lower() in MODELS:
        return model(subject), subject.lower()
    if isinstance(subject, str | Path) and (Path(subject) / "model_index.json").is_file():
        return from_directory(Path(subject)), Path(subject).name
    if isinstance(subject, str) and subject.lower() in embedded.NAMES:
        return from_directory(embedded.path(subject.lower())), subject.lower()
    if isinstance(subject, str | Path):
        if "/" in str(subject) or isinstance(subject, Path):
            raise ValueError(f"no pipeline at {subject}: model_index.json not found; give a directory that has one")
        return model(str(subject), embedded.NAMES), str(subject)  # raises, with the nearest name
    if isinstance(getattr(subject, "components", None), Mapping):
        return from_pipeline(subject), type(subject).__name__
    raise ValueError(
        f"cannot trace {type(subject).__name__}; allowed: a model name, a pipeline, its directory, a module"
    )


def guided(subject: str | Path) -> bool:
    """Whether classifier-free guidance doubles the rows of a call: of a pipeline's directory, or any traceable name."""
    return _resolve(subject)[0].guided


def _trace_module(
    module: torch.nn.Module,
    inputs: Mapping[str, Any] | None,
    batch: int,
    height: int | None,
    width: int | None,
    frames: int | None,
    tokens: int | None,
) -> Workload:
    name = type(module).__name__
    if inputs is None:
        config = dict(getattr(module, "config", {}) or {})
        cls = f"{type(module).__module__.partition('.')[0]}.{name}"
        found = Part(cls=cls, config=config)
        latent = config.get("sample_size") or 64
        rows, columns = (latent, latent) if isinstance(latent, int) else latent
        size = Size(
            batch=batch,
            height=height or rows,
            width=width or columns,
            frames=frames or 1,
            tokens=tokens or 77,
            downscale=1,
        )
        inputs = found.example_inputs(size)
    return _run(module, inputs, "forward", name, "", inplace=True)


def _run(
    module: torch.nn.Module,
    inputs: Mapping[str, Any],
    method: str,
    name: str,
    prefix: str,
    inplace: bool = False,
) -> Workload:
    import torch

    from analysis.recorder import Recorder

    if inplace:
        weight = next((p for p in module.parameters() if p.is_floating_point()), None)
        device = "meta" if weight is None else str(weight.device)
        base = torch.float32 if weight is None else weight.dtype
    else:
        device, base = "meta", torch.bfloat16
        module = torch.nn.Module.to(module, base)  # diffusers' own `to` warns about float32 parts it has not
    recorder = Recorder(module, base, prefix)
    accepted = inspect.signature(getattr(module, method)).parameters
    unknown = [key for key in inputs if key not in accepted] if "kwargs" not in accepted else []
    if unknown:
        raise ValueError(f"{type(module).__name__}.{method} takes no {unknown[0]!r}; allowed: {', '.join(accepted)}")
    tensors = {key: _tensor(value, device, base) for key, value in inputs.items()}
    training = module.training
    module.eval()
    try:
        with torch.device(device), torch.no_grad(), recorder.watch():
            recorder.live.add(tensors)
            getattr(module, method)(**tensors)
    finally:
        module.train(training)
    ops = tuple(recorder.ops)
    return Workload(
        name=name,
        ops=ops,
        parameters=sum(p.numel() for p in module.parameters()),
        live_elements=recorder.live.peak // 2 if base.itemsize == 2 else recorder.live.peak // base.itemsize,
        notes=_notes(ops, recorder.unknown, recorder.asked),
    )


def _notes(ops: tuple[Op, ...], unknown: Mapping[str, int], asked: int) -> tuple[str, ...]:
    moved = sum(op.traffic.reads + op.traffic.writes for op in ops) or 1
    notes = []
    for name, elements in sorted(unknown.items(), key=lambda item: -item[1]):
        share = elements / moved
        word = "WARNING: " if share > WARN_SHARE else ""
        notes.append(f"{word}operation {name!r} is of no known kind: counted as movement, {share:.2%} of all elements")
    if asked:
        notes.append(f"the model looked at {asked} values (.item()); without weights it was told 1 each time")
    return tuple(notes)


def _tensor(value: Any, device: str, base: torch.dtype) -> Any:
    import torch

    if isinstance(value, Input):
        dtype = getattr(torch, value.dtype) if value.dtype else base
        for size in value.shape:
            if not 1 <= size < 2**31:
                raise ValueError(f"an input of {' x '.join(map(str, value.shape))} elements: no size may be {size}")
        return torch.zeros(value.shape, dtype=dtype, device=device)
    if isinstance(value, Mapping):
        return {key: _tensor(item, device, base) for key, item in value.items()}
    return value


def _joined(name: str, works: list[Workload]) -> Workload:
    return Workload(
        name=name,
        ops=tuple(op for work in works for op in work.ops),
        parameters=sum(work.parameters for work in works),
        live_elements=max(work.live_elements for work in works),
        notes=tuple(dict.fromkeys(note for work in works for note in work.notes)),
    )


__all__ = ["PARTS", "trace"]
