"""What an operation or a model costs on a device: one call, one result with named fields.

`estimate(op, "fp8", "h200-sxm")` prices one kernel; `estimate(workload, scheme, device)` every kernel of a pass, the
quantize work of the scheme included.  `model="roofline"` is a lower bound, "gpu" the calibrated model of `gpu.py`, and
"auto" takes the best there is for the device.  `mode` and `cache` mean:

graph     kernels replayed without host time, weights from main memory, activations as `cache` says ("warm", "cold")
eager     one isolated call from the host, everything outside the caches; host time is not in the model yet
compiled  as graph, pointwise and quantize work merged (see `lower.py`)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from . import gpu
from ._names import choose
from .device import Device
from .device import device as find_device
from .fallback import Execution, execution, vector_rate
from .gpu import load
from .lower import MODES, Kernel, Mode, kernels
from .ops import Attention, Conv, Gemm, Op, Reduction
from .precision import Precision, PrecisionLike, PrecisionMap, Shorthand, kernel_precision, precision_map
from .roofline import BOUNDS, NOTE, Floats, Times, roofline
from .workload import Workload

Cache: TypeAlias = Literal["warm", "cold"]
CACHES = ("warm", "cold")
MODELS = ("auto", "gpu", "roofline")
GPU_NOTE = "gpu: tiles, waves, caches and clocks, fitted to measured kernels (errors: hwmodels.calibrate.errors())"


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of device memory a pass needs: weights in their formats (scales included), and live activations."""

    weights: float
    activations: float
    capacity: float | None

    @property
    def total(self) -> float:
        return self.weights + self.activations

    @property
    def fits(self) -> bool | None:
        """None where the device uses its host's memory and states no capacity."""
        return None if self.capacity is None else self.total <= self.capacity


@dataclass(frozen=True, kw_only=True)
class KernelCost:
    """One row of a breakdown: seconds are for all `count` executions."""

    path: str
    kind: str
    shape: str
    precision: str
    count: int
    members: int
    time_s: float
    compute_s: float
    memory_s: float
    launch_s: float
    l2_s: float
    bound: str
    bytes: float
    macs: int
    note: str


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Per-kernel results as columns; `rows()` makes records of them."""

    kernels: tuple[Kernel, ...]
    executions: tuple[Execution | None, ...]
    times: Times

    def rows(self) -> list[KernelCost]:
        """One record per kernel, in execution order."""
        bound = self.times.bound
        return [
            KernelCost(
                path=k.op.path,
                kind=k.op.kind if k.members == 1 else "fused",
                shape=k.op.describe(),
                precision=k.precision.label if k.op.MATMUL else k.precision.output,
                count=k.count,
                members=k.members,
                time_s=float(self.times.total[i]) * k.count,
                compute_s=float(self.times.compute[i]) * k.count,
                memory_s=float(self.times.memory[i]) * k.count,
                launch_s=float(self.times.launch[i]) * k.count,
                l2_s=float(self.times.l2[i]) * k.count,
                bound=str(bound[i]),
                bytes=k.bytes * k.count,
                macs=k.macs * k.count,
                note=(e.note if (e := self.executions[i]) else ""),
            )
            for i, k in enumerate(self.kernels)
        ]

    def by_kind(self) -> dict[str, float]:
        """Seconds per kind of kernel, largest first."""
        out: dict[str, float] = {}
        for kernel, seconds in zip(self.kernels, self.times.total, strict=True):
            kind = kernel.op.kind if kernel.members == 1 else "fused"
            out[kind] = out.get(kind, 0.0) + float(seconds) * kernel.count
        return dict(sorted(out.items(), key=lambda item: -item[1]))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of one operation, or of one pass over a workload.

    time_s: seconds; compute_s, memory_s, launch_s, l2_s: its terms, which overlap, so they need not add up.
    bound: the term that takes most of the time.  achieved: matrix operations per second over the peak rates used.
    bytes, macs, operations: moved and done, quantize work included.  energy_j: None, as no sourced figure is wired in.
    exact: False if a fallback changes values (see notes).
    """

    name: str
    device: str
    precision: str
    model: str
    mode: str
    cache: str
    time_s: float
    compute_s: float
    memory_s: float
    launch_s: float
    l2_s: float
    bound: str
    achieved: float
    bytes: float
    macs: int
    operations: int
    kernels: int
    footprint: Footprint
    exact: bool
    notes: tuple[str, ...]
    breakdown: Breakdown
    energy_j: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the per-kernel breakdown (`breakdown.rows()` has it)."""
        skip = ("breakdown", "footprint")
        out = {k: v for k, v in vars(self).items() if k not in skip}
        out["notes"] = list(self.notes)
        out["footprint"] = {**vars(self.footprint), "total": self.footprint.total, "fits": self.footprint.fits}
        out["time_by_kind_s"] = self.breakdown.by_kind()
        return out


def _weights(ops: Sequence[Op], scheme: PrecisionMap) -> tuple[float, int]:
    """(bytes of the weights the operations read, how many parameters that is), each layer once."""
    size, number = 0.0, 0
    seen: set[tuple[object, ...]] = set()
    for op in ops:
        t = op.traffic
        if not t.weights and not t.wide:
            continue
        key = (op.path, op.shape_key) if op.path else (id(op),)
        if key in seen:
            continue
        seen.add(key)
        size += t.weights * scheme.precision_for(op).widths(op)[0] / 8 + 2 * t.wide
        number += t.weights + t.wide
    return size, number


def _footprint(work: Op | Workload, ops: Sequence[Op], scheme: PrecisionMap, dev: Device) -> Footprint:
    size, number = _weights(ops, scheme)
    if isinstance(work, Workload):
        other = scheme.rest.weight_bits if isinstance(scheme, Shorthand) else 16.0
        size += max(work.parameters - number, 0) * other / 8
        activations = 2.0 * work.live_elements
    else:
        precision = scheme.precision_for(work)
        activations = work.bytes(precision) - size
    return Footprint(weights=size, activations=activations, capacity=dev.capacity)


class _Alone:
    """The scheme of one operation on its own: its kernel, operands already in the format."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.name = precision.label

    def precision_for(self, op: Op) -> Precision:
        return self.precision


