"""torch's own GEMMs on an H100 or H200 against the library engines: `python -m pytest tests/fpsim -m gpu`."""

import ml_dtypes
import numpy as np
import pytest
import torch

import fpsim
from fpsim.silicon import library
from fpsim.silicon.splits import matching_splits
from tests.strategies import assert_same_bits

pytestmark = pytest.mark.gpu

SHAPES = [(64, 64, 128), (256, 128, 512), (200, 144, 1024), (512, 512, 2048)]
OUT = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@pytest.fixture(autouse=True)
def _needs_hopper() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU and a CUDA build of torch")


def words(tensor: torch.Tensor) -> np.ndarray:
    kind = {4: torch.int32, 2: torch.int16}[tensor.element_size()]
    return tensor.view(kind).cpu().numpy()


@pytest.mark.parametrize("out", OUT)
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_scaled_mm(shape: tuple[int, int, int], fast: bool, rows: bool, out: str) -> None:
    m, n, k = shape
    rng = np.random.default_rng(m + n + k)
    a, b = (fpsim.encode(rng.standard_normal(s), "e4m3") for s in ((m, k), (k, n)))
    sa = rng.uniform(0.5, 2, (m, 1) if rows else (1, 1)).astype(np.float32)
    sb = rng.uniform(0.5, 2, (1, n) if rows else (1, 1)).astype(np.float32)
    if rows and out != "bf16":
        pytest.skip("torch 2.11 gives bfloat16 for row-wise scales")
    left = torch.from_numpy(a).cuda().view(torch.float8_e4m3fn)
    right = torch.from_numpy(np.ascontiguousarray(b.T)).cuda().view(torch.float8_e4m3fn).t()
    scales = (torch.from_numpy(sa).cuda(), torch.from_numpy(sb).cuda())
    want = torch._scaled_mm(left, right, *scales, out_dtype=OUT[out], use_fast_accum=fast)
    spec = fpsim.engine("hopper/scaled_mm-fast" if fast else "hopper/scaled_mm", "e4m3", out=out)
    if not rows:
        sa, sb = sa.reshape(()), sb.reshape(())
    got = fpsim.matmul(a, b, spec, a_scale=sa, b_scale=sb)
    assert_same_bits(got.view(f"i{got.itemsize}"), words(want), f"{shape} fast={fast} rows={rows}")


@pytest.mark.parametrize("operand", ["bf16", "f16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_mm(shape: tuple[int, int, int], operand: str) -> None:
    m, n, k = shape
    rng = np.random.default_rng(k)
    dtype = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}[operand]
    a, b = (fpsim.encode(rng.standard_normal(s), operand).view(dtype) for s in ((m, k), (k, n)))
    left, right = (torch.from_numpy(x.view(np.int16)).cuda().view(OUT[operand]) for x in (a, b))
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    want = torch.mm(left, right)
    got = fpsim.matmul(a, b, fpsim.engine("hopper/torch-mm", operand, out=operand))
    assert_same_bits(got.view(np.int16), words(want), f"{operand} {shape}")


@pytest.mark.parametrize("name", library.ENGINES)
def test_every_product_of_the_grid_is_explained(name: str) -> None:
    """All operand types, results, scales, biases and shapes, with the number of splits found by matching."""
    results = library.verify(name, seed=1, progress=lambda text: None)
    assert [result.unmatched for result in results] == [()] * len(results)
    assert all(result.compared > 0 for result in results)


def test_a_product_that_is_not_the_engine_is_unmatched() -> None:
    gemm = library.Gemm(
        engine="hopper/scaled_mm-fast", a="e4m3", b="e4m3", out="f32", m=64, n=64, k=512, scales="tensor"
    )
    result, splits = library.capture(gemm)
    assert splits == 1
    given = library.operands(gemm)
    about = {"name": "hopper/scaled_mm", "formats": ("e4m3", "e4m3")}
    scales = {part: given[part] for part in ("a_scale", "b_scale")}
    a, b = given["a"], given["b"]
    assert matching_splits(result.view(np.float32), a, b, **about, **scales) is None
