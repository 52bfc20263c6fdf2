"""What does not fit gives one clear error; what is merely unusual works, writes into no argument, and is the same."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import fpsim
from fpsim.accumulators import (
    FusedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.formats import Format
from fpsim.spec import MatmulSpec
from tests.strategies import assert_same_bits

WGMMA = fpsim.engine("hopper/wgmma", "e4m3")
MX = fpsim.engine("rtx-blackwell/mma-mxf8f6f4", "e4m3", scale="e8m0", block=32)
INT8 = fpsim.engine("generic/int32", "int8")

#: one of each kind of accumulator, wrapped and not
KINDS = [
    MatmulSpec("e4m3", "e4m3", kind)
    for kind in (
        FusedDot(32, 13, "rz", "e8m13", -133),
        FusedDot(None, 20),
        FusedDot(None, None, "rne", "f64"),
        TwoStageDot(8),
        SequentialFma("f32"),
        SequentialFma("f16", "rz", fused=False),
        PairwiseTree(4),
        PairwiseTree(4, "bf16"),
        Promoted(FusedDot(32, 13), 64),
        Promoted(SequentialFma("f16"), 24),
        SplitK(FusedDot(16, 25), 3, 16),
    )
] + [
    MatmulSpec("int8", "int8", kind)
    for kind in (
        IntegerAccumulator(),
        IntegerAccumulator(40, "saturate"),
        IntegerAccumulator(16, "saturate"),
        IntegerAccumulator(16, "saturate", 8, None, "pairwise"),
        IntegerAccumulator(20, "error"),
        Promoted(IntegerAccumulator(14, "saturate"), 16, outer=IntegerAccumulator(32)),
        SplitK(IntegerAccumulator(16, "saturate"), 2, 32),
    )
]


def name_of(spec: MatmulSpec) -> str:
    return str(spec.accumulator)


def operands(spec: MatmulSpec, m: int, k: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    size = 40.0 if spec.a.kind == "int" else 1.0
    return tuple(fpsim.encode(rng.standard_normal(s) * size, spec.a) for s in ((m, k), (k, n)))  # type: ignore[return-value]


# -- what does not fit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmt", "codes", "message"),
    [
        ("e2m1", np.array([[3, 16]], np.uint8), r"a\[0, 1\] is 16, which is not a code of 'e2m1' \(allowed: 0 to 15\)"),
        ("e4m3", np.array([[3, -1]]), r"a\[0, 1\] is -1, which is not a code of 'e4m3' \(allowed: 0 to 255\)"),
        ("f16", np.array([[1 << 16]]), r"a\[0, 0\] is 65536, which is not a code of 'f16'"),
        ("int8", np.array([[200]]), r"a\[0, 0\] is 200, which is not a code of 'int8' \(allowed: -128 to 127\)"),
        ("int8-narrow", np.array([[-128]], np.int8), r"is -128, which is not a code of 'int8-narrow'"),
        ("int4", np.array([[-9]], np.int8), r"is -9, which is not a code of 'int4' \(allowed: -8 to 7\)"),
        ("uint8", np.array([[-1]], np.int8), r"is -1, which is not a code of 'uint8' \(allowed: 0 to 255\)"),
        ("e4m3", np.zeros((1, 1)), "a has dtype float64, but codes of 'e4m3' are uint8"),
        ("e4m3", np.zeros((1, 1), ml_dtypes.float8_e5m2), "a has dtype float8_e5m2, but codes of 'e4m3' are uint8"),
        ("e4m3", np.zeros((1, 1), complex), "a has dtype complex128"),
        ("e4m3", np.zeros((1, 1), object), "a has dtype object"),
        ("e4m3", None, "a has dtype object"),
        ("e4m3", torch.zeros(1, 1, dtype=torch.float8_e5m2), "a has dtype float8_e5m2, but codes of 'e4m3' are uint8"),
        ("e2m1", torch.zeros(1, 1, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "packs two codes in a byte"),
        ("e4m3", torch.zeros(1, 1, dtype=torch.uint8, device="meta"), "a tensor on meta was given"),
    ],
)
def test_codes_that_are_none_of_the_format(fmt: str, codes: Any, message: str) -> None:
    kind = IntegerAccumulator() if "int" in fmt else FusedDot(8, 13)
    with pytest.raises(ValueError, match=message):
        fpsim.matmul(codes, np.zeros((1, 1), np.uint8), MatmulSpec(fmt, "uint8" if "int" in fmt else "e4m3", kind))


def test_codes_of_a_codebook_end_where_it_does() -> None:
    row = Format(name="three", kind="codebook", values=(-1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match=r"codes\[1\] is 3, which is not a code of 'three' \(allowed: 0 to 2\)"):
        fpsim.decode(np.array([2, 3], np.uint8), row)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((4, 8), (4, 8), r"a is \(4, 8\) and b is \(4, 8\): a's last axis must be as long as b's second to last"),
        ((8,), (8, 4), r"a and b need at least two axes, got shapes \(8,\) and \(8, 4\)"),
        ((2, 4, 8), (3, 8, 4), r"leading axes of a \(2, 4, 8\) and b \(3, 8, 4\) do not broadcast"),
    ],
)
def test_shapes_that_do_not_meet(a: tuple[int, ...], b: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fpsim.matmul(np.zeros(a, np.uint8), np.zeros(b, np.uint8), WGMMA)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (MatmulSpec("int8", "e4m3", FusedDot(8, 13)), "a FusedDot takes float operands, got int8 x e4m3"),
        (MatmulSpec("e4m3", "int8", IntegerAccumulator()), "an IntegerAccumulator takes integer operands, got e4m3"),
        (MatmulSpec("f32", "f32", TwoStageDot(4)), "floats of at most 13 significant bits, got f32 x f32"),
        (MatmulSpec("f32", "f64", SequentialFma("f32")), "products of f32 x f64 are not exact in float64"),
        (MatmulSpec("f64", "f64", FusedDot(8, 40)), "'f64' has 52 mantissa bits|do not fit a 63-bit sum"),
        (MatmulSpec("int8.4", "int8", IntegerAccumulator()), "takes integer operands, got int8.4 x int8"),
    ],
)
def test_operand_pairs_an_accumulator_does_not_take(spec: MatmulSpec, message: str) -> None:
    a, b = (np.zeros((1, 1), row.code_dtype) for row in (spec.a, spec.b))
    with pytest.raises(ValueError, match=message):
        fpsim.matmul(a, b, spec)


def test_engines_name_the_pairs_they_take() -> None:
    with pytest.raises(ValueError, match=r"engine 'volta/mma' does not take a='e4m3', b='e4m3'.*; it takes: a='?f16"):
        fpsim.engine("volta/mma", "e4m3")
    with pytest.raises(ValueError, match="spec is 'hopper/wgmma'; allowed: a MatmulSpec"):
        fpsim.matmul(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), "hopper/wgmma")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "scales", "message"),
    [
        (MX, {}, "is block-scaled: give a_scale and b_scale"),
        (MX, {"a_scale": np.zeros((4, 2), np.uint8)}, "is block-scaled: give a_scale and b_scale"),
        (
            MX,
            {"a_scale": np.zeros((4, 1), np.uint8), "b_scale": np.zeros((2, 3), np.uint8)},
            r"with one scale per 32 of K = 40 they must end in \(4, 2\) and \(2, 3\)",
        ),
        (
            MX,
            {"a_scale": np.ones((4, 2)), "b_scale": np.zeros((2, 3), np.uint8)},
            "a_scale has dtype float64, but codes of 'e8m0' are uint8",
        ),
        (WGMMA, {"a_scale": 1.0}, "takes no a_scale, b_scale or bias"),
        (WGMMA, {"bias": 1.0}, "takes no a_scale, b_scale or bias"),
        (fpsim.engine("hopper/deepgemm", "e4m3"), {}, "give a_scale and b_scale"),
        (
            fpsim.engine("hopper/scaled_mm", "e4m3"),
            {"a_scale": np.ones((3, 1)), "b_scale": 1.0},
            r"a_scale is \(3, 1\); allowed: a scalar, or a shape that ends in \(4, 1\)",
        ),
        (
            fpsim.engine("hopper/scaled_mm", "e4m3"),
            {"bias": np.ones(4)},
            r"bias is \(4,\); allowed: a shape that broadcasts to the result's \(4, 3\)",
        ),
    ],
)
def test_scales_missing_misshapen_or_unwanted(spec: MatmulSpec, scales: dict[str, Any], message: str) -> None:
    a, b = operands(WGMMA, 4, 40, 3)
    with pytest.raises(ValueError, match=message):
        fpsim.matmul(a, b, spec, **scales)


def test_specs_that_would_ignore_their_scales() -> None:
    with pytest.raises(ValueError, match="block scales join the products of a FusedDot"):
        MatmulSpec("e4m3", "e4m3", SequentialFma("f32"), scale="e8m0", block=32)
    with pytest.raises(ValueError, match="a GroupedDot needs them"):
        MatmulSpec("e2m1", "e2m1", fpsim.GroupedDot())
    with pytest.raises(ValueError, match="go together: give both or neither"):
        MatmulSpec("e4m3", "e4m3", FusedDot(32, 25), scale="e8m0")


def test_outputs_that_cannot_be_written() -> None:
    a, b = operands(WGMMA, 4, 40, 3)
    fixed = np.zeros((4, 3), np.float32)
    fixed.flags.writeable = False
    for out, message in (
        (fixed, r"out is float32\[4, 3\]; it must be writeable float32\[4, 3\]"),
        (np.zeros((4, 3)), r"out is float64\[4, 3\]; it must be writeable float32\[4, 3\]"),
        ([0.0], "out is a list; it must be a numpy array"),
    ):
        with pytest.raises(ValueError, match=message):
            fpsim.matmul(a, b, WGMMA, out=out)  # type: ignore[arg-type]
    frozen = np.zeros(3, np.uint8)
    frozen.flags.writeable = False
    for out, message in (
        (frozen, "out must be C-contiguous and writeable"),
        (np.zeros(6, np.uint8)[::2], "out must be C-contiguous and writeable"),
        (np.zeros(3, np.int8), r"out is int8\[3\]; it must be uint8\[3\]"),
        ([0], r"out is a list; it must be a numpy array, uint8\[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            fpsim.encode(np.ones(3), "e4m3", out=out)  # type: ignore[arg-type]


def test_arrays_larger_than_memory() -> None:
    """2**50 bytes are more than any address space here gives: numpy says what it could not allocate."""
    long = np.broadcast_to(np.uint8(0), (1 << 25, 1 << 25))
    with pytest.raises(MemoryError, match=r"Unable to allocate .* shape \(33554432, 33554432\)"):
        fpsim.matmul(long[:, :1], long[:1], WGMMA)
    with pytest.raises(MemoryError, match="Unable to allocate"):
        fpsim.matmul(long, long, WGMMA)
    with pytest.raises(MemoryError, match="Unable to allocate"):
        fpsim.encode(np.broadcast_to(np.float32(0), (1 << 25, 1 << 25)), "e4m3")


@pytest.mark.parametrize("pad_code", [300, -1])
def test_padding_is_a_code_too(pad_code: int) -> None:
    x, w = np.zeros((1, 1, 3, 3), np.uint8), np.zeros((1, 1, 3, 3), np.int8)
    with pytest.raises(ValueError, match=f"pad_code is {pad_code}, which is not a code of 'uint8'"):
        fpsim.conv2d(x, w, fpsim.engine("generic/int32", "uint8", "int8"), padding=1, pad_code=pad_code)


def test_thread_counts_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in ("two", "0", "-1"):
        monkeypatch.setenv("FPSIM_THREADS", wanted)
        with pytest.raises(ValueError, match=f"FPSIM_THREADS is '{wanted}'; allowed: a number of threads, 1 or more"):
            fpsim.encode(np.ones(3), "e4m3")


# -- what is merely unusual ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", KINDS, ids=name_of)
def test_empty_sizes(spec: MatmulSpec) -> None:
    a, b = operands(spec, 4, 70, 3)
    whole = fpsim.matmul(a, b, spec)
    assert fpsim.matmul(a[:0], b, spec).shape == (0, 3)
    assert fpsim.matmul(a, b[:, :0], spec).shape == (4, 0)
    assert fpsim.matmul(a[None][:0], b, spec).shape == (0, 4, 3)
    assert fpsim.matmul(a[None][:0], b[None], spec).shape == (0, 4, 3)
    nothing = fpsim.matmul(a[:, :0], b[:0], spec)
    assert nothing.dtype == whole.dtype
    assert not nothing.view(np.uint8).any()
    assert_same_bits(fpsim.matmul(a[:, :0], b[:0], spec, whole), whole)


@pytest.mark.parametrize("spec", KINDS, ids=name_of)
def test_strided_read_only_and_foreign_arrays(spec: MatmulSpec) -> None:
    """Every other row, columns backwards, big-endian words: the bits of the plain copy; the arguments unchanged."""
    a, b = operands(spec, 8, 70, 6)
    x, y = a[::2, ::-1], b[::-1, ::3]
    want = fpsim.matmul(x.copy(), y.copy(), spec)
    before = a.copy(), b.copy()
    for array in (a, b):
        array.flags.writeable = False
    assert_same_bits(fpsim.matmul(x, y, spec), want)
    assert_same_bits(fpsim.matmul(np.asfortranarray(x), y.astype(">i4"), spec), want)
    assert_same_bits(fpsim.matmul(x.tolist(), y.tolist(), spec), want)
    c = np.zeros(want.shape, want.dtype)
    c.flags.writeable = False
    assert_same_bits(fpsim.matmul(x, y, spec, c), want)
    assert_same_bits(a, before[0])
    assert_same_bits(b, before[1])


@pytest.mark.parametrize("spec", KINDS, ids=name_of)
def test_results_do_not_depend_on_the_number_of_threads(spec: MatmulSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = operands(spec, 130, 96, 64)
    if spec.a.kind == "float":
        a[3, 5] = 0x7F  # a row of NaN leaves the fast road
    monkeypatch.setenv("FPSIM_THREADS", "1")
    one = fpsim.matmul(a, b, spec)
    for threads in ("2", "5"):
        monkeypatch.setenv("FPSIM_THREADS", threads)
        assert_same_bits(fpsim.matmul(a, b, spec), one, threads)


def test_out_may_be_anything_writeable_even_an_operand() -> None:
    a, b = operands(WGMMA, 4, 40, 3)
    want = fpsim.matmul(a, b, WGMMA)
    c = np.full((4, 3), 2.5, np.float32)
    start = fpsim.matmul(a, b, WGMMA, c)
    assert fpsim.matmul(a, b, WGMMA, c, out=c) is c
    assert_same_bits(c, start)
    strided = np.zeros((3, 8), np.float32).T[::2]
    fpsim.matmul(a, b, WGMMA, out=strided)
    assert_same_bits(np.ascontiguousarray(strided), want)
    memory = np.zeros(200, np.uint8)
    memory[:160] = a.reshape(-1)
    out = memory[:48].view(np.float32).reshape(4, 3)  # over the first operand's own bytes
    fpsim.matmul(memory[:160].reshape(4, 40), b, WGMMA, out=out)
    assert_same_bits(out, want)


@pytest.mark.parametrize(("fmt", "first"), [("e4m3", 0), ("e4m3", 200_003), ("bf16", 50_000), ("f32", 0), ("int8", 7)])
def test_encode_may_write_over_its_input(fmt: str, first: int) -> None:
    """Codes from element `first` on: ahead of what has been read, they would be read as values."""
    x = np.random.default_rng(30).standard_normal(100_000).astype(np.float32) * 30
    want = fpsim.encode(x, fmt)
    memory = np.zeros(x.nbytes + 16, np.uint8)
    memory[: x.nbytes] = x.view(np.uint8)
    start = first * want.itemsize
    out = memory[start : start + want.nbytes].view(want.dtype)
    fpsim.encode(memory[: x.nbytes].view(np.float32), fmt, out=out)
    assert_same_bits(out, want)


@pytest.mark.parametrize(
    ("fmt", "kind"),
    [
        ("e4m3", torch.float8_e4m3fn),
        ("e5m2", torch.float8_e5m2),
        ("e4m3fnuz", torch.float8_e4m3fnuz),
        ("e5m2fnuz", torch.float8_e5m2fnuz),
        ("bf16", torch.bfloat16),
        ("f16", torch.float16),
    ],
)
def test_torch_and_ml_dtypes_arrays_are_codes_without_a_copy(fmt: str, kind: torch.dtype) -> None:
    x = torch.from_numpy(np.random.default_rng(31).standard_normal((6, 40)).astype(np.float32)).to(kind)
    codes = x.view(torch.uint8 if x.element_size() == 1 else torch.uint16).numpy()
    taken = fpsim.codec.as_codes(x, fpsim.format(fmt))
    assert taken.ctypes.data == x.data_ptr()
    assert_same_bits(taken, codes)
    named = codes.view(fpsim.gemm.result_dtype(fmt))
    assert fpsim.codec.as_codes(named, fpsim.format(fmt)).ctypes.data == x.data_ptr()
    assert_same_bits(fpsim.decode(x, fmt), x.float().numpy())
    assert_same_bits(fpsim.encode(x, "f32").view(np.float32), x.float().numpy())
    assert_same_bits(fpsim.quantize(x, "e2m1"), fpsim.quantize(x.float().numpy(), "e2m1"))
    spec = MatmulSpec(fmt, fmt, SequentialFma("f32"))
    assert_same_bits(fpsim.matmul(x, x.T, spec), fpsim.matmul(codes, codes.T, spec))
    assert_same_bits(fpsim.matmul(named, named.T, spec), fpsim.matmul(codes, codes.T, spec))
    tracked = x.float().requires_grad_()
    assert_same_bits(fpsim.encode(tracked, fmt), codes)


def test_small_integers_of_ml_dtypes() -> None:
    a = np.array([[-8, 7, 3]], ml_dtypes.int4)
    spec = fpsim.engine("generic/int32", "int4")
    assert fpsim.matmul(a, a.T, spec).tolist() == [[122]]
