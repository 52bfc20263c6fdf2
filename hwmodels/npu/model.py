"""Time on a systolic NPU: the array, main memory and the vector unit side by side, and what each costs.

Main memory and vector unit work behind the array (double buffering), so a kernel takes as long as the slowest of the
three.  Its time is split into parts that add up: `ideal` (all processing elements busy), `mapping` (elements a shape
leaves idle), `fill_drain`, `bandwidth` (what main memory takes beyond the array) and `vector` (what the vector unit
takes beyond both).  For pointwise kernels the array has nothing to do.

Attention is two products per head with the softmax between them on the vector unit; scores stay on chip.  Keys and
values are read once if they fit, otherwise once per block of queries.

What is left out: instruction issue, bank conflicts, memory latency, and what a compiler fails to overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from ..fallback import Execution
from ..lower import Kernel
from ..ops import Attention, Conv, Conv2d, Gemm
from ..roofline import Floats, Times
from .array import Systolic
from .dataflow import Cycles, Products, cycles
from .tiling import RESIDENT, Operands, Tiles, smallest, tile
from .vector import cuts, scaled, widened

if TYPE_CHECKING:
    from ..estimate import Estimate

NOTE = (
    "systolic: folds, tiles, main memory and vector unit of the array in closed form; nothing fitted "
    "(docs/npu.md says what is left out)"
)
Chosen = Sequence[tuple[Kernel, Execution | None]]


@dataclass(frozen=True, kw_only=True)
class SystolicTimes(Times):
    """`Times` with its explanation: seconds that add up to `total`, bytes moved, operations of the vector unit."""

    ideal: Floats
    mapping: Floats
    fill_drain: Floats
    bandwidth: Floats
    vector: Floats
    dram_bytes: Floats
    sram_bytes: Floats
    vector_ops: Floats


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """Where the time of an estimate goes, in seconds; the five parts add up to `total`."""

    ideal: float
    mapping: float
    fill_drain: float
    bandwidth: float
    vector: float
    dram_bytes: float
    sram_bytes: float
    vector_ops: float

    @property
    def lost(self) -> float:
        """Seconds in which the array does not do all it can."""
        return self.mapping + self.fill_drain + self.bandwidth + self.vector

    @property
    def total(self) -> float:
        return self.ideal + self.lost

    @property
    def utilisation(self) -> float:
        """Share of the time the array would need if nothing were lost."""
        return self.ideal / self.total

    def shares(self) -> dict[str, float]:
        """Part of the total each takes: they add up to 1."""
        return {name: getattr(self, name) / self.total for name in PARTS}


PARTS = ("ideal", "mapping", "fill_drain", "bandwidth", "vector")


def explain(estimate: Estimate) -> Utilisation:
    """Where the time of an estimate of this model goes, counts included.  ValueError for another model's."""
    times = estimate.breakdown.times
    if not isinstance(times, SystolicTimes):
        raise ValueError(
            f"an estimate by {estimate.model!r} has no systolic explanation; use model='systolic' on an NPU"
        )
    run = estimate.breakdown.program
    count = np.bincount(run.which, weights=run.count, minlength=len(run.distinct))
    return Utilisation(**{item.name: float(getattr(times, item.name) @ count) for item in fields(Utilisation)})


def price_systolic(
    kernels: Sequence[Kernel], executions: Sequence[Execution | None], array: Systolic, warm: bool
) -> SystolicTimes:
    """Times of all kernels.  Raises ValueError if a tile does not fit on chip."""
    kinds: dict[str, list[int]] = {"product": [], "attention": [], "pointwise": []}
    for i, kernel in enumerate(kernels):
        op = kernel.op
        kinds[
            "product" if isinstance(op, Gemm | Conv) else "attention" if isinstance(op, Attention) else "pointwise"
        ].append(i)
    columns = {item.name: np.zeros(len(kernels)) for item in fields(SystolicTimes)}
    pricers = {"product": _products, "attention": _attention, "pointwise": _pointwise}
    for kind, where in kinds.items():
        if where:
            part = pricers[kind]([(kernels[i], executions[i]) for i in where], array, warm)
            for name, column in columns.items():
                column[where] = getattr(part, name)
    return SystolicTimes(**columns)


def combine(work: Cycles, dram: Floats, sram: Floats, vector_ops: Floats, array: Systolic) -> SystolicTimes:
    """Put array, main memory (bytes) and vector unit (operations) side by side."""
    busy = work.total / array.clock
    memory = dram / array.bandwidth
    vector = vector_ops / array.vector if array.vector else np.zeros_like(vector_ops)
    bandwidth = np.maximum(memory - busy, 0.0)
    late = np.maximum(vector - busy - bandwidth, 0.0)
    zero = np.zeros_like(busy)
    return SystolicTimes(
        total=busy + bandwidth + late,
        compute=np.maximum(busy, vector),
        memory=memory,
        launch=zero,
        l2=zero,
        ideal=work.ideal / array.clock,
        mapping=work.mapping / array.clock,
        fill_drain=work.fill_drain / array.clock,
        bandwidth=bandwidth,
        vector=late,
        dram_bytes=dram,
        sram_bytes=sram,
        vector_ops=vector_ops,
    )


def _array(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=np.float64)


def _halo(kernel: Kernel) -> float:
    """Output pixels whose inputs neighbouring tiles of a convolution both read."""
    op = kernel.op
    if not isinstance(op, Conv):
        return 0.0
    dilation = op.dilation if isinstance(op, Conv2d) else 1
    stride = op.stride if isinstance(op, Conv2d) else max(round(op.inputs[0] / op.outputs[0]), 1)
    shared = max(dilation * (op.kernels[0] - 1) + 1 - stride, 0)
    inner = 1
    for size in op.outputs[1:]:
        inner *= size
    return shared * inner / stride


