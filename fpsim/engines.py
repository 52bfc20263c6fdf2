"""Matrix engines of real hardware: (architecture, instruction) -> operand types -> MatmulSpec.

The float engines of NVIDIA are one algorithm, the truncated fused dot-product-add (`fpsim.accumulators.FusedDot`), with
the parameters below. Evidence, per engine:

- "silicon": compared by this project with the device itself (one H200, CUDA 13.0, torch 2.11; 160,000 outputs per
  instruction in five input classes, no difference);
- "published": the model of arXiv:2511.10909v2 (tables 7 and 8), which its authors compared with the device;
- "documented": the vendor's manual.

To add an engine, add a row to ENGINES.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from fpsim._names import unknown
from fpsim.accumulators import (
    Accumulator,
    FusedDot,
    GroupedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.formats import ALIASES, container, scalar_format
from fpsim.spec import Epilogue, MatmulSpec

Evidence = Literal["silicon", "published", "documented"]

_MMASIM = "arXiv:2511.10909v2, tables 7 and 8"
_H200 = (
    "f16, bf16, tf32, e4m3 and e5m2 (both operands alike) with f32 output compared with one H200 SXM by fpsim verify, "
    f"2026-11-22; the other rows: {_MMASIM}"
)
_TORCH = "compared with torch 2.11, CUDA 13.0 on one H200 by tests/fpsim/test_torch_gpu.py, 2026-11-22"
_PTX = "PTX ISA 8.7 (2025), mma"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Operand types an engine takes, and what it does with them. `b` None: the same type as a."""

    a: tuple[str, ...]
    b: tuple[str, ...] | None = None
    accumulator: Accumulator
    out: str = ""  #: result format; "" is the accumulator's
    scale: str | None = None
    block: int | None = None
    epilogue: Epilogue | None = None
    k: int | None = None  #: the instruction's K where two K behave differently; None: any
    note: str = ""

    @property
    def output(self) -> str:
        return self.out or container(self.accumulator.output).name

    def pairs(self) -> list[tuple[str, str]]:
        return [(a, b) for a in self.a for b in (self.b or (a,))]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One matrix instruction of one architecture. `evidence` says how its rows are known."""

    name: str
    summary: str
    rows: tuple[Row, ...]
    evidence: Evidence
    source: str

    @property
    def architecture(self) -> str:
        return self.name.partition("/")[0]


_FP16 = ("f16", "bf16")
_FP8 = ("e4m3", "e5m2")
_F8F6F4 = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
_INT8 = ("int8", "uint8")
_INT4 = ("int4", "uint4")


def _fused(terms: int, fraction_bits: int, zero_exponent: int, output: str = "f32") -> FusedDot:
    return FusedDot(terms, fraction_bits, "rne" if output == "f16" else "rz", output, zero_exponent)


def _float_rows(
    step_bytes: int,
    fraction_bits: int,
    zero_f32: int,
    zero_f16: int,
    *,
    tf32: bool = True,
    bf16: bool = True,
) -> tuple[Row, ...]:
    """f16, bf16 and tf32 rows of an engine that takes `step_bytes` of each operand per step."""
    rows = [
        Row(a=("f16",), accumulator=_fused(step_bytes // 2, fraction_bits, zero_f32)),
        Row(a=("f16",), accumulator=_fused(step_bytes // 2, fraction_bits, zero_f16, "f16")),
    ]
    if bf16:
        rows.append(Row(a=("bf16",), accumulator=_fused(step_bytes // 2, fraction_bits, zero_f32)))
    if tf32:
        rows.append(Row(a=("tf32",), accumulator=_fused(step_bytes // 4, fraction_bits, zero_f32)))
    return tuple(rows)


def _fp8_rows(
    types: tuple[str, ...], terms: int, fraction_bits: int, zero_f32: int, zero_f16: int, f32: str, k: int | None = None
) -> tuple[Row, ...]:
    """Every mix of `types`; `f32` is what the float32 container really holds ("f32" or "e8m13")."""
    return (
        Row(a=types, b=types, accumulator=_fused(terms, fraction_bits, zero_f32, f32), out="f32", k=k),
        Row(a=types, b=types, accumulator=_fused(terms, fraction_bits, zero_f16, "f16"), k=k),
    )


def _emulated_fp8(terms: int, fraction_bits: int) -> tuple[Row, ...]:
    """FP8 mma.sync without FP8 hardware: FP16 operands, two halves of k from zero, then an IEEE addition of C."""
    return tuple(
        Row(
            a=_FP8,
            b=_FP8,
            accumulator=Promoted(
                _fused(terms, fraction_bits, zero, output), 32, output, order="mod4-pairs", operands="f16"
            ),
            note="emulated with FP16 products; not the arithmetic of wgmma on the same GPU",
        )
        for output, zero in (("f32", -133), ("f16", -21))
    )


def _scaled_rows() -> tuple[Row, ...]:
    """Block-scaled rows of kind::mxf8f6f4: the scales' exponents join the products'."""
    return (Row(a=_F8F6F4, b=_F8F6F4, accumulator=_fused(32, 25, -133), scale="e8m0", block=32),)


_FP4_ROWS = tuple(
    Row(a=("e2m1",), accumulator=GroupedDot(), scale=scale, block=block)
    for scale, block in (("e8m0", 32), ("e8m0", 16), ("ue4m3", 16))
)

_WGMMA_FP8 = _fused(32, 13, -133, "e8m13")
_WGMMA_HALF = _fused(16, 25, -133)


def _library_rows(types: tuple[str, ...], accumulator: Accumulator, epilogue: Epilogue | None) -> tuple[Row, ...]:
    return tuple(
        Row(a=types[:1], b=types[1:], accumulator=accumulator, out=out, epilogue=epilogue)
        for out in ("f32", "bf16", "f16")
    )


_F64_ROW = Row(a=("f64",), accumulator=SequentialFma("f64"))
_INT_ROWS = (
    Row(a=_INT8, b=_INT8, accumulator=IntegerAccumulator(32, "wrap"), note="wraps unless .satfinite"),
    Row(a=_INT4, b=_INT4, accumulator=IntegerAccumulator(32, "wrap"), note="wraps unless .satfinite"),
)
_INT8_ROWS = _INT_ROWS[:1]

_ENGINES = (
    Engine(
        name="volta/mma",
        summary="mma.sync m8n8k4 of V100",
        rows=_float_rows(8, 23, -131, -19, tf32=False, bf16=False),
        evidence="published",
        source=_MMASIM,
    ),
    Engine(
        name="turing/mma",
        summary="mma.sync of T4, RTX 20",
        rows=(*_float_rows(16, 24, -132, -20, tf32=False, bf16=False), *_INT_ROWS),
        evidence="published",
        source=f"{_MMASIM}; integers: {_PTX}",
    ),
    Engine(
        name="ampere/mma",
        summary="mma.sync of A100, RTX 30",
        rows=(*_float_rows(16, 24, -132, -20), _F64_ROW, *_INT_ROWS),
        evidence="published",
        source=f"{_MMASIM}; integers: {_PTX}",
    ),
    Engine(
        name="ada/mma",
        summary="mma.sync of L4, L40S, RTX 40",
        rows=(
            *_float_rows(16, 24, -132, -20),
            *_fp8_rows(_FP8, 16, 13, -132, -20, "e8m13"),
            _F64_ROW,
            *_INT_ROWS,
        ),
        evidence="published",
        source=f"{_MMASIM}; integers: {_PTX}",
    ),
    Engine(
        name="hopper/mma",
        summary="mma.sync of H100, H200",
        rows=(*_float_rows(32, 25, -133, -21), *_emulated_fp8(16, 25), _F64_ROW, *_INT_ROWS),
        evidence="silicon",
        source=f"{_H200}; integers: {_PTX}",
    ),
    Engine(
        name="hopper/wgmma",
        summary="wgmma.mma_async of H100, H200: warpgroup matrix products, the one library GEMMs use",
        rows=(*_float_rows(32, 25, -133, -21), *_fp8_rows(_FP8, 32, 13, -133, -21, "e8m13"), *_INT8_ROWS),
        evidence="silicon",
        source=f"{_H200}; integers: PTX ISA 8.7 (2025), wgmma",
    ),
    Engine(
        name="blackwell/mma",
        summary="mma.sync of B200, GB200",
        rows=(*_float_rows(32, 25, -133, -21), *_emulated_fp8(16, 25), _F64_ROW, *_INT8_ROWS),
        evidence="published",
        source=f"{_MMASIM}; integers: {_PTX}",
    ),
    Engine(
        name="blackwell/tcgen05",
        summary="tcgen05.mma of B200, GB200",
        rows=(*_float_rows(32, 25, -133, -21), *_fp8_rows(_F8F6F4, 32, 25, -133, -21, "f32"), *_INT8_ROWS),
        evidence="published",
        source=f"{_MMASIM}; integers: PTX ISA 8.7 (2025), tcgen05.mma kind::i8",
    ),
    Engine(
        name="rtx-blackwell/mma",
        summary="mma.sync of RTX 50, RTX PRO Blackwell",
        rows=(
            *_float_rows(32, 25, -133, -21),
            *_fp8_rows(_F8F6F4, 32, 25, -133, -21, "f32"),
            *_fp8_rows(_FP8, 16, 25, -133, -21, "f32", k=16),
            _F64_ROW,
            *_INT8_ROWS,
        ),
        evidence="published",
        source=f"{_MMASIM}; integers: {_PTX}",
    ),
    *(
        Engine(
            name=f"{unit}-mxf8f6f4",
            summary="block-scaled FP8, FP6 and FP4: MXFP8, MXFP6, MXFP4 mixes (kind::mxf8f6f4)",
            rows=_scaled_rows(),
            evidence="published",
            source=f"{_MMASIM}; PTX ISA 8.7 (2025)",
        )
        for unit in ("rtx-blackwell/mma", "blackwell/tcgen05")
    ),
    *(
        Engine(
            name=f"{unit}-mxf4nvf4",
            summary="block-scaled FP4: MXFP4 and NVFP4 (kind::mxf4 and kind::mxf4nvf4)",
            rows=_FP4_ROWS,
            evidence="published",
            source=f"{_MMASIM}; PTX ISA 8.7 (2025)",
        )
        for unit in ("rtx-blackwell/mma", "blackwell/tcgen05")
    ),
    Engine(
        name="cdna1/mfma",
        summary="MFMA of MI100: exact products and sums, one rounding",
        rows=(
            Row(a=("f32",), accumulator=SequentialFma("f32")),
            Row(a=("f16",), accumulator=FusedDot(4, None, "rne")),
            Row(a=("bf16",), accumulator=FusedDot(2, None, "rne")),
        ),
        evidence="published",
        source=_MMASIM,
    ),
    Engine(
        name="cdna2/mfma",
        summary="MFMA of MI200: pairwise float32 sums that flush subnormals; bf16 is the _1k instruction",
        rows=(
            Row(a=("f64",), accumulator=SequentialFma("f64")),
            Row(a=("f32",), accumulator=SequentialFma("f32")),
            Row(a=_FP16, accumulator=PairwiseTree(4, flush=True)),
        ),
        evidence="published",
        source=_MMASIM,
    ),
    Engine(
        name="cdna2/mfma-bf16",
        summary="the older bf16 MFMA (without _1k) of MI200",
        rows=(Row(a=("bf16",), accumulator=PairwiseTree(2, flush=True)),),
        evidence="published",
        source=_MMASIM,
    ),
    Engine(
        name="cdna3/mfma",
        summary="MFMA of MI300",
        rows=(
            Row(a=("f64",), accumulator=SequentialFma("f64")),
            Row(a=("f32",), accumulator=SequentialFma("f32")),
            Row(a=("xf32",), accumulator=TwoStageDot(4)),
            Row(a=_FP16, accumulator=TwoStageDot(8)),
            Row(a=_FP16, accumulator=TwoStageDot(4), k=4, note="instructions with K = 4"),
            Row(
                a=("e4m3fnuz", "e5m2fnuz"),
                b=("e4m3fnuz", "e5m2fnuz"),
                accumulator=TwoStageDot(16, interleaved=True),
            ),
        ),
        evidence="published",
        source=_MMASIM,
    ),
    Engine(
        name="x86/vdpbf16ps",
        summary="AVX512-BF16 dot product: two fused multiply-adds per pair, odd element first, subnormals flushed",
        rows=(Row(a=("bf16",), accumulator=SequentialFma("f32", order="odd-even", flush=True)),),
        evidence="silicon",
        source="compared with the CPU the tests run on; Intel SDM, VDPBF16PS",
    ),
    Engine(
        name="x86/vpdpbusd",
        summary="VNNI: four u8 x s8 products into a wrapping int32",
        rows=(Row(a=("uint8",), b=("int8",), accumulator=IntegerAccumulator(32, "wrap", 4)),),
        evidence="silicon",
        source="compared with the CPU the tests run on; Intel SDM, VPDPBUSD",
    ),
    Engine(
        name="x86/vpdpbusds",
        summary="VNNI: four u8 x s8 products into a saturating int32",
        rows=(Row(a=("uint8",), b=("int8",), accumulator=IntegerAccumulator(32, "saturate", 4)),),
        evidence="silicon",
        source="compared with the CPU the tests run on; Intel SDM, VPDPBUSDS",
    ),
    Engine(
        name="x86/vpdpwssd",
        summary="VNNI: two s16 x s16 products into a wrapping int32",
        rows=(Row(a=("int16",), accumulator=IntegerAccumulator(32, "wrap", 2)),),
        evidence="silicon",
        source="compared with the CPU the tests run on; Intel SDM, VPDPWSSD",
    ),
    Engine(
        name="x86/vpdpwssds",
        summary="VNNI: two s16 x s16 products into a saturating int32",
        rows=(Row(a=("int16",), accumulator=IntegerAccumulator(32, "saturate", 2)),),
        evidence="silicon",
        source="compared with the CPU the tests run on; Intel SDM, VPDPWSSDS",
    ),
    Engine(
        name="x86/vpmaddubsw",
        summary="before VNNI: u8 x s8 pairs saturate to int16, then wrap into int32 (VPMADDUBSW, VPMADDWD, VPADDD)",
        rows=(Row(a=("uint8",), b=("int8",), accumulator=IntegerAccumulator(32, "wrap", 2, 16)),),
        evidence="silicon",
        source="compared with the CPU the tests run on; Intel SDM, VPMADDUBSW",
    ),
    Engine(
        name="hopper/scaled_mm-fast",
        summary="torch._scaled_mm(use_fast_accum=True): one chain of wgmma steps, scales and bias afterwards",
        rows=(
            *_library_rows(("e4m3", "e4m3", "e5m2"), _WGMMA_FP8, Epilogue()),
            *_library_rows(("e5m2", "e4m3"), _WGMMA_FP8, Epilogue()),
        ),
        evidence="silicon",
        source=f"{_TORCH}: e4m3 x e4m3, 4 shapes, K 128 to 2048; a U-Net's 80 linear layers with bias",
    ),
    Engine(
        name="hopper/scaled_mm",
        summary="torch._scaled_mm(use_fast_accum=False): a float32 addition every 128 products",
        rows=(
            *_library_rows(("e4m3", "e4m3", "e5m2"), Promoted(_WGMMA_FP8, 128), Epilogue()),
            *_library_rows(("e5m2", "e4m3"), Promoted(_WGMMA_FP8, 128), Epilogue()),
        ),
        evidence="silicon",
        source=f"{_TORCH}: e4m3 x e4m3, 4 shapes, K 128 to 2048, without bias",
    ),
    Engine(
        name="hopper/torch-mm",
        summary="torch.mm of bf16 and f16: a chain of wgmma steps, one cast",
        rows=(
            *_library_rows(("bf16", "bf16"), _WGMMA_HALF, None),
            *_library_rows(("f16", "f16"), _WGMMA_HALF, None),
        ),
        evidence="silicon",
        source=f"{_TORCH}: output of the operands' type, 4 shapes, K 128 to 2048",
    ),
    Engine(
        name="hopper/deepgemm",
        summary="DeepGEMM FP8: every 128 products, sum = (scale_a * scale_b) * chain + sum by one FFMA",
        rows=_library_rows(("e4m3", "e4m3"), Promoted(_WGMMA_FP8, 128, scaled=True), None),
        evidence="published",
        source="deepseek-ai/DeepGEMM, sm90 FP8 1D2D kernel (2025)",
    ),
    Engine(
        name="generic/fp32",
        summary="float32 fused multiply-add, k ascending: a scalar processor, no matrix unit",
        rows=(
            Row(
                a=("f32", "bf16", "f16", *_F8F6F4, "e3m4"),
                b=("f32", "bf16", "f16", *_F8F6F4, "e3m4"),
                accumulator=SequentialFma("f32"),
            ),
        ),
        evidence="documented",
        source="IEEE 754-2019 fusedMultiplyAdd",
    ),
    Engine(
        name="generic/int32",
        summary="exact integer products into a wrapping 32-bit accumulator: what integer NPUs and CPUs do",
        rows=(Row(a=(*_INT8, *_INT4), b=(*_INT8, *_INT4), accumulator=IntegerAccumulator(32, "wrap")),),
        evidence="documented",
        source="two's complement arithmetic",
    ),
)


def _table(engines: Iterable[Engine]) -> Mapping[str, Engine]:
    table: dict[str, Engine] = {}
    for row in engines:
        if row.name in table:
            raise ValueError(f"engine {row.name!r} is in the table twice")
        table[row.name] = row
    return MappingProxyType(table)


#: name -> Engine. Read-only.
ENGINES: Mapping[str, Engine] = _table(_ENGINES)


def engine(
    name: str,
    a: str,
    b: str | None = None,
    out: str | None = None,
    *,
    scale: str | None = None,
    block: int | None = None,
    k: int | None = None,
    split_k: int = 1,
) -> MatmulSpec:
    """The arithmetic of `name` for operands `a` and `b` (by default of the same format).

    out : result format where the engine offers several; by default the first listed (float32 for float engines).
    scale, block : block-scaled engines only: format of the scale codes, products per scale.
    k : the instruction's K, where that changes the result (FP8 m16n8k16 of rtx-blackwell/mma).
    split_k : library engines: how many contiguous ranges of K the library chose for this shape, each its own chain.

    Raises ValueError for an unknown engine, or naming the combinations the engine has.
    """
    row = ENGINES.get(name)
    if row is None:
        raise unknown("engine", name, ENGINES)
    a_name, b_name = scalar_format(a).name, scalar_format(a if b is None else b).name
    out_name = None if out is None else ALIASES.get(out, out)
    for candidate in row.rows:
        if (
            (a_name, b_name) in candidate.pairs()
            and out_name in (None, candidate.output)
            and (scale, block) == (candidate.scale, candidate.block)
            and k == candidate.k
        ):
            return MatmulSpec(
                a_name,
                b_name,
                _split(candidate.accumulator, split_k),
                candidate.out,
                candidate.scale,
                candidate.block,
                candidate.epilogue,
                row.name,
            )
    wanted = f"a={a_name!r}, b={b_name!r}, out={out!r}" + "".join(
        f", {key}={value!r}" for key, value in (("scale", scale), ("block", block), ("k", k)) if value is not None
    )
    raise ValueError(f"engine {name!r} does not take {wanted}; it takes: {'; '.join(map(_describe, row.rows))}")


def _split(accumulator: Accumulator, splits: int) -> Accumulator:
    if splits == 1:
        return accumulator
    if not isinstance(accumulator, FusedDot | Promoted):
        raise ValueError(f"split_k={splits} is for chains of fused dot products, not {type(accumulator).__name__}")
    return SplitK(accumulator, splits)


def _describe(row: Row) -> str:
    operands = f"a and b each of {'|'.join(row.a)}" if row.b == row.a and len(row.a) > 1 else f"a={'|'.join(row.a)}"
    if row.b != row.a or len(row.a) == 1:
        operands += f", b={'|'.join(row.b) if row.b else 'the same'}"
    extras = "".join(
        f", {key}={value!r}"
        for key, value in (("scale", row.scale), ("block", row.block), ("k", row.k))
        if value is not None
    )
    return f"{operands}, out={row.output}{extras}"
