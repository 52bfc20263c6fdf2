"""Counts: the product's own bits, and every count against its definition in fractions."""

from dataclasses import replace

import numpy as np
import pytest

import fpsim
from fpsim import counts, reference
from fpsim.accumulators import (
    FixedPoint,
    FusedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.reference.counts import Tally, count
from fpsim.spec import MatmulSpec
from tests.strategies import DISTRIBUTIONS, assert_same_bits, bits

SPECS = [
    fpsim.engine("hopper/wgmma", "e4m3"),
    fpsim.engine("ampere/mma", "f16", out="f16"),
    fpsim.engine("cdna1/mfma", "bf16"),
    fpsim.engine("generic/fp32", "f32", "bf16"),
    fpsim.engine("cdna3/mfma", "bf16"),
    fpsim.engine("cdna3/mfma", "e4m3fnuz", "e5m2fnuz"),
    MatmulSpec("f16", "bf16", TwoStageDot(6, 9, 14)),
    MatmulSpec("e4m3", "e5m2", FusedDot(8, 6, "rne", "e5m2")),
    MatmulSpec("e4m3", "e2m1", FusedDot(4, 9, "rz", "e2m1", -3)),
    MatmulSpec("f64", "f64", FusedDot(None, None, "rne")),
    MatmulSpec("e4m3", "e4m3", FusedDot(4, None, "rne", "e2m3")),
    MatmulSpec("e4m3", "e4m3", SequentialFma("f16")),
    MatmulSpec("e5m2", "e5m2", SequentialFma("e4m3", "rz", overflow="saturate")),
    MatmulSpec("f16", "e5m2", SequentialFma("bf16", "ru", fused=False, product="f16")),
    MatmulSpec("e4m3", "e4m3", PairwiseTree(4, "e5m2", rounding="rd", product="e4m3")),
    MatmulSpec("f32", "f16", PairwiseTree(2)),
    MatmulSpec("e4m3", "e4m3", FixedPoint(14, -6, "saturate")),
    MatmulSpec("e4m3", "e5m2", FixedPoint(16, -8, "wrap", "rd", "e5m2")),
    MatmulSpec("int8", "int8", IntegerAccumulator(14, "saturate")),
    MatmulSpec("int8", "int8", IntegerAccumulator(14, "wrap")),
    MatmulSpec("uint8", "int8", IntegerAccumulator(18, "wrap", 2, 15)),
    MatmulSpec("int8", "int8", IntegerAccumulator(14, "saturate", 4, None, "pairwise")),
    MatmulSpec("int16", "int16", IntegerAccumulator(34, "saturate", 3)),
    MatmulSpec("e4m3", "e4m3", Promoted(FusedDot(8, 9, "rz", "e8m13"), 16, "f16")),
    MatmulSpec("int8", "int8", Promoted(IntegerAccumulator(13, "wrap"), 8, outer=IntegerAccumulator(15, "saturate"))),
    MatmulSpec("int8", "int8", Promoted(IntegerAccumulator(13, "saturate"), 8, "bf16", rounding="ru")),
    MatmulSpec("e4m3", "e4m3", SplitK(SequentialFma("f16"), 2, 8)),
    MatmulSpec("int8", "int8", SplitK(IntegerAccumulator(14, "saturate"), 2, 8)),
]


def truth(a: np.ndarray, b: np.ndarray, spec: MatmulSpec, i: int, j: int) -> tuple[int, Tally]:
    """One output by the reference, from zero."""
    pairs = [
        (reference.decode(x, spec.a), reference.decode(y, spec.b))
        for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True)
    ]
    tally = Tally()
    return count(pairs, 0, spec.accumulator, tally), tally


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.a.name}-{s.b.name}-{s.accumulator}")
def test_counts_equal_their_definition(spec: MatmulSpec) -> None:
    spec = replace(spec, out="", epilogue=None)
    rng = np.random.default_rng(14)
    for name, draw in DISTRIBUTIONS.items():
        a, b = draw(rng, spec.a, (3, 37)), draw(rng, spec.b, (2, 37)).T
        made = counts.matmul(a, b, spec)
        assert_same_bits(made.result, fpsim.matmul(a, b, spec), f"{spec} {name}")
        for i, j in np.ndindex(3, 2):
            code, tally = truth(a, b, spec, i, j)
            width = 8 * made.result.itemsize
            assert int(bits(made.result)[i, j]) == code % (1 << width)
            got = Tally(*(int(x[i, j]) for x in (made.overflow, made.truncated, made.dropped, made.inexact)))
            assert got == tally, f"{spec} {name} [{i}, {j}]"


