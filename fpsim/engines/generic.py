"""Engines that are a definition and no product."""

from fpsim.accumulators import IntegerAccumulator, SequentialFma
from fpsim.engines.nvidia import F8F6F4, INT4, INT8
from fpsim.engines.rows import Engine, Row

_FLOATS = ("f32", "bf16", "f16", *F8F6F4, "e3m4")

ROWS = (
    Engine(
        name="generic/fp32",
        summary="float32 fused multiply-add, k ascending: a scalar processor, no matrix unit",
        rows=(Row(a=_FLOATS, b=_FLOATS, accumulator=SequentialFma("f32")),),
        basis="documented",
        source="IEEE 754-2019 fusedMultiplyAdd",
    ),
    Engine(
        name="generic/int32",
        summary="exact integer products into a wrapping 32-bit accumulator: what integer NPUs and CPUs do",
        rows=(Row(a=(*INT8, *INT4), b=(*INT8, *INT4), accumulator=IntegerAccumulator(32, "wrap")),),
        basis="documented",
        source="two's complement arithmetic",
    ),
)
