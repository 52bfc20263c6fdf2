"""Fused dot products on the CPU.

A fused dot product runs as vector code (`_kernels.vector`) where that is exact, and output by output
(`_kernels.accumulate`) where it is not: operands with Inf or NaN, exponents that float32 cannot scale, formats or
accumulators outside its limits. Both compute the same bits.
"""

import numpy as np

from fpsim._cpu.plans import fused_plan, small_exponents, vector_plan
from fpsim._cpu.rows import Scales, rows
from fpsim._cpu.steps import exact, scaled_exponents
from fpsim._kernels import products, vector
from fpsim._kernels.accumulate import ZERO
from fpsim._operands import unpack
from fpsim.accumulators import FusedDot
from fpsim.codec import Array, decode
from fpsim.reference import ENGINE_NAN
from fpsim.spec import MatmulSpec


class FusedProduct:
    """Operands of a fused dot product, unpacked once; `run` chains over a range of k."""

    def __init__(self, a: Array, b: Array, spec: MatmulSpec, kind: FusedDot, scales: Scales | None = None) -> None:
        self.depth, self.terms = a.shape[1], kind.terms or a.shape[1]
        self.plan = fused_plan(kind, spec.a, spec.b, self.terms)
        self.sa, self.ea = unpack(a, spec.a)
        self.sb, self.eb = unpack(np.ascontiguousarray(b.T), spec.b)
        self.vector = vector_plan(kind, spec.a, spec.b, self.terms)
        if scales is not None:
            self.vector = None
            self.ea = scaled_exponents(self.ea, scales[0], spec)
            self.eb = scaled_exponents(self.eb, np.ascontiguousarray(scales[1].T), spec)
        if self.vector is not None:
            self._prepare(a, b, spec, self.vector)

    def _prepare(self, a: Array, b: Array, spec: MatmulSpec, plan: vector.VectorPlan) -> None:
        """float32 values and exponents with K padded step by step, and the rows and columns that do not qualify."""
        small = small_exponents(spec.a, spec.b)
        dtype, mark = (np.int8, -64) if small else (np.int16, -10000)
        self.none = dtype(-128 if small else -30000)
        low, high = (-1000, 1000) if small else (plan.lowest // 2, 62)

        def qualify(exponents: Array) -> Array:
            return np.any((exponents != ZERO) & ((exponents < low) | (exponents > high)), axis=1)

        self.bad_rows, self.bad_columns = qualify(self.ea), qualify(self.eb)
        x, y = decode(a, spec.a), decode(b, spec.b)
        ex = np.where(self.ea == ZERO, mark, self.ea)
        ey = np.where(self.eb == ZERO, mark, self.eb).T
        x[self.bad_rows], ex[self.bad_rows] = 0, mark
        y[:, self.bad_columns], ey[:, self.bad_columns] = 0, mark
        self.x, self.ex = self._pad(x, 1, 0, plan.step), self._pad(ex.astype(dtype), 1, mark, plan.step)
        self.y, self.ey = self._pad(y, 0, 0, plan.step), self._pad(ey.astype(dtype), 0, mark, plan.step)

    def _pad(self, array: Array, axis: int, fill: int, step: int) -> Array:
        """Every `terms` of K, and what is left of it, followed by zeros up to `step`."""
        steps = -(-self.depth // self.terms)
        tail = [(0, 0), (0, 0)]
        tail[axis] = (0, steps * self.terms - self.depth)
        whole = np.pad(array, tail, constant_values=fill)
        if step == self.terms:
            return np.ascontiguousarray(whole)
        shape = list(whole.shape)
        shape[axis : axis + 1] = [steps, self.terms]
        widths = [(0, 0)] * 3
        widths[axis + 1] = (0, step - self.terms)
        padded = np.pad(whole.reshape(shape), widths, constant_values=fill)
        shape[axis : axis + 2] = [steps * step]
        return np.ascontiguousarray(padded.reshape(shape))

    def run(self, c: Array, start: int, stop: int) -> None:
        """Chain the steps of k in start .. stop (start a multiple of the step) onto c, container codes, in place."""
        source = c.copy()
        if self.vector is None:
            marked = np.ones(c.shape, np.int8)
        else:
            marked = self._run_vector(c, start, stop, self.vector)
        if marked.any():
            args = (self.sa, self.ea, self.sb, self.eb, source, self.plan, marked, c, start, stop)
            rows(lambda i, j: products.fused(*args, i, j), c, stop - start)

    def _run_vector(self, c: Array, start: int, stop: int, plan: vector.VectorPlan) -> Array:
        redo = np.zeros(c.shape, np.int8)
        redo[self.bad_rows] = 1
        redo[:, self.bad_columns] = 1
        value = c.view(np.float16).astype(np.float32) if plan.half else c.view(np.float32)
        run = vector.fused_narrow if plan.narrow else vector.fused_wide
        begin, end = start // self.terms * plan.step, -(-stop // self.terms) * plan.step
        args = (self.x, self.ex, self.y, self.ey, plan, self.none, value, value.view(np.int32), redo, begin, end)
        rows(lambda i, j: run(*args, i, j), c, stop - start)
        if plan.half:
            with np.errstate(over="ignore"):
                c[...] = value.astype(np.float16).view(c.dtype)
        bits = np.dtype(c.dtype).itemsize * 8
        c[np.isnan(value)] = ENGINE_NAN[f"f{bits}"]
        return redo


def fused(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: FusedDot, scales: Scales | None) -> None:
    if kind.fraction_bits is None:
        exact(a, b, c, spec, kind, scales)
    else:
        FusedProduct(a, b, spec, kind, scales).run(c, 0, a.shape[1])
