"""The slow truth: formats, conversions and accumulators in Python integers and fractions.

Everything here is written to be compared with the standards by eye, and shares no code with the kernels that are
checked against it: no numpy, no numba, one value at a time. `numbers` is codes and conversions, `sums` one addition,
`steps`, `chains` and `dot` the accumulators.
"""

from fpsim.reference.dot import accumulate, dot, split_ranges
from fpsim.reference.numbers import Number, decode, encode, floor_log2, round_magnitude
from fpsim.reference.steps import fused_step
from fpsim.reference.sums import ENGINE_NAN, engine_nan, infinity, round_sum, special_sum

__all__ = [
    "ENGINE_NAN",
    "Number",
    "accumulate",
    "decode",
    "dot",
    "encode",
    "engine_nan",
    "floor_log2",
    "fused_step",
    "infinity",
    "round_magnitude",
    "round_sum",
    "special_sum",
    "split_ranges",
]
