"""What an operation or a model costs on a device: one call, one result with named fields.

`estimate(op, "fp8", "h200-sxm")` prices one kernel; `estimate(workload, scheme, device)` every kernel of a pass, the
quantize work of the scheme included.  `model="roofline"` is a lower bound, "gpu" the calibrated model of `gpu.py`,
"systolic" that of `npu/`, and "auto" takes the best there is for the device.  `mode` and `cache` mean:

graph     kernels replayed without host time, weights from main memory, activations as `cache` says ("warm", "cold")
eager     on one operation, an isolated call from the host, everything outside the caches; on a workload, the kernels of
          `graph` issued by Python one after another, so that the host's time counts where it is longer
compiled  as graph, pointwise and quantize work merged (see `lower.py`)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from . import gpu
from ._names import choose
from .device import Device
from .device_file import device as find_device
from .fallback import vector_rate
from .lower import MODES, Mode, Program, kept, program, single
from .npu.array import find_array
from .npu.model import NOTE as SYSTOLIC_NOTE
from .npu.model import price_systolic
from .npu.vector import cut_notes
from .ops import Op
from .precision import Precision, PrecisionLike, PrecisionMap, Shorthand, kernel_precision, precision_map
from .pricing import (
    HOST_LAUNCH,
    MODELS,
    Executions,
    executions_of,
    find_machine,
    host_time,
    isolated,
    parameters_of,
    price_gpu,
    price_roofline,
)
from .roofline import BOUNDS, NOTE, Times
from .workload import Workload

Cache: TypeAlias = Literal["warm", "cold"]
CACHES = ("warm", "cold")
GPU_NOTE = "gpu: tiles, waves, caches and clocks, fitted to measured kernels (errors: hwmodels.errors.errors())"


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Breakdown:
    """Per-kernel results: times of the distinct kernels of a program; `rows()` makes a record of every launch."""

    program: Program
    executions: Executions
    times: Times

    def rows(self) -> list[KernelCost]:
        """One record per launch, in execution order."""
        bound, t = self.times.bound, self.times
        out = []
        for (kernel, op), i in zip(self.program.launches(), self.program.which.tolist(), strict=True):
            execution, n = self.executions[i], op.count
            out.append(
                KernelCost(
                    path=op.path,
                    kind=kernel.kind,
                    shape=kernel.op.describe(),
                    precision=kernel.precision.label if kernel.op.MATMUL else kernel.precision.output,
                    count=n,
                    members=kernel.members,
                    time_s=float(t.total[i]) * n,
                    compute_s=float(t.compute[i]) * n,
                    memory_s=float(t.memory[i]) * n,
                    launch_s=float(t.launch[i]) * n,
                    l2_s=float(t.l2[i]) * n,
                    bound=str(bound[i]),
                    bytes=kernel.bytes * n,
                    macs=kernel.macs * n,
                    note=execution.note if execution else "",
                )
            )
        return out

    def by_kind(self) -> dict[str, float]:
        """Seconds per kind of kernel, largest first."""
        p = self.program
        seconds = np.bincount(p.which, weights=p.count, minlength=len(p.distinct)) * self.times.total
        out: dict[str, float] = {}
        for kernel, value in zip(p.distinct, seconds.tolist(), strict=True):
            out[kernel.kind] = out.get(kernel.kind, 0.0) + value
        return dict(sorted(out.items(), key=lambda item: -item[1]))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of one operation, or of one pass over a workload.

    time_s: seconds; compute_s, memory_s, launch_s, l2_s: its terms, which overlap, so they need not add up.
    bound: the term that takes most of the time.  achieved: matrix operations per second over the peak rates used.
    bytes, macs, operations: moved and done, quantize work included.  energy_j: at most this, the published power limit
    of the board times the time (None where no limit is published, and for a lower bound of the time).
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


def _weights(work: Workload, scheme: PrecisionMap) -> tuple[float, int]:
    """(bytes of the weights the operations read, how many parameters that is), each layer once; on any device."""
    return kept(work, scheme, "weights", lambda: _counted(work, scheme))


def _counted(work: Workload, scheme: PrecisionMap) -> tuple[float, int]:
    size, number = 0.0, 0
    if isinstance(scheme, Shorthand):
        layers: Iterable[tuple[Op, int]] = zip(work.shapes[0], work.layers.tolist(), strict=True)
    else:
        layers = ((op, 1) for op in {(op.path or i, op.shape_key): op for i, op in enumerate(work.ops)}.values())
    for op, times in layers:
        t = op.traffic
        if t.weights or t.wide:
            size += times * (t.weights * scheme.precision_for(op).widths(op)[0] / 8 + 2 * t.wide)
            number += times * (t.weights + t.wide)
    return size, number


def _footprint(work: Op | Workload, scheme: PrecisionMap, dev: Device) -> Footprint:
    if isinstance(work, Workload):
        size, number = _weights(work, scheme)
        other = scheme.rest.weight_bits if isinstance(scheme, Shorthand) else 16.0
        size += max(work.parameters - number, 0) * other / 8
        return Footprint(weights=size, activations=2.0 * work.live_elements, capacity=dev.capacity)
    precision = scheme.precision_for(work)
    t = work.traffic
    size = t.weights * precision.widths(work)[0] / 8 + 2 * t.wide
    return Footprint(weights=size, activations=work.bytes(precision) - size, capacity=dev.capacity)


class _Alone:
    """The scheme of one operation on its own: its kernel, operands already in the format."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.name = precision.label

    def precision_for(self, op: Op) -> Precision:
        return self.precision


