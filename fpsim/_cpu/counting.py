"""Products with counts on the CPU: for each kind of accumulator, the loop that computes it and keeps a tally."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fpsim._cpu import chains, wrappers
from fpsim._cpu.fixed import exactly, fixed, operands, plain
from fpsim._cpu.fused import FusedProduct
from fpsim._cpu.integers import check_integers, integer_plan, settle
from fpsim._cpu.plans import narrow_plan
from fpsim._cpu.rows import Scales, rows, words
from fpsim._cpu.steps import exact_operands, grouped_operands, two_stage_plan
from fpsim._kernels import count, count_chains
from fpsim._kernels import fixed as fixed_kernels
from fpsim._kernels.accumulate import Sum
from fpsim._kernels.chain import Narrow
from fpsim.accumulators import (
    Accumulator,
    FixedPoint,
    FusedDot,
    GroupedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.codec import Array
from fpsim.formats import container, scalar_format
from fpsim.reference import split_ranges
from fpsim.spec import MatmulSpec

OVERFLOW, TRUNCATED, DROPPED, INEXACT = range(4)  #: the last axis of a tally; those of `_kernels.count`


def accumulate(a: Array, b: Array, c: Array, tally: Array, spec: MatmulSpec, scales: Scales | None) -> None:
    """`fpsim._cpu.accumulate`, adding to `tally`, int64 (M, N, 4). ValueError for scaled promotions."""
    if a.shape[1]:
        _RUNNERS[type(spec.accumulator)](a, b, c, tally, spec, spec.accumulator, scales)


def _marked(plan: Sum) -> Sum:
    """Sums that are too large as -1."""
    return plan._replace(no_infinity=1, nan=-1)


def _free(plan: Narrow) -> Narrow:
    """Values that are too large as themselves."""
    return plan._replace(largest=np.inf)


def _fused(a: Array, b: Array, c: Array, tally: Array, spec: MatmulSpec, kind: FusedDot, scales: Scales | None) -> None:
    if kind.fraction_bits is None:
        sa, ea, sb, eb, plan, limbs = exact_operands(a, b, spec, kind, scales)
        marked = plan._replace(sum=_marked(plan.sum))
        rows(lambda i, j: count.exact(sa, ea, sb, eb, plan, marked, limbs, words(c), tally, i, j), c, a.shape[1])
        return
    product = FusedProduct(a, b, spec, kind, scales)
    of_product = *product.unpacked, product.plan, _marked(product.plan.sum)
    rows(lambda i, j: count.fused(*of_product, words(c), tally, i, j), c, a.shape[1])


def _grouped(
    a: Array, b: Array, c: Array, tally: Array, spec: MatmulSpec, kind: GroupedDot, scales: Scales | None
) -> None:
    operands = grouped_operands(a, b, spec, kind, scales)
    marked = _marked(operands[-1].sum)
    rows(lambda i, j: count.grouped(*operands, marked, words(c), tally, i, j), c, a.shape[1])


def _two_stage(
    a: Array, b: Array, c: Array, tally: Array, spec: MatmulSpec, kind: TwoStageDot, scales: Scales | None
) -> None:
    del scales
    plan = two_stage_plan(spec, kind)
    sa, ea, sb, eb, whole, limbs = exact_operands(a, b, spec, FusedDot(None, None, output=kind.output), None)
    rows(lambda i, j: count.two_stage(sa, ea, sb, eb, plan, whole, limbs, words(c), tally, i, j), c, a.shape[1])


def _sequential(
    a: Array, b: Array, c: Array, tally: Array, spec: MatmulSpec, kind: SequentialFma, scales: Scales | None
) -> None:
    del scales
    row, down = scalar_format(kind.output), kind.rounding == "rd"
    x, y = chains.float64_operands(*chains.chain_operands(a, b, spec, kind), spec)
    product, to = chains.narrow_plans(kind)
    total = chains.start_values(c, row)
    if kind.flush:
        chains.flush(total, row.smallest_normal)
    plans = kind.fused, down, product, to, _free(product), _free(to)
    rows(lambda i, j: count_chains.chain(x, y, *plans, total, tally, i, j), c, a.shape[1])
    chains.finish(total, row, c)


def _pairwise(
    a: Array, b: Array, c: Array, tally: Array, spec: MatmulSpec, kind: PairwiseTree, scales: Scales | None
) -> None:
    del scales
    row, down = scalar_format(kind.output), kind.rounding == "rd"
    x, y = chains.float64_operands(*chains.tree_operands(a, b, spec, kind), spec)
    product, to = chains.narrow_plans(kind)
    total = chains.start_values(c, row)
    if kind.flush:
        total[np.abs(total) < row.smallest_normal] = 0
    plans = kind.terms, down, product, to, _free(product), _free(to)
    rows(lambda i, j: count_chains.tree(x, y, *plans, total, tally, i, j), c, a.shape[1])
    chains.finish(total, row, c)


def _integer(
    a: Array, b: Array, c: Array, tally: Array, spec: MatmulSpec, kind: IntegerAccumulator, scales: Scales | None
) -> None:
    del scales
    # Wrapping needs no room for its sums; counting its overflows does.
    check_integers(spec.a, spec.b, IntegerAccumulator(kind.bits, "saturate", kind.step, kind.step_bits, kind.order))
    plan, pairwise = integer_plan(kind), kind.order == "pairwise"
    rows(lambda i, j: count_chains.integer(a, b, plan, pairwise, c, tally, i, j), c, a.shape[1])


def _fixed(
    a: Array, b: Array, c: Array, tally: Array, spec: MatmulSpec, kind: FixedPoint, scales: Scales | None
) -> None:
    kind = kind.placed(spec.a, spec.b)
    if plain(a, c, spec, kind):
        _fused(a, b, c, tally, spec, exactly(kind), scales)
        return
    made = operands(a, b, c, spec, kind)
    plan, total, notes = made.plan, np.empty(c.shape), np.zeros_like(tally)
    rows(lambda i, j: fixed_kernels.counted(made.x, made.y, made.start, plan, total, notes, i, j), c, a.shape[1])
    fixed(a, b, c, spec, kind, scales)
    rows(lambda i, j: fixed_kernels.note_reading(total, plan, _marked(plan.sum), words(c), notes, i, j), c, 16)
    tally += np.where(made.special[..., None], 0, notes)


def _promoted(
    a: Array, b: Array, c: Array, tally: Array, spec: MatmulSpec, kind: Promoted, scales: Scales | None
) -> None:
    del scales
    if kind.scaled:
        raise ValueError("counts are not kept for scaled promotions; count the inner accumulator and every= apart")
    a, b, spec = wrappers.inner_operands(a, b, spec, kind)
    for start in range(0, a.shape[1], kind.every):
        part = wrappers.zeros(c.shape, kind.inner)
        stop = min(start + kind.every, a.shape[1])
        accumulate(np.ascontiguousarray(a[:, start:stop]), np.ascontiguousarray(b[start:stop]), part, tally, spec, None)
        _add(c, part, tally, kind.inner, kind.output, kind.rounding, kind.outer)


def _split_k(a: Array, b: Array, c: Array, tally: Array, spec: MatmulSpec, kind: SplitK, scales: Scales | None) -> None:
    inner = kind.inner
    register = wrappers.register(inner)
    piece = MatmulSpec(spec.a, spec.b, inner)
    for start, stop in split_ranges(a.shape[1], kind.splits, kind.tile):
        part = wrappers.zeros(c.shape, inner)
        left, right = np.ascontiguousarray(a[:, start:stop]), np.ascontiguousarray(b[start:stop])
        accumulate(left, right, part, tally, piece, scales)
        _add(c, part, tally, inner, container(kind.output).name, "rne", register)


def _add(
    total: Array,
    part: Array,
    tally: Array,
    inner: Accumulator,
    output: str,
    rounding: str,
    register: IntegerAccumulator | None,
) -> None:
    """`wrappers.add` or `integers.settle`, counted."""
    if register is not None:
        sums = total.astype(np.int64) + part.astype(np.int64)
        tally[..., OVERFLOW] += (sums < register.low) | (sums > register.high)
        settle(total, part, register)
        return
    row = container(output)
    sums, x = chains.start_values(total, row), wrappers.values(part, inner).astype(np.float64)
    convert, to = narrow_plan(output, "rne"), narrow_plan(output, rounding)
    plans = convert, to, _free(convert), _free(to)
    count_chains.add_into(x, rounding == "rd", *plans, sums, tally, 0, sums.shape[0])
    chains.finish(sums, row, total)


#: kind of accumulator -> its counting runner
_RUNNERS: dict[type[Accumulator], Callable[[Array, Array, Array, Array, MatmulSpec, Any, Scales | None], None]] = {
    FusedDot: _fused,
    GroupedDot: _grouped,
    TwoStageDot: _two_stage,
    SequentialFma: _sequential,
    PairwiseTree: _pairwise,
    FixedPoint: _fixed,
    IntegerAccumulator: _integer,
    Promoted: _promoted,
    SplitK: _split_k,
}
