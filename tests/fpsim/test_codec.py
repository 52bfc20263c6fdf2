"""encode, decode and quantize: exhaustive where 2**16 cases cover it, against the reference and other packages."""

import math
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
import torch

import fpsim
from fpsim import reference
from fpsim.codec import ML_DTYPES
from fpsim.formats import FORMATS, Format, scalar_format
from fpsim.rounding import CONVERSIONS, OVERFLOWS
from fpsim.rounding import ROUNDINGS as ALL_ROUNDINGS
from tests.strategies import assert_same_bits, bits

SMALL = [n for n, row in FORMATS.items() if isinstance(row, Format) and row.kind == "float" and row.bits <= 16]
ROUNDINGS = [n for n, row in ALL_ROUNDINGS.items() if not row.stochastic]
BYTES = [n for n in SMALL if scalar_format(n).bits <= 8]
BF16_VALUES = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
F16_VALUES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


def edge_values(row: Format) -> np.ndarray:
    """float32 values at, just below and just above every code and every midpoint, and some random bits."""
    positive = np.array([row.magnitude(c) for c in range(min(row.max_code, 4000) + 1)], np.float64)
    step = positive[-1] - positive[-2]
    points = np.concatenate([positive, (positive[1:] + positive[:-1]) / 2, positive[-1] + step * np.array([0.5, 1, 2])])
    with np.errstate(over="ignore"):
        points = points.astype(np.float32)
    near = np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))])
    rng = np.random.default_rng(5)
    wild = rng.integers(0, 1 << 32, 2000, dtype=np.uint32).view(np.float32)
    special = np.array([0x7F800000, 0x7F800001, 0x7FC00000, 0x7FA55555, 1, 0x007FFFFF, 0x00800000], np.uint32)
    values = np.concatenate([near, wild, special.view(np.float32)])
    return np.concatenate([values, -values])


def reference_codes(x: np.ndarray, name: str, **named: str) -> np.ndarray:
    row = scalar_format(name)
    source = "f64" if x.dtype == np.float64 else "f32"
    codes = [reference.encode(reference.decode(int(c), source), name, **named) for c in bits(x)]
    return np.array(codes, np.dtype(row.code_dtype))