def _machine(dev: Device, model: str) -> tuple[gpu.Machine | None, str]:
    """The machine of the GPU model (None: roofline), and why not if that was not asked for."""
    if model == "roofline":
        return None, ""
    try:
        return gpu.machine(dev, load()), ""
    except gpu.NotModelled as error:
        if model == "gpu":
            raise
        return None, str(error)


def _executions(launches: Sequence[Kernel], dev: Device) -> tuple[Execution | None, ...]:
    """How the device runs each product; None for what is no product."""
    known: dict[Precision, Execution] = {}
    out: list[Execution | None] = []
    for kernel in launches:
        if not kernel.op.MATMUL:
            out.append(None)
            continue
        precision = _own(kernel.op.dtype) if kernel.op.dtype else kernel.precision
        if precision not in known:
            known[precision] = execution(precision, dev)
        out.append(known[precision])
    return tuple(out)


def _array(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)


def _roofline(launches: Sequence[Kernel], executions: Sequence[Execution | None], dev: Device) -> Times:
    return roofline(
        macs=_array(k.macs for k in launches),
        flops=_array(k.flops for k in launches),
        size=_array(k.bytes for k in launches),
        rate=_array(e.rate.peak.value if e else 1.0 for e in executions),
        vector=vector_rate(dev),
        bandwidth=dev.bandwidth,
    )


def _gpu(launches: Sequence[Kernel], executions: Sequence[Execution | None], mach: gpu.Machine, warm: bool) -> Times:
    """Times of the GPU model: each distinct kernel once, products, attention and the rest in one call each."""
    distinct: dict[tuple[object, ...], int] = {}
    where = np.empty(len(launches), dtype=np.int64)
    first: list[int] = []
    for i, k in enumerate(launches):
        key = (k.op.shape_key, k.precision, k.bytes, k.members)
        where[i] = distinct.setdefault(key, len(distinct))
        if len(first) < len(distinct):
            first.append(i)
    kinds: dict[str, list[int]] = {"product": [], "attention": [], "pointwise": []}
    for position, i in enumerate(first):
        op = launches[i].op
        kind = "product" if isinstance(op, Gemm | Conv) else "attention" if isinstance(op, Attention) else "pointwise"
        kinds[kind].append(position)
    parts = []
    for kind, positions in kinds.items():
        if positions:
            chosen = [(launches[first[p]], executions[first[p]]) for p in positions]
            parts.append((positions, _PRICERS[kind](chosen, mach, warm)))
    unique = gpu.join(parts, len(first))
    return Times(**{item.name: getattr(unique, item.name)[where] for item in fields(Times)})


Chosen: TypeAlias = Sequence[tuple[Kernel, Execution | None]]


def _per_clock(chosen: Chosen, mach: gpu.Machine) -> Floats:
    return _array(gpu.per_clock(e.rate, mach) if e else 1.0 for _, e in chosen)


def _products(chosen: Chosen, mach: gpu.Machine, warm: bool) -> Times:
    ops = [k.op for k, _ in chosen]
    gemms = [op.gemm() if isinstance(op, Conv) else op for op in ops]
    widths = np.array([k.precision.widths(k.op) for k, _ in chosen]) / 8
    products = [g for g in gemms if isinstance(g, Gemm)]
    return gpu.gemm(
        m=_array(g.m for g in products),
        n=_array(g.n for g in products),
        k=_array(g.k for g in products),
        rate=_per_clock(chosen, mach),
        mach=mach,
        parameters=load(),
        batch=_array(g.batch for g in products),
        read=widths[:, 1],
        weight=np.where([g.parameter for g in products], widths[:, 0], widths[:, 1]),
        write=widths[:, 2],
        source=_array(
            min(op.traffic.reads, g.batch * g.m * g.k) if isinstance(op, Conv) else g.batch * g.m * g.k
            for op, g in zip(ops, products, strict=True)
        ),
        shared=_array(float(g.parameter) for g in products),
        warm=warm,
    )


