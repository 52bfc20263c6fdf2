"""From a workload and a scheme to the kernels that run.

A scheme does more than narrow operands: activations must be scaled and cast in front of each quantized product, and
scales found at run time need another look at the data.  These kernels are made explicit here, so that every model
prices them and every table shows them.

* static scales: one cast kernel in front of each quantized product;
* dynamic, per tensor: a max-abs reduction, then the cast;
* dynamic, per token or group: the maximum is found in the pass that casts.

`mode="compiled"` merges pointwise work as a compiler does: a run of consecutive operations whose elements are computed
from one another becomes one kernel, which reads the first operand and whatever else its members bring in, and writes
the last result.  An operand that is broadcast is computed where it is used, so the numbers of elements may differ by a
whole factor.  A maximum over a whole tensor ends its run, and so does a move, which is index arithmetic in the kernel
that writes its result.  What attention writes is laid out as its reader wants it.  The rule follows execution order,
not data flow: an intermediate result that is needed again later is not written, so it errs on the fast side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fpsim.formats import BlockFormat
from fpsim.formats import format as format_row

from .ops import Attention, Conv, Gemm, Move, Norm, Op, Quantize, Reduction
from .precision import Precision, PrecisionMap, Shorthand
from .workload import Workload

T = TypeVar("T")
Mode: TypeAlias = Literal["eager", "graph", "compiled"]
MODES = ("eager", "graph", "compiled")
Indices: TypeAlias = npt.NDArray[np.int64]


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
    def kind(self) -> str:
        """What tables group it by."""
        return self.op.kind if self.members == 1 else "fused"


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
    if isinstance(op, Move):
        return t.writes
    return min(t.reads, t.writes) if not isinstance(op, Reduction) else t.reads


def _merge(run: list[tuple[Op, Precision]]) -> Kernel:
    first, precision = run[0]
    extent = _extent(first)
    size = first.bytes(precision) - _written(first, precision)
    for op, own in run[1:]:
        _, read, _ = own.widths(op)
        kept = extent if _extent(op) >= extent else 0  # of what it reads, the run has just computed
        size += max(op.traffic.reads - kept, 0) * read / 8 + 2 * op.traffic.wide
        extent = max(extent, _extent(op))
    size += _written(*run[-1])
    return Kernel(
        op=_main([op for op, _ in run]),
        precision=precision,
        macs=0,
        flops=sum(op.flops for op, _ in run),
        bytes=size,
        members=len(run),
    )


def _main(ops: Sequence[Op]) -> Op:
    """The operation a merged kernel is named and shaped after: its normalisation, or the first of the largest."""
    return next((op for op in ops if isinstance(op, Norm)), max(ops, key=_extent))


def _joins(run: Sequence[tuple[Op, Precision]], op: Op) -> bool:
    if not run or not op.FUSABLE or op.count != run[0][0].count:
        return False
    small, large = sorted((max(_extent(member) for member, _ in run), _extent(op)))
    return small > 0 and large % small == 0


def _written(op: Op, precision: Precision) -> float:
    return op.traffic.writes * precision.widths(op)[2] / 8


def fused(pairs: Iterable[tuple[Op, Precision]]) -> Iterator[Kernel]:
    """Kernels of `mode="compiled"`."""
    run: list[tuple[Op, Precision]] = []
    before: Op | None = None
    for op, precision in pairs:
        before, last = op, before
        if isinstance(op, Move) and op.function == "clone" and isinstance(last, Attention):
            continue
        if run and not _joins(run, op):
            yield _merge(run)
            run = []
        if op.FUSABLE:
            run.append((op, precision))
            if isinstance(op, Reduction | Move):
                yield _merge(run)
                run = []
        else:
            yield _kernel(op, precision)
    if run:
        yield _merge(run)


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """The launches of one pass: distinct kernels, which of them each launch is, and the operation it belongs to."""

    distinct: tuple[Kernel, ...]
    which: Indices
    owner: Indices
    ops: tuple[Op, ...]
    count: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.which)

    def launches(self) -> Iterator[tuple[Kernel, Op]]:
        """(kernel, the operation whose path and count it has), in execution order."""
        for kernel, op in zip(self.which.tolist(), self.owner.tolist(), strict=True):
            yield self.distinct[kernel], self.ops[op]


def single(op: Op, precision: Precision) -> Program:
    """One operation on its own, its operands already in the format."""
    zero = np.zeros(1, dtype=np.int64)
    count = np.array([op.count], dtype=np.float64)
    return Program(distinct=(_kernel(op, precision),), which=zero, owner=zero, ops=(op,), count=count)


def program(work: Workload, scheme: PrecisionMap, mode: Mode = "graph") -> Program:
    """Every launch of one pass of `work` under a scheme."""
    if mode == "compiled":
        return kept(work, scheme, mode, lambda: _in_order(work, scheme, mode))
    if isinstance(scheme, Shorthand):  # eager and graph launch the same kernels
        return kept(work, scheme, "graph", lambda: _by_shape(work, scheme))
    return kept(work, scheme, "graph", lambda: _in_order(work, scheme, mode))


KEPT = 64  # results of schemes per workload: a sweep comes back to a few, an optimiser walks through thousands


def kept(work: Workload, scheme: PrecisionMap, what: str, make: Callable[[], T]) -> T:
    """`make()`, or what it gave before for the same workload, scheme and `what`: no device decides it.

    Only for schemes whose equality means that they decide alike, which a frozen dataclass says; the newest `KEPT`.
    """
    if not _decides_by_value(scheme):
        return make()
    memo: dict[object, T] = work.memo
    if (scheme, what) not in memo:
        if len(memo) >= KEPT:
            del memo[next(iter(memo))]
        memo[scheme, what] = make()
    return memo[scheme, what]


def _decides_by_value(scheme: PrecisionMap) -> bool:
    settings = getattr(scheme, "__dataclass_params__", None)
    if settings is None or not (settings.frozen and settings.eq):
        return False
    try:
        hash(scheme)
    except TypeError:  # a field holds a dict or a list, which may change
        return False
    return True


def _by_shape(work: Workload, scheme: Shorthand) -> Program:
    """A shorthand looks at shapes only, so each distinct shape is lowered once."""
    kinds, index = work.shapes
    distinct: list[Kernel] = []
    groups: list[list[int]] = []
    for op in kinds:
        pairs = list(explicit((op,), scheme))
        groups.append(list(range(len(distinct), len(distinct) + len(pairs))))
        distinct += [_kernel(*pair) for pair in pairs]
    which = np.fromiter(chain.from_iterable(groups[i] for i in index.tolist()), dtype=np.int64)
    owner = np.repeat(np.arange(len(index)), np.array([len(group) for group in groups], dtype=np.int64)[index])
    return _program(work, distinct, which, owner)


def _in_order(work: Workload, scheme: PrecisionMap, mode: Mode) -> Program:
    """A scheme may look at paths, and merging looks at neighbours: operation by operation."""
    position = {id(op): i for i, op in enumerate(work.ops)}
    pairs = explicit(work.ops, scheme)
    known: dict[tuple[object, ...], int] = {}
    distinct: list[Kernel] = []
    which: list[int] = []
    owner: list[int] = []
    at = 0
    for kernel in fused(pairs) if mode == "compiled" else (_kernel(*pair) for pair in pairs):
        key = (kernel.op.shape_key, kernel.precision, kernel.bytes, kernel.flops, kernel.members)
        which.append(known.setdefault(key, len(known)))
        if len(distinct) < len(known):
            distinct.append(kernel)
        at = position.get(id(kernel.op), at)
        owner.append(-1 if id(kernel.op) not in position else at)
    return _program(work, distinct, np.array(which, dtype=np.int64), _following(np.array(owner, dtype=np.int64)))


def _following(owner: Indices) -> Indices:
    """Quantize work belongs to the operation after it: -1 is replaced by the next index."""
    out = owner.copy()
    for i in range(len(out) - 2, -1, -1):
        if out[i] < 0:
            out[i] = out[i + 1]
    return out


def _program(work: Workload, distinct: Sequence[Kernel], which: Indices, owner: Indices) -> Program:
    counts = np.array([op.count for op in work.ops], dtype=np.float64)
    return Program(distinct=tuple(distinct), which=which, owner=owner, ops=work.ops, count=counts[owner])
