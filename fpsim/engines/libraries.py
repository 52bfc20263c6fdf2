"""Whole GEMMs of libraries: an instruction's chain, where it is promoted or split, and the epilogue."""

from fpsim.accumulators import Accumulator, Promoted
from fpsim.engines.nvidia import WGMMA_FP8, WGMMA_HALF
from fpsim.engines.rows import Engine, Row
from fpsim.spec import Epilogue

_TORCH = "torch 2.11, CUDA 13.0 on one H200 (cuBLAS documents neither order nor interval)"
_FP8_PAIRS = (("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3"))


def _rows(
    a: str, b: str, accumulator: Accumulator, epilogue: Epilogue | None, outs: tuple[str, ...] = ("f32", "bf16", "f16")
) -> tuple[Row, ...]:
    """float32 first: it is the default result."""
    return tuple(Row(a=(a,), b=(b,), accumulator=accumulator, out=out, epilogue=epilogue) for out in outs)


def _scaled_mm(accumulator: Accumulator) -> tuple[Row, ...]:
    return tuple(row for a, b in _FP8_PAIRS for row in _rows(a, b, accumulator, Epilogue()))


ROWS = (
    Engine(
        name="hopper/scaled_mm-fast",
        summary="torch._scaled_mm(use_fast_accum=True): one chain of wgmma steps, scales and bias afterwards",
        rows=_scaled_mm(WGMMA_FP8),
        basis="observed",
        source=_TORCH,
    ),
    Engine(
        name="hopper/scaled_mm",
        summary="torch._scaled_mm(use_fast_accum=False): a float32 addition every 128 products",
        rows=_scaled_mm(Promoted(WGMMA_FP8, 128)),
        basis="observed",
        source=_TORCH,
    ),
    Engine(
        name="hopper/torch-mm",
        summary="torch.mm of bf16 and f16: a chain of wgmma steps, one cast",
        rows=tuple(row for a in ("bf16", "f16") for row in _rows(a, a, WGMMA_HALF, None, ("f32", a))),
        basis="observed",
        source=_TORCH,
    ),
    Engine(
        name="hopper/deepgemm",
        summary="DeepGEMM FP8: every 128 products, sum = (scale_a * scale_b) * chain + sum by one FFMA",
        rows=_rows("e4m3", "e4m3", Promoted(WGMMA_FP8, 128, scaled=True), None),
        basis="published",
        source="deepseek-ai/DeepGEMM, sm90 FP8 1D2D kernel (2025)",
    ),
)
