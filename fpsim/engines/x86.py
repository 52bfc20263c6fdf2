"""Dot product instructions of x86 CPUs: real silicon on every CI machine."""

from fpsim.accumulators import IntegerAccumulator, SequentialFma
from fpsim.engines.rows import Engine, Row

_SDM = "Intel Software Developer's Manual"


def _integer(name: str, summary: str, a: str, b: str, accumulator: IntegerAccumulator) -> Engine:
    return Engine(
        name=f"x86/{name}",
        summary=summary,
        rows=(Row(a=(a,), b=(b,), accumulator=accumulator),),
        basis="documented",
        source=f"{_SDM}, {name.upper()}",
    )


ROWS = (
    Engine(
        name="x86/vdpbf16ps",
        summary="AVX512-BF16 dot product: two fused multiply-adds per pair, odd element first, subnormals flushed",
        rows=(Row(a=("bf16",), accumulator=SequentialFma("f32", order="odd-even", flush=True)),),
        basis="documented",
        source=f"{_SDM}, VDPBF16PS",
    ),
    _integer(
        "vpdpbusd",
        "VNNI: four u8 x s8 products into a wrapping int32",
        "uint8",
        "int8",
        IntegerAccumulator(32, "wrap", 4),
    ),
    _integer(
        "vpdpbusds",
        "VNNI: four u8 x s8 products into a saturating int32",
        "uint8",
        "int8",
        IntegerAccumulator(32, "saturate", 4),
    ),
    _integer(
        "vpdpwssd",
        "VNNI: two s16 x s16 products into a wrapping int32",
        "int16",
        "int16",
        IntegerAccumulator(32, "wrap", 2),
    ),
    _integer(
        "vpdpwssds",
        "VNNI: two s16 x s16 products into a saturating int32",
        "int16",
        "int16",
        IntegerAccumulator(32, "saturate", 2),
    ),
    _integer(
        "vpmaddubsw",
        "before VNNI: u8 x s8 pairs saturate to int16, then wrap into int32 (VPMADDUBSW, VPMADDWD, VPADDD)",
        "uint8",
        "int8",
        IntegerAccumulator(32, "wrap", 2, 16),
    ),
)
