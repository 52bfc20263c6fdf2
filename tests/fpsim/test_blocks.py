"""Block formats against a scalar re-statement of their definition in fractions, and the trap below powers of two."""

from fractions import Fraction

import numpy as np
import pytest

import fpsim
from fpsim import blocks, reference
from fpsim.formats import BlockFormat, ScaleRule
from tests.strategies import assert_same_bits, bits

MX = ("mxfp8", "mxfp8-e5m2", "mxfp6", "mxfp6-e3m2", "mxfp4", "mxint8")


def mx_by_definition(values: np.ndarray, row: BlockFormat) -> tuple[int, list[int]]:
    """OCP MX 1.0, section 6.3, on one block of finite float32 values, in exact arithmetic."""
    amax = max(abs(Fraction(float(v))) for v in values)
    emax = reference.floor_log2(Fraction(row.element.max))
    shared = -127 if amax == 0 else max(reference.floor_log2(amax) - emax, -127)
    scale = Fraction(2) ** shared
    codes = []
    for v in values:
        exact = abs(Fraction(float(v))) / scale
        # Only magnitude and sign matter to the encoder: hand it the exact quotient.
        power = exact.denominator.bit_length() - 1
        number = reference.Number("finite", bool(np.signbit(v)), exact.numerator, 0, power)
        codes.append(reference.encode(number, row.element))
    return shared + 127, codes


@pytest.mark.parametrize("name", MX)
def test_mx_equals_its_definition(name: str) -> None:
    row = blocks.block_format(name)
    rng = np.random.default_rng(11)
    wide = rng.standard_normal((40, 32)) * 2.0 ** rng.integers(-140, 100, (40, 1))
    spread = rng.choice([-1, 1], (30, 32)) * 2.0 ** rng.uniform(-12, 12, (30, 32))
    below = np.nextafter(np.float32(2.0) ** np.arange(-20, 20), np.float32(0))[:, None] * np.linspace(0, 1, 32)
    x = np.concatenate([wide, spread, below, np.zeros((1, 32))]).astype(np.float32)
    got = blocks.encode(x, row)
    for i, block in enumerate(x):
        scale, codes = mx_by_definition(block, row)
        assert got.scales[i, 0] == scale, f"{name} block {i}"
        assert got.codes[i].tolist() == codes, f"{name} block {i}"


def test_scale_just_below_a_power_of_two() -> None:
    x = np.zeros(32, np.float32)
    x[:2] = 15.999999, 1.0
    assert fpsim.quantize(x, "mxfp4")[:3].tolist() == [12.0, 1.0, 0.0]


def test_nvfp4_equals_its_definition() -> None:
    x = (np.random.default_rng(2).standard_normal((6, 64)) * 3).astype(np.float32)
    tensor = np.float32(np.abs(x).max()) / np.float32(2688)
    got = blocks.encode(x, "nvfp4")
    assert got.tensor_scale == tensor
    values = blocks.decode(got)
    for i in range(6):
        for start in range(0, 64, 16):
            block = x[i, start : start + 16]
            ratio = np.float32(np.float32(np.abs(block).max() / np.float32(6)) / tensor)
            code = reference.encode(reference.decode(int(bits(ratio.reshape(1))[0]), "f32"), "ue4m3")
            assert got.scales[i, start // 16] == code
            step = tensor * np.float32(float(reference.decode(code, "ue4m3").value))
            scaled = (block / step).astype(np.float32)
            codes = [reference.encode(reference.decode(int(c), "f32"), "e2m1") for c in bits(scaled)]
            assert got.codes[i, start : start + 16].tolist() == codes
            want = fpsim.decode(np.array(codes, np.uint8), "e2m1") * step
            assert_same_bits(values[i, start : start + 16], want)


@pytest.mark.parametrize("name", [*MX, "nvfp4"])
def test_axis_tail_and_idempotence(name: str) -> None:
    x = np.random.default_rng(4).standard_normal((3, 45, 5)).astype(np.float32)
    along = fpsim.quantize(x, name, axis=1)
    moved = np.moveaxis(fpsim.quantize(np.ascontiguousarray(np.moveaxis(x, 1, -1)), name), -1, 1)
    assert_same_bits(along, np.ascontiguousarray(moved))
    block = blocks.block_format(name).block
    assert blocks.encode(x, name, axis=1).scales.shape == (3, -(-45 // block), 5)
    if name != "nvfp4":  # the tensor scale of a quantized tensor may differ
        assert_same_bits(fpsim.quantize(along, name, axis=1), along)


@pytest.mark.parametrize("name", [*MX, "nvfp4"])
def test_nan_and_inf_poison_their_block_only(name: str) -> None:
    block = blocks.block_format(name).block
    x = np.ones((1, 3 * block), np.float32)
    x[0, 1], x[0, block] = np.nan, -np.inf
    y = fpsim.quantize(x, name)
    assert np.isnan(y[0, : 2 * block]).all()
    assert (np.abs(y[0, 2 * block :] - 1) <= 2**-4).all()  # half a step of E2M1 around 1 times an E4M3 scale's 2**-4


def test_zeros_and_sizes() -> None:
    for name in ("mxfp4", "nvfp4"):
        assert_same_bits(fpsim.quantize(np.zeros((2, 32), np.float32), name), np.zeros((2, 32), np.float32))
        assert fpsim.quantize(np.zeros((0, 32), np.float32), name).shape == (0, 32)
    with pytest.raises(ValueError, match="axis is 2, but x has 1 axes"):
        fpsim.quantize(np.zeros(4, np.float32), "mxfp4", axis=2)
    with pytest.raises(ValueError, match="'e4m3' is a scalar format"):
        blocks.encode(np.zeros(4), "e4m3")


def test_scale_rules() -> None:
    """amax = 7 into E2M1 (largest value 6 = 1.5 * 2**2): floor saturates, the others do not."""
    x = np.zeros(32, np.float32)

    def powers(amax: float, *rules: ScaleRule) -> list[int]:
        x[0] = amax
        return [int(blocks.encode(x, "mxfp4", rule=rule).scales[0]) - 127 for rule in rules]

    assert powers(7.0, "floor", "ceil", "rceil", "even", "mse") == [0, 1, 1, 1, 0]
    assert powers(8.0, "floor", "ceil", "rceil", "even") == [1, 1, 1, 1]
    assert powers(6.0, "floor", "ceil", "rceil") == [0, 1, 0]
    y = np.random.default_rng(3).standard_normal((50, 32)).astype(np.float32)

    def error(rule: ScaleRule) -> np.ndarray:
        return np.square(blocks.decode(blocks.encode(y, "mxfp4", rule=rule)) - y.astype(np.float64)).sum(axis=1)

    assert (error("mse") <= error("floor")).all()
    assert (error("mse") < error("floor")).any()
    with pytest.raises(ValueError, match=r"unknown scale rule 'amax' for 'mxfp4' \(known: floor, ceil"):
        blocks.encode(x, "mxfp4", rule="amax")