@pytest.mark.parametrize(("engine", "options"), [("rtx-blackwell/mma-mxf4nvf4", {"scale": "ue4m3", "block": 16})])
def test_block_scaled_engines_are_counted(engine: str, options: dict[str, object]) -> None:
    spec = fpsim.engine(engine, "e2m1", **options)
    rng = np.random.default_rng(15)
    for top in (16, 126):
        a, b = (rng.integers(0, 16, s).astype(np.uint8) for s in ((2, 130), (130, 2)))
        left, right = (rng.integers(0, top, s).astype(np.uint8) for s in ((2, 9), (9, 2)))
        made = counts.matmul(a, b, spec, a_scale=left, b_scale=right)
        assert_same_bits(made.result, fpsim.matmul(a, b, spec, a_scale=left, b_scale=right))
        for i, j in np.ndindex(2, 2):
            pairs = [
                (reference.decode(x, "e2m1"), reference.decode(y, "e2m1"))
                for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True)
            ]
            scales = [
                (reference.decode(x, "ue4m3"), reference.decode(y, "ue4m3"))
                for x, y in zip(left[i].tolist(), right[:, j].tolist(), strict=True)
            ]
            tally = Tally()
            assert count(pairs, 0, spec.accumulator, tally, scales, 16) == int(bits(made.result)[i, j])
            got = Tally(*(int(x[i, j]) for x in (made.overflow, made.truncated, made.dropped, made.inexact)))
            assert got == tally


def test_flushing_chains_are_counted_with_the_products_bits() -> None:
    rng = np.random.default_rng(16)
    spec = fpsim.engine("x86/vdpbf16ps", "bf16")
    for name, draw in DISTRIBUTIONS.items():
        a, b = draw(rng, spec.a, (3, 37)), draw(rng, spec.b, (2, 37)).T
        assert_same_bits(counts.matmul(a, b, spec).result, fpsim.matmul(a, b, spec), name)


def test_batches_starts_and_totals() -> None:
    rng = np.random.default_rng(17)
    a, b = rng.integers(-128, 128, (2, 3, 4, 40)).astype(np.int8), rng.integers(-128, 128, (3, 40, 5)).astype(np.int8)
    spec = MatmulSpec("int8", "int8", IntegerAccumulator(16, "saturate"))
    c = rng.integers(-100, 100, (4, 5)).astype(np.int32)
    made = counts.matmul(a, b, spec, c)
    assert made.overflow.shape == made.result.shape == (2, 3, 4, 5)
    assert_same_bits(made.result, fpsim.matmul(a, b, spec, c))
    total = sum((counts.matmul(a[i], b, spec, c).totals for i in range(2)), counts.matmul(a[:0], b, spec, c).totals)
    assert total == made.totals
    assert total.outputs == 120
    assert total.products == 4800
    assert total.overflow == made.overflow.sum() > 0
    assert str(total).startswith("120 outputs of 4,800 products: ")


