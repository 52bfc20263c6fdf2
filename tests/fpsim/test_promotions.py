"""Accumulators inside accumulators, and exact sums of any pair of formats, against the reference and fractions."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import fpsim
from fpsim.accumulators import (
    FusedDot,
    GroupedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.formats import container
from fpsim.gemm import result_dtype
from fpsim.reference import floor_log2
from fpsim.spec import MatmulSpec
from tests.strategies import DISTRIBUTIONS, assert_same_bits, cancelling, random_codes

SPECS = [
    MatmulSpec("e4m3", "e4m3", Promoted(SequentialFma("f16"), 16)),
    MatmulSpec("f16", "f16", Promoted(SequentialFma("f16", "rz", fused=False), 8, "f32", rounding="rz")),
    MatmulSpec("bf16", "bf16", Promoted(PairwiseTree(4, "bf16"), 8, "f32")),
    MatmulSpec("f16", "e5m2", Promoted(TwoStageDot(4), 10, "f16")),
    MatmulSpec("e4m3", "e4m3", Promoted(FusedDot(None, None), 16, "bf16", rounding="ru")),
    MatmulSpec("e4m3", "e5m2", Promoted(FusedDot(8, 13, "rz", "e8m13"), 12, "f16")),
    MatmulSpec("e2m1", "e2m1", Promoted(FusedDot(None, None, "rne", "f16"), 32, "e4m3")),
    MatmulSpec("f32", "f32", Promoted(SequentialFma("f32"), 4, "f64")),
    MatmulSpec("f32", "f32", Promoted(SequentialFma("f64"), 4, "f32")),
    MatmulSpec("f64", "f64", Promoted(SequentialFma("f64"), 4, "f16")),
    MatmulSpec("int8", "int8", Promoted(IntegerAccumulator(32), 16, "f32")),
    MatmulSpec("int16", "int16", Promoted(IntegerAccumulator(40, "saturate"), 8, "bf16", rounding="rd")),
    MatmulSpec("e4m3", "e4m3", Promoted(SequentialFma("f16"), 8, "f32", "mod4-pairs")),
    MatmulSpec("e4m3", "e4m3", Promoted(SequentialFma("f16"), 8, "f32", operands="bf16")),
    MatmulSpec("e4m3", "e4m3", SplitK(SequentialFma("f16"), 3, 4)),
    MatmulSpec("e4m3", "e4m3", SplitK(Promoted(PairwiseTree(4, "f16"), 8, "f16"), 2, 16)),
    MatmulSpec("e4m3", "e4m3", SplitK(FusedDot(32, 13, "rz", "e8m13", -133), 3, 8)),
    MatmulSpec("int8", "int8", SplitK(Promoted(IntegerAccumulator(32), 8, "f32"), 2, 16)),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.a.name}-{s.b.name}-{s.accumulator}")
def test_wrappers_equal_reference(spec: MatmulSpec) -> None:
    rng = np.random.default_rng(8)
    held = container(spec.accumulator.output)
    for index, (name, draw) in enumerate(DISTRIBUTIONS.items()):
        a, b = draw(rng, spec.a, (3, 45)), draw(rng, spec.b, (3, 45)).T
        if name == "normal":
            a, b = cancelling(a, b, spec.a)
        c = random_codes(rng, held, (3, 3)).view(result_dtype(held.name)) if index % 2 else None
        got = fpsim.matmul(a, b, spec, c)
        assert_same_bits(got, fpsim.matmul(a, b, spec, c, backend="reference"), f"{spec} {name}")


def test_scaled_promotion_of_integers_is_a_dequantizing_gemm() -> None:
    """Groups of 16 int8 products in int32, times two float32 scales, in a float32 sum: one conversion, one FFMA."""
    rng = np.random.default_rng(9)
    a, b = rng.integers(-128, 128, (3, 40)).astype(np.int8), rng.integers(-128, 128, (40, 4)).astype(np.int8)
    left, right = rng.standard_normal((3, 3)).astype(np.float32), rng.standard_normal((3, 4)).astype(np.float32)
    spec = MatmulSpec("int8", "int8", Promoted(IntegerAccumulator(32), 16, "f32", scaled=True))
    got = fpsim.matmul(a, b, spec, a_scale=left, b_scale=right)
    assert_same_bits(got, fpsim.matmul(a, b, spec, a_scale=left, b_scale=right, backend="reference"))
    for i, j in np.ndindex(3, 4):
        total = np.float32(0)
        for g in range(3):
            part = int(a[i, 16 * g : 16 * g + 16].astype(np.int64) @ b[16 * g : 16 * g + 16, j].astype(np.int64))
            exact = Fraction(float(left[i, g] * right[g, j])) * part + Fraction(float(total))
            # numerator / denominator is the float64 nearest to the exact value (CPython divides integers correctly);
            # both factors have 24 and at most 19 bits, so rounding it once more would differ only on a float32 tie.
            assert exact == Fraction(float(exact))
            total = np.float32(float(exact))
        assert got[i, j] == total


PAIRS = [
    ("f32", "f32"),
    ("f64", "f64"),
    ("f64", "e4m3"),
    ("bf16", "f32"),
    ("f16", "bf16"),
    ("e5m2", "e2m1"),
    ("e4m3fnuz", "e3m4"),
    ("ue5m3", "e2m3"),
    ("int8", "e4m3"),
    ("int16", "int16"),
    ("binary8p3se", "e8m0"),
]


@pytest.mark.parametrize("output", ["f32", "f64", "f16", "bf16", "e5m2", "e4m3"])
@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_kulisch_accumulation_is_exact_for_every_pair(left: str, right: str, output: str) -> None:
    spec = MatmulSpec(left, right, FusedDot(None, None, "rne", output))
    rng = np.random.default_rng(10)
    for name in ("bits", "finite", "edge", "subnormal", "wide"):
        a, b = DISTRIBUTIONS[name](rng, spec.a, (2, 19)), DISTRIBUTIONS[name](rng, spec.b, (2, 19)).T
        got = fpsim.matmul(a, b, spec)
        assert_same_bits(got, fpsim.matmul(a, b, spec, backend="reference"), f"{left} {right} {output} {name}")


@pytest.mark.parametrize("output", ["e4m3", "e5m2", "e4m3fnuz", "e2m1", "e3m4", "bf16", "tf32", "f64", "binary8p4se"])
@pytest.mark.parametrize("kind", [FusedDot(8, 13, "rz"), FusedDot(None, 20, "ru", zero_exponent=-12)], ids=str)
def test_truncated_steps_into_any_format(kind: FusedDot, output: str) -> None:
    spec = MatmulSpec("e4m3", "e5m2", replace(kind, output=output))
    rng = np.random.default_rng(12)
    for index, (name, draw) in enumerate(DISTRIBUTIONS.items()):
        a, b = draw(rng, spec.a, (3, 21)), draw(rng, spec.b, (3, 21)).T
        c = random_codes(rng, fpsim.format(output), (3, 3)) if index % 2 else None
        c = None if c is None or output == "tf32" else c.view(result_dtype(output))
        got = fpsim.matmul(a, b, spec, c)
        assert_same_bits(got, fpsim.matmul(a, b, spec, c, backend="reference"), f"{spec} {name}")


def test_exact_sums_take_block_scales() -> None:
    """An MX dot product without any truncation, against fractions."""
    rng = np.random.default_rng(13)
    a, b = (rng.integers(0, 0x7F, s).astype(np.uint8) for s in ((2, 70), (70, 2)))
    left, right = (rng.integers(0, 255, s).astype(np.uint8) for s in ((2, 3), (3, 2)))
    spec = MatmulSpec("e4m3", "e4m3", FusedDot(None, None, "rz"), scale="e8m0", block=32)
    got = fpsim.matmul(a, b, spec, a_scale=left, b_scale=right)
    assert_same_bits(got, fpsim.matmul(a, b, spec, a_scale=left, b_scale=right, backend="reference"))
    x = fpsim.decode(a, "e4m3").astype(np.float64) * np.repeat(2.0 ** (left.astype(float) - 127), 32, axis=1)[:, :70]
    y = fpsim.decode(b, "e4m3").astype(np.float64) * np.repeat(2.0 ** (right.astype(float) - 127), 32, axis=0)[:70]
    for i, j in np.ndindex(2, 2):
        total = sum(Fraction(p) * Fraction(q) for p, q in zip(x[i].tolist(), y[:, j].tolist(), strict=True))
        if total < Fraction(2) ** 128:
            unit = Fraction(2) ** (floor_log2(total) - 23)
            assert Fraction(float(got[i, j])) == total // unit * unit
        else:
            assert got[i, j] == np.inf


def test_a_long_kulisch_sum_loses_nothing() -> None:
    """20000 products over the whole range of float32, and their opposites but one: what is left is that one."""
    rng = np.random.default_rng(11)
    a = rng.integers(0, 0x7F800000, 10000).astype(np.uint32)
    b = rng.integers(0, 0x7F800000, 10000).astype(np.uint32)
    one = fpsim.encode(np.array([3.5]), "f32"), fpsim.encode(np.array([2.0**-140]), "f32")
    x = np.concatenate([a, one[0], a ^ np.uint32(0x80000000)])[None]
    y = np.concatenate([b, one[1], b])[:, None]
    order = rng.permutation(x.size)
    got = fpsim.matmul(x[:, order], y[order], MatmulSpec("f32", "f32", FusedDot(None, None, "rne")))
    assert got[0, 0] == np.float32(3.5 * 2.0**-140)
    product = [Fraction(float(p)) * Fraction(float(q)) for p, q in zip(a.view("f4"), b.view("f4"), strict=True)]
    got = fpsim.matmul(a[None], b[:, None], MatmulSpec("f32", "f32", FusedDot(None, None, "rz", "f64")))
    total = sum(product)
    unit = Fraction(2) ** (floor_log2(total) - 52)
    assert Fraction(float(got[0, 0])) == total // unit * unit


def test_errors_say_what_is_possible() -> None:
    with pytest.raises(ValueError, match="an accumulator that wraps no other, no GroupedDot"):
        Promoted(GroupedDot(), 64)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="any kind but SplitK, GroupedDot and FixedPoint"):
        SplitK(SplitK(FusedDot(8, 13), 2), 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Promoted.order is 'descending'; allowed: 'ascending', 'mod4-pairs'"):
        Promoted(FusedDot(8, 13), 8, order="descending")  # type: ignore[arg-type]
    a = np.ones((1, 4), np.int32)
    with pytest.raises(ValueError, match="a 60-bit integer sum does not convert to a float exactly"):
        fpsim.matmul(a, a.T, MatmulSpec("int32", "int32", Promoted(IntegerAccumulator(60), 2, "f32")))
    spec = MatmulSpec("int8", "int8", Promoted(IntegerAccumulator(), 2, "f16", scaled=True))
    with pytest.raises(ValueError, match="scaled promotions run in float32 to nearest even"):
        fpsim.matmul(a.astype(np.int8), a.T.astype(np.int8), spec, a_scale=np.ones((1, 2)), b_scale=np.ones((2, 1)))
