"""Chains and trees in any float format: against the reference, exhaustively against the codec, and against others."""

from typing import Any

import gfloat
import ml_dtypes
import numpy as np
import pytest
from gfloat.formats import format_info_bfloat16, format_info_binary16, format_info_ocp_e5m2
from hypothesis import given, settings
from hypothesis import strategies as st

import fpsim
from fpsim.accumulators import PairwiseTree, SequentialFma
from fpsim.formats import container
from fpsim.gemm import result_dtype
from fpsim.rounding import ROUNDINGS
from fpsim.spec import MatmulSpec
from tests.strategies import DISTRIBUTIONS, assert_same_bits, cancelling, random_codes

DETERMINISTIC = [name for name, row in ROUNDINGS.items() if not row.stochastic]
OUTPUTS = ["f16", "bf16", "f32", "tf32", "e8m13", "e5m2", "e4m3", "e3m4", "e4m3fnuz", "e2m3", "binary16p10se"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"overflow": "saturate"},
    {"fused": False},
    {"fused": False, "product": "f32"},
    {"flush": True},
    {"order": "odd-even"},
    {"fused": False, "product": "e4m3fnuz", "overflow": "nan", "flush": True},
]


def against_reference(spec: MatmulSpec, seed: int, depth: int = 21, distributions: int = 3) -> None:
    """A few distributions (other ones for other seeds), starts of random bits and zeros."""
    rng = np.random.default_rng(seed)
    held = container(spec.accumulator.output)
    names = list(DISTRIBUTIONS)
    for index in range(distributions):
        name = names[(seed + index) % len(names)]
        a, b = DISTRIBUTIONS[name](rng, spec.a, (3, depth)), DISTRIBUTIONS[name](rng, spec.b, (3, depth)).T
        if name == "normal":
            a, b = cancelling(a, b, spec.a)
        c = random_codes(rng, held, (3, 3)).view(result_dtype(held.name)) if index % 2 else None
        got = fpsim.matmul(a, b, spec, c)
        assert_same_bits(got, fpsim.matmul(a, b, spec, c, backend="reference"), f"{spec} {name}")


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("output", OUTPUTS)
def test_sequential_equals_reference(output: str, rounding: str) -> None:
    seed = OUTPUTS.index(output) + 11 * DETERMINISTIC.index(rounding)
    options = OPTIONS[seed % len(OPTIONS)]
    against_reference(MatmulSpec("e4m3", "e5m2", SequentialFma(output, rounding, **options)), seed)
    options = OPTIONS[(seed + 3) % len(OPTIONS)]
    against_reference(MatmulSpec("f32", "bf16", SequentialFma(output, rounding, **options)), seed + 1)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("output", OUTPUTS)
def test_trees_equal_reference(output: str, rounding: str) -> None:
    seed = OUTPUTS.index(output) + 11 * DETERMINISTIC.index(rounding)
    kind = PairwiseTree(1 << seed % 4, output, seed % 3 == 0, rounding, ("", "f16", "e5m2")[seed % 3])
    against_reference(MatmulSpec("f16", "e4m3", kind), seed)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_float64_in_every_rounding(rounding: str) -> None:
    """Sums of a float64 start and float32 products, among them ties: 1 + 2**-53, and the same with odd neighbours."""
    index = DETERMINISTIC.index(rounding)
    kinds = [
        SequentialFma("f64", rounding),
        SequentialFma("f64", rounding, flush=True, overflow="saturate"),
        SequentialFma("f64", rounding, fused=False, product=("f16", "")[index % 2]),
        PairwiseTree(4, "f64", rounding=rounding, product=("", "bf16")[index % 2], flush=index % 3 == 0),
    ]
    for kind in kinds:
        against_reference(MatmulSpec("f32", "f16", kind), index + 1, distributions=7)
    a = np.array([[1.0], [-1.0], [3.0], [-0.0]], np.float32)
    b = np.ldexp(np.array([[1.0, -1.0, 0.5, 1.0, 3.0]], np.float32), [[-53, -54, -52, -148, -52]])
    top = np.finfo(np.float64).max
    starts = np.array([1.0, 1 + 2.0**-52, -2.0, top, -top, 0.0, -0.0, 5e-324, -(2.0**-53)])
    for start in starts:
        c = np.full((4, 5), start)
        spec = MatmulSpec("f32", "f32", SequentialFma("f64", rounding))
        codes = a.view(np.uint32), b.astype(np.float32).view(np.uint32)
        got = fpsim.matmul(*codes, spec, c)
        assert_same_bits(got, fpsim.matmul(*codes, spec, c, backend="reference"), f"{rounding} {start}")


