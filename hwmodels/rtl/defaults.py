"""Units whose gate counts ship (`gates.csv`), so that nobody needs Yosys for them.

To add one, add a row and run `python -m hwmodels.rtl.table`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fpsim.accumulators import Accumulator, FixedPoint, IntegerAccumulator, SequentialFma
from fpsim.engines import engine
from fpsim.spec import MatmulSpec

from .spelling import accumulator


@dataclass(frozen=True, kw_only=True)
class Row:
    """One shipped unit: what it is called in reports, and its arithmetic."""

    label: str
    spec: MatmulSpec


def _macs(pairs: str, accumulator: Accumulator, into: str) -> Iterator[Row]:
    for pair in pairs.split():
        a, _, b = pair.partition("x")
        spec = MatmulSpec(a, b or a, accumulator)
        yield Row(label=f"{a if not b else f'{a} x {b}'}/{into}", spec=spec)


def rows() -> list[Row]:
    """All shipped units."""
    out: list[Row] = []
    for bits, pairs in (
        (16, "int4 int8"),
        (18, "int8"),
        (20, "int8"),
        (24, "int8"),
        (32, "int4 int8 int8xint4"),
        (48, "int16"),
    ):
        out += _macs(pairs, IntegerAccumulator(bits), f"int{bits}")
    out += _macs("int8 int4", IntegerAccumulator(16, "saturate"), "int16-saturate")
    fixed = ((16, "e2m1"), (24, "e2m3"), (32, "e3m2 e4m3 e3m4"), (40, "e4m3"), (48, "e4m3"), (64, "e5m2"))
    for bits, pairs in fixed:
        out += _macs(pairs, FixedPoint(bits), f"fixed{bits}")
    for words in ("fixed16-lsb8", "fixed20-lsb4", "fixed24-q0", "fixed32-q8", "fixed32", "fixed40"):
        out += _macs("e4m3", accumulator(f"{words}-saturate"), f"{words}-saturate")
    out += _macs("e2m1 e2m3 e3m2 e4m3 e5m2 f16", SequentialFma("f16"), "f16")
    out += _macs("e2m1 e2m3 e3m2 e4m3 e5m2 e4m3xe2m1 bf16 f16 tf32 f32", SequentialFma("f32"), "f32")
    for name, a, scale, block in ENGINES:
        out.append(Row(label=f"{name} {a}", spec=engine(name, a, scale=scale, block=block)))
    return out


#: steps of matrix instructions into float32: engine, operands, block scales
ENGINES = (
    ("volta/mma", "f16", None, None),
    ("ampere/mma", "f16", None, None),
    ("ada/mma", "e4m3", None, None),
)
