"""Seconds of kernels that are no product: memory, L2, elements per clock, chains of accesses, launches.

time = launches * `pointwise_fixed` + chain + max(L2, memory, elements), where

* memory moves the bytes L2 does not hold at `pointwise_hbm` of its bandwidth, L2 moves all of them;
* elements that cost an index or arithmetic finish at `scalar_rate` and `math_rate` per SM and clock;
* a chain is `steps` dependent accesses of `latency` cycles (half of it from L2), once per wave of blocks.

A max-abs over a whole tensor has its own launch cost, `amax_fixed`, and too few loads in flight to saturate the memory:
every SM streams `amax_bytes` per clock from it, twice that from L2, whatever the bandwidth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType

import numpy as np

from .gpu import Machine
from .parameters import Parameters
from .passes import Passes
from .roofline import Floats, Times

#: bytes per SM and clock that loads and stores stream through L2: about 3.2 TB/s on an A100, 9 TB/s on an H200
L2_STREAM: Mapping[str, float] = MappingProxyType({"mma": 22.0, "wgmma": 37.0, "tcgen05": 37.0})


_COLUMNS = ("more", "maximum", "scalar", "math", "rows", "row_blocks", "steps", "launches")
_row = attrgetter(*_COLUMNS)


def pointwise(size: Floats, flops: Floats, work: Sequence[Passes], mach: Machine, p: Parameters, warm: bool) -> Times:
    """Seconds of kernels that move `size` bytes (those of `work.more` on top) and do `flops` float operations."""

    table = np.array([_row(item) for item in work], dtype=np.float64)

    def column(name: str) -> Floats:
        return table[:, _COLUMNS.index(name)]

    size = np.asarray(size, dtype=np.float64) + column("more")
    # all that was just written is found in L2 while it is at most half of it, nothing once it is all of it
    held = np.clip(mach.l2 / np.maximum(size, 1.0) - 1.0, 0.0, 1.0) if warm else np.zeros_like(size)
    maximum = column("maximum") > 0
    clocks = mach.units * mach.clock
    l2 = size / (clocks * L2_STREAM[mach.engine])
    memory = size * (1 - held) / (mach.bandwidth * p.pointwise_hbm)
    memory = np.maximum(memory, np.where(maximum, size * (1 - held / 2) / (clocks * p.amax_bytes), 0.0))
    elements = (column("scalar") / p.scalar_rate + column("math") / p.math_rate) / clocks
    compute = np.maximum(elements, flops / mach.vector if mach.vector else 0.0)
    waves = np.maximum(column("rows") / (mach.units * column("row_blocks")), 1.0)
    chain = column("steps") * waves * p.latency * (1 - held / 2) / mach.clock
    launch = np.where(maximum, p.amax_fixed, p.pointwise_fixed) * column("launches")
    return Times(
        total=launch + chain + np.maximum(np.maximum(l2, memory), compute),
        compute=compute,
        memory=memory,
        launch=launch + chain,
        l2=l2,
    )
