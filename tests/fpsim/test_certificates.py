"""Certificates: what they promise, checked at the boundary with the worst inputs there are."""

import numpy as np
import pytest

import fpsim
from fpsim.accumulators import IntegerAccumulator, Promoted
from fpsim.certificates import (
    bits_needed,
    cannot_overflow,
    holds,
    outer_bits,
    partial_sums,
    weight_bound,
    zero_centred_bound,
)
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


@pytest.mark.parametrize("activation", ["uint8", "int8", "int4", "uint3"])
def test_weights_that_pass_cannot_overflow_and_others_can(activation: str) -> None:
    """The worst activations in the worst order: all products of one sign, none of the others yet."""
    rng = np.random.default_rng(1)
    row = fpsim.format(activation)
    w = (rng.integers(-1, 2, (120, 40)) * rng.integers(1, 17, 40)).astype(np.int8)
    lowest, highest = partial_sums(w, activation)
    kind = IntegerAccumulator(int(np.median(highest - lowest) / 2).bit_length() + 1, "error")
    safe = cannot_overflow(w, activation, kind)
    assert safe.any()
    assert not safe.all()
    spec = fpsim.MatmulSpec(activation, "int8", kind)
    for j in range(w.shape[1]):
        for sign, end in ((1, highest), (-1, lowest)):
            x = np.where(sign * w[:, j] > 0, int(row.max), int(row.min))
            products = x * w[:, j].astype(np.int64)
            mine = np.argsort(-sign * products, kind="stable")
            first = mine[sign * products[mine] > 0]
            assert products[first].sum() == end[j]
            a, b = x[first][None].astype(row.code_dtype), w[first, j][:, None]
            if kind.low <= end[j] <= kind.high:
                assert fpsim.matmul(a, b, spec).item() == end[j]
            else:
                assert not safe[j]
                with pytest.raises(OverflowError):
                    fpsim.matmul(a, b, spec)


def test_zero_centred_weights_may_be_twice_as_large() -> None:
    bound = zero_centred_bound("uint8", ACC)
    assert bound == 2 * 32767 // 255 == 256
    for size, fits in ((bound // 2, True), (bound // 2 + 1, False)):
        w = np.concatenate([np.ones(size, np.int8), -np.ones(size, np.int8)])[:, None]
        assert np.abs(w).sum() == 2 * size
        assert cannot_overflow(w, "uint8", ACC).item() is fits
    with pytest.raises(ValueError, match="activations that are never negative, got 'int8'"):
        zero_centred_bound("int8", ACC)


@pytest.mark.parametrize(("k", "tile"), [(64, 16), (65, 16), (1, 16), (16, 16), (17, 16), (1024, 128)])
def test_outer_width_is_enough_and_tight(k: int, tile: int) -> None:
    inner = IntegerAccumulator(9, "saturate")
    bits = outer_bits(k, tile, inner)
    a, b = np.full((1, k), -128, np.int8), np.full((k, 1), 127, np.int8)  # every tile saturates at -256
    kind = Promoted(inner, tile, outer=IntegerAccumulator(bits, "error"))
    tiles = -(-k // tile)
    assert fpsim.matmul(a, b, fpsim.MatmulSpec("int8", "int8", kind)).item() == -256 * tiles
    if tiles > 1:
        narrow = Promoted(inner, tile, outer=IntegerAccumulator(bits - 1, "error"))
        with pytest.raises(OverflowError):
            fpsim.matmul(a, b, fpsim.MatmulSpec("int8", "int8", narrow))
    assert outer_bits(0, 16, inner) == 9


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
