"""Library GEMMs: epilogues and split K against torch's own float32 operations, DeepGEMM and FP8 mma.sync against
their definitions."""

import ml_dtypes
import numpy as np
import pytest
import torch

import fpsim
from fpsim import reference
from fpsim.accumulators import FusedDot
from fpsim.silicon import library
from fpsim.silicon.splits import matching_splits
from tests.strategies import assert_same_bits, bits

RNG = np.random.default_rng(31)
A, B = (fpsim.encode(RNG.standard_normal(shape), "e4m3") for shape in ((6, 300), (300, 5)))
ACC = fpsim.engine("hopper/wgmma", "e4m3")


def chain(a: np.ndarray, b: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(fpsim.matmul(a, b, ACC))


def test_fast_accumulation_is_one_chain_and_the_other_promotes_every_128() -> None:
    assert_same_bits(fpsim.matmul(A, B, fpsim.engine("hopper/scaled_mm-fast", "e4m3")), chain(A, B).numpy())
    want = torch.zeros(6, 5)
    for k in range(0, 300, 128):
        want = want + chain(A[:, k : k + 128].copy(), B[k : k + 128].copy())
    assert_same_bits(fpsim.matmul(A, B, fpsim.engine("hopper/scaled_mm", "e4m3")), want.numpy())


@pytest.mark.parametrize("out", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
def test_epilogue_order(out: str, rows: bool, with_bias: bool) -> None:
    sa = RNG.uniform(0.1, 3, (6, 1)).astype(np.float32) if rows else np.float32(0.3)
    sb = RNG.uniform(0.1, 3, (1, 5)).astype(np.float32) if rows else np.float32(1.7)
    bias = RNG.standard_normal(5).astype(np.float32) if with_bias else None
    acc, ta, tb = chain(A, B), torch.as_tensor(sa), torch.as_tensor(sb)
    want = (acc * tb) * ta if rows else acc * (ta * tb)
    if bias is not None:
        want = want + torch.from_numpy(bias)
    spec = fpsim.engine("hopper/scaled_mm-fast", "e4m3", out=out)
    got = fpsim.matmul(A, B, spec, a_scale=sa, b_scale=sb, bias=bias)
    kind = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[out]
    wide = {4: torch.int32, 2: torch.int16}[got.itemsize]
    assert_same_bits(got.view(f"i{got.itemsize}"), want.to(kind).view(wide).numpy())


def test_split_k_is_chains_added_in_order() -> None:
    spec = fpsim.engine("hopper/scaled_mm-fast", "e4m3", split_k=2)
    want = chain(A[:, :256].copy(), B[:256].copy()) + chain(A[:, 256:].copy(), B[256:].copy())
    assert_same_bits(fpsim.matmul(A, B, spec), want.numpy())
    assert (fpsim.matmul(A, B, spec) != chain(A, B).numpy()).any()
    with pytest.raises(ValueError, match="split_k=2 is for chains of fused dot products, not IntegerAccumulator"):
        fpsim.engine("generic/int32", "int8", split_k=2)


def test_deepgemm_promotes_with_one_fma_per_group() -> None:
    spec = fpsim.engine("hopper/deepgemm", "e4m3")
    sa = RNG.uniform(0.5, 2, (6, 3)).astype(np.float32)
    sb = RNG.uniform(0.5, 2, (3, 5)).astype(np.float32)
    got = fpsim.matmul(A, B, spec, a_scale=sa, b_scale=sb)
    total = np.zeros((6, 5), np.float32)
    for g, k in enumerate(range(0, 300, 128)):
        part = chain(A[:, k : k + 128].copy(), B[k : k + 128].copy()).numpy()
        scale = sa[:, g, None] * sb[None, g]
        # A float64 product of two float32 is exact and its sum with a third is rounded twice: away from ties, the same.
        total = (scale.astype(np.float64) * part + total).astype(np.float32)
    assert_same_bits(got, total)
    assert_same_bits(got, fpsim.matmul(A, B, spec, a_scale=sa, b_scale=sb, backend="reference"))
    with pytest.raises(ValueError, match="is block-scaled: give a_scale and b_scale"):
        fpsim.matmul(A, B, spec)


@pytest.mark.parametrize("k", [None, 16])
@pytest.mark.parametrize("out", ["f32", "f16"])
def test_fp8_mma_sync_on_hopper_is_two_fp16_chains_and_an_addition(out: str, k: int | None) -> None:
    """Restated with FP16 products: k mod 4 in (0, 1), then (2, 3), from zero, then + C; per 32 or 16 products."""
    spec = fpsim.engine("hopper/mma", "e4m3", "e5m2", out, k=k)
    each = k or 32
    b5 = fpsim.encode(np.random.default_rng(5).standard_normal((64, 5)), "e5m2")
    a4 = A[:, :64].copy()
    rounding, zero = ("rz", -133) if out == "f32" else ("rne", -21)
    half = fpsim.MatmulSpec("f16", "f16", FusedDot(each // 2, 25, rounding, out, zero))
    dtype = np.float32 if out == "f32" else np.float16
    c = RNG.standard_normal((6, 5)).astype(dtype)
    x, y = (fpsim.encode(fpsim.decode(v, f), "f16") for v, f in ((a4, "e4m3"), (b5, "e5m2")))
    want = c
    for start in range(0, 64, each):
        first = [start + i for i in range(each) if i % 4 < 2]
        second = [start + i for i in range(each) if i % 4 >= 2]
        acc = fpsim.matmul(x[:, first].copy(), y[first].copy(), half)
        acc = fpsim.matmul(x[:, second].copy(), y[second].copy(), half, acc)
        want = (acc + want).astype(dtype)
    assert_same_bits(fpsim.matmul(a4, b5, spec, c), want)
    assert (fpsim.matmul(a4, b5, fpsim.engine("hopper/wgmma", "e4m3", "e5m2", out), c) != want).any()


def test_exact_sums_are_correctly_rounded() -> None:
    """A Kulisch accumulator: cancellation of terms 2**200 apart leaves the smallest one."""
    spec = fpsim.MatmulSpec("bf16", "bf16", FusedDot(None, None, "rne"))
    a = fpsim.encode([[2.0**100, 2.0**-100, -(2.0**100)]], "bf16")
    b = fpsim.encode([[2.0**100], [1.0], [2.0**100]], "bf16")
    assert fpsim.matmul(a, b, spec).item() == 2.0**-100
    x, y = fpsim.encode(RNG.standard_normal((3, 99)), "bf16"), fpsim.encode(RNG.standard_normal((99, 4)), "bf16")
    exact = [[reference.dot(row, column, 0, spec) for column in y.T.tolist()] for row in x.tolist()]
    assert bits(fpsim.matmul(x, y, spec)).tolist() == exact


def test_scales_are_checked() -> None:
    spec = fpsim.engine("rtx-blackwell/mma-mxf4nvf4", "e2m1", scale="ue4m3", block=16)
    a, b = np.zeros((2, 40), np.uint8), np.zeros((40, 3), np.uint8)
    with pytest.raises(ValueError, match=r"one scale per 16 of K = 40 they must end in \(2, 3\) and \(3, 3\)"):
        fpsim.matmul(a, b, spec, a_scale=np.zeros((2, 2), np.uint8), b_scale=np.zeros((3, 3), np.uint8))
    with pytest.raises(ValueError, match="takes no a_scale, b_scale or bias"):
        fpsim.matmul(A, B, ACC, bias=np.zeros(5, np.float32))
    with pytest.raises(ValueError, match="starts from zero; add with bias="):
        fpsim.matmul(A, B, fpsim.engine("hopper/scaled_mm", "e4m3"), np.zeros((6, 5), np.float32))
    with pytest.raises(ValueError, match=r"a_scale is \(5, 1\); allowed: a scalar, or a shape that ends in \(6, 1\)"):
        fpsim.matmul(A, B, fpsim.engine("hopper/scaled_mm", "e4m3"), a_scale=np.ones((5, 1)), b_scale=1.0)


def test_batched_block_scales() -> None:
    spec = fpsim.engine("blackwell/tcgen05-mxf8f6f4", "e4m3", "e2m1", scale="e8m0", block=32)
    rng = np.random.default_rng(8)
    a, b = rng.integers(0, 120, (2, 3, 64)).astype(np.uint8), rng.integers(0, 16, (64, 4)).astype(np.uint8)
    sa, sb = rng.integers(120, 134, (2, 3, 2)).astype(np.uint8), rng.integers(120, 134, (2, 4)).astype(np.uint8)
    whole = fpsim.matmul(a, b, spec, a_scale=sa, b_scale=sb)
    for i in range(2):
        assert_same_bits(whole[i], fpsim.matmul(a[i], b, spec, a_scale=sa[i], b_scale=sb))


def test_splits_are_found_by_matching() -> None:
    rng = np.random.default_rng(12)
    a, b = (fpsim.encode(rng.standard_normal(shape), "e4m3") for shape in ((9, 2048), (2048, 16)))
    about = {"name": "hopper/scaled_mm-fast", "formats": ("e4m3", "e4m3")}
    scales = {"a_scale": rng.uniform(0.5, 2, (9, 1)).astype("f4"), "b_scale": rng.uniform(0.5, 2, (1, 16)).astype("f4")}
    for splits in (1, 3, 8):
        spec = fpsim.engine("hopper/scaled_mm-fast", "e4m3", split_k=splits)
        result = fpsim.matmul(a, b, spec, **scales)
        assert matching_splits(result, a, b, **about, **scales) == splits
        assert matching_splits(torch.from_numpy(result), a, b, **about, **scales) == splits
    narrow = fpsim.matmul(a, b, fpsim.engine("hopper/scaled_mm-fast", "e4m3", out="bf16"), **scales)
    tensor = torch.from_numpy(narrow.view(np.int16)).view(torch.bfloat16)
    assert matching_splits(tensor, a, b, **about, out="bf16", **scales) == 1
    other = result.copy()
    other[8, 15] *= 2  # the last output of all
    assert matching_splits(other, a, b, **about, **scales) is None
    assert matching_splits(result, a, b, **about, **scales, candidates=range(1, 8)) is None


def test_products_asked_of_a_library_are_what_their_name_says() -> None:
    gemms = list(library.grid("hopper/scaled_mm", [(3, 16, 32)]))
    assert len({gemm.name for gemm in gemms}) == len(gemms) == 3 * 3 * (2 * 2 + 2)  # and two other classes of inputs
    assert gemms[2].name == "e4m3 x e4m3 -> f32 3x16x32 tensor scales bits"
    assert gemms[-1].name == "e5m2 x e4m3 -> f16 3x16x32 row scales bias"
    given = library.operands(gemms[-1])
    assert {part: x.shape for part, x in given.items()} == {
        "a": (3, 32),
        "b": (32, 16),
        "a_scale": (3, 1),
        "b_scale": (1, 16),
        "bias": (16,),
    }
    assert 0.5 <= given["a_scale"].min() <= given["b_scale"].max() < 1.5
    assert (given["bias"] == given["bias"].astype(ml_dtypes.bfloat16)).all()
    with pytest.raises(ValueError, match="unknown library engine 'hopper/deepgemm'"):
        next(library.grid("hopper/deepgemm"))


@pytest.fixture
def imagined_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that splits long K in two, refuses float32 with a bias, and is wrong by a bit for one shape."""

    def run(gemm: library.Gemm, given: dict[str, np.ndarray]) -> np.ndarray:
        if gemm.bias and gemm.out == "f32":
            raise RuntimeError("Bias is not supported\nsome trace")
        splits = 2 if gemm.k > 512 else 1
        spec = fpsim.engine(gemm.engine, gemm.a, gemm.b, gemm.out, split_k=splits)
        epilogue = {part: x for part, x in given.items() if part not in "ab"}
        out = fpsim.matmul(given["a"], given["b"], spec, **epilogue)
        if gemm.m == 5:
            out.view(f"u{out.itemsize}")[4, -1] ^= 1
        return out

    monkeypatch.setattr(library, "missing", lambda: None)
    monkeypatch.setattr(library, "run", run)
    monkeypatch.setattr(library, "_tensor", lambda part, values, gemm: values)
    monkeypatch.setattr(library, "_cuda_takes", lambda name: False)
    monkeypatch.setattr(library, "kernels", lambda gemm, given: "gemv_kernel")


@pytest.mark.usefixtures("imagined_library")
def test_what_no_split_explains_is_named() -> None:
    told: list[str] = []
    shapes = [(3, 16, 64), (5, 16, 64), (4, 16, 1024)]
    results = library.verify("hopper/scaled_mm-fast", 0, told.append, shapes)
    assert len(results) == 9
    first = results[0]
    assert (first.name, first.shape) == (
        "hopper/scaled_mm-fast e4m3 x e4m3 -> f32",
        "3x16x64, 5x16x64, 4x16x1024",
    )
    assert first.note.startswith(
        "split K: 4x16x1024 in 2; torch refuses 3 of 17: tensor scales, bias: Bias is not supp"
    )
    assert first.unmatched[0] == "e4m3 x e4m3 -> f32 5x16x64 tensor scales (gemv_kernel)"
    assert len(first.unmatched) == 4  # three classes of inputs with scales of the tensor, one with those of rows
    assert not first.passed
    assert first.compared == 16 * (4 * 3 + 4 * 5 + 3 * 4)
    assert sum(len(result.unmatched) for result in results) == len(told)
    matched = library.verify("hopper/torch-mm", 0, told.append, shapes[:1])
    assert all(result.passed and result.compared == 3 * 48 for result in matched)
