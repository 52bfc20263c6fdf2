"""What an operation or a model costs on a device: one call, one result with named fields.

`estimate(op, "fp8", "h200-sxm")` prices one kernel; `estimate(workload, scheme, device)` every kernel of a pass, the
quantize work of the scheme included.  `model="roofline"` is a lower bound.  `mode` and `cache` mean:

graph     kernels replayed without host time, weights from main memory, activations as `cache` says ("warm", "cold")
eager     one isolated call from the host: launch included, everything outside the caches
compiled  as graph, pointwise and quantize work merged (see `lower.py`)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from ._names import choose
from .device import Device
from .device import device as find_device
from .fallback import Execution, execution, vector_rate
from .lower import MODES, Kernel, Mode, kernels
from .ops import Op
from .precision import Precision, PrecisionLike, PrecisionMap, Shorthand, kernel_precision, precision_map
from .roofline import NOTE, Times, roofline
from .workload import Workload

Cache: TypeAlias = Literal["warm", "cold"]
CACHES = ("warm", "cold")


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

    time_s: seconds; compute_s, memory_s, launch_s: its terms, which overlap, so they need not add up.
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


def _columns(launches: Sequence[Kernel], dev: Device) -> tuple[tuple[Execution | None, ...], Times]:
    known: dict[Precision, Execution] = {}
    executions: list[Execution | None] = []
    rates = np.ones(len(launches))
    for i, kernel in enumerate(launches):
        if not kernel.op.MATMUL:
            executions.append(None)
            continue
        precision = kernel.precision
        if kernel.op.dtype:
            precision = _own(kernel.op.dtype)
        if precision not in known:
            known[precision] = execution(precision, dev)
        executions.append(known[precision])
        rates[i] = known[precision].rate.peak.value
    times = roofline(
        macs=np.array([k.macs for k in launches], dtype=np.float64),
        flops=np.array([k.flops for k in launches], dtype=np.float64),
        size=np.array([k.bytes for k in launches], dtype=np.float64),
        rate=rates,
        vector=vector_rate(dev),
        bandwidth=dev.bandwidth,
    )
    return tuple(executions), times


def _own(dtype: str) -> Precision:
    return Precision(weight=dtype, activation=dtype, output=dtype)


def _notes(executions: Sequence[Execution | None], dev: Device) -> list[str]:
    notes = [NOTE]
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
    model: str = "roofline",
) -> Estimate:
    """Price `work` in `precision` on `device`.

    precision: a shorthand ("fp8", "w4a16", ...), a `Precision`, or a scheme with `precision_for(op)`.
    Raises ValueError for unknown names, and UnsupportedFormat where the device has neither the format nor a wider type.
    """
    choose("mode", mode, MODES)
    choose("cache", cache, CACHES)
    choose("model", model, ("roofline",))
    dev = find_device(device)
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
    executions, times = _columns(launches, dev)
    count = np.array([k.count for k in launches], dtype=np.float64)
    total = times.total * count
    bound = times.bound
    share = {term: float(total[bound == term].sum()) for term in ("compute", "memory", "launch")}
    ideal = sum(2.0 * k.macs * k.count / e.rate.peak.value for k, e in zip(launches, executions, strict=True) if e)
    extra = list(work.notes) if isinstance(work, Workload) else []
    return Estimate(
        name=name,
        device=dev.name,
        precision=precision if isinstance(precision, str) else str(getattr(scheme, "name", type(scheme).__name__)),
        model=model,
        mode=mode,
        cache=cache,
        time_s=float(total.sum()),
        compute_s=float((times.compute * count).sum()),
        memory_s=float((times.memory * count).sum()),
        launch_s=float((times.launch * count).sum()),
        bound=max(share, key=lambda term: share[term]),
        achieved=ideal / float(total.sum()),
        bytes=float(sum(k.bytes * k.count for k in launches)),
        macs=sum(k.macs * k.count for k in launches),
        operations=sum((2 * k.macs + k.flops) * k.count for k in launches),
        kernels=sum(k.count for k in launches),
        footprint=_footprint(work, ops, scheme, dev),
        exact=all(e is None or e.exact for e in executions),
        notes=tuple(_notes(executions, dev) + extra),
        breakdown=Breakdown(kernels=launches, executions=executions, times=times),
    )


def _single(op: Op, precision: Precision) -> Kernel:
    return Kernel(op=op, precision=precision, macs=op.macs, flops=op.flops, bytes=op.bytes(precision))
