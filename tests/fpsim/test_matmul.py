"""The matrix product: compiled kernels against the reference, on every engine and distribution."""

from dataclasses import replace

import numpy as np
import pytest

import fpsim
from fpsim.accumulators import (
    FusedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.engines import ENGINES
from fpsim.formats import container
from fpsim.gemm import RESULT_DTYPES
from fpsim.spec import MatmulSpec
from tests.strategies import DISTRIBUTIONS, assert_same_bits, cancelling, random_codes


def start_values(rng: np.random.Generator, spec: MatmulSpec, shape: tuple[int, int], kind: str) -> np.ndarray:
    """c: zeros, ordinary values, random bits, or huge ones."""
    held = container(spec.accumulator.output)
    dtype = RESULT_DTYPES[held.name]
    if kind == "zero":
        return np.zeros(shape, dtype)
    if kind == "bits":
        return random_codes(rng, held, shape).view(dtype)
    scale = {"normal": 1.0, "huge": held.max / 4, "tiny": held.smallest_normal}[kind]
    return (rng.standard_normal(shape) * min(scale, 2.0**60 if held.kind == "int" else scale)).astype(dtype)


def one_spec_per_row() -> list[MatmulSpec]:
    """Every row of every engine, with its first pair and its last (mixed) pair of operands."""
    specs = []
    for name, engine in ENGINES.items():
        for row in engine.rows:
            if row.scale is None and not getattr(row.accumulator, "scaled", False):
                pairs = row.pairs()
                specs += [
                    fpsim.engine(name, a, b, row.output, k=row.k) for a, b in dict.fromkeys((pairs[0], pairs[-1]))
                ]
    specs = [replace(s, epilogue=None) for s in specs]  # the epilogue has its own tests
    unique = {(s.a.name, s.b.name, s.accumulator, s.out): s for s in specs}
    return list(unique.values())


def name_of(spec: MatmulSpec) -> str:
    return f"{spec.engine}-{spec.a.name}-{spec.b.name}-{spec.out}"


@pytest.mark.parametrize("spec", one_spec_per_row(), ids=name_of)
def test_kernel_equals_reference(spec: MatmulSpec) -> None:
    rng = np.random.default_rng(1)
    m, k, n = 3, 70, 3
    starts = ("zero", "normal", "bits", "huge", "tiny")
    for index, (name, draw) in enumerate(DISTRIBUTIONS.items()):
        a, b = draw(rng, spec.a, (m, k)), draw(rng, spec.b, (n, k)).T
        if name == "normal":
            a, b = cancelling(a, b, spec.a)
        for start in (starts[index % 5], starts[(index + 1) % 5]):
            if spec.accumulator.output == "int32" and start in ("huge", "tiny"):
                continue
            c = start_values(rng, spec, (m, n), start)
            got = fpsim.matmul(a, b, spec, c)
            want = fpsim.matmul(a, b, spec, c, backend="reference")
            assert_same_bits(got, want, f"{name_of(spec)} {name} c={start}")


FREE_SPECS = [
    MatmulSpec("e2m1", "e4m3", FusedDot(16, 12)),
    MatmulSpec("e4m3", "e5m2", FusedDot(5, 20, "rne", "f32")),
    MatmulSpec("e3m4", "e4m3fnuz", FusedDot(None, 24)),
    MatmulSpec("bf16", "bf16", FusedDot(8, 9, "rz", "bf16")),
    MatmulSpec("f16", "f16", FusedDot(12, 24, "ru", "f16", -30)),
    MatmulSpec("f32", "f32", FusedDot(4, 40, "rz", "f32")),
    MatmulSpec("f16", "f16", FusedDot(4, 26, "rz", "f32", -50)),
    MatmulSpec("e4m3", "e4m3", Promoted(FusedDot(32, 13, "rz", "e8m13", -133), 128)),
    MatmulSpec("e4m3", "e4m3", Promoted(FusedDot(16, 25, "rz", "f32", -133), 32, "f32", "mod4-pairs")),
    MatmulSpec("bf16", "bf16", SplitK(FusedDot(16, 25, "rz", "f32", -133), 3, 32)),
    MatmulSpec("e4m3", "e4m3", FusedDot(32, 13, "rz", "e8m13", -133), "bf16"),
    MatmulSpec("e4m3", "e4m3", FusedDot(32, 13, "rz", "e8m13", -133), "e4m3"),
    MatmulSpec("f64", "f64", SequentialFma("f64")),
    MatmulSpec("bf16", "bf16", FusedDot(None, None, "rne")),
    MatmulSpec("f32", "bf16", FusedDot(6, None, "rd")),
    MatmulSpec("e5m2", "e4m3", FusedDot(None, None, "rne", "f16")),
    MatmulSpec("e4m3", "e2m1", PairwiseTree(8)),
    MatmulSpec("f16", "bf16", TwoStageDot(16, 20, 27, True)),
    MatmulSpec("int8", "int8", IntegerAccumulator(16, "saturate")),
    MatmulSpec("uint8", "int8", IntegerAccumulator(32, "saturate")),
    MatmulSpec("int8", "int4", IntegerAccumulator(13, "wrap")),
    MatmulSpec("int16", "int16", IntegerAccumulator(32, "wrap")),
    MatmulSpec("int4", "int4", IntegerAccumulator(16, "error")),
    MatmulSpec("int8", "int8", IntegerAccumulator(16, "saturate", 8)),
    MatmulSpec("int8", "int8", IntegerAccumulator(18, "wrap", 3, 15)),
]


@pytest.mark.parametrize("spec", FREE_SPECS, ids=lambda s: f"{s.a.name}-{s.b.name}-{s.accumulator}-{s.out}")
def test_free_accumulators_equal_reference(spec: MatmulSpec) -> None:
    rng = np.random.default_rng(2)
    for name, draw in DISTRIBUTIONS.items():
        a, b = draw(rng, spec.a, (4, 150)), draw(rng, spec.b, (3, 150)).T
        got = fpsim.matmul(a, b, spec)
        want = fpsim.matmul(a, b, spec, backend="reference")
        assert_same_bits(got, want, f"{spec} {name}")
