"""From a workload and a scheme to the kernels that run.

A scheme does more than narrow operands: activations must be scaled and cast in front of each quantized product, and
scales found at run time need another look at the data.  These kernels are made explicit here, so that every model
prices them and every table shows them.

* static scales: one cast kernel in front of each quantized product;
* dynamic, per tensor: a max-abs reduction, then the cast;
* dynamic, per token or group: the maximum is found in the pass that casts.

`mode="compiled"` merges pointwise work as a compiler does: a run of consecutive pointwise operations over the same
number of elements becomes one kernel, which reads the first operand and whatever else its members bring in, and writes
the last result.  A maximum over a whole tensor ends its run.  The rule follows execution order, not data flow: an
intermediate result that is needed again later is not written, so it errs on the fast side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from fpsim.formats import BlockFormat
from fpsim.formats import format as format_row

from .ops import Conv, Gemm, Op, Quantize, Reduction
from .precision import Precision, PrecisionMap

Mode: TypeAlias = Literal["eager", "graph", "compiled"]
MODES = ("eager", "graph", "compiled")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One launch: an operation in a precision, or several pointwise ones merged (`members`, the first is `op`)."""

    op: Op
    precision: Precision
    macs: int
    flops: int
    bytes: float
    members: int = 1

    @property
    def count(self) -> int:
        return self.op.count


def _activation_shape(op: Op) -> tuple[int, int]:
    """(elements, elements per token) of the activations a product reads."""
    if isinstance(op, Gemm):
        return op.batch * op.m * op.k, op.k
    return op.traffic.reads, op.in_channels if isinstance(op, Conv) else op.traffic.reads


def quantize_ops(op: Op, precision: Precision) -> tuple[Op, ...]:
    """The kernels a scheme adds in front of one product (none where it adds none)."""
    if not op.MATMUL or not precision.needs_quantize:
        return ()
    elements, row = _activation_shape(op)
    path, count = op.path, op.count
    if not precision.dynamic:
        return (Quantize(path=path, count=count, elements=elements, format=precision.activation),)
    if precision.granularity == "tensor":
        return (
            Reduction(path=path, count=count, elements=elements, function="amax"),
            Quantize(path=path, count=count, elements=elements, format=precision.activation),
        )
    stored = format_row(precision.activation)
    block = stored.block if isinstance(stored, BlockFormat) else precision.group or row
    return (Quantize(path=path, count=count, elements=elements, format=precision.activation, group=block),)


def explicit(ops: Iterable[Op], scheme: PrecisionMap) -> Iterator[tuple[Op, Precision]]:
    """Every operation with its precision, preceded by the quantize work its scheme adds."""
    for op in ops:
        precision = scheme.precision_for(op)
        for extra in quantize_ops(op, precision):
            yield extra, precision
        yield op, precision


def _kernel(op: Op, precision: Precision) -> Kernel:
    return Kernel(op=op, precision=precision, macs=op.macs, flops=op.flops, bytes=op.bytes(precision))


def _extent(op: Op) -> int:
    """Elements of the operand a pointwise operation runs over."""
    t = op.traffic
    return min(t.reads, t.writes) if not isinstance(op, Reduction) else t.reads


def _merge(run: list[tuple[Op, Precision]]) -> Kernel:
    first, precision = run[0]
    extent = _extent(first)
    size = first.bytes(precision) - _written(first, precision)
    for op, own in run[1:]:
        _, read, _ = own.widths(op)
        size += max(op.traffic.reads - extent, 0) * read / 8 + 2 * op.traffic.wide
    size += _written(*run[-1])
    return Kernel(
        op=first,
        precision=precision,
        macs=0,
        flops=sum(op.flops for op, _ in run),
        bytes=size,
        members=len(run),
    )


def _written(op: Op, precision: Precision) -> float:
    return op.traffic.writes * precision.widths(op)[2] / 8


def fused(pairs: Iterable[tuple[Op, Precision]]) -> Iterator[Kernel]:
    """Kernels of `mode="compiled"`."""
    run: list[tuple[Op, Precision]] = []
    for op, precision in pairs:
        joins = bool(run) and op.FUSABLE and op.count == run[0][0].count and _extent(op) == _extent(run[0][0])
        if run and not joins:
            yield _merge(run)
            run = []
        if op.FUSABLE:
            run.append((op, precision))
            if isinstance(op, Reduction):
                yield _merge(run)
                run = []
        else:
            yield _kernel(op, precision)
    if run:
        yield _merge(run)


def kernels(ops: Iterable[Op], scheme: PrecisionMap, mode: Mode = "graph") -> tuple[Kernel, ...]:
    """Every launch of one pass, in order."""
    pairs = explicit(ops, scheme)
    if mode == "compiled":
        return tuple(fused(pairs))
    seen: dict[tuple[object, ...], Kernel] = {}
    out = []
    for op, precision in pairs:
        key = (op.shape_key, precision)
        if key not in seen:
            seen[key] = _kernel(op, precision)
        out.append(replace(seen[key], op=op))
    return tuple(out)