class IntervalOracle:
    """The reference encoder for whole arrays of float32: rounding is monotone in the magnitude, so it is enough to know
    where the code changes. Those places are found by bisection with the reference, per sign."""

    def __init__(self, name: str, **named: str) -> None:
        self.starts, self.codes = zip(*(self._scan(name, sign, named) for sign in (0, 1 << 31)), strict=True)
        self.nan = reference_codes(np.array([np.nan, -np.nan], np.float32), name, **named)

    @staticmethod
    def _scan(name: str, sign: int, named: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
        def code(magnitude: int) -> int:
            return reference.encode(reference.decode(sign | magnitude, "f32"), name, **named)

        first, infinity = code(0), 0x7F800000
        starts, codes = [0], [first]
        pending = [(0, first, infinity, code(infinity))]
        while pending:  # depth first, lower half on top of the stack: changes come out in order
            low, at_low, high, at_high = pending.pop()
            if at_low == at_high and high != infinity:
                continue
            if high - low == 1:
                if at_low != at_high:
                    starts.append(high)
                    codes.append(at_high)
                continue
            middle = (low + high) // 2
            at_middle = code(middle)
            pending += [(middle, at_middle, high, at_high), (low, at_low, middle, at_middle)]
        return np.array(starts, np.uint32), np.array(codes, scalar_format(name).code_dtype)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        words = bits(values)
        magnitude = words & np.uint32(0x7FFFFFFF)
        signs = zip(self.starts, self.codes, strict=True)
        results = [codes[np.searchsorted(starts, magnitude, side="right") - 1] for starts, codes in signs]
        negative = words >> 31 == 1
        out = np.where(negative, results[1], results[0])
        return np.where(magnitude > 0x7F800000, self.nan[negative.astype(int)], out)

    def of_range(self, start: int, count: int) -> np.ndarray:
        """Codes of the float32 bit patterns start .. start + count, which may not cross the sign bit. No search."""
        sign = start >> 31
        starts, codes = self.starts[sign], self.codes[sign]
        low, infinity = start & 0x7FFFFFFF, 0x7F800000
        edges = np.concatenate([starts.astype(np.int64), [infinity + 1, 1 << 31]]).clip(low, low + count)
        values = np.concatenate([codes, self.nan[sign : sign + 1]])
        return np.repeat(values, np.diff(edges))


@pytest.mark.parametrize("name", SMALL)
def test_decode_of_every_code_equals_reference(name: str) -> None:
    row = scalar_format(name)
    codes = np.arange(1 << row.bits, dtype=row.code_dtype)
    values = fpsim.decode(codes, name)
    for code, value in zip(codes.tolist(), values.tolist(), strict=True):
        number = reference.decode(code, name)
        if number.kind == "nan":
            assert math.isnan(value)
        elif number.kind == "infinite":
            assert value == (-math.inf if number.negative else math.inf)
        else:
            assert number.value == value
            assert math.copysign(1, value) == (-1 if number.negative else 1)


@pytest.mark.parametrize("name", SMALL)
def test_encode_decode_is_the_identity_on_codes(name: str) -> None:
    row = scalar_format(name)
    codes = np.arange(1 << row.bits, dtype=row.code_dtype)
    values = fpsim.decode(codes, name)
    back = fpsim.encode(values, name, conversion="ocp-nonsat")
    keep = ~np.isnan(values) & (codes < 1 << (row.bits - row.pad_bits))
    assert_same_bits(back[keep], codes[keep], name)


@pytest.mark.parametrize("name", BYTES)
def test_encode_equals_reference_on_every_half_and_many_floats(name: str) -> None:
    wild = np.random.default_rng(8).integers(0, 1 << 32, 1 << 18, dtype=np.uint32).view(np.float32)
    expected = IntervalOracle(name)
    for values in (BF16_VALUES, F16_VALUES, wild):
        assert_same_bits(fpsim.encode(values, name), expected(values), name)
    for start in (0, 0x3F7FF000, 0x7F7FF000, 0x807FF000, 0xFF7FF000):  # the oracle's two readings are one
        piece = np.arange(start, start + 0x2000, dtype=np.uint32).view(np.float32)
        assert_same_bits(expected.of_range(start, piece.size), expected(piece), name)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", SMALL)
def test_vector_roads_equal_the_scalar_one(name: str, rounding: str) -> None:
    """float32 takes vector code, the same values as float64 the scalar function."""
    near = (bits(np.concatenate([BF16_VALUES[::5], F16_VALUES[::7]])) + np.uint32(1)).view(np.float32)
    tiny = np.arange(0, 1 << 24, 8191, dtype=np.uint32).view(np.float32)
    x = np.concatenate([BF16_VALUES[::3], near, tiny, -tiny])
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)
    for conversion in CONVERSIONS:
        for overflow in (None, "propagate"):
            choice = {"rounding": rounding, "overflow": overflow, "conversion": conversion}
            assert_same_bits(fpsim.encode(x, name, **choice), fpsim.encode(wide, name, **choice), f"{name} {choice}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", BYTES)
