"""Quantize kernels of one launch each, for GPUs: what an inference library would ship."""

# Triton compiles these functions from their source: they stay free of annotations, and the module is imported lazily.
# mypy: ignore-errors

import torch
import triton
import triton.language as tl

LARGEST = 448.0  #: of E4M3
BLOCK = 4096


@triton.jit
def _cast(x, y, scale, n, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32) / tl.load(scale)
    v = tl.minimum(tl.maximum(v, -LARGEST), LARGEST)
    tl.store(y + i, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _cast_amax(x, y, amax, scale, n, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    s = tl.maximum(tl.load(amax).to(tl.float32), 1e-12) / LARGEST
    if tl.program_id(0) == 0:
        tl.store(scale, s)
    v = tl.load(x + i, mask=inside, other=0.0).to(tl.float32) / s
    v = tl.minimum(tl.maximum(v, -LARGEST), LARGEST)
    tl.store(y + i, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _cast_rows(x, y, scale, k, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < k
    v = tl.load(x + row * k + i, mask=inside, other=0.0).to(tl.float32)
    s = tl.maximum(tl.max(tl.abs(v), axis=0), 1e-12) / LARGEST
    tl.store(scale + row, s)
    v = tl.minimum(tl.maximum(v / s, -LARGEST), LARGEST)
    tl.store(y + row * k + i, v.to(y.dtype.element_ty), mask=inside)


def cast(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """E4M3 of x / scale, saturated; scale: float32, one element."""
    y = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    n = x.numel()
    _cast[(triton.cdiv(n, BLOCK),)](x, y, scale, n, LARGEST=LARGEST, BLOCK=BLOCK, num_warps=8)
    return y


def cast_amax(x: torch.Tensor, amax: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(E4M3 of x over its scale, that scale) from the largest magnitude of x."""
    y = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = torch.empty((), dtype=torch.float32, device=x.device)
    n = x.numel()
    _cast_amax[(triton.cdiv(n, BLOCK),)](x, y, amax, scale, n, LARGEST=LARGEST, BLOCK=BLOCK, num_warps=8)
    return y, scale


def cast_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(E4M3 of each row over its scale, those scales of shape (rows, 1)), the maximum found in the same pass."""
    rows, k = x.shape
    y = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(k)
    _cast_rows[(rows,)](x, y, scale, k, LARGEST=LARGEST, BLOCK=block, num_warps=8 if block >= 4096 else 4)
    return y, scale
