"""Which part of the denoising trajectory is running: what a denoiser was last called with.

Layers that depend on the timestep (activation ranges per part of the trajectory, tables of outputs) see only their own
input. The denoiser tells them through one object they share, before each of its calls.
"""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from torch import Tensor, cuda, nn


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


class Now:
    """The timestep a denoiser was last called with.

    timestep : None before the first call, where the rows of a batch have several, and while a CUDA graph is captured,
               which must not wait for a number from the device
    """

    def __init__(self) -> None:
        self.timestep: float | None = None

    def attach(self, denoiser: nn.Module) -> None:
        """Follow the calls of `denoiser`."""
        denoiser.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        value = _argument(args, kwargs)
        if isinstance(value, Tensor):
            if value.is_cuda and cuda.is_current_stream_capturing():
                self.timestep = None
                return
            seen = {float(one) for one in value.flatten().tolist()}
            self.timestep = seen.pop() if len(seen) == 1 else None
        else:
            self.timestep = float(value)


def timestep_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """The timestep a denoiser was called with: a keyword, or second in line (sample, timestep, ...)."""
    value = _argument(args, kwargs)
    return float(value.flatten()[0]) if isinstance(value, Tensor) else float(value)


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    return kwargs.get("timestep", args[1] if len(args) > 1 else 0.0)