def _attentions(chosen: Chosen, mach: gpu.Machine, warm: bool) -> Times:
    ops = [k.op for k, _ in chosen if isinstance(k.op, Attention)]
    return gpu.attention(
        batch=_array(op.batch for op in ops),
        heads=_array(op.heads for op in ops),
        queries=_array(op.queries for op in ops),
        keys=_array(op.pairs / op.queries for op in ops),
        head_dim=_array(max(op.head_dim, op.value_dim or 0) for op in ops),
        rate=_per_clock(chosen, mach),
        size=_array(k.bytes for k, _ in chosen),
        mach=mach,
        p=load(),
    )


def _pointwise(chosen: Chosen, mach: gpu.Machine, warm: bool) -> Times:
    return gpu.pointwise(
        read=_array(k.bytes for k, _ in chosen),
        written=0.0,
        flops=_array(k.flops for k, _ in chosen),
        maximum=_array(
            float(isinstance(k.op, Reduction) and k.op.function == "amax" and k.members == 1) for k, _ in chosen
        ),
        mach=mach,
        p=load(),
        warm=warm,
    )


_PRICERS = {"product": _products, "attention": _attentions, "pointwise": _pointwise}


def _own(dtype: str) -> Precision:
    return Precision(weight=dtype, activation=dtype, output=dtype)


def _notes(executions: Sequence[Execution | None], dev: Device, mach: gpu.Machine | None) -> list[str]:
    notes = [NOTE if mach is None else GPU_NOTE]
    for item in executions:
        if item is not None and item.note and item.note not in notes:
            notes.append(item.note)
    if vector_rate(dev) is None:
        notes.append(f"{dev.name}: no rate of its vector units is published; pointwise work is priced by memory alone")
    return notes


def estimate(
    work: Op | Workload,
    precision: PrecisionLike = "bf16",
    device: str | Device | Path = "h200-sxm",
    mode: Mode = "graph",
    cache: Cache = "warm",
    model: str = "auto",
) -> Estimate:
    """Price `work` in `precision` on `device`.

    precision: a shorthand ("fp8", "w4a16", ...), a `Precision`, or a scheme with `precision_for(op)`.
    Raises ValueError for unknown names, and UnsupportedFormat where the device has neither the format nor a wider type.
    """
    choose("mode", mode, MODES)
    choose("cache", cache, CACHES)
    choose("model", model, MODELS)
    dev = find_device(device)
    mach, why = _machine(dev, model)
    scheme: PrecisionMap
    if isinstance(work, Workload):
        scheme = precision_map(precision)
        ops: tuple[Op, ...] = work.ops
        launches = kernels(ops, scheme, mode)
        name = work.name
    elif isinstance(work, Op):
        scheme = _Alone(kernel_precision(precision, work))
        ops = (work,)
        launches = (_single(work, scheme.precision_for(work)),)
        name = f"{work.kind} {work.describe()}"
    else:
        raise ValueError(f"nothing to estimate: {work!r}; allowed: an operation of hwmodels.ops or a Workload")
    if not launches:
        raise ValueError(f"workload {name!r} has no operations")
    executions = _executions(launches, dev)
    warm = cache == "warm" and mode != "eager"
    times = _roofline(launches, executions, dev) if mach is None else _gpu(launches, executions, mach, warm)
    count = np.array([k.count for k in launches], dtype=np.float64)
    total = times.total * count
    bound = times.bound
    share = {term: float(total[bound == term].sum()) for term in BOUNDS}
    ideal = sum(2.0 * k.macs * k.count / e.rate.peak.value for k, e in zip(launches, executions, strict=True) if e)
    extra = list(work.notes) if isinstance(work, Workload) else []
    return Estimate(
        name=name,
        device=dev.name,
        precision=precision if isinstance(precision, str) else str(getattr(scheme, "name", type(scheme).__name__)),
        model="roofline" if mach is None else "gpu",
        mode=mode,
        cache=cache,
        time_s=float(total.sum()),
        compute_s=float((times.compute * count).sum()),
        memory_s=float((times.memory * count).sum()),
        launch_s=float((times.launch * count).sum()),
        l2_s=float((times.l2 * count).sum()),
        bound=max(share, key=lambda term: share[term]),
        achieved=ideal / float(total.sum()),
        bytes=float(sum(k.bytes * k.count for k in launches)),
        macs=sum(k.macs * k.count for k in launches),
        operations=sum((2 * k.macs + k.flops) * k.count for k in launches),
        kernels=sum(k.count for k in launches),
        footprint=_footprint(work, ops, scheme, dev),
        exact=all(e is None or e.exact for e in executions),
        notes=(*((why,) if why else ()), *_notes(executions, dev, mach), *extra),
        breakdown=Breakdown(kernels=launches, executions=executions, times=times),
    )


def _single(op: Op, precision: Precision) -> Kernel:
    return Kernel(op=op, precision=precision, macs=op.macs, flops=op.flops, bytes=op.bytes(precision))
