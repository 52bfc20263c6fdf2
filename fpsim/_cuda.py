"""The CUDA backend: unpack on the host, one thread per output, the same bits as the CPU.

It runs fused dot products, their promotions and splits, and integer accumulators; the other kinds run on the CPU.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda as device

from fpsim._cpu.plans import fused_plan
from fpsim._kernels import cuda
from fpsim._operands import unpack
from fpsim.accumulators import Accumulator, FusedDot, IntegerAccumulator, Promoted, SplitK
from fpsim.codec import Array
from fpsim.formats import container
from fpsim.reference import ENGINE_NAN, split_ranges
from fpsim.spec import MatmulSpec

_THREADS = (8, 32)  # along the rows and columns of the result


def accumulate(a: Array, b: Array, c: Array, spec: MatmulSpec, scales: tuple[Array, Array] | None = None) -> None:
    """c = c + a @ b in place; see `fpsim._cpu.accumulate`.

    Raises RuntimeError without a CUDA device, ValueError for an accumulator this backend does not run.
    """
    kind = spec.accumulator
    run = _RUNNERS.get(type(kind))
    inner = kind.inner if isinstance(kind, SplitK) else kind
    if run is None or scales is not None or (isinstance(inner, Promoted) and (inner.operands or inner.scaled)):
        raise ValueError(f"backend='cuda' does not run {kind}; use backend='cpu'")
    if not device.is_available():
        raise RuntimeError("backend='cuda' needs an NVIDIA GPU with its driver (pip install 'fpsim[cuda]')")
    if a.shape[1]:
        run(a, b, c, spec, kind)


class _FusedProduct:
    """Operands of a fused dot product on the device; `run` chains over a range of k."""

    def __init__(self, a: Array, b: Array, spec: MatmulSpec, kind: FusedDot) -> None:
        self.plan = fused_plan(kind, spec.a, spec.b, kind.terms or a.shape[1])
        self.operands = [
            device.to_device(np.ascontiguousarray(x))
            for x in (*unpack(a, spec.a), *unpack(np.ascontiguousarray(b.T), spec.b))
        ]

    def run(self, c: Any, start: int, stop: int) -> None:
        cuda.fused[_grid(c), _THREADS](*self.operands, c, self.plan, c, start, stop)


def _words(c: Array) -> Array:
    """Float bit patterns as unsigned integers, which hold every code without wrapping."""
    return c.view(f"u{c.itemsize}")


def _fused(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: FusedDot) -> None:
    c = _words(c)
    held = device.to_device(c)
    _FusedProduct(a, b, spec, kind).run(held, 0, a.shape[1])
    held.copy_to_host(c)


def _promoted(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: Promoted) -> None:
    if container(kind.output).name != "f32" or kind.order != "ascending" or kind.every % (kind.inner.terms or 1):
        raise ValueError(f"backend='cuda' does not run {kind}; use backend='cpu'")
    c = _words(c)
    product, total = _FusedProduct(a, b, spec, kind.inner), device.to_device(c)
    for start in range(0, a.shape[1], kind.every):
        part = device.to_device(np.zeros_like(c))
        product.run(part, start, min(start + kind.every, a.shape[1]))
        _add(total, part)
    total.copy_to_host(c)


def _split_k(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: SplitK) -> None:
    c = _words(c)
    total = device.to_device(c)
    for start, stop in split_ranges(a.shape[1], kind.splits, kind.tile):
        part = np.zeros_like(c)
        piece_a, piece_b = np.ascontiguousarray(a[:, start:stop]), np.ascontiguousarray(b[start:stop])
        _RUNNERS[type(kind.inner)](piece_a, piece_b, part, spec, kind.inner)
        _add(total, device.to_device(part))
    total.copy_to_host(c)


def _integer(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: IntegerAccumulator) -> None:
    if kind.overflow == "error" or kind.step != 1 or kind.step_bits is not None:
        raise ValueError(f"backend='cuda' does not run {kind}; use backend='cpu'")
    del spec
    low, high = -(1 << (kind.bits - 1)), (1 << (kind.bits - 1)) - 1
    held = device.to_device(c)
    operands = device.to_device(a), device.to_device(b)
    cuda.integer[_grid(c), _THREADS](*operands, low, high, kind.overflow == "saturate", held)
    held.copy_to_host(c)


def _add(total: Any, part: Any) -> None:
    cuda.add[_grid(total), _THREADS](total.view(np.float32), total, part.view(np.float32), ENGINE_NAN["f32"])


def _grid(c: Any) -> tuple[int, int]:
    return -(-c.shape[0] // _THREADS[0]), -(-c.shape[1] // _THREADS[1])


_RUNNERS: dict[type[Accumulator], Callable[[Array, Array, Array, MatmulSpec, Any], None]] = {
    FusedDot: _fused,
    Promoted: _promoted,
    SplitK: _split_k,
    IntegerAccumulator: _integer,
}
