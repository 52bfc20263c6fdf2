"""Activation ranges along denoising trajectories of the full-precision pipeline.

The pipeline makes a few images while hooks watch the input of every Linear and Conv2d of the denoiser. Each pipeline
call runs the denoiser over the whole trajectory, with the conditional and the unconditional half of guidance in one
batch or one after the other; both are seen. What is kept is the lowest and highest value per layer and per timestep,
two floats each: the memory does not grow with prompts or image size, and ranges for any grouping of timesteps follow.
Padding tokens do not count (`padding`). Also kept is where two tensors were joined along the channels before a layer or
a residual block saw them (the skip connections of a U-Net): their halves may deserve scales of their own.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from analysis.runner.load import denoiser_name
from analysis.runner.padding import unpadded
from analysis.runner.sample import Progress, call, check
from analysis.store import read_json, write_json

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

#: Seeds of calibration noise start here, far from the small numbers that evaluations use.
FIRST_SEED = 1_000_003

#: Classes of diffusers whose input meets conv1 (through a norm) and conv_shortcut.
RESIDUAL_BLOCKS = ("ResnetBlock2D",)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration saw.

    timesteps : the denoiser's timesteps, ascending
    ranges    : layer path -> (lowest, highest) input value at each of `timesteps`; in order of execution
    splits    : layer path -> channels of the first half, for layers whose input is a skip concatenation, raw or through
                the norm of a residual block
    captions, seeds, steps, guidance : how it was made; methods that need more run the same trajectories again
    """

    timesteps: tuple[float, ...]
    ranges: Mapping[str, tuple[tuple[float, float], ...]]
    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    splits: Mapping[str, int] = field(default_factory=dict)

    def range(self, path: str) -> tuple[float, float]:
        """(lowest, highest) input of a layer over all timesteps. ValueError for a layer that was not seen."""
        if path not in self.ranges:
            raise ValueError(f"layer {path} was not seen during calibration; calibrate the pipeline that is quantized")
        seen = self.ranges[path]
        return min(low for low, _ in seen), max(high for _, high in seen)

    def max_abs(self, path: str) -> float:
        """Largest input magnitude of a layer over all timesteps."""
        low, high = self.range(path)
        return max(-low, high)

    def groups(self, count: int) -> tuple[tuple[int, ...], ...]:
        """The indices of `timesteps`, cut into `count` runs of nearly equal length."""
        total = len(self.timesteps)
        if not 1 <= count <= total:
            raise ValueError(f"{count} timestep groups, but calibration saw {total} timesteps: give 1 to {total}")
        edges = [round(i * total / count) for i in range(count + 1)]
        return tuple(tuple(range(low, high)) for low, high in itertools.pairwise(edges))

    def bounds(self, count: int) -> tuple[float, ...]:
        """The timesteps half way between neighbouring groups."""
        return tuple(
            (self.timesteps[left[-1]] + self.timesteps[right[0]]) / 2
            for left, right in itertools.pairwise(self.groups(count))
        )

    def range_by_group(self, path: str, count: int) -> tuple[tuple[float, float], ...]:
        """(lowest, highest) input of a layer in each of `count` timestep groups."""
        self.range(path)
        seen = self.ranges[path]
        parts = [[seen[i] for i in group if i < len(seen)] for group in self.groups(count)]
        return tuple((min(low for low, _ in part), max(high for _, high in part)) for part in parts)

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back."""
        return json.dumps({row.name: getattr(self, row.name) for row in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Read `to_json`'s text. Raises ValueError for anything else."""
        data = json.loads(text)
        keys = [row.name for row in fields(cls)]
        if not isinstance(data, dict) or sorted(data) != sorted(keys):
            raise ValueError(f"not a calibration: expected the keys {', '.join(keys)}")
        ranges = {path: tuple((low, high) for low, high in seen) for path, seen in data["ranges"].items()}
        lists = {key: tuple(data[key]) for key in ("timesteps", "captions", "seeds")}
        return cls(**{**data, **lists, "ranges": ranges})


def calibrate(
    pipe: "DiffusionPipeline",
    captions: Sequence[str],
    seeds: Sequence[int] | None = None,
    steps: int = 20,
    guidance: float = 3.0,
    batch_size: int = 16,
    progress: Progress | None = None,
    resume: str | Path | None = None,
) -> Calibration:
    """Ranges of every Linear and Conv2d input while `pipe` denoises `captions`.

    seeds  : one per caption; by default consecutive from `FIRST_SEED`, disjoint from evaluation seeds below it
    resume : a file that is replaced after every batch; a call with the same arguments goes on from it
    The other arguments are those of `sample`; use the steps and guidance that the quantized pipeline will run with.

    Raises ValueError for empty calibration data, for a `resume` file of other arguments, and naming the layer whose
    input first has NaN or Inf.
    """
    seeds = list(range(FIRST_SEED, FIRST_SEED + len(captions))) if seeds is None else seeds
    check(captions, seeds, steps, batch_size)
    settings = {"captions": tuple(captions), "seeds": tuple(seeds), "steps": steps, "guidance": guidance}
    file = None if resume is None else Path(resume)
    found, begin = None, 0
    if file is not None and file.exists():
        found = _resumed(file, settings)
        begin = len(found.captions)
    for start in range(begin, len(captions), batch_size):
        stop = min(start + batch_size, len(captions))
        denoiser = getattr(pipe, denoiser_name(pipe))
        watch = _Watch(denoiser)
        try:
            with watch, unpadded(denoiser):
                call(pipe, captions[start:stop], seeds[start:stop], steps, guidance, output="latent")
        finally:
            watch.remove()
        done = {**settings, "captions": tuple(captions[:stop]), "seeds": tuple(seeds[:stop])}
        found = _merged(found, Calibration(**watch.result(), **done))  # type: ignore[arg-type]
        if file is not None:
            write_json(file, json.loads(found.to_json()))  # with its own hash
        if progress is not None:
            progress(stop, len(captions))
    if found is None:  # check() refused empty captions
        raise ValueError("no captions: give at least one")
    return found


