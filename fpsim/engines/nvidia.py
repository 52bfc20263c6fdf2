"""Tensor cores, Volta to Blackwell: one algorithm, the truncated fused dot-product-add, with different parameters.

step_bytes is what one step takes of each operand (L products), fraction_bits what alignment keeps (F), zero_exponent
the exponent a zero term counts with; see `fpsim.accumulators.FusedDot`. Integers wrap; with the qualifier .satfinite
(engines named -satfinite) the exact sum of an instruction and its start is clamped once.
"""

from fpsim.accumulators import FusedDot, GroupedDot, IntegerAccumulator, Promoted, SequentialFma
from fpsim.engines.rows import Basis, Engine, Row

_MMASIM = "arXiv:2511.10909v2, tables 7 and 8"
_PTX = "PTX ISA 9.0 (2025)"

FP8 = ("e4m3", "e5m2")
F8F6F4 = ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1")
INT8 = ("int8", "uint8")
INT4 = ("int4", "uint4")


def _fused(terms: int, fraction_bits: int, zero_exponent: int, output: str = "f32") -> FusedDot:
    return FusedDot(terms, fraction_bits, "rne" if output == "f16" else "rz", output, zero_exponent)


#: wgmma's FP8 and 16-bit chains, which library GEMMs are made of
WGMMA_FP8 = _fused(32, 13, -133, "e8m13")
WGMMA_HALF = _fused(16, 25, -133)


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