@pytest.mark.parametrize(
    "spec",
    [
        MatmulSpec("f32", "f32", SequentialFma("f32", fused=False)),
        MatmulSpec("f32", "f32", SequentialFma("f32", fused=False, flush=True)),
        MatmulSpec("f64", "f32", SequentialFma("f64", fused=False, flush=True)),
        MatmulSpec("f16", "bf16", SequentialFma("f32", flush=True, order="odd-even")),
        MatmulSpec("f16", "f16", SequentialFma("f64", flush=True)),
        MatmulSpec("int8", "f16", SequentialFma("f16", "rz")),
        MatmulSpec("int24", "int24", SequentialFma("f32")),
        MatmulSpec("nf4", "bf16", SequentialFma("bf16")),
        MatmulSpec("int4", "int8", PairwiseTree(4, "f16")),
        MatmulSpec("e4m3", "e4m3", SequentialFma("f16"), "e5m2"),
        MatmulSpec("e4m3", "e4m3", SequentialFma("binary16p10se"), "f32"),
    ],
    ids=lambda s: f"{s.a.name}-{s.b.name}-{s.accumulator}-{s.out}",
)
def test_native_and_mixed_operands_equal_reference(spec: MatmulSpec) -> None:
    names = ["bits", "wide"] if spec.a.kind == "codebook" else list(DISTRIBUTIONS)
    rng = np.random.default_rng(3)
    for name in names:
        if spec.a.kind == "codebook":
            a = rng.integers(0, 16, (3, 15)).astype(np.uint8)
        else:
            a = DISTRIBUTIONS[name](rng, spec.a, (3, 15))
        b = DISTRIBUTIONS[name](rng, spec.b, (3, 15)).T
        assert_same_bits(fpsim.matmul(a, b, spec), fpsim.matmul(a, b, spec, backend="reference"), f"{spec} {name}")


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("output", ["e5m2", "e4m3", "e3m2", "e4m3fnuz", "f16"])
def test_one_step_of_every_operand_and_start(output: str, rounding: str) -> None:
    """E2M1 x E2M1 + each of 256 codes, 2**16 cases: sums are exact in float64, so the codec is the truth."""
    row = fpsim.format(output)
    start = (np.arange(256) << max(row.bits - 8, 0)).astype(row.code_dtype)[: 1 << row.bits]
    spec = MatmulSpec("e2m1", "e2m1", SequentialFma(output, rounding))
    grid, values = fpsim.decode(np.arange(16, dtype=np.uint8), "e2m1").astype(np.float64), fpsim.decode(start, output)
    for code in range(16):  # a of one value, b of all of them: (1, 1) @ (1, 16 * 256)
        b = np.repeat(np.arange(16, dtype=np.uint8), start.size)[None]
        c = np.tile(start, (1, 16))
        got = fpsim.matmul(np.array([[code]], np.uint8), b, spec, c.view(result_dtype(output)))[0]
        product, value = grid[code] * np.repeat(grid, start.size), np.tile(values, 16).astype(np.float64)
        total = product + value
        minus = np.signbit(product).astype(int) + np.signbit(value)  # an exact zero is -0 if both are, or one and "rd"
        total[total == 0] = np.where(minus > (0 if rounding == "rd" else 1), -0.0, 0.0)[total == 0]
        want = fpsim.encode(total, output, rounding=rounding, conversion="ocp-nonsat")
        nan = np.isnan(fpsim.decode(want, output))
        assert (np.isnan(got.astype(np.float64)) == nan).all()
        assert_same_bits(got.view(want.dtype)[~nan], want[~nan], f"{spec} {code}")


