"""matmul and conv2d as functions: shapes, layouts, dtypes, broadcasting, errors, threads, and uncompiled kernels."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

import fpsim
from fpsim.accumulators import FusedDot, IntegerAccumulator
from tests.strategies import assert_same_bits

SPEC = fpsim.engine("hopper/wgmma", a="e4m3", b="e4m3", out="f32")


def codes(shape: tuple[int, ...], seed: int = 0, fmt: str = "e4m3") -> np.ndarray:
    return fpsim.encode(np.random.default_rng(seed).standard_normal(shape), fmt)


def test_leading_axes_broadcast_as_in_numpy() -> None:
    a, b = codes((2, 1, 4, 40)), codes((3, 40, 5), 1)
    got = fpsim.matmul(a, b, SPEC)
    assert got.shape == (2, 3, 4, 5)
    for i in range(2):
        for j in range(3):
            assert_same_bits(got[i, j], fpsim.matmul(a[i, 0], b[j], SPEC))
    assert_same_bits(fpsim.matmul(a[:, 0], b[0], SPEC)[1], fpsim.matmul(a[1, 0], b[0], SPEC))


def test_any_layout_and_nothing_is_written_into() -> None:
    a, b = codes((6, 64)), codes((64, 7), 1)
    c = np.ones((6, 7), np.float32)
    for array in (a, b, c):
        array.flags.writeable = False
    want = fpsim.matmul(a, b, SPEC, c)
    x, y, z = a[::2, ::-1], b[::-1, ::3], c[::2, ::3]
    assert_same_bits(fpsim.matmul(x, y, SPEC, z), fpsim.matmul(x.copy(), y.copy(), SPEC, z.copy()))
    assert_same_bits(fpsim.matmul(a.view(ml_dtypes.float8_e4m3fn), b.astype(np.int64), SPEC, c), want)
    out = np.empty((6, 7), np.float32)
    assert fpsim.matmul(a, b, SPEC, c, out=out) is out
    assert_same_bits(out, want)


def test_c_broadcasts_and_empty_sizes_work() -> None:
    a, b = codes((4, 32)), codes((32, 3), 1)
    row = np.arange(3, dtype=np.float32)
    assert_same_bits(fpsim.matmul(a, b, SPEC, row), fpsim.matmul(a, b, SPEC, np.tile(row, (4, 1))))
    assert fpsim.matmul(a[:0], b, SPEC).shape == (0, 3)
    assert fpsim.matmul(a, b[:, :0], SPEC).shape == (4, 0)
    assert_same_bits(fpsim.matmul(a[:, :0], b[:0], SPEC, row), np.tile(row, (4, 1)))


@pytest.mark.parametrize("out", ["bf16", "f16", "e4m3"])
def test_output_formats_are_one_more_rounding(out: str) -> None:
    a, b = codes((4, 96)), codes((96, 3), 1)
    spec = fpsim.MatmulSpec("e4m3", "e4m3", SPEC.accumulator, out)
    wide = fpsim.matmul(a, b, SPEC)
    want = torch.from_numpy(wide).to({"bf16": torch.bfloat16, "f16": torch.float16, "e4m3": torch.float8_e4m3fn}[out])
    got = fpsim.matmul(a, b, spec)
    assert_same_bits(got.view(f"u{got.itemsize}"), want.view({1: torch.uint8, 2: torch.uint16}[got.itemsize]).numpy())


def test_results_in_formats_without_a_float_type_are_codes() -> None:
    a, b = codes((4, 96)), codes((96, 3), 1)
    wide = fpsim.matmul(a, b, SPEC)
    for out, dtype in (("e3m2", ml_dtypes.float6_e3m2fn), ("ue5m3", np.uint8), ("int5", np.int8)):
        got = fpsim.matmul(a, b, fpsim.MatmulSpec("e4m3", "e4m3", SPEC.accumulator, out))
        assert got.dtype == dtype
        want = fpsim.encode(wide, out, conversion="ocp-nonsat")
        assert_same_bits(got.view(want.dtype), want)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)},
        {"groups": 2, "padding": 1},
        {"groups": 4},
    ],
)
def test_conv2d_equals_torch_where_sums_are_exact(options: dict[str, object]) -> None:
    """Small integers: every partial sum fits every accumulator, so any order gives the same bits."""
    rng = np.random.default_rng(5)
    x = rng.integers(-4, 5, (2, 4, 9, 8)).astype(np.float32)
    w = rng.integers(-2, 3, (8, 4 // int(str(options.get("groups", 1))), 3, 2)).astype(np.float32)
    want = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w), **options).numpy()
    spec = fpsim.engine("hopper/wgmma", "e5m2", "e4m3")
    got = fpsim.conv2d(fpsim.encode(x, "e5m2"), fpsim.encode(w, "e4m3"), spec, **options)
    assert_same_bits(got + 0, want + 0)  # + 0: torch may return -0
    spec = fpsim.engine("generic/int32", "int8")
    exact = fpsim.conv2d(x.astype(np.int8), w.astype(np.int8), spec, **options)
    assert_same_bits(exact, want.astype(np.int32))


def test_conv2d_order_is_part_of_the_arithmetic() -> None:
    x, w = codes((1, 64, 6, 6)), codes((8, 64, 3, 3), 1)
    first = fpsim.conv2d(x, w, SPEC)
    other = fpsim.conv2d(x, w, SPEC, order="row-column-channel")
    assert (first != other).any()
    patches = (
        np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5).reshape(16, -1)
    )
    want = fpsim.matmul(np.ascontiguousarray(patches), w.reshape(8, -1).T, SPEC)
    assert_same_bits(first[0].reshape(8, 16), np.ascontiguousarray(want.T))


def test_conv2d_pads_with_the_zero_point() -> None:
    spec = fpsim.engine("generic/int32", "uint8", "int8")
    x = np.full((1, 1, 2, 2), 7, np.uint8)
    w = np.ones((1, 1, 3, 3), np.int8)
    assert (fpsim.conv2d(x, w, spec, padding=1, pad_code=7) == 63).all()


def test_errors_say_what_to_do() -> None:
    a, b = codes((4, 32)), codes((32, 3), 1)
    with pytest.raises(ValueError, match=r"a is \(4, 32\) and b is \(3, 32\): .*\(K\)"):
        fpsim.matmul(a, b.T, SPEC)
    with pytest.raises(ValueError, match="at least two axes"):
        fpsim.matmul(a[0], b, SPEC)
    with pytest.raises(ValueError, match="do not broadcast"):
        fpsim.matmul(codes((2, 4, 32)), codes((3, 32, 3)), SPEC)
    with pytest.raises(ValueError, match="a has dtype float32, but codes of 'e4m3' are uint8"):
        fpsim.matmul(a.astype(np.float32), b, SPEC)
    with pytest.raises(ValueError, match="c has dtype float64; this accumulator starts from float32"):
        fpsim.matmul(a, b, SPEC, np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"c has shape \(2,\), which does not broadcast"):
        fpsim.matmul(a, b, SPEC, np.zeros(2, np.float32))
    with pytest.raises(ValueError, match=r"out is float32\[2, 2\]; it must be writeable float32\[4, 3\]"):
        fpsim.matmul(a, b, SPEC, out=np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"unknown backend 'gpu'"):
        fpsim.matmul(a, b, SPEC, backend="gpu")
    with pytest.raises(ValueError, match="a FusedDot takes float operands, got int8 x int8"):
        fpsim.matmul(a.view(np.int8), b.view(np.int8), fpsim.MatmulSpec("int8", "int8", FusedDot(32, 13)))
    with pytest.raises(ValueError, match="do not fit a 63-bit sum"):
        fpsim.matmul(a, b, fpsim.MatmulSpec("e4m3", "e4m3", FusedDot(32, 60)))
    with pytest.raises(ValueError, match="does not round to 'f32' exactly; take out='int64'"):
        fpsim.matmul(a.view(np.int8), b.view(np.int8), fpsim.MatmulSpec("int8", "int8", IntegerAccumulator(60), "f32"))
    with pytest.raises(ValueError, match="x has 4 channels and w is"):
        fpsim.conv2d(codes((1, 4, 5, 5)), codes((2, 3, 3, 3)), SPEC)
    with pytest.raises(ValueError, match="stride is 0; allowed: 1 or more"):
        fpsim.conv2d(codes((1, 4, 5, 5)), codes((2, 4, 3, 3)), SPEC, stride=0)
    with pytest.raises(ValueError, match="smaller than the dilated kernel"):
        fpsim.conv2d(codes((1, 4, 2, 2)), codes((2, 4, 3, 3)), SPEC)


def test_integer_overflow_is_reported_where_it_happens() -> None:
    spec = fpsim.MatmulSpec("int8", "int8", IntegerAccumulator(16, "error"))
    a, b = np.full((2, 4), 127, np.int8), np.full((4, 3), 127, np.int8)
    a[0] = 1
    with pytest.raises(OverflowError, match=r"output \[1, 0\] reaches 48387 at k = 2, outside the 16-bit accumulator"):
        fpsim.matmul(a, b, spec)
    assert fpsim.matmul(a[:1], b, spec).tolist() == [[508] * 3]


SCRIPT = """
import numpy as np, fpsim, sys
rng = np.random.default_rng(0)
x = rng.standard_normal((9, 70))
x[3, 5] = np.nan
for a, engine in (("e4m3", "hopper/wgmma"), ("f16", "ampere/mma"), ("bf16", "blackwell/mma")):
    spec = fpsim.engine(engine, a)
    c = fpsim.encode(x, a, conversion="ocp-nonsat")
    sys.stdout.write(fpsim.matmul(c, c.T.copy(), spec).tobytes().hex() + "\\n")
    sys.stdout.write(fpsim.encode(x, a, rounding="rz").tobytes().hex() + "\\n")
