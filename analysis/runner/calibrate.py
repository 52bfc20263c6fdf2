"""Activation ranges along denoising trajectories of the full-precision pipeline.

The pipeline makes a few images while hooks watch the input of every Linear and Conv2d of the denoiser. Each pipeline
call runs the denoiser over the whole trajectory, with the conditional and the unconditional half of guidance in one
batch or one after the other; both are seen. What is kept is the lowest and highest value per layer and per timestep,
two floats each: the memory does not grow with prompts or image size, and ranges for any grouping of timesteps follow.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from analysis.runner.load import denoiser_name
from analysis.runner.sample import Progress, call, check

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

#: Seeds of calibration noise start here, far from the small numbers that evaluations use.
FIRST_SEED = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What calibration saw.

    timesteps : the denoiser's timesteps, ascending
    ranges    : layer path -> (lowest, highest) input value at each of `timesteps`
    captions, seeds, steps, guidance : how it was made; methods that need more run the same trajectories again
    """

    timesteps: tuple[float, ...]
    ranges: Mapping[str, tuple[tuple[float, float], ...]]
    captions: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    guidance: float

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

    def max_abs_by_group(self, path: str, count: int) -> tuple[float, ...]:
        """Largest input magnitude of a layer in each of `count` timestep groups."""
        self.range(path)
        seen = self.ranges[path]
        return tuple(max(max(-seen[i][0], seen[i][1]) for i in group if i < len(seen)) for group in self.groups(count))

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back."""
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Read `to_json`'s text. Raises ValueError for anything else."""
        data = json.loads(text)
        keys = [field.name for field in fields(cls)]
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
) -> Calibration:
    """Ranges of every Linear and Conv2d input while `pipe` denoises `captions`.

    seeds : one per caption; by default consecutive from `FIRST_SEED`, disjoint from evaluation seeds below it
    The other arguments are those of `sample`; use the steps and guidance that the quantized pipeline will run with.

    Raises ValueError for empty calibration data, and naming the layer whose input first has NaN or Inf.
    """
    seeds = list(range(FIRST_SEED, FIRST_SEED + len(captions))) if seeds is None else seeds
    check(captions, seeds, steps, batch_size)
    watch = _Watch(getattr(pipe, denoiser_name(pipe)))
    try:
        for start in range(0, len(captions), batch_size):
            stop = min(start + batch_size, len(captions))
            call(pipe, captions[start:stop], seeds[start:stop], steps, guidance, output="latent")
            if progress is not None:
                progress(stop, len(captions))
    finally:
        watch.remove()
    timesteps, ranges = watch.result()
    return Calibration(
        timesteps=timesteps,
        ranges=ranges,
        captions=tuple(captions),
        seeds=tuple(seeds),
        steps=steps,
        guidance=guidance,
    )


class _Watch:
    """Forward hooks on a denoiser that keep running minima and maxima, on the device they are computed on."""

    def __init__(self, denoiser: Any) -> None:
        self.now = 0.0
        self.seen: dict[str, dict[float, torch.Tensor]] = {}
        self.handles = [denoiser.register_forward_pre_hook(self._timestep, with_kwargs=True)]
        for path, layer in layers_of(denoiser).items():
            self.handles.append(layer.register_forward_pre_hook(self._hook(path)))

    def _timestep(self, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        from fpsim.nn.clock import timestep_of

        self.now = timestep_of(args, kwargs)

    def _hook(self, path: str) -> Any:
        def watch(_: Any, args: tuple[Any, ...]) -> None:
            import torch

            low, high = torch.aminmax(args[0].detach().float())
            now = torch.stack((-low, high))
            before = self.seen.setdefault(path, {}).get(self.now)
            self.seen[path][self.now] = now if before is None else torch.maximum(before, now)

        return watch

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def result(self) -> tuple[tuple[float, ...], dict[str, tuple[tuple[float, float], ...]]]:
        import torch

        times = sorted({time for seen in self.seen.values() for time in seen})
        ranges = {}
        for path, seen in self.seen.items():  # in order of execution: the first bad layer is the one to name
            values = torch.stack([seen[time] for time in times if time in seen]).cpu()
            if not torch.isfinite(values).all():
                raise ValueError(f"the input of layer {path} has NaN or Inf in full precision; nothing was calibrated")
            ranges[path] = tuple((-float(low), float(high)) for low, high in values)
        return tuple(times), ranges


def layers_of(denoiser: "torch.nn.Module") -> "dict[str, torch.nn.Module]":
    """Path -> layer for every Linear and Conv2d, in the order they are defined."""
    import torch

    return {
        path: layer for path, layer in denoiser.named_modules() if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))
    }