def test_encode_equals_reference_on_every_float32(name: str, rounding: str) -> None:
    expected = IntervalOracle(name, rounding=rounding)
    for start, values in every_float32():
        got = fpsim.encode(values, name, rounding=rounding)
        assert_same_bits(got, expected.of_range(start, values.size), name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e4m3fnuz", "e3m2", "e2m1"])
def test_encode_equals_ml_dtypes_on_every_float32(name: str) -> None:
    dtype = next(getattr(ml_dtypes, d) for d, n in ML_DTYPES.items() if n == name)
    expected = IntervalOracle(name, conversion="ml_dtypes")
    for start, values in every_float32():
        got = fpsim.encode(values, name, conversion="ml_dtypes")
        assert_same_bits(got, expected.of_range(start, values.size), name)
        with np.errstate(all="ignore"):
            assert_same_bits(got, bits(values.astype(dtype)), name)


def every_float32(chunk: int = 1 << 24) -> Iterator[tuple[int, np.ndarray]]:
    """All 2**32 float32 bit patterns in ascending pieces, with where each piece starts."""
    first, words = np.arange(chunk, dtype=np.uint32), np.empty(chunk, np.uint32)
    for start in range(0, 1 << 32, chunk):
        np.add(first, np.uint32(start), out=words)
        yield start, words.view(np.float32)


@pytest.mark.parametrize("name", ["bf16", "f16"])
def test_encode_of_sixteen_bits_equals_reference(name: str) -> None:
    values = np.concatenate([BF16_VALUES[::13], F16_VALUES[::17], edge_values(scalar_format(name))[::29]])
    assert_same_bits(fpsim.encode(values, name), reference_codes(values, name), name)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", SMALL)
def test_encode_equals_reference_at_every_boundary(name: str, rounding: str) -> None:
    values = edge_values(scalar_format(name))[:: 1 if scalar_format(name).bits <= 8 else 11]
    got = fpsim.encode(values, name, rounding=rounding)
    assert_same_bits(got, reference_codes(values, name, rounding=rounding), f"{name} {rounding}")


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize("name", SMALL)
def test_conversions_equal_reference(name: str, conversion: str) -> None:
    values = BF16_VALUES[::997]
    values = np.concatenate([values, edge_values(scalar_format(name))[-60:]])
    for overflow in (None, *OVERFLOWS):
        for rounding in ("rne", "rz", "ru"):
            choice = {"rounding": rounding, "overflow": overflow, "conversion": conversion}
            got = fpsim.encode(values, name, **choice)
            assert_same_bits(got, reference_codes(values, name, **choice), f"{name} {choice}")


@pytest.mark.parametrize("name", ["int2", "int4", "uint4", "int8", "uint8", "int16", "int24", "int32"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_integers_equal_reference(name: str, rounding: str) -> None:
    row = scalar_format(name)
    rng = np.random.default_rng(7)
    halves = np.arange(-600, 600) / 4
    ends = np.array([row.min, row.max])[:, None] + np.array([-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1])
    values = np.concatenate([halves, ends.ravel(), rng.standard_normal(200) * row.max, [np.nan, np.inf, -np.inf, -0.0]])
    got = fpsim.encode(values, name, rounding=rounding)
    assert_same_bits(got, reference_codes(values.astype(np.float64), name, rounding=rounding), f"{name} {rounding}")


@pytest.mark.parametrize(("dtype", "name"), ML_DTYPES.items())
def test_encode_equals_ml_dtypes(dtype: str, name: str) -> None:
    """Known difference: ml_dtypes 0.5 takes float32 subnormals between 2**-127 and 1.5 * 2**-127 to the E8M0 code 1."""
    rng = np.random.default_rng(3)
    wild = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32).view(np.float32)
    target = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    for values in (BF16_VALUES, F16_VALUES, wild):
        with np.errstate(all="ignore"):
            want = bits(values.astype(target))
        got = fpsim.encode(values, name, conversion="ml_dtypes")
        keep = np.ones(values.shape, bool)
        if name == "e8m0":
            keep = ~e8m0_subnormals(values)
            assert (got[~keep & (values > 0)] == 0).all()
        if name in ("f16", "f32", "f64"):  # numpy's own casts hand NaN payloads through
            keep = ~np.isnan(values)
        assert_same_bits(got[keep], want[keep], name)


def e8m0_subnormals(values: np.ndarray) -> np.ndarray:
    """Where ml_dtypes and torch round up to 2**-126 although 2**-127 is nearer."""
    return (np.abs(values) > 2.0**-127) & (np.abs(values) < 1.5 * 2.0**-127)


TORCH = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
    "e8m0": torch.float8_e8m0fnu,
}


@pytest.mark.parametrize("name", TORCH)
def test_encode_equals_torch(name: str) -> None:
    """Known difference: the same float32 subnormals into E8M0 as in ml_dtypes."""
    for values in (BF16_VALUES, F16_VALUES):
        want = torch.from_numpy(values).to(TORCH[name]).view(torch.uint8).numpy()
        got = fpsim.encode(values, name, conversion="torch")
        keep = ~(e8m0_subnormals(values) & (name == "e8m0"))
        assert_same_bits(got[keep], want[keep], name)


def test_signs_of_zero_and_nan() -> None:
    x = np.array([0.0, -0.0, 1e-30, -1e-30, np.nan, -np.nan], np.float32)
    assert fpsim.encode(x, "e4m3").tolist() == [0, 0x80, 0, 0x80, 0x7F, 0xFF]
    assert fpsim.encode(x, "e4m3fnuz").tolist() == [0, 0, 0, 0, 0x80, 0x80]
    assert fpsim.encode(x, "e2m1").tolist() == [0, 8, 0, 8, 7, 7]
    assert fpsim.encode(x, "int8").tolist() == [0] * 6


def test_rounded_values_are_monotone_and_idempotent() -> None:
    values = np.sort(BF16_VALUES[np.isfinite(BF16_VALUES)])
    for name in SMALL:
        if scalar_format(name).signed:
            grid = fpsim.quantize(values, name)
            assert (np.diff(grid) >= 0).all(), name
            assert_same_bits(fpsim.quantize(grid, name), grid, name)


def test_wide_formats() -> None:
    rng = np.random.default_rng(9)
    x = rng.integers(0, 1 << 32, 5000, dtype=np.uint32).view(np.float32)
    for name in ("tf32", "e8m13", "f32"):
        got = fpsim.encode(x, name, conversion="ocp-nonsat")
        assert_same_bits(got, reference_codes(x, name, conversion="ocp-nonsat"), name)
        for code, value in zip(got.tolist(), fpsim.decode(got, name).tolist(), strict=True):
            number = reference.decode(code, name)
            assert math.isnan(value) if number.kind == "nan" else number.kind == "infinite" or number.value == value