small = fpsim.encode(x[:4, :13], "e4m3", conversion="ocp-nonsat")
for kind in (
    fpsim.SequentialFma("f16", "ru"),
    fpsim.SequentialFma("e5m2", fused=False, overflow="saturate"),
    fpsim.PairwiseTree(4, "bf16", rounding="rna"),
    fpsim.FusedDot(None, None, "rne", "f64"),
    fpsim.Promoted(fpsim.FusedDot(4, 9, "rz", "e4m3"), 8, "f16", rounding="rd"),
):
    counted = fpsim.counts.matmul(small, small.T, fpsim.MatmulSpec("e4m3", "e4m3", kind))
    sys.stdout.write(counted.result.tobytes().hex() + counted.inexact.tobytes().hex() + "\\n")
words = rng.integers(-128, 128, (4, 13)).astype(np.int8)
for kind in (
    fpsim.IntegerAccumulator(15, "saturate", 3),
    fpsim.IntegerAccumulator(15, "saturate", 4, None, "pairwise"),
    fpsim.IntegerAccumulator(40, "wrap"),
):
    made = fpsim.matmul(words, words.T, fpsim.MatmulSpec("int8", "int8", kind))
    sys.stdout.write(made.tobytes().hex() + "\\n")
"""


def run_script(**environment: str) -> str:
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=env, check=True, capture_output=True, text=True).stdout


def test_threads_and_compilation_do_not_change_bits() -> None:
    one = run_script(FPSIM_THREADS="1")
    assert len(one.split()) == 14
    assert run_script(FPSIM_THREADS="3") == one
    assert run_script(NUMBA_DISABLE_JIT="1") == one


@pytest.mark.parametrize(("engine", "operand"), [("hopper/torch-mm", "bf16"), ("hopper/torch-mm", "f16")])
def test_the_cast_of_a_nan_is_the_engines(engine: str, operand: str) -> None:
    """cvt.rn.bf16.f32 and cvt.rn.f16.f32 give 0x7FFF (PTX ISA 9.0, cvt), not the quiet NaN of the format."""
    spec = fpsim.engine(engine, operand, out=operand)
    a, b = np.full((2, 16), 0x7FFF, np.uint16), np.zeros((16, 3), np.uint16)
    for backend in ("cpu", "reference"):
        assert (fpsim.matmul(a, b, spec, backend=backend).view(np.uint16) == 0x7FFF).all()
    assert fpsim.reference.dot([0x7FFF], [0], 0, spec) == 0x7FFF