@pytest.mark.parametrize(("output", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_multiply_then_add_equals_numpy(output: str, dtype: Any) -> None:
    """numpy and ml_dtypes compute half precision in float32 and round: exact for one product and for one sum."""
    rng = np.random.default_rng(4)
    a, b = (random_codes(rng, fpsim.format(output), shape).view(dtype) for shape in ((40, 30), (30, 50)))
    a[:20], b[:, :25] = rng.standard_normal((20, 30)), rng.standard_normal((30, 25))
    want = np.zeros((40, 50), dtype)
    with np.errstate(all="ignore"):
        for k in range(30):
            want = (a[:, k, None] * b[k]) + want
    got = fpsim.matmul(a, b, MatmulSpec(output, output, SequentialFma(output, fused=False)))
    nan = np.isnan(want)
    assert nan.any()
    assert not nan.all()
    assert (np.isnan(got) == nan).all()
    assert_same_bits(got[~nan], want[~nan])


def test_multiply_then_add_in_float32_is_two_roundings() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((9, 200), (200, 7)))
    want = np.zeros((9, 7), np.float32)
    for k in range(200):
        want = (a[:, k, None] * b[k]) + want
    got = fpsim.matmul(a, b, MatmulSpec("f32", "f32", SequentialFma(fused=False)))
    assert_same_bits(got, want)
    assert (got != fpsim.matmul(a, b, MatmulSpec("f32", "f32", SequentialFma()))).any()


GFLOAT = {"TowardZero": "rz", "TowardPositive": "ru", "TowardNegative": "rd", "TiesToEven": "rne", "TiesToAway": "rna"}


@pytest.mark.parametrize("mode", GFLOAT)
@pytest.mark.parametrize(
    ("output", "info"),
    [("f16", format_info_binary16), ("bf16", format_info_bfloat16), ("e5m2", format_info_ocp_e5m2)],
)
def test_fused_equals_gfloat(output: str, info: Any, mode: str) -> None:
    """E4M3 products and these accumulators add exactly in float64; gfloat rounds."""
    rounding = GFLOAT[mode]
    rng = np.random.default_rng(6)
    a, b = (fpsim.encode(rng.standard_normal(s) * 4, "e4m3") for s in ((3, 25), (25, 4)))
    x, y = fpsim.decode(a, "e4m3").astype(float), fpsim.decode(b, "e4m3").astype(float)
    got = fpsim.matmul(a, b, MatmulSpec("e4m3", "e4m3", SequentialFma(output, rounding)))
    for i, j in np.ndindex(3, 4):
        total = 0.0
        for k in range(25):
            total = gfloat.round_float(info, float(x[i, k] * y[k, j]) + total, gfloat.RoundMode[mode])
        assert float(got[i, j]) == total


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8),
    st.integers(0, 30),
    st.sampled_from(DETERMINISTIC),
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(*[st.integers(0, 0xFFFFFFFF)] * 2), min_size=1, max_size=6),
)
def test_any_format(
    exponent_bits: int, mantissa_bits: int, rounding: str, fused: bool, saturating: bool, words: Any
) -> None:
    """Float32 operands of any bits into a P3109 or IEEE-like format drawn at random."""
    width = max(1 + exponent_bits + mantissa_bits, 3)
    output = f"binary{width}p{width - exponent_bits}se" if saturating else f"e{exponent_bits}m{mantissa_bits}-ieee"
    a = np.array([[x for x, _ in words]], np.uint32)
    b = np.array([[y] for _, y in words], np.uint32)
    overflow = "saturate" if saturating else "infinity"
    spec = MatmulSpec("f32", "f32", SequentialFma(output, rounding, fused=fused, overflow=overflow))
    assert_same_bits(fpsim.matmul(a, b, spec), fpsim.matmul(a, b, spec, backend="reference"), f"{spec} {words}")


def test_overflow_of_narrow_accumulators() -> None:
    """240 + 240 does not fit E4M3: NaN, the largest value if it saturates, and toward zero the largest value too."""
    a = fpsim.encode(np.full((1, 3), 240.0), "e4m3")
    one = fpsim.encode(np.ones((3, 1)), "e4m3")

    def run(*args: Any, **options: Any) -> float:
        return float(fpsim.matmul(a, one, MatmulSpec("e4m3", "e4m3", SequentialFma(*args, **options)))[0, 0])

    assert np.isnan(run("e4m3"))
    assert run("e4m3", overflow="saturate") == 448
    assert run("e4m3", "rz") == 448
    assert run("f16") == 720
    assert run("e3m4") == np.inf


def test_errors_say_what_is_possible() -> None:
    a = np.ones((1, 1))
    with pytest.raises(ValueError, match=r"at most 50 mantissa and 10 exponent bits, .*; backend='reference'"):
        fpsim.matmul(a.astype(np.float16), a.astype(np.float16), MatmulSpec("f16", "f16", SequentialFma("e11m20-ieee")))
    with pytest.raises(ValueError, match="products of f64 x f64 are not exact in float64"):
        fpsim.matmul(a, a, MatmulSpec("f64", "f64", SequentialFma("f16")))
    with pytest.raises(ValueError, match=r"SequentialFma.output is 'ue4m3'; allowed: a signed float format"):
        SequentialFma("ue4m3")
    with pytest.raises(ValueError, match=r"PairwiseTree.output is 'int8'; allowed: a signed float format"):
        PairwiseTree(2, "int8")
    with pytest.raises(ValueError, match=r"SequentialFma.rounding is 'sra'; allowed: a deterministic one"):
        SequentialFma("f16", "sra")
    with pytest.raises(ValueError, match="a fused multiply-add does not round its product; say fused=False"):
        SequentialFma("f16", product="f16")
    with pytest.raises(ValueError, match="unknown overflow policy 'clamp'"):
        SequentialFma("f16", overflow="clamp")