def _products(chosen: Chosen, array: Systolic, warm: bool) -> SystolicTimes:
    rows = []
    for kernel, run in chosen:
        op = kernel.op
        gemm = op.gemm() if isinstance(op, Conv) else op
        if not isinstance(gemm, Gemm) or run is None:
            raise TypeError(f"{op!r} is no product")
        w, a, out = (bits / 8 for bits in kernel.precision.widths(op))
        read = op.traffic.reads if isinstance(op, Conv) else gemm.batch * gemm.m * gemm.k
        wide_a, wide_w = widened(kernel.precision, run)
        rows.append(
            (
                *(gemm.m, gemm.n, gemm.k, gemm.batch, array.packing(run.rate), a, w if gemm.parameter else a, out),
                *(read / (gemm.batch * gemm.m * gemm.k), _halo(kernel), gemm.parameter, kernel.flops),
                *(scaled(kernel.precision), wide_a, wide_w),
                *(cuts(gemm.k, run.rate), 2 * op.traffic.wide),
            )
        )
    c = [column.copy() for column in np.array(rows, dtype=np.float64).T]
    work = Products(m=c[0], n=c[1], k=c[2], batch=c[3], packing=c[4])
    size = Operands(a=c[5], b=c[6], out=c[7], density=c[8], halo=c[9], stored=c[10])
    tiles = tile(work, size, array, warm, tuple(kernel.op.path for kernel, _ in chosen))
    found = cycles(work, array, stream_pieces(work, tiles, array))
    results = work.batch * work.m * work.n
    vector = c[11] + results * (c[12] + c[15])
    vector += (
        c[13] * work.batch * work.m * work.k * c[8] * tiles.loads_a
        + c[14] * work.batch * work.n * work.k * tiles.loads_b
    )
    sram = found.reads_a * size.a + found.reads_b * size.b + found.sums * 4.0 + results * size.out
    return combine(found, tiles.traffic + c[16], sram + tiles.traffic, vector, array)


def stream_pieces(work: Products, tiles: Tiles, array: Systolic) -> Floats:
    """How many parts the stream of a fold comes in: as many as tiles along what streams."""
    if array.dataflow == "ws":
        return np.ceil(work.m / tiles.tm)
    if array.dataflow == "is":
        return np.ceil(work.n / tiles.tn)
    return np.ones_like(work.m)


def _attention(chosen: Chosen, array: Systolic, warm: bool) -> SystolicTimes:
    rows = []
    for kernel, run in chosen:
        op = kernel.op
        if not isinstance(op, Attention) or run is None:
            raise TypeError(f"{op!r} is no attention")
        _, a, _ = (bits / 8 for bits in kernel.precision.widths(op))
        value = op.value_dim or op.head_dim
        parts = op.keys * cuts(op.head_dim, run.rate) + value * cuts(op.keys, run.rate)
        rows.append(
            (
                *(op.batch * op.heads, op.queries, op.pairs / op.queries, op.head_dim, value),
                *(array.packing(run.rate), a, kernel.bytes, kernel.flops + op.batch * op.heads * op.queries * parts),
                *(op.batch * (op.kv_heads or op.heads), op.keys),
            )
        )
    c = [column.copy() for column in np.array(rows, dtype=np.float64).T]
    heads, queries, keys, dim, value, packing, a, size, flops, kv, all_keys = c
    scores = cycles(Products(m=queries, n=keys, k=dim, batch=heads, packing=packing), array)
    values = cycles(Products(m=queries, n=value, k=keys, batch=heads, packing=packing), array)
    found = Cycles(**{item.name: getattr(scores, item.name) + getattr(values, item.name) for item in fields(Cycles)})
    # a block of queries, its output sums and two tiles of keys and values must fit; keys and values pass once per block
    gm, _, gk = smallest(array, packing)
    tiles_kv, per_query = 2 * gk * (dim + value) * a, 2 * dim * a + 4 * value + gk * 4
    least = np.minimum(gm, queries)
    need = tiles_kv + least * per_query
    if (need > array.scratchpad).any():
        worst = int(np.argmax(need))
        path = chosen[worst][0].op.path
        raise ValueError(
            f"{array.name}: a block of {int(least[worst])} queries{f' of {path!r}' if path else ''} and its keys needs "
            f"{need[worst] / 1024:,.1f} KiB of scratchpad, it has {array.scratchpad / 1024:,.1f} KiB; give it more, or "
            "a smaller array"
        )
    block = (array.scratchpad - tiles_kv) / per_query
    once = kv * all_keys * (dim + value) * a
    passes = np.where(all_keys * (dim + value) * a <= array.scratchpad / 2, 1.0, np.ceil(queries / block))
    dram = size + once * (passes - 1)
    if warm:
        dram = np.where((size <= RESIDENT * array.scratchpad) & (passes == 1), 0.0, dram)
    sram = (found.reads_a + found.reads_b) * a + found.sums * 4.0
    return combine(found, dram, sram + size, flops, array)


def _pointwise(chosen: Chosen, array: Systolic, warm: bool) -> SystolicTimes:
    size = _array([kernel.bytes for kernel, _ in chosen])
    zero = np.zeros_like(size)
    idle = Cycles(ideal=zero, mapping=zero, fill_drain=zero, reads_a=zero, reads_b=zero, sums=zero)
    stays = warm & (size <= RESIDENT * array.scratchpad)
    dram = np.where(stays, 0.0, size)
    return combine(idle, dram, size, _array([kernel.flops for kernel, _ in chosen]), array)
