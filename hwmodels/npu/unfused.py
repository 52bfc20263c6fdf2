"""Attention without a fused kernel: a product, a softmax and a product, with the scores in main memory between them.

`Attention` is priced as one kernel whose scores stay on chip.  A compiler that has no such kernel runs three; XLA on a
TPU does where a model asks for plain dot-product attention (a kernel of MaxDiffusion that replaces it says so: scores
and probabilities are materialised in HBM and streamed across the two products; `cross_attention_pallas`, Google 2026).
"""

from __future__ import annotations

from ..op import Op
from ..ops import Attention, Elementwise, Gemm, Softmax
from ..workload import Workload


def _three(op: Attention) -> tuple[Op, ...]:
    """The kernels of one attention.  Without a fused kernel a causal mask saves nothing: all scores are computed."""
    batch, where, count = op.batch * op.heads, op.path, op.count
    scores = batch * op.queries * op.keys
    masked = op.batch * op.queries * op.keys if op.mask else op.queries * op.keys
    add = Elementwise(elements=scores, reads=scores + masked, function="add", path=where, count=count)
    first = Gemm(m=op.queries, n=op.keys, k=op.head_dim, batch=batch, parameter=False, path=where, count=count)
    softmax = Softmax(rows=batch * op.queries, columns=op.keys, path=where, count=count)
    width = op.value_dim or op.head_dim
    last = Gemm(m=op.queries, n=width, k=op.keys, batch=batch, parameter=False, path=where, count=count)
    return (first, *((add,) if op.mask or op.causal else ()), softmax, last)


def materialised(work: Workload) -> Workload:
    """`work` with every attention as three kernels.  Keys and values shared by several heads are read by each."""
    ops: list[Op] = []
    for op in work.ops:
        ops += _three(op) if isinstance(op, Attention) else (op,)
    return Workload(name=work.name, ops=tuple(ops))
