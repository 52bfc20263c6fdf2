"""The CUDA backend: operands are taken apart and multiplied on the device, the same bits as the CPU.

Host arrays are copied there and the result back (`accumulate`); arrays that are on the device stay there (`matmul`,
`conv2d`). It runs every engine of `fpsim.engines`; free accumulators that it does not are refused by name.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import cuda

from fpsim._cuda.arrays import Codes, codes
from fpsim._cuda.chains import integer, pairwise, sequential
from fpsim._cuda.fused import fused, promoted, split_k
from fpsim._cuda.steps import exact, fixed, grouped, two_stage
from fpsim.accumulators import (
    Accumulator,
    FixedPoint,
    FusedDot,
    GroupedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.codec import Array
from fpsim.spec import MatmulSpec

numba.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # small products are meant to be small

__all__ = ["Codes", "accumulate", "codes", "need_device", "run"]


def accumulate(a: Array, b: Array, c: Array, spec: MatmulSpec, scales: tuple[Array, Array] | None = None) -> None:
    """c = c + a @ b in place, host arrays; see `fpsim._cpu.accumulate`.

    Raises RuntimeError without a CUDA device, ValueError for an accumulator this backend does not run.
    """
    need_device()
    held = cuda.to_device(_unsigned(c, spec)[None])
    pair = None if scales is None else (_from_host(scales[0]), _from_host(scales[1]))
    run(_from_host(a), _from_host(b), held, spec, pair)
    c[...] = held.copy_to_host()[0].view(c.dtype)


def run(a: Codes, b: Codes, c: Any, spec: MatmulSpec, scales: tuple[Codes, Codes] | None = None) -> None:
    """c = c + a @ b in place for device arrays: codes (T, M, K) and (1 or T, K, N), contiguous words c (T, M, N)."""
    kind = spec.accumulator
    if a.shape[2] and c.size:
        if isinstance(kind, FusedDot) and kind.fraction_bits is None:
            exact(a, b, c, spec, kind, scales)
        else:
            RUNNERS[type(kind)](a, b, c, spec, kind, scales)


def need_device() -> None:
    """Raises RuntimeError where there is no CUDA device."""
    if not cuda.is_available():
        raise RuntimeError("backend='cuda' needs an NVIDIA GPU with its driver (pip install 'fpsim[cuda]')")


def _from_host(array: Array) -> Codes:
    rows, depth = array.shape
    return Codes(cuda.to_device(np.ascontiguousarray(array).reshape(-1)), (0, depth, 1), (1, rows, depth))


def _unsigned(c: Array, spec: MatmulSpec) -> Array:
    """Words of floats as unsigned integers, which hold every code without wrapping; integers as they are."""
    return c if spec.accumulator.output.startswith("int") else c.view(f"u{c.itemsize}")


#: kind of accumulator -> its runner
RUNNERS: dict[type[Accumulator], Callable[..., None]] = {
    FusedDot: fused,
    GroupedDot: grouped,
    TwoStageDot: two_stage,
    Promoted: promoted,
    SplitK: split_k,
    SequentialFma: sequential,
    PairwiseTree: pairwise,
    FixedPoint: fixed,
    IntegerAccumulator: integer,
}
