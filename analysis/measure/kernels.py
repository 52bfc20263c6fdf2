"""From a case to something that runs: operands drawn from an arena, and a function that launches the kernel once.

An arena is one large block of normally distributed values per type; operands are slices of it.  Each call of a cold
operand takes the next slice, so no two calls of a graph share one, without filling memory again for every shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F

from analysis.measure.cases import Case
from analysis.measure.fp8 import plain_amax, plain_cast
from analysis.measure.timer import Call
from hwmodels.ops import Attention, Conv2d, ConvNd, Elementwise, Gemm, Move, Norm, Quantize, Reduction

ALIGN = 256  #: bytes; what an allocator would give
TOUCHED = 2**28  #: bytes; what is larger than any L2 need not be read into it

DTYPES: Mapping[str, torch.dtype] = {
    "": torch.bfloat16,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "f16": torch.float16,
    "f32": torch.float32,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}


class Arena:
    """Slices of normally distributed values on a device; `size` bytes per type."""

    def __init__(self, device: str, size: int) -> None:
        self.device, self.size = device, size
        self.blocks: dict[torch.dtype, torch.Tensor] = {}
        self.at: dict[torch.dtype, int] = {}

    def _block(self, dtype: torch.dtype, needed: int) -> torch.Tensor:
        found = self.blocks.get(dtype)
        if found is None or found.numel() < needed:
            self.blocks.pop(dtype, None)
            self.at[dtype] = 0
            found = self.blocks[dtype] = _normal(max(self.size // dtype.itemsize, needed), dtype, self.device)
        return found

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The next slice, as a contiguous tensor of this shape."""
        count = math.prod(shape)
        block = self._block(dtype, count)
        start = self.at[dtype]
        if start + count > block.numel():
            start = 0
        grain = ALIGN // dtype.itemsize
        self.at[dtype] = -(-(start + count) // grain) * grain
        return block[start : start + count].view(shape)

    def holds(self, count: int, dtype: torch.dtype) -> int:
        """How many disjoint slices of `count` elements there are."""
        return max(self._block(dtype, count).numel() // max(count, 1), 1)


def _normal(count: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    if dtype in (torch.int8, torch.float8_e4m3fn):
        out = torch.empty(count, dtype=dtype, device=device)
        for start in range(0, count, 2**28):
            part = torch.empty(min(2**28, count - start), dtype=torch.float32, device=device).normal_()
            out[start : start + len(part)] = part.mul_(24).round_().clamp_(-127, 127).to(dtype)
        return out
    return torch.empty(count, dtype=dtype, device=device).normal_()


Take: TypeAlias = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
Build: TypeAlias = Callable[[Any, Case, Take, Take], Call]


class Operands:
    """Draws the operands of call after call: weights always new, activations new only if `cold`."""

    def __init__(self, arena: Arena, cold: bool) -> None:
        self.arena, self.cold = arena, cold
        self.kept: list[torch.Tensor] = []
        self.position = 0

    def next_call(self) -> None:
        self.position = 0

    def weight(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self.arena.take(shape, dtype)

    def activation(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        if self.cold:
            return self.arena.take(shape, dtype)
        if self.position == len(self.kept):
            self.kept.append(self.arena.take(shape, dtype))
        self.position += 1
        return self.kept[self.position - 1]

    def touch(self) -> None:
        """Read what should be warm, so that the first call finds it in L2."""
        for tensor in (t for t in self.kept if t.nbytes <= TOUCHED):
            tensor.view(torch.uint8).max()


def calls_of(case: Case, arena: Arena, count: int, cold: bool) -> tuple[list[Call], Call]:
    """(`count` launches of the case, what touches its warm operands).  Raises ValueError for a case no rule covers."""
    build = _BUILD.get(type(case.op))
    if build is None:
        raise ValueError(f"nothing here runs a {case.kind}")
    operands = Operands(arena, cold)
    calls = []
    for _ in range(count):
        operands.next_call()
        calls.append(build(case.op, case, operands.weight, operands.activation))
    return calls, operands.touch


def _gemm(op: Gemm, case: Case, weight: Take, activation: Take) -> Call:
    dtype = DTYPES[case.format]
    x, w = activation((op.m, op.k), dtype), weight((op.n, op.k), dtype).t()
    if case.format == "int8":
        return lambda: torch._int_mm(x, w)
    if case.format != "fp8":
        return lambda: torch.mm(x, w)
    rowwise = case.variant == "rowwise"
    a = torch.ones((op.m, 1) if rowwise else (), device=x.device)
    b = torch.ones((1, op.n) if rowwise else (), device=x.device)
    return lambda: torch._scaled_mm(x, w, scale_a=a, scale_b=b, out_dtype=torch.bfloat16, use_fast_accum=True)


def _last(x: torch.Tensor) -> torch.Tensor:
    """A (batch, *size, channels) tensor seen as (batch, channels, *size): channels-last memory."""
    return x.permute(0, x.dim() - 1, *range(1, x.dim() - 1))


def _conv(op: Conv2d | ConvNd, case: Case, weight: Take, activation: Take) -> Call:
    dtype = DTYPES[case.format]
    inner = op.in_channels // op.groups
    if op.layout == "channels_last":
        x = _last(activation((op.batch, *op.inputs, op.in_channels), dtype))
        w = _last(weight((op.out_channels, *op.kernels, inner), dtype))
    else:
        x = activation((op.batch, op.in_channels, *op.inputs), dtype)
        w = weight((op.out_channels, inner, *op.kernels), dtype)
    bias = weight((op.out_channels,), dtype) if op.bias else None
    if isinstance(op, Conv2d):
        rows = op.kernel // 2 if op.padding is None else op.padding
        columns = op.padding_width if op.padding_width is not None else op.kernels[1] // 2
        padding = (rows, columns if op.padding is None or op.padding_width is not None else rows)
        return lambda: F.conv2d(x, w, bias, op.stride, padding, op.dilation, op.groups)
    pads = tuple(k // 2 if o == s else 0 for s, k, o in zip(op.size, op.kernel, op.output, strict=True))
    run: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(op.size)]
    return lambda: run(x, w, bias, 1, pads, 1, op.groups)


def _attention(op: Attention, case: Case, weight: Take, activation: Take) -> Call:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    dtype = DTYPES[case.format]
    kv, value = op.kv_heads or op.heads, op.value_dim or op.head_dim
    q = activation((op.batch, op.queries, op.heads, op.head_dim), dtype).transpose(1, 2)
    k = activation((op.batch, op.keys, kv, op.head_dim), dtype).transpose(1, 2)
    v = activation((op.batch, op.keys, kv, value), dtype).transpose(1, 2)
    mask = None
    if op.mask:
        mask = activation((op.batch, 1, 1, op.keys), dtype).expand(op.batch, op.heads, op.queries, op.keys)

    def call() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=op.causal, enable_gqa=kv != op.heads)

    if not case.variant:
        return call
    backend = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[case.variant]

    def chosen() -> torch.Tensor:
        with sdpa_kernel(backend):
            return call()

    return chosen


def _norm(op: Norm, case: Case, weight: Take, activation: Take) -> Call:
    dtype = DTYPES[op.dtype]
    if op.variant == "group":
        channels, groups = op.affine // 2, 32
        batch, pixels = op.rows // groups, op.rows * op.columns // (op.rows // groups) // channels
        height = next(h for h in range(math.isqrt(pixels), 0, -1) if pixels % h == 0)
        gain, offset = (weight((channels,), dtype) for _ in range(2))
        if case.variant == "channels_last":
            x = _last(activation((batch, height, pixels // height, channels), dtype))
        else:
            x = activation((batch, channels, height, pixels // height), dtype)
        return lambda: F.group_norm(x, groups, gain, offset)
    x = activation((op.rows, op.columns), dtype)
    if op.variant == "rms":
        gain_only = weight((op.columns,), dtype) if op.affine else None
        return lambda: F.rms_norm(x, (op.columns,), gain_only, 1e-6)
    gains = [weight((op.columns,), dtype) if op.affine >= (i + 1) * op.columns else None for i in range(2)]
    return lambda: F.layer_norm(x, (op.columns,), gains[0], gains[1])


def _grid(elements: int, columns: int = 1024) -> tuple[int, int]:
    while elements % columns:
        columns //= 2
    return elements // columns, columns


def _elementwise(op: Elementwise, case: Case, weight: Take, activation: Take) -> Call:
    dtype = DTYPES[op.dtype]
    rows, columns = _grid(op.elements)
    if case.variant == "strided":
        x = activation((rows, 2 * columns), dtype)[:, columns:]
    else:
        x = activation((rows, columns), dtype)
    if op.function == "cast":
        target = DTYPES[op.out_dtype]
        return lambda: x.to(target)
    if op.function in ("add", "mul"):
        run: Any = {"add": torch.add, "mul": torch.mul}[op.function]
        if case.variant == "broadcast":
            parts = next(p for p in (4, 2, 1) if rows % p == 0)
            cube, row = x.view(parts, rows // parts, columns), activation((parts, 1, columns), dtype)
            return lambda: run(cube, row)
        y = activation((rows, columns), dtype)
        return lambda: run(x, y)
    return {"silu": lambda: F.silu(x), "gelu": lambda: F.gelu(x, approximate="tanh")}[op.function]


def _move(op: Move, case: Case, weight: Take, activation: Take) -> Call:
    dtype = DTYPES[op.dtype]
    if op.function == "transpose":
        rows, columns = _grid(op.writes, 512)
        x = activation((rows, columns), dtype)
        return lambda: x.t().contiguous()
    if op.function == "cat":
        rows, columns = _grid(op.writes // 2)
        parts = [activation((rows, columns), dtype) for _ in range(2)]
        return lambda: torch.cat(parts)
    side = next(s for s in (64, 32, 16, 8, 4, 2, 1) if op.reads % (s * s) == 0)
    image = activation((1, op.reads // side**2, side, side), dtype)
    return lambda: F.interpolate(image, scale_factor=2.0, mode="nearest")


def _quantize(op: Quantize, case: Case, weight: Take, activation: Take) -> Call:
    x = activation(_grid(op.elements) if not op.group else (op.elements // op.group, op.group), torch.bfloat16)
    if not x.is_cuda or case.variant == "eager":
        scale = torch.ones((), device=x.device)
        return lambda: plain_cast(x, scale)
    from analysis.measure import _triton

    if op.group:
        return lambda: _triton.cast_rows(x)
    one = torch.ones((), device=x.device)
    return lambda: _triton.cast(x, one)


def _reduction(op: Reduction, case: Case, weight: Take, activation: Take) -> Call:
    x = activation(_grid(op.elements), torch.bfloat16)
    return lambda: plain_amax(x)


_BUILD: Mapping[type, Build] = {
    Gemm: _gemm,
    Conv2d: _conv,
    ConvNd: _conv,
    Attention: _attention,
    Norm: _norm,
    Elementwise: _elementwise,
    Move: _move,
    Quantize: _quantize,
    Reduction: _reduction,
}
