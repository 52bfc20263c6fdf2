"""Seconds for the distinct kernels of a program, by the roofline or by the GPU model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

import numpy as np

from . import gpu
from .device import Device
from .fallback import Execution, execution, vector_rate
from .gpu_attention import attention
from .gpu_pointwise import pointwise
from .lower import Kernel, Mode
from .ops import Attention, Conv, Gemm, Quantize
from .passes import around, passes
from .precision import Precision
from .roofline import Floats, Times, roofline

MODELS = ("auto", "gpu", "roofline", "systolic")
#: what an isolated call from the host takes beyond its kernel: measured on an H200 (graph against eager, cold L2)
ISOLATED = 2.4e-6
#: what Python and torch take to issue one launch of a model, one after another: measured on the host of an H200 (27 to
#: 30 us over SD1.5, SDXL and DiT, torch 2.11); a fast desktop processor takes a third of it
HOST_LAUNCH = 28e-6
#: and for a cast in front of a product, a Triton kernel launched from Python and the scaled product's own arguments:
#: (FP8 step - HOST_LAUNCH * kernels of the bf16 step) / casts was 66, 80, 91 and 93 us on DiT, SD1.5, SD3 and SDXL
HOST_CAST = 80e-6
#: an implicit product steps through K by 64 channels of one filter element, and has tiles of at least 128 columns
CHANNELS, COLUMNS = 64, 128

Executions: TypeAlias = tuple[Execution | None, ...]
Chosen: TypeAlias = Sequence[tuple[Kernel, Execution | None]]


def parameters_of(dev: Device) -> gpu.Parameters:
    """The global parameters, with what was measured on this device itself put in."""
    return replace(gpu.load(), **dev.calibration) if dev.calibration else gpu.load()


def find_machine(dev: Device, model: str) -> tuple[gpu.Machine | None, str]:
    """The machine of the GPU model (None: roofline), and why not if that was not asked for."""
    if model == "roofline":
        return None, ""
    try:
        return gpu.machine(dev, parameters_of(dev)), ""
    except gpu.NotModelled as error:
        if model == "gpu":
            raise
        return None, str(error)


def executions_of(kernels: Sequence[Kernel], dev: Device) -> Executions:
    """How the device runs each product; None for what is no product."""
    known: dict[Precision, Execution] = {}
    out: list[Execution | None] = []
    for kernel in kernels:
        if not kernel.op.MATMUL:
            out.append(None)
            continue
        dtype = kernel.op.dtype
        precision = Precision(weight=dtype, activation=dtype, output=dtype) if dtype else kernel.precision
        if precision not in known:
            known[precision] = execution(precision, dev)
        out.append(known[precision])
    return tuple(out)


def price_roofline(kernels: Sequence[Kernel], executions: Executions, dev: Device) -> Times:
    """Lower bounds."""
    return roofline(
        macs=_array(k.macs for k in kernels),
        flops=_array(k.flops for k in kernels),
        size=_array(k.bytes for k in kernels),
        rate=_array(e.rate.peak.value if e else 1.0 for e in executions),
        vector=vector_rate(dev),
        bandwidth=dev.bandwidth,
    )


def price_gpu(
    kernels: Sequence[Kernel],
    executions: Executions,
    mach: gpu.Machine,
    parameters: gpu.Parameters,
    warm: bool,
    mode: Mode = "graph",
) -> Times:
    """Times of the GPU model: products, attention and the rest in one call each."""
    kinds: dict[str, list[int]] = {"product": [], "attention": [], "pointwise": []}
    for position, kernel in enumerate(kernels):
        op = kernel.op
        kind = "product" if isinstance(op, Gemm | Conv) else "attention" if isinstance(op, Attention) else "pointwise"
        kinds[kind].append(position)
    how = How(mach=mach, p=parameters, warm=warm, mode=mode)
    parts = [
        (positions, _PRICERS[kind]([(kernels[i], executions[i]) for i in positions], how))
        for kind, positions in kinds.items()
        if positions
    ]
    return gpu.join(parts, len(kernels))


def isolated(times: Times) -> Times:
    """The same kernels called one at a time by an idle host."""
    return replace(times, total=times.total + ISOLATED, launch=times.launch + ISOLATED)


def host_time(kernels: Sequence[Kernel]) -> Floats:
    """Seconds the host needs to issue each of them, one launch after another."""

    def one(kernel: Kernel) -> float:
        if isinstance(kernel.op, Quantize):
            return HOST_CAST
        if isinstance(kernel.op, Conv):
            extra = around(kernel.op, False)
            return HOST_LAUNCH * (1 + (extra.launches if extra else 0))
        return HOST_LAUNCH * passes(kernel).launches

    return _array(one(kernel) for kernel in kernels)


def _array(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)


def _per_clock(chosen: Chosen, mach: gpu.Machine) -> Floats:
    return _array(gpu.per_clock(e.rate, mach) if e else 1.0 for _, e in chosen)


@dataclass(frozen=True, kw_only=True)
class How:
    """What every kernel of a program is priced with."""

    mach: gpu.Machine
    p: gpu.Parameters
    warm: bool
    mode: Mode


def _products(chosen: Chosen, how: How) -> Times:
    ops = [k.op for k, _ in chosen]
    gemms = [op.padded_gemm(CHANNELS, COLUMNS) if isinstance(op, Conv) else op for op in ops]
    widths = np.array([k.precision.widths(k.op) for k, _ in chosen]) / 8
    products = [g for g in gemms if isinstance(g, Gemm)]
    times = gpu.gemm(
        m=_array(g.m for g in products),
        n=_array(g.n for g in products),
        k=_array(g.k for g in products),
        rate=_per_clock(chosen, how.mach),
        mach=how.mach,
        parameters=how.p,
        batch=_array(g.batch for g in products),
        read=widths[:, 1],
        weight=np.where([g.parameter for g in products], widths[:, 0], widths[:, 1]),
        write=widths[:, 2],
        source=_array(
            min(op.traffic.reads, g.batch * g.m * g.k) if isinstance(op, Conv) else g.batch * g.m * g.k
            for op, g in zip(ops, products, strict=True)
        ),
        shared=_array(float(g.parameter) for g in products),
        warm=how.warm,
        implicit=_array(float(isinstance(op, Conv) and max(op.kernels) > 1) for op in ops),
    )
    extra = [around(op, how.mode == "compiled") if isinstance(op, Conv) else None for op in ops]
    where = [i for i, item in enumerate(extra) if item is not None]
    if not where:
        return times
    none = np.zeros(len(where))
    more = pointwise(none, none, [item for item in extra if item is not None], how.mach, how.p, how.warm)
    out = {}
    for item in fields(Times):
        column = getattr(times, item.name).copy()
        column[where] += getattr(more, item.name)
        out[item.name] = column
    return Times(**out)


def _attentions(chosen: Chosen, how: How) -> Times:
    ops = [k.op for k, _ in chosen if isinstance(k.op, Attention)]
    return attention(
        batch=_array(op.batch for op in ops),
        heads=_array(op.heads for op in ops),
        queries=_array(op.queries for op in ops),
        keys=_array(op.pairs / op.queries for op in ops),
        head_dim=_array(max(op.head_dim, op.value_dim or 0) for op in ops),
        rate=_per_clock(chosen, how.mach),
        size=_array(k.bytes for k, _ in chosen),
        mach=how.mach,
        p=how.p,
        torch=_array(op.library == "torch" or how.mode == "eager" for op in ops),
        mask=_array(op.mask for op in ops),
    )


def _pointwise(chosen: Chosen, how: How) -> Times:
    return pointwise(
        size=_array(k.bytes for k, _ in chosen),
        flops=_array(k.flops for k, _ in chosen),
        work=[passes(k, how.mode == "compiled") for k, _ in chosen],
        mach=how.mach,
        p=how.p,
        warm=how.warm,
    )


_PRICERS = {"product": _products, "attention": _attentions, "pointwise": _pointwise}