def _emulated_fp8(k: int = 32, basis: Basis | None = None, note: str = "") -> tuple[Row, ...]:
    """FP8 mma.sync without FP8 hardware: FP16 operands, two halves of k from zero, then an IEEE addition of C.

    The halves are what unpacking a register of four FP8 codes gives: k mod 4 in (0, 1), then (2, 3). Each is one FP16
    instruction, so m16n8k16 takes steps of 8 where m16n8k32 takes 16 (seen on an H200; not in the published model).
    """
    return tuple(
        Row(
            a=FP8,
            b=FP8,
            accumulator=Promoted(_fused(k // 2, 25, zero, output), k, output, order="mod4-pairs", operands="f16"),
            k=None if k == 32 else k,
            basis=basis,
            note="; ".join(filter(None, ("emulated with FP16 products, unlike the units behind library GEMMs", note))),
        )
        for output, zero in (("f32", -133), ("f16", -21))
    )


def _integer_rows(*types: tuple[str, ...]) -> tuple[Row, ...]:
    return tuple(Row(a=t, b=t, accumulator=IntegerAccumulator(32, "wrap"), basis="documented") for t in types)


def _saturating(types: tuple[str, ...], step: int, k: int | None = None) -> Row:
    return Row(a=types, b=types, accumulator=IntegerAccumulator(32, "saturate", step), k=k)


#: the instructions' K: the default is the larger one
_SATURATING_8 = (_saturating(INT8, 32), _saturating(INT8, 16, 16))
_SATURATING_4 = (_saturating(INT4, 64), _saturating(INT4, 32, 32))

_F64_ROW = Row(a=("f64",), accumulator=SequentialFma("f64"))

_FP4_ROWS = tuple(
    Row(a=("e2m1",), accumulator=GroupedDot(), scale=scale, block=block)
    for scale, block in (("e8m0", 32), ("e8m0", 16), ("ue4m3", 16))
)


def _mma(
    name: str, chips: str, rows: tuple[Row, ...], source: str = f"{_MMASIM}; integers, f64: {_PTX}, mma"
) -> Engine:
    return Engine(name=f"{name}/mma", summary=f"mma.sync of {chips}", rows=rows, basis="published", source=source)


def _satfinite(unit: str, rows: tuple[Row, ...]) -> Engine:
    return Engine(
        name=f"{unit}-satfinite",
        summary="integer products with .satfinite: the sum of one instruction and its start is clamped to int32",
        rows=rows,
        basis="documented",
        source=f"{_PTX}, .satfinite",
    )


_BLOCK_SCALED_UNITS = ("rtx-blackwell/mma", "blackwell/tcgen05")

ROWS = (
    _mma("volta", "V100 (m8n8k4)", _float_rows(8, 23, -131, -19, tf32=False, bf16=False), _MMASIM),
    _mma(
        "turing",
        "T4, RTX 20",
        (*_float_rows(16, 24, -132, -20, tf32=False, bf16=False), *_integer_rows(INT8, INT4)),
    ),
    _mma("ampere", "A100, RTX 30", (*_float_rows(16, 24, -132, -20), _F64_ROW, *_integer_rows(INT8, INT4))),
    _mma(
        "ada",
        "L4, L40S, RTX 40",
        (
            *_float_rows(16, 24, -132, -20),
            *_fp8_rows(FP8, 16, 13, -132, -20, "e8m13"),
            _F64_ROW,
            *_integer_rows(INT8, INT4),
        ),
    ),
    _mma(
        "hopper",
        "H100, H200",
        (
            *_float_rows(32, 25, -133, -21),
            *_emulated_fp8(),
            *_emulated_fp8(16, "observed"),
            _F64_ROW,
            *_integer_rows(INT8, INT4),
        ),
    ),
    Engine(
        name="hopper/wgmma",
        summary="wgmma.mma_async of H100, H200: warpgroup matrix products, the one library GEMMs use",
        rows=(*_float_rows(32, 25, -133, -21), *_fp8_rows(FP8, 32, 13, -133, -21, "e8m13"), *_integer_rows(INT8)),
        basis="published",
        source=f"{_MMASIM}; integers: {_PTX}, wgmma",
    ),
    _mma(
        "blackwell",
        "B200, GB200",
        (
            *_float_rows(32, 25, -133, -21),
            *_emulated_fp8(),
            *_emulated_fp8(16, "assumed", "assumed to be Hopper's"),
            _F64_ROW,
            *_integer_rows(INT8),
        ),
    ),
    Engine(
        name="blackwell/tcgen05",
        summary="tcgen05.mma of B200, GB200",
        rows=(*_float_rows(32, 25, -133, -21), *_fp8_rows(F8F6F4, 32, 25, -133, -21, "f32"), *_integer_rows(INT8)),
        basis="published",
        source=f"{_MMASIM}; integers: {_PTX}, tcgen05.mma kind::i8",
    ),
    _mma(
        "rtx-blackwell",
        "RTX 50, RTX PRO Blackwell",
        (
            *_float_rows(32, 25, -133, -21),
            *_fp8_rows(F8F6F4, 32, 25, -133, -21, "f32"),
            *_fp8_rows(FP8, 16, 25, -133, -21, "f32", k=16),
            _F64_ROW,
            *_integer_rows(INT8),
        ),
    ),
    _satfinite("turing/mma", (_saturating(INT8, 16), _saturating(INT4, 32))),
    *(_satfinite(f"{name}/mma", (*_SATURATING_8, *_SATURATING_4)) for name in ("ampere", "ada", "hopper")),
    *(_satfinite(f"{name}/mma", _SATURATING_8) for name in ("blackwell", "rtx-blackwell")),
    *(_satfinite(unit, _SATURATING_8[:1]) for unit in ("hopper/wgmma", "blackwell/tcgen05")),
    *(
        Engine(
            name=f"{unit}-mxf8f6f4",
            summary="block-scaled FP8, FP6 and FP4: MXFP8, MXFP6, MXFP4 mixes (kind::mxf8f6f4)",
            rows=(Row(a=F8F6F4, b=F8F6F4, accumulator=_fused(32, 25, -133), scale="e8m0", block=32),),
            basis="published",
            source=f"{_MMASIM}; {_PTX}",
        )
        for unit in _BLOCK_SCALED_UNITS
    ),
    *(
        Engine(
            name=f"{unit}-mxf4nvf4",
            summary="block-scaled FP4: MXFP4 and NVFP4 (kind::mxf4 and kind::mxf4nvf4)",
            rows=_FP4_ROWS,
            basis="published",
            source=f"{_MMASIM}; {_PTX}",
        )
        for unit in _BLOCK_SCALED_UNITS
    ),
)
