"""Fake quantization in one pass over memory, where there is a kernel for it; `None` where torch operations have to do.

The same numbers come out as from `scaling`'s chain of torch operations, bit for bit but for the sign of zeros, which
neither keeps. Kernels take dense float32, float16 and bfloat16 tensors without a gradient, on a GPU with Triton
(`_triton.py`) and on the CPU through numba (`_host.py`); formats are those rounded by a constant or to integers.
"""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.formats import BlockFormat, Format, alike
from fpsim.nn import functional
from fpsim.nn.functional import Grid

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_ROUND_LIMIT = 2.0**22  # integers beyond are not rounded by adding 1.5 * 2**23


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Which elements of a dense tensor share a scale: element i has number i // (size * inner) * inner + i % inner."""

    size: int
    inner: int


#: Rules of block scales that kernels know -> scales that they try per block.
_TRIES = {"floor": 1, "mse": 3, "amax": 1, "four-over-six": 2}
_ONE_RUN = Runs(size=1, inner=1)


def runs(shape: torch.Size, step: torch.Size) -> Runs | None:
    """How a scale of shape `step` is shared when it broadcasts against `shape`; None if no `Runs` describes it."""
    if len(step) > len(shape):
        return None
    full = (1,) * (len(shape) - len(step)) + tuple(step)
    shared = [i for i, (have, wanted) in enumerate(zip(full, shape, strict=True)) if have == 1 and wanted != 1]
    if any(have != wanted for i, (have, wanted) in enumerate(zip(full, shape, strict=True)) if i not in shared):
        return None
    if not shared:
        return Runs(size=1, inner=1)
    first, last = shared[0], shared[-1]
    if any(shape[i] != 1 for i in range(first, last) if i not in shared):
        return None
    return Runs(size=prod(shape[first : last + 1]), inner=prod(shape[last + 1 :]))


def given(x: Tensor, step: Tensor, zero: Tensor | None, row: Format, dtype: torch.dtype) -> Tensor | None:
    """(round(x / step + zero) - zero) * step, a new tensor of `dtype`; `step` and `zero` broadcast against x."""
    kernels = _kernels(x, step)
    grid = _grid(row)
    how = _ONE_RUN if step.numel() == 1 else runs(x.shape, step.shape)
    if kernels is None or grid is None or how is None:
        return None
    values = x if x.is_cuda else x.float()
    dense = values if values.is_contiguous() or (step.numel() == 1 and _dense(x)) else values.contiguous()
    made = torch.empty_like(dense, dtype=dtype if x.is_cuda else torch.float32)
    if dense.numel():
        shift = None if zero is None else zero.contiguous()
        kernels.given(dense, made, step.contiguous(), shift, how.size, how.inner, grid)
    return made if x.is_cuda else made.to(dtype)


class Prepared:
    """Quantization with one scale, of one tensor after the other: a static layer's input.

    On a GPU the host has to keep ahead of the kernels, so whatever does not change from call to call is looked up here.
    Copies and pickles of it are None: it is made again where it is needed.
    """

    def __init__(self, step: Tensor, zero: Tensor | None, row: Format, dtype: torch.dtype) -> None:
        self.step, self.dtype = step, dtype
        self._device = step.device
        kernels, grid = _kernels(step), _grid(row)
        self._run: Any = None if kernels is None or grid is None else kernels.Single(step, zero, grid, dtype)

    def __call__(self, x: Tensor) -> Tensor | None:
        """`x` quantized, in `dtype`; None where torch operations have to do."""
        if self._run is None or x.device != self._device or x.dtype not in _DTYPES:
            return None
        if x.requires_grad and torch.is_grad_enabled():
            return None
        if x.is_cuda and self._device.index != torch.cuda.current_device():  # where Triton launches
            return None
        made: Tensor = self._run(x if x.is_contiguous() or _dense(x) else x.contiguous())
        return made

    def __reduce__(self) -> Any:
        return _nothing, ()


def _nothing() -> None:
    """What a copy of `Prepared` is."""


def found(
    x: Tensor, row: Format | BlockFormat, size: int, axis: int, samples: int, dtype: torch.dtype
) -> Tensor | None:
    """`x` quantized with the scales of its own groups of `size` along `axis`, by the format's rule; of `dtype`.

    samples : leading entries that have an NVFP4 tensor scale each, 1 for one of all
    """
    kernels = _kernels(x)
    element = row.element if isinstance(row, BlockFormat) else row
    grid = _grid(element)
    if kernels is None or grid is None or not x.numel() or size > kernels.WIDEST:
        return None
    axis = axis % x.ndim
    if isinstance(row, BlockFormat):
        if row.rows > 1 or row.rule not in _TRIES or row.scale_top not in (0, row.scale.max):
            return None
        rule = kernels.FLOOR if row.rule in alike("floor") else kernels.TWO_LEVEL
    else:
        rule = kernels.LINEAR
    scale = _grid(row.scale) if isinstance(row, BlockFormat) and row.tensor_scale else None
    if rule == kernels.TWO_LEVEL and (scale is None or samples not in (1, x.shape[0]) or axis == 0):
        return None
    inner = prod(x.shape[axis + 1 :])
    if not (x.is_cuda or element.signed or inner == 1):
        return None
    dense = x.contiguous() if x.is_cuda else x.float().contiguous()
    made = torch.empty_like(dense, dtype=dtype if x.is_cuda else torch.float32)
    top = int(np.frexp(element.max)[1]) - 1
    tries = _TRIES[row.rule] if isinstance(row, BlockFormat) else 1
    below = functional.tops(row)[-1] if isinstance(row, BlockFormat) and rule == kernels.TWO_LEVEL else 1.0
    where = (samples, x.shape[axis], size, inner, grid, rule, element.signed, top, scale)
    kernels.found(dense, made, *where, tries, below)
    return made if x.is_cuda else made.to(dtype)


def _kernels(*tensors: Tensor) -> Any:
    """The module of kernels for tensors like these, or None."""
    if any(t.dtype not in _DTYPES or (t.requires_grad and torch.is_grad_enabled()) for t in tensors):
        return None
    if all(t.is_cuda for t in tensors):
        here = torch.cuda.current_device()  # where Triton launches
        return _triton() if all(t.device.index == here for t in tensors) else None
    return _host() if all(t.device.type == "cpu" for t in tensors) else None


@cache
def _host() -> Any:
    """The kernels for the CPU, imported when first needed: compiling them takes seconds, reading them back less."""
    return import_module("fpsim.nn._host")


@cache
def _triton() -> Any:
    """The Triton kernels; None where Triton is not installed."""
    return None if find_spec("triton") is None else import_module("fpsim.nn._triton")


@cache
def _grid(row: Format) -> Grid | None:
    """The grid of a format that kernels know."""
    found = functional.grid(row)
    known = found.way == "constant" or (found.way == "integer" and max(found.high, -found.low) < _ROUND_LIMIT)
    return found if known else None


def _dense(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else False
