"""Fixed-point registers: the definition by hand, the kernels against the reference, and what a width means."""

from fractions import Fraction

import numpy as np
import pytest

import fpsim
from fpsim import counts
from fpsim.accumulators import FixedPoint, FusedDot, IntegerAccumulator, Promoted, SplitK
from fpsim.reference.fixed import on_grid
from fpsim.spec import MatmulSpec
from tests.strategies import DISTRIBUTIONS, assert_same_bits, finite_codes


def codes(values: list[float], fmt: str = "e4m3") -> np.ndarray:
    return fpsim.encode(np.array(values, np.float32), fmt, conversion="ocp-nonsat")


def sum_of(a: list[float], b: list[float], kind: FixedPoint, c: float | None = None) -> float:
    start = None if c is None else np.full((1, 1), c, np.float32)
    made = [
        fpsim.matmul(codes(a)[None], codes(b)[:, None], MatmulSpec("e4m3", "e4m3", kind), start, backend=backend)
        for backend in ("cpu", "reference")
    ]
    assert_same_bits(*made)
    return float(made[0][0, 0])


@pytest.mark.parametrize(
    ("a", "b", "kind", "c", "wanted"),
    [
        # 8 bits, last bit 2**-2: -32 to 31.75
        ([6, 6], [4, 4], FixedPoint(8, -2), None, 48 - 64),
        ([6, 6], [4, 4], FixedPoint(8, -2, "saturate"), None, 31.75),
        ([6, 6, 1], [4, 4, -1], FixedPoint(8, -2, "saturate"), None, 30.75),  # clamped on the way: order matters
        ([-6, -6], [4, 4], FixedPoint(8, -2, "saturate"), None, -32),
        ([448, 1], [448, 1], FixedPoint(8, -2, "saturate"), None, 31.75),  # a product far beyond
        ([448, 1], [448, 1], FixedPoint(8, -2), None, 1),  # 448 * 448 is a multiple of 64
        ([0.375, 0.375], [0.5, 0.5], FixedPoint(8, -2), None, 0),  # 0.1875 is cut off, twice
        ([-0.375, 1], [1.5, 1], FixedPoint(8, -2), None, 0.5),  # -0.5625 becomes -0.5: toward zero
        ([1], [1], FixedPoint(8, -2), 0.7, 1.5),  # c is cut off too
        ([1], [1], FixedPoint(8, -2), 33.0, -30),  # and wraps
        ([1], [1], FixedPoint(8, -2, "saturate"), -1e30, -31),  # or is clamped
        ([16], [16], FixedPoint(8, 3), None, 256),  # last bit 2**3: -1024 to 1016
        ([2**-9], [2**-9], FixedPoint(8), None, 2.0**-18),  # by default nothing is below the last bit
        ([2**-9, -(2**-9)], [2**-9, 2**-9], FixedPoint(8), None, 0.0),
    ],
)
def test_by_hand(a: list[float], b: list[float], kind: FixedPoint, c: float | None, wanted: float) -> None:
    got = sum_of(a, b, kind, c)
    assert got == wanted
    assert not np.signbit(got) or wanted < 0


def test_infinities_and_nan_are_remembered() -> None:
    inf, nan = float("inf"), float("nan")
    kind = FixedPoint(12, -3, "saturate")
    spec = MatmulSpec("e5m2", "e5m2", kind)
    rows = [[inf, 1, 1], [-inf, 1, 1], [inf, -inf, 1], [nan, 1, 1], [inf, 1, 0], [1, 1, 1]]
    a, b = codes(np.array(rows).ravel().tolist(), "e5m2").reshape(6, 3), codes([1, 1, 1], "e5m2")[:, None]
    got = fpsim.matmul(a, b, spec)
    assert_same_bits(got, fpsim.matmul(a, b, spec, backend="reference"))
    np.testing.assert_array_equal(got[:, 0], [inf, -inf, nan, nan, inf, 3])
    start = np.full((6, 1), -inf, np.float32)
    np.testing.assert_array_equal(fpsim.matmul(a, b, spec, start)[:, 0], [nan, -inf, nan, nan, nan, -inf])


@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
@pytest.mark.parametrize("bits", [12, 20, 32])
def test_whole_numbers_are_those_of_an_integer_accumulator(bits: int, overflow: str) -> None:
    rng = np.random.default_rng(bits)
    a, b = (rng.integers(-128, 128, shape).astype(np.int8) for shape in ((9, 300), (300, 11)))
    kind = FixedPoint(bits, None, overflow)  # type: ignore[arg-type]
    whole = fpsim.matmul(a, b, MatmulSpec("int8", "int8", IntegerAccumulator(bits, overflow)))  # type: ignore[arg-type]
    assert_same_bits(fpsim.matmul(a, b, MatmulSpec("int8", "int8", kind)), whole.astype(np.float32))