def _notes(
    executions: Executions, dev: Device, mach: gpu.Machine | None, mode: str, host: bool, systolic: bool
) -> list[str]:
    notes = [] if systolic else [NOTE if mach is None else GPU_NOTE]
    if mode == "eager" and mach is None and not systolic:
        notes.append("eager: the host's own time is not in the roofline; a model of many small kernels takes longer")
    if host:
        notes.append(
            f"eager: the host issues launches of {HOST_LAUNCH * 1e6:.0f} us each, slower than the GPU runs them"
        )
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
    model: "roofline" (a lower bound, any device), "gpu" (calibrated, NVIDIA GPUs), "systolic" (devices with an [npu]
    table) or "auto" (the best for the device).
    Raises ValueError for unknown names, and UnsupportedFormat where the device has neither the format nor a wider type.
    """
    choose("mode", mode, MODES)
    choose("cache", cache, CACHES)
    choose("model", model, MODELS)
    dev = find_device(device)
    array = find_array(dev, model)
    mach, why = find_machine(dev, "roofline" if array else model)
    scheme: PrecisionMap
    if isinstance(work, Workload):
        if not work.ops:
            raise ValueError(f"workload {work.name!r} has no operations")
        scheme = precision_map(precision)
        run, name = program(work, scheme, mode), work.name
    elif isinstance(work, Op):
        scheme = _Alone(kernel_precision(precision, work))
        run, name = single(work, scheme.precision_for(work)), f"{work.kind} {work.describe()}"
    else:
        raise ValueError(f"nothing to estimate: {work!r}; allowed: an operation of hwmodels.ops or a Workload")
    kernels = run.distinct
    executions = executions_of(kernels, dev)
    whole = isinstance(work, Workload)
    warm = cache == "warm" and (whole or mode != "eager")
    times: Times
    if array is not None:
        times = price_systolic(kernels, executions, array, warm)
    elif mach is None:
        times = price_roofline(kernels, executions, dev)
    else:
        times = price_gpu(kernels, executions, mach, parameters_of(dev), warm, mode)
        times = isolated(times) if mode == "eager" and not whole else times
    count = np.bincount(run.which, weights=run.count, minlength=len(kernels))
    total = times.total * count
    bound = times.bound
    share = {term: float(total[bound == term].sum()) for term in BOUNDS}
    runs = [round(n) for n in count.tolist()]
    ideal = sum(2.0 * k.macs * n / e.rate.peak.value for k, e, n in zip(kernels, executions, runs, strict=True) if e)
    seconds, launch = float(total.sum()), float(times.launch @ count)
    host = float(host_time(kernels) @ count) if whole and mode == "eager" and mach else 0.0
    limited = host > seconds
    if limited:
        launch, seconds = launch + host - seconds, host
        share["launch"] = seconds
    return Estimate(
        name=name,
        device=dev.name,
        precision=precision if isinstance(precision, str) else str(getattr(scheme, "name", type(scheme).__name__)),
        model="systolic" if array else "roofline" if mach is None else "gpu",
        mode=mode,
        cache=cache,
        time_s=seconds,
        compute_s=float(times.compute @ count),
        memory_s=float(times.memory @ count),
        launch_s=launch,
        l2_s=float(times.l2 @ count),
        bound=max(share, key=lambda term: share[term]),
        achieved=ideal / seconds,
        bytes=sum(k.bytes * n for k, n in zip(kernels, runs, strict=True)),
        macs=sum(k.macs * n for k, n in zip(kernels, runs, strict=True)),
        operations=sum((2 * k.macs + k.flops) * n for k, n in zip(kernels, runs, strict=True)),
        kernels=sum(runs),
        footprint=_footprint(work, scheme, dev),
        exact=all(e is None or e.exact for e in executions),
        notes=(
            *((why,) if why else ()),
            *((SYSTOLIC_NOTE, *cut_notes(zip((k.op for k in kernels), executions, strict=True))) if array else ()),
            *_notes(executions, dev, mach, mode, limited, array is not None),
            *(work.notes if isinstance(work, Workload) else ()),
        ),
        breakdown=Breakdown(program=run, executions=executions, times=times),
        energy_j=None if dev.power is None or mach is None else dev.power.value * seconds,
    )