@pytest.mark.parametrize("order", ["channel-row-column", "row-column-channel"])
def test_convolutions_are_counted_pixel_by_pixel(order: str) -> None:
    """The count of one output is that of its window as a dot product."""
    rng = np.random.default_rng(32)
    x, w = rng.integers(-128, 128, (2, 4, 6, 5)).astype(np.int8), rng.integers(-128, 128, (6, 2, 3, 2)).astype(np.int8)
    spec = MatmulSpec("int8", "int8", IntegerAccumulator(16, "saturate"))
    options = {"stride": (1, 2), "padding": 1, "groups": 2, "pad_code": -7, "order": order}
    made = counts.conv2d(x, w, spec, **options)
    assert_same_bits(made.result, fpsim.conv2d(x, w, spec, **options))
    assert made.overflow.shape == made.result.shape
    assert made.products == 12
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-7)
    axes = (0, 1, 2) if order == "channel-row-column" else (1, 2, 0)
    for n, o, i, j in [(0, 0, 0, 0), (1, 5, 3, 2), (1, 2, 5, 1)]:
        window = padded[n, 2 * (o // 3) : 2 * (o // 3) + 2, i : i + 3, 2 * j : 2 * j + 2].transpose(axes).reshape(1, 12)
        alone = counts.matmul(window, w[o].transpose(axes).reshape(12, 1), spec)
        assert made.overflow[n, o, i, j] == alone.overflow[0, 0]
        assert made.result[n, o, i, j] == alone.result[0, 0]
    assert made.totals.overflow > 0


def test_the_certificate_means_no_overflow() -> None:
    rng = np.random.default_rng(18)
    w = rng.integers(-2, 3, (60, 8)).astype(np.int8)
    kind = IntegerAccumulator(16, "saturate")
    safe = fpsim.certificates.cannot_overflow(w, "uint8", kind)
    assert safe.any()
    x = rng.integers(0, 256, (50, 60)).astype(np.uint8)
    assert not counts.matmul(x, w, MatmulSpec("uint8", "int8", kind)).overflow[:, safe].any()


def test_blackwell_truncates_almost_nothing_where_hopper_does() -> None:
    """Ordinary data: an accumulator of 25 fraction bits loses no product, one of 13 does in most steps."""
    rng = np.random.default_rng(19)
    a, b = (fpsim.encode(rng.standard_normal(s), "e4m3") for s in ((8, 512), (512, 8)))
    hopper = counts.matmul(a, b, fpsim.engine("hopper/wgmma", "e4m3")).totals
    blackwell = counts.matmul(a, b, fpsim.engine("blackwell/tcgen05", "e4m3")).totals
    assert hopper.truncated > hopper.products / 20
    assert blackwell.truncated < blackwell.products / 1000


def test_encoding_counts_exceptions() -> None:
    """E4M3: 448 is the largest, 464 rounds to it, above is overflow; 2**-6 is the smallest normal, 2**-9 subnormal."""
    x = np.array([0, 1, 1.01, 448, 464, 464.001, 1e9, np.inf, np.nan, 2.0**-9, 2.0**-10, 2.0**-6 * 0.99, -(2.0**-30)])
    flags = counts.encoding(x, "e4m3")
    assert flags == fpsim.codec.Flags(values=13, inexact=7, underflow=3, overflow=2, nan=1)


def test_errors_say_what_is_possible() -> None:
    a, one = np.zeros((2, 4), np.uint16), np.ones((2, 1), np.float32)
    scaled = Promoted(FusedDot(4, 13), 4, scaled=True)
    with pytest.raises(ValueError, match="counts are not kept for scaled promotions"):
        counts.matmul(a, a.T, MatmulSpec("f16", "f16", scaled), a_scale=one, b_scale=one.T)
    with pytest.raises(ValueError, match="and f64 for chains and trees; backend='reference'"):
        counts.matmul(a, a.T, MatmulSpec("f16", "f16", SequentialFma("f64")))
    with pytest.raises(ValueError, match=r"a is \(2, 4\) and b is \(2, 4\)"):
        counts.matmul(a, a, MatmulSpec("f16", "f16", SequentialFma("f16")))
