"""The CPU backend: for each kind of accumulator, unpack the operands and run its kernel on all cores."""

from collections.abc import Callable
from typing import Any

from fpsim._cpu.chains import pairwise, sequential
from fpsim._cpu.fixed import fixed
from fpsim._cpu.fused import fused
from fpsim._cpu.grouped import grouped
from fpsim._cpu.integers import integer
from fpsim._cpu.rows import Scales
from fpsim._cpu.steps import two_stage
from fpsim._cpu.wrappers import promoted, split_k
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


def accumulate(a: Array, b: Array, c: Array, spec: MatmulSpec, scales: Scales | None = None) -> None:
    """c = c + a @ b in place. Codes a (M, K), b (K, N); c (M, N) codes of the accumulator's container, as integers.

    scales : block-scaled kinds: scale codes (M, K/block) and (K/block, N); scaled promotions: float32 values.
    """
    if a.shape[1]:
        RUNNERS[type(spec.accumulator)](a, b, c, spec, spec.accumulator, scales)


#: kind of accumulator -> its runner
RUNNERS: dict[type[Accumulator], Callable[[Array, Array, Array, MatmulSpec, Any, Scales | None], None]] = {
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
