"""The roofline: the least time a kernel can take (Williams, Waterman, Patterson, CACM 52(4), 2009).

time >= max(operations / peak rate, bytes / memory bandwidth), each operand moved once.  Launches, tiles that do not
fill the machine, clocks under a power limit and second trips to memory are all left out, so a real kernel whose
operands come from main memory is slower.  What it is good for: bounds, and telling compute-bound from memory-bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

BOUNDS = ("compute", "memory", "launch", "l2")
NOTE = "roofline: a lower bound (every operand moved once at full bandwidth, peak rate, no launches, no tile losses)"


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds per kernel, one array element each; a model that does not know a term leaves it zero."""

    total: Floats
    compute: Floats
    memory: Floats
    launch: Floats
    l2: Floats

    @property
    def bound(self) -> npt.NDArray[np.str_]:
        """ "compute", "memory", "launch" or "l2", whichever term is largest."""
        terms = np.stack([self.compute, self.memory, self.launch, self.l2])
        names: npt.NDArray[np.str_] = np.array(BOUNDS)
        return names[np.argmax(terms, axis=0)]


def roofline(macs: Floats, flops: Floats, size: Floats, rate: Floats, vector: float | None, bandwidth: float) -> Times:
    """Lower bounds for arrays of kernels.

    macs, flops: multiply-accumulates and other operations; size: bytes; rate: matrix operations/s of each kernel;
    vector: operations/s of the ordinary units (None: not counted); bandwidth: bytes/s.
    """
    compute = 2.0 * macs / rate
    if vector is not None:
        compute = np.maximum(compute, flops / vector)
    memory = size / bandwidth
    zero = np.zeros_like(memory)
    return Times(total=np.maximum(compute, memory), compute=compute, memory=memory, launch=zero, l2=zero)
