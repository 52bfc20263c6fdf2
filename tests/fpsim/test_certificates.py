"""Certificates: what they promise, checked at the boundary with the worst inputs there are."""

import numpy as np
import pytest

import fpsim
from fpsim.accumulators import IntegerAccumulator
from fpsim.certificates import bits_needed, cannot_overflow, holds, weight_bound
from tests.strategies import assert_same_bits

ACC = IntegerAccumulator(16, "saturate")


def test_weight_bound_is_tight() -> None:
    bound = weight_bound("uint8", ACC)
    assert bound == 32767 // 255
    w = np.zeros((bound + 1, 2), np.int8)
    w[:bound, 0] = 1
    w[:, 1] = 1
    assert cannot_overflow(w, "uint8", ACC).tolist() == [True, False]
    worst = np.full((1, bound + 1), 255, np.uint8)
    spec = fpsim.MatmulSpec("uint8", "int8", IntegerAccumulator(16, "error"))
    assert fpsim.matmul(worst, w[:, :1], spec).item() == bound * 255
    with pytest.raises(OverflowError):
        fpsim.matmul(worst, w[:, 1:], spec)


@pytest.mark.parametrize(("a", "b"), [("int8", "int8"), ("uint8", "int8"), ("int4", "uint4"), ("int2", "int8")])
def test_bits_needed_is_enough_and_no_more_than_one_too_many(a: str, b: str) -> None:
    for k in (1, 7, 300):
        x, y = (fpsim.format(f) for f in (a, b))
        extremes = [int(p * q) * k for p in (x.min, x.max) for q in (y.min, y.max)]
        exact = next(n for n in range(2, 64) if -(1 << (n - 1)) <= min(extremes) and max(extremes) < 1 << (n - 1))
        assert exact <= bits_needed(k, a, b) <= exact + 1


def test_results_do_not_depend_on_whether_the_certificate_holds() -> None:
    rng = np.random.default_rng(0)
    for top in (3, 20, 127):
        a, b = (rng.integers(-top, top + 1, s).astype(np.int8) for s in ((9, 200), (200, 8)))
        spec = fpsim.MatmulSpec("int8", "int8", ACC)
        assert_same_bits(fpsim.matmul(a, b, spec), fpsim.matmul(a, b, spec, backend="reference"))
        exact = a.astype(np.int64) @ b.astype(np.int64)
        if holds(a, b, np.zeros((9, 8), np.int32), ACC):
            assert_same_bits(fpsim.matmul(a, b, spec), exact.astype(np.int32))
        else:
            assert top > 3


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="certificates are for integer formats, got 'e4m3'"):
        weight_bound("e4m3", ACC)
    with pytest.raises(ValueError, match=r"w must be an integer matrix \(K, N\), got float64"):
        cannot_overflow(np.zeros((2, 2)), "int8", ACC)
    with pytest.raises(ValueError, match="k is -1"):
        bits_needed(-1, "int8", "int8")
