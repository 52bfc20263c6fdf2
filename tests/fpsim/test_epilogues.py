"""Zero points, integer and float epilogues, each against its definition."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fpsim
from fpsim.accumulators import IntegerAccumulator, SequentialFma
from fpsim.requantize import (
    conv2d_zero_points,
    dequantize,
    epilogue,
    quantize_multiplier,
    requantize,
    zero_points,
)
from fpsim.spec import Epilogue, MatmulSpec
from tests.strategies import assert_same_bits

SPEC = fpsim.engine("generic/int32", "uint8", "int8")
ZEROS = st.integers(-(2**31), 2**31 - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 6), ZEROS, st.lists(ZEROS, min_size=3, max_size=3))
def test_correction_is_the_product_of_differences_wrap_included(
    seed: int, k: int, a_zero: int, b_zero: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 256, (2, 2, k)).astype(np.uint8), rng.integers(-128, 128, (k, 3)).astype(np.int8)
    got = fpsim.matmul(a, b, SPEC, zero_points(a, b, "uint8", "int8", a_zero, np.array([b_zero])))
    for t, i, j in np.ndindex(2, 2, 3):
        exact = sum((x - a_zero) * (y - b_zero[j]) for x, y in zip(a[t, i].tolist(), b[:, j].tolist(), strict=True))
        assert got[t, i, j] == (exact + 2**31) % 2**32 - 2**31


def test_zero_points_per_row() -> None:
    rng = np.random.default_rng(25)
    a, b = rng.integers(0, 16, (4, 9)).astype(np.uint8), rng.integers(0, 16, (9, 5)).astype(np.uint8)
    zero = np.array([[3], [0], [15], [8]])
    got = fpsim.matmul(a, b, fpsim.engine("generic/int32", "uint4")) + zero_points(a, b, "uint4", "uint4", zero, 7)
    assert (got == (a.astype(int) - zero) @ (b.astype(int) - 7)).all()


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"padding": (2, 0), "dilation": (2, 1)}, {"groups": 2, "padding": 1}]
)
@pytest.mark.parametrize("w_zero", [0, -3, "per channel"])
def test_convolution_padded_with_the_zero_point(options: dict[str, object], w_zero: object) -> None:
    """Exactly the convolution of the differences, padded with zeros; float64 holds these sums."""
    rng = np.random.default_rng(26)
    x = rng.integers(0, 256, (2, 4, 7, 6)).astype(np.uint8)
    w = rng.integers(-128, 128, (6, 4 // int(str(options.get("groups", 1))), 3, 2)).astype(np.int8)
    zero = rng.integers(-128, 128, 6) if w_zero == "per channel" else np.array(w_zero)
    got = fpsim.conv2d(x, w, SPEC, **options, pad_code=77)
    got = got + conv2d_zero_points(x, w, "uint8", "int8", 77, zero, **options)
    differences = w.astype(np.float64) - np.broadcast_to(zero, 6)[:, None, None, None]
    want = torch.nn.functional.conv2d(
        torch.from_numpy(x.astype(np.float64) - 77), torch.from_numpy(differences), **options
    )
    assert_same_bits(got, want.numpy().astype(np.int32))


@pytest.mark.parametrize("method", ["gemmlowp", "tflite-single", "dyadic"])
def test_a_whole_integer_layer(method: str) -> None:
    """Codes in, codes out: sums, correction, bias, multiplier, zero point and ReLU."""
    rng = np.random.default_rng(27)
    x, w = rng.integers(0, 256, (5, 40)).astype(np.uint8), rng.integers(-128, 128, (40, 6)).astype(np.int8)
    bias = rng.integers(-5000, 5000, 6).astype(np.int32)
    multiplier, shift = quantize_multiplier(rng.uniform(1e-4, 1e-2, 6))
    if method == "dyadic":
        multiplier, shift = multiplier >> 16, 15 - shift
    correction = zero_points(x, w, "uint8", "int8", 131)
    made = epilogue(
        fpsim.matmul(x, w, SPEC),
        multiplier,
        shift,
        correction=correction,
        bias=bias,
        zero_point=-20,
        low=-20,
        method=method,
    )
    exact = (x.astype(np.int64) - 131) @ w.astype(np.int64) + bias
    want = requantize(exact.astype(np.int32), multiplier, shift, zero_point=-20, low=-20, method=method)
    assert made.dtype == np.int8
    assert made.min() == -20
    assert_same_bits(made, want)


def test_float_epilogues_of_integer_sums() -> None:
    """int8 GEMM with float32 scales: one conversion, then the operations of a library's epilogue."""
    rng = np.random.default_rng(28)
    x, w = rng.integers(-128, 128, (5, 4000)).astype(np.int8), rng.integers(-128, 128, (4000, 6)).astype(np.int8)
    x[0], w[:, 0] = 127, 127  # 64516000 needs 26 bits: the conversion rounds
    left, right = rng.uniform(0.5, 2, (5, 1)).astype(np.float32), rng.uniform(0.5, 2, (1, 6)).astype(np.float32)
    bias = rng.standard_normal(6).astype(np.float32)
    sums = fpsim.matmul(x, w, fpsim.engine("generic/int32", "int8"))
    value = (torch.from_numpy(sums).float() * torch.from_numpy(right)) * torch.from_numpy(left) + torch.from_numpy(bias)
    for out, torch_type in (("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)):
        spec = MatmulSpec("int8", "int8", IntegerAccumulator(), out, epilogue=Epilogue())
        got = fpsim.matmul(x, w, spec, a_scale=left, b_scale=right, bias=bias)
        want = value.to(torch_type).view(torch.int32 if out == "f32" else torch.int16).numpy()
        assert_same_bits(got.view(want.dtype), want, out)
        assert_same_bits(dequantize(sums, left, right, bias, out=out), got, out)
    assert MatmulSpec("int8", "int8", IntegerAccumulator(), epilogue=Epilogue()).out == "f32"
    relu = dequantize(sums, left, right, bias, low=0, high=6, out="e4m3", conversion="ocp-sat")
    assert relu.dtype == ml_dtypes.float8_e4m3fn
    want = torch.clamp(value, 0, 6).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert_same_bits(relu.view(np.uint8), want)


def test_epilogues_of_narrow_accumulators_are_in_float32() -> None:
    a, b = (np.full(s, 0.3, np.float16) for s in ((1, 8), (8, 1)))
    chain = SequentialFma("f16")
    sums = fpsim.matmul(a, b, MatmulSpec("f16", "f16", chain))
    assert sums.dtype == np.float16
    got = fpsim.matmul(a, b, MatmulSpec("f16", "f16", chain, epilogue=Epilogue()), a_scale=0.7, b_scale=3)
    scaled = np.float32(sums[0, 0]) * (np.float32(0.7) * np.float32(3))
    assert got.dtype == np.float16
    assert got[0, 0] == np.float16(scaled)
    codes = fpsim.matmul(a, b, MatmulSpec("f16", "f16", SequentialFma("binary12p8se"), "f32", epilogue=Epilogue()))
    assert codes[0, 0] == fpsim.matmul(a, b, MatmulSpec("f16", "f16", SequentialFma("binary12p8se"), "f32"))[0, 0]


def test_errors_say_what_is_possible() -> None:
    a, sums = np.zeros((2, 3), np.uint8), np.zeros((2, 2), np.int32)
    with pytest.raises(ValueError, match="zero points are for integer formats of at most 32 bits, but b is in 'e4m3'"):
        zero_points(a, a.T, "uint8", "e4m3")
    with pytest.raises(ValueError, match=r"a is \(2, 3\) and b is \(2, 3\); allowed"):
        zero_points(a, a, "uint8", "uint8")
    with pytest.raises(ValueError, match=r"a_zero is float64\(\); allowed: an integer, or integers of shape \(2, 1\)"):
        zero_points(a, a.T, "uint8", "uint8", 1.5)
    with pytest.raises(ValueError, match=r"b_zero is int64\(3,\); allowed: an integer, or integers of shape \(1, 2\)"):
        zero_points(a, a.T, "uint8", "uint8", 1, np.arange(3))
    with pytest.raises(ValueError, match="bias has dtype float64; allowed: int32"):
        epilogue(sums, 1 << 30, 0, bias=np.zeros(2))
    with pytest.raises(ValueError, match="takes int32 accumulators into an integer format, got float32"):
        epilogue(sums.astype(np.float32), 1 << 30, 0)
    with pytest.raises(ValueError, match=r"dequantize takes sums \(..., M, N\) of integers or floats, got int32\(2,\)"):
        dequantize(sums[0])
    with pytest.raises(ValueError, match=r"bias is \(3,\); allowed: a shape that broadcasts to the result's \(2, 2\)"):
        dequantize(sums, bias=np.zeros(3))
    with pytest.raises(ValueError, match=r"a_scale is \(2,\); allowed: a scalar, or a shape that ends in \(2, 1\)"):
        dequantize(sums, a_scale=np.ones(2))
