"""Matrix cores of AMD Instinct accelerators, as published."""

from fpsim.accumulators import FusedDot, PairwiseTree, SequentialFma, TwoStageDot
from fpsim.engines.rows import Engine, Row

_SOURCE = "arXiv:2511.10909v2, tables 7 and 8"
_HALF = ("f16", "bf16")
_FNUZ = ("e4m3fnuz", "e5m2fnuz")

_F64_ROW = Row(a=("f64",), accumulator=SequentialFma("f64"))
_F32_ROW = Row(a=("f32",), accumulator=SequentialFma("f32"))

ROWS = (
    Engine(
        name="cdna1/mfma",
        summary="MFMA of MI100: exact products and sums, one rounding",
        rows=(
            _F32_ROW,
            Row(a=("f16",), accumulator=FusedDot(4, None, "rne")),
            Row(a=("bf16",), accumulator=FusedDot(2, None, "rne")),
        ),
        basis="published",
        source=_SOURCE,
    ),
    Engine(
        name="cdna2/mfma",
        summary="MFMA of MI200: pairwise float32 sums that flush subnormals; bf16 is the _1k instruction",
        rows=(_F64_ROW, _F32_ROW, Row(a=_HALF, accumulator=PairwiseTree(4, flush=True))),
        basis="published",
        source=_SOURCE,
    ),
    Engine(
        name="cdna2/mfma-bf16",
        summary="the older bf16 MFMA (without _1k) of MI200",
        rows=(Row(a=("bf16",), accumulator=PairwiseTree(2, flush=True)),),
        basis="published",
        source=_SOURCE,
    ),
    Engine(
        name="cdna3/mfma",
        summary="MFMA of MI300",
        rows=(
            _F64_ROW,
            _F32_ROW,
            Row(a=("xf32",), accumulator=TwoStageDot(4)),
            Row(a=_HALF, accumulator=TwoStageDot(8)),
            Row(a=_HALF, accumulator=TwoStageDot(4), k=4, note="instructions with K = 4"),
            Row(a=_FNUZ, b=_FNUZ, accumulator=TwoStageDot(16, interleaved=True)),
        ),
        basis="published",
        source=_SOURCE,
    ),
)
