"""ATen operations as the kernels they are launched as: a few families, told apart by name and by PyTorch's own tags."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from hwmodels.ops import Elementwise, Gemm, Move, Reduction, Softmax


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_REDUCTIONS = _words(
    "mean sum amax amin max min var std var_mean norm linalg_vector_norm prod argmax argmin any all cumsum logsumexp"
)
_MOVES = _words(
    """
    cat stack clone copy_ repeat repeat_interleave roll flip tril triu im2col col2im pixel_shuffle pixel_unshuffle
    index index_select index_put index_put_ index_add index_copy gather scatter scatter_ scatter_add masked_select
    embedding one_hot nonzero topk sort select_scatter slice_scatter unfold_copy lift_fresh_copy fill_ zero_
    constant_pad_nd reflection_pad1d reflection_pad2d replication_pad2d replication_pad3d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d max_pool2d_with_indices
    """
)
_FILLS = _words(
    """
    zeros ones full arange linspace eye scalar_tensor zeros_like ones_like full_like new_zeros new_ones new_full
    randn rand randn_like bernoulli
    """
)
_FREE = _words("empty empty_like empty_strided new_empty new_empty_strided detach alias lift_fresh _local_scalar_dense")


def _tensors(value: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(value) if isinstance(t, torch.Tensor)]


def numel(value: Any) -> int:
    """Elements of all tensors in a tree."""
    return sum(t.numel() for t in tree_leaves(value) if isinstance(t, torch.Tensor))


def layout(operands: list[torch.Tensor], out: Any) -> str:
    """How the operands lie beside the result (`hwmodels.ops.LAYOUTS`).

    Kernels run at full width where every operand has the result's shape and strides (single numbers aside) and no gaps;
    a result whose neighbouring elements lie far apart in an operand of its size is read in pieces of one element.
    """
    if not isinstance(out, torch.Tensor):
        return ""
    wide = [t for t in operands if t.numel() > 1]
    if not wide or out.numel() == 1:
        return ""
    inner = next((d for d in reversed(range(out.dim())) if out.shape[d] > 1), None)
    for t in wide:
        same = t.shape == out.shape
        if same and inner is not None and t.numel() == out.numel() and t.stride(inner) > 8 and out.stride(inner) == 1:
            return "transposed"
    dense = all(t.shape == out.shape and _strides(t) == _strides(out) for t in wide)
    return "" if dense and _dense(out) else "strided"


def _strides(t: torch.Tensor) -> list[int]:
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


def _dense(t: torch.Tensor) -> bool:
    """Whether the elements fill their memory, in whatever order of the axes."""
    expected = 1
    for stride, size in sorted(zip(t.stride(), t.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True


#: moves whose kernels compute an index per element, however their operands lie
_INDEXED = _words(
    """
    index index_select gather embedding scatter scatter_ upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_bilinear2d _upsample_nearest_exact2d constant_pad_nd reflection_pad2d replication_pad2d
    replication_pad3d roll flip repeat repeat_interleave
    """
)


def _moved(name: str, args: Any, out: Any) -> str:
    tensors = _tensors(args)
    if name in ("cat", "stack"):
        return "" if all(t.is_contiguous() for t in tensors) else "transposed"
    if name in _INDEXED:
        return "strided"
    target, sources = (tensors[0], tensors[1:]) if name == "copy_" else (out, tensors)
    return layout(sources, target)


def classify(func: Any, args: Any, out: Any) -> tuple[list[dict[str, Any]], str]:
    """(operations, name if of no known family) of one ATen call whose result shares no memory with its inputs."""
    name = func.overloadpacket.__name__
    if name in _FREE:
        return [], ""
    writes, reads = numel(out), numel(args)
    if writes == 0:
        return [], ""
    if name == "_to_copy":
        return [{"op": Elementwise, "elements": writes, "function": "cast", "layout": layout(_tensors(args), out)}], ""
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        a, b = [t for t in tree_leaves(args) if isinstance(t, torch.Tensor)][-2:]
        return [
            {
                "op": Gemm,
                "batch": math.prod(a.shape[:-2]),
                "m": a.shape[-2],
                "n": b.shape[-1],
                "k": a.shape[-1],
                "parameter": isinstance(b, torch.nn.Parameter),
            }
        ], ""
    if name in ("_softmax", "_safe_softmax", "_log_softmax"):
        return [{"op": Softmax, "rows": writes // out.shape[-1], "columns": out.shape[-1]}], ""
    if name in _FILLS:
        return [{"op": Move, "writes": writes, "function": "fill"}], ""
    if name in _MOVES:
        # a gather reads what it writes, not the whole table it picks from
        row = {"op": Move, "writes": writes, "reads": min(reads, writes), "function": name.strip("_")}
        return [{**row, "layout": _moved(name, args, out)}], ""
    if name in _REDUCTIONS:
        return [{"op": Reduction, "elements": max(reads, 1), "outputs": writes, "function": name}], ""
    if torch.Tag.pointwise in func.tags:
        row = {"op": Elementwise, "elements": writes, "reads": reads, "function": name.rstrip("_")}
        return [{**row, "layout": layout(_tensors(args), out)}], ""
    return [{"op": Move, "writes": writes, "reads": reads, "function": name}], name
