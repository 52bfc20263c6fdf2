"""Which part of the denoising trajectory is running: the index that per-timestep activation ranges are read with."""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from torch import nn


class Clock:
    """Group of the timestep a denoiser was last called with.

    bounds : ascending timesteps that separate the groups; group 0 lies below the first, the last one above the last
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.group = 0

    def attach(self, denoiser: nn.Module) -> None:
        """Follow the calls of `denoiser`."""
        denoiser.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.group = bisect_right(self.bounds, timestep_of(args, kwargs))


def timestep_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """The timestep a denoiser was called with: a keyword, or second in line (sample, timestep, ...)."""
    value = kwargs.get("timestep", args[1] if len(args) > 1 else 0.0)
    return float(value.flatten()[0]) if hasattr(value, "flatten") else float(value)
