"""Integer epilogues against their definitions in exact fractions."""

import math
from fractions import Fraction

import numpy as np
import pytest

import fpsim
from fpsim.requantize import quantize_multiplier, requantize

RNG = np.random.default_rng(4)
EDGES = np.array([0, 1, -1, 2, -2, 3, 2**31 - 1, -(2**31), 2**30, -(2**30), 12345, -54321], np.int32)
VALUES = np.concatenate(
    [EDGES, RNG.integers(-(2**31), 2**31, 3000).astype(np.int32), np.arange(-500, 500, dtype=np.int32)]
)


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def half_away(x: Fraction) -> int:
    return half_up(x) if x >= 0 else -half_up(-x)


@pytest.mark.parametrize("scale", [2.0**-24, 1e-7, 3.3e-8, 0.0123, 0.5, 1 / 3])
def test_methods_equal_their_definitions(scale: float) -> None:
    multiplier, shift = quantize_multiplier(scale)
    m, s = int(multiplier), int(shift)
    assert 2**30 <= m < 2**31
    assert abs(m / 2**31 * 2.0**s - scale) <= scale * 2.0**-31
    single = requantize(VALUES, multiplier, shift, out="int32", method="tflite-single")
    double = requantize(VALUES, multiplier, shift, out="int32", method="gemmlowp")
    dyadic = requantize(VALUES, m >> 16, 15 - s, out="int32", method="dyadic")
    for x, one, two, three in zip(VALUES.tolist(), single.tolist(), double.tolist(), dyadic.tolist(), strict=True):
        assert one == half_up(Fraction(x * m) / 2 ** (31 - s))
        assert three == half_up(Fraction(x * (m >> 16)) / 2 ** (15 - s))
        high = half_up(Fraction(x * m) / 2**31)
        assert two == half_away(Fraction(high) / 2**-s)
    if scale == 0.0123:  # two roundings are not one
        assert (single != double).any()


def test_zero_point_clamp_and_channels() -> None:
    acc = np.array([[1000, -1000], [100000, -100000]], np.int32)
    multiplier, shift = quantize_multiplier([0.01, 0.05])
    assert requantize(acc, multiplier, shift, zero_point=3).tolist() == [[13, -47], [127, -128]]
    assert requantize(acc, multiplier, shift, zero_point=3, low=3).tolist() == [[13, 3], [127, 3]]
    assert requantize(acc, multiplier, shift, zero_point=128, out="uint8").tolist() == [[138, 78], [255, 0]]


def test_a_whole_integer_layer() -> None:
    """Asymmetric activations: sum (x - zx) w = sum x w - zx sum w, requantized, equals the layer on real numbers."""
    x = RNG.integers(0, 256, (4, 64)).astype(np.uint8)
    w = RNG.integers(-127, 128, (64, 5)).astype(np.int8)
    acc = fpsim.matmul(x, w, fpsim.engine("generic/int32", "uint8", "int8")) - 131 * w.sum(axis=0, dtype=np.int32)
    multiplier, shift = quantize_multiplier(0.002)
    got = requantize(acc, multiplier, shift, zero_point=-4)
    exact = (x.astype(np.int64) - 131) @ w.astype(np.int64)
    scale = Fraction(int(multiplier)) / 2**31 * Fraction(2) ** int(shift)
    assert got.tolist() == [[min(max(half_up(v * scale) - 4, -128), 127) for v in row] for row in exact.tolist()]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="unknown requantization 'tflite'"):
        requantize(EDGES, 1 << 30, 0, method="tflite")
    with pytest.raises(ValueError, match="takes int32 accumulators into an integer format, got int64 into int8"):
        requantize(EDGES.astype(np.int64), 1 << 30, 0)
    with pytest.raises(ValueError, match="positive and finite"):
        quantize_multiplier([0.5, -1.0])
    with pytest.raises(ValueError, match="the right shift must be 1 or more, got 0"):
        requantize(EDGES, 3, 0, method="dyadic")