def _resumed(file: Path, settings: Mapping[str, Any]) -> Calibration:
    """The calibration in `file`, which must be the beginning of the one that `settings` describes."""
    try:
        found = Calibration.from_json(json.dumps(read_json(file)))
    except ValueError as error:
        raise ValueError(f"{file} cannot be resumed: {error}; delete it to start again") from None
    count = len(found.captions)
    begun = {**settings, "captions": settings["captions"][:count], "seeds": settings["seeds"][:count]}
    for name, value in begun.items():
        if getattr(found, name) != value:
            raise ValueError(f"{file} was made with other {name}; delete it, or name another file")
    return found


def _merged(before: Calibration | None, new: Calibration) -> Calibration:
    """Both calibrations as one; minima and maxima do not mind in which order they are taken."""
    if before is None:
        return new
    if before.timesteps != new.timesteps or before.ranges.keys() != new.ranges.keys():
        raise ValueError("the denoiser ran other layers or timesteps than in the batch before")
    ranges = {
        path: tuple(
            (min(low, other), max(high, another))
            for (low, high), (other, another) in zip(seen, new.ranges[path], strict=True)
        )
        for path, seen in before.ranges.items()
    }
    return replace(new, ranges=ranges)


class _Watch(TorchFunctionMode):
    """Forward hooks on a denoiser that keep running minima and maxima, on the device they are computed on.

    As a context manager it also sees where channels are joined.
    """

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.now = 0.0
        self.seen: dict[str, dict[float, torch.Tensor]] = {}
        self.joined: tuple[torch.Tensor, int] | None = None
        self.splits: dict[str, int] = {}
        self.handles = [denoiser.register_forward_pre_hook(self._timestep, with_kwargs=True)]
        for path, layer in layers_of(denoiser).items():
            self.handles.append(layer.register_forward_pre_hook(self._hook(path)))
        for path, block in denoiser.named_modules():
            if type(block).__name__ in RESIDUAL_BLOCKS:
                self.handles.append(block.register_forward_pre_hook(self._block(path, block)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.cat and made.ndim == 4 and len(args[0]) == 2 and args[0][0].shape[1] != made.shape[1]:
            self.joined = made, args[0][0].shape[1]
        return made

    def _timestep(self, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        from fpsim.nn.clock import timestep_of

        self.now = timestep_of(args, kwargs)

    def _hook(self, path: str) -> Any:
        def watch(_: Any, args: tuple[Any, ...]) -> None:
            low, high = torch.aminmax(args[0].detach().float())
            now = torch.stack((-low, high))
            before = self.seen.setdefault(path, {}).get(self.now)
            self.seen[path][self.now] = now if before is None else torch.maximum(before, now)
            if self.joined is not None and args[0] is self.joined[0]:
                self.splits[path] = self.joined[1]

        return watch

    def _block(self, path: str, block: Any) -> Any:
        """A residual block normalizes its input before the first convolution: the halves stay halves."""
        inside = [name for name in ("conv1", "conv_shortcut") if getattr(block, name, None) is not None]

        def watch(_: Any, args: tuple[Any, ...]) -> None:
            if self.joined is not None and args[0] is self.joined[0]:
                self.splits |= {f"{path}.{name}": self.joined[1] for name in inside}

        return watch

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def result(self) -> dict[str, Any]:
        """timesteps, ranges, splits of a `Calibration`."""
        times = sorted({time for seen in self.seen.values() for time in seen})
        ranges = {}
        for path, seen in self.seen.items():  # in order of execution: the first bad layer is the one to name
            values = torch.stack([seen[time] for time in times if time in seen]).cpu()
            if not torch.isfinite(values).all():
                raise ValueError(f"the input of layer {path} has NaN or Inf in full precision; nothing was calibrated")
            ranges[path] = tuple((-float(low), float(high)) for low, high in values)
        return {"timesteps": tuple(times), "ranges": ranges, "splits": self.splits}


def layers_of(denoiser: "torch.nn.Module") -> "dict[str, torch.nn.Module]":
    """Path -> layer for every Linear and Conv2d, in the order they are defined.

    Raises ValueError for a denoiser that is quantized already, and for one without such layers.
    """
    from fpsim.nn import QuantizedLayer

    name = type(denoiser).__name__
    if any(isinstance(layer, QuantizedLayer) for layer in denoiser.modules()):
        raise ValueError(
            f"this {name} is quantized already: start from the pipeline in full precision, with one scheme whose "
            "rules say what each layer gets"
        )
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    found: dict[str, torch.nn.Module] = {
        path: layer for path, layer in denoiser.named_modules() if isinstance(layer, kinds)
    }
    if not found:
        raise ValueError(f"this {name} has no Linear or Conv2d layer to quantize")
    return found