@pytest.mark.parametrize("pair", [("e4m3", "e4m3"), ("e2m1", "e3m2"), ("e5m2", "e5m2"), ("f32", "f16"), ("f64", "f64")])
def test_enough_bits_are_an_exact_sum(pair: tuple[str, str]) -> None:
    """Kulisch: every sum of 64 products fits, and one bit less than the largest needs does not hold it."""
    rng = np.random.default_rng(1)
    spec = MatmulSpec(*pair, FusedDot(None, None, "rne"))
    left, right = spec.a, spec.b
    placed = FixedPoint(2).placed(left, right)
    largest = Fraction(left.max) * Fraction(right.max) * 64 / Fraction(2) ** (placed.lsb or 0)
    bits = int(largest).bit_length() + 1
    for draw in ("finite", "edge", "bits"):
        a, b = DISTRIBUTIONS[draw](rng, left, (4, 64)), DISTRIBUTIONS[draw](rng, right, (64, 5))
        for overflow in ("wrap", "saturate"):
            kind = FixedPoint(bits, None, overflow)  # type: ignore[arg-type]
            assert_same_bits(fpsim.matmul(a, b, MatmulSpec(*pair, kind)), fpsim.matmul(a, b, spec), f"{pair} {draw}")
    if bits <= 53:
        top = np.full((1, 64), left.max_code, left.code_dtype), np.full((64, 1), right.max_code, right.code_dtype)
        narrow = fpsim.matmul(*top, MatmulSpec(*pair, FixedPoint(bits - 1, None, "saturate")))
        assert narrow[0, 0] < fpsim.matmul(*top, spec)[0, 0]


def test_kernels_equal_the_reference_on_all_pairs() -> None:
    """Every product of E4M3 through registers that cut off, clamp and wrap; both starts."""
    every = np.arange(256, dtype=np.uint8)
    rng = np.random.default_rng(2)
    a, b = every[:, None], every[None, :]
    c = (rng.standard_normal((256, 256)) * 2.0 ** rng.integers(-12, 12, (256, 256))).astype(np.float32)
    for kind in (FixedPoint(16, -6, "saturate"), FixedPoint(14, -9, "wrap", "rz", "f16")):
        spec = MatmulSpec("e4m3", "e4m3", kind)
        start = c.astype(np.float16) if kind.output == "f16" else c
        got = fpsim.matmul(a, b, spec, start)
        some = rng.choice(256, 24, replace=False)
        want = fpsim.matmul(a[some], b, spec, start[some], backend="reference")
        assert_same_bits(got[some], want, kind)


def test_counts_say_what_was_lost() -> None:
    spec = MatmulSpec("e4m3", "e4m3", FixedPoint(8, -2, "saturate"))
    a, b = codes([6, 6, 0.375, 0.0625, 0])[None], codes([4, 4, 1.5, 1, 4])[:, None]
    found = counts.matmul(a, b, spec).totals
    # 24 fits, 48 does not, nor do 31.75 + 0.5; 0.5625 lost bits, 0.0625 all of them; 31.75 is read exactly
    assert (found.overflow, found.truncated, found.dropped, found.inexact) == (2, 2, 1, 0)
    wide = MatmulSpec("e4m3", "e4m3", FixedPoint(60))
    assert counts.matmul(a, b, wide).totals.overflow == 0
    assert float(counts.matmul(a, b, wide).result[0, 0]) == 48.625


def test_what_is_refused() -> None:
    a = finite_codes(np.random.default_rng(3), fpsim.formats.scalar_format("e5m2"), (2, 3))
    for spec, words in (
        (MatmulSpec("e5m2", "e5m2", FixedPoint(60)), "may leave a register of 60 bits, which is emulated up to 52"),
        (MatmulSpec("e5m2", "f64", FixedPoint(20, -4)), "at most 53 significant bits together"),
        (MatmulSpec("e5m2", "e5m2", FixedPoint(20, -900)), "-600 to 600"),
        (MatmulSpec("nf4", "e5m2", FixedPoint(20)), "give FixedPoint\\(lsb=\\) its last bit"),
    ):
        x = np.zeros((2, 3), spec.a.code_dtype) if spec.a.name != "e5m2" else a
        y = np.zeros((3, 2), np.float64) if spec.b.name == "f64" else a.T.copy()
        with pytest.raises(ValueError, match=words):
            fpsim.matmul(x, y, spec)
    for values, words in (
        ({"bits": 1}, "bits is 1; allowed: 2 or more"),
        ({"bits": 8, "lsb": 5000}, "allowed: -2200 to 2200"),
        ({"bits": 8, "overflow": "error"}, "allowed: wrap, saturate"),
        ({"bits": 8, "output": "int8"}, "a signed float format"),
    ):
        with pytest.raises(ValueError, match=words):
            FixedPoint(**values)  # type: ignore[arg-type]
    for wrap in (lambda kind: Promoted(kind, 4), lambda kind: SplitK(kind, 2)):
        with pytest.raises(ValueError, match="FixedPoint"):
            wrap(FixedPoint(8))
    with pytest.raises(ValueError, match="no last bit"):
        on_grid(Fraction(1), FixedPoint(8))
