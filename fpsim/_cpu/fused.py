"""Fused dot products on the CPU.

A fused dot product runs as vector code (`_kernels.vector`) where that is exact, and output by output
(`_kernels.accumulate`) where it is not: operands with Inf or NaN, exponents that float32 cannot scale, formats or
accumulators outside its limits. Both compute the same bits.
"""

from functools import cache, cached_property

import numpy as np

from fpsim import _jit
from fpsim._cpu.bounds import of_fused
from fpsim._cpu.plans import fused_plan, small_exponents, vector_plan
from fpsim._cpu.rows import Scales, rows, words
from fpsim._cpu.steps import exact, scaled_exponents
from fpsim._kernels import certified, cpu, panels, products, vector
from fpsim._kernels.accumulate import INFINITE, ZERO
from fpsim._kernels.lanes import LANES
from fpsim._operands import unpack
from fpsim.accumulators import FusedDot
from fpsim.codec import Array, decode
from fpsim.formats import Format, scalar_format
from fpsim.reference import ENGINE_NAN
from fpsim.spec import MatmulSpec

BAD = 127  #: mark, in both int8 and int16, of what the vector kernels leave to the scalar one


class FusedProduct:
    """Operands of a fused dot product, unpacked once; `run` chains over a range of k.

    certified_steps : how many (row, tile of columns, step) have been run without truncation, by certificate.
    """

    def __init__(self, a: Array, b: Array, spec: MatmulSpec, kind: FusedDot, scales: Scales | None = None) -> None:
        self.depth, self.terms = a.shape[1], kind.terms or a.shape[1]
        self.operands, self.spec, self.scales = (a, b), spec, scales
        self.plan = fused_plan(kind, spec.a, spec.b, self.terms)
        self.small = scales is None and small_exponents(spec.a, spec.b)
        self.vector = vector_plan(kind, spec.a, spec.b, self.terms, self.small)
        self.certified_steps = 0
        if self.vector is not None:
            self._prepare(a, b, spec, kind, self.vector)

    @cached_property
    def unpacked(self) -> tuple[Array, Array, Array, Array]:
        """Significands and exponents of a and of b transposed, scales included, for the scalar kernel."""
        (a, b), spec = self.operands, self.spec
        sa, ea = unpack(a, spec.a)
        sb, eb = unpack(np.ascontiguousarray(b.T), spec.b)
        if self.scales is not None:
            ea = scaled_exponents(ea, self.scales[0], spec)
            eb = scaled_exponents(eb, np.ascontiguousarray(self.scales[1].T), spec)
        return sa, ea, sb, eb

    def _prepare(self, a: Array, b: Array, spec: MatmulSpec, kind: FusedDot, plan: vector.VectorPlan) -> None:
        """float32 values and exponents with K padded step by step, and the rows and columns that do not qualify."""
        small, mark = self.small, -64 if self.small else -10000
        self.none = np.int8(-128) if small else np.int16(-30000)
        low = -1000 if small else plan.lowest // 2
        x, y = decode(a, spec.a), decode(b, spec.b)
        if self.scales is None:
            ex, ey = (exponents(codes, row, small, mark, low) for codes, row in ((a, spec.a), (b, spec.b)))
        else:  # powers of two: they move the values, and the exponents with them
            _, of_x, _, of_y = self.unpacked
            ex, ey = (_marked(e, small, mark, low) for e in (of_x, np.ascontiguousarray(of_y.T)))
            with np.errstate(over="ignore"):  # rows and columns where that happens are marked BAD
                x = x * scale_values(self.scales[0], spec, 1, x.shape)
                y = y * scale_values(self.scales[1], spec, 0, y.shape)
        self.bad_rows, self.bad_columns = (ex == BAD).any(axis=1), (ey == BAD).any(axis=0)
        if self.bad_rows.any():
            x[self.bad_rows], ex[self.bad_rows] = 0, mark
        if self.bad_columns.any():
            y[:, self.bad_columns], ey[:, self.bad_columns] = 0, mark
        self.x, self.ex = self._pad(x, 1, 0, plan.step), self._pad(ex, 1, mark, plan.step)
        self.y = panels.pack(self._pad(y, 0, 0, plan.step))
        self.ey = panels.pack(self._pad(ey, 0, mark, plan.step), mark)
        scaled = self.scales is not None
        self.bounds = None if scaled else of_fused(self.x, self.ex, self.y, self.ey, spec.a, spec.b, kind, plan)

    def _pad(self, array: Array, axis: int, fill: int, step: int) -> Array:
        """Every `terms` of K, and what is left of it, followed by zeros up to `step`."""
        steps = -(-self.depth // self.terms)
        if step == self.terms and steps * self.terms == self.depth:
            return array
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
            args = (*self.unpacked, words(source), self.plan, marked, words(c), start, stop)
            rows(lambda i, j: products.fused(*args, i, j), c, stop - start)

    def _run_vector(self, c: Array, start: int, stop: int, plan: vector.VectorPlan) -> Array:
        columns = c.shape[1]
        value = c.view(np.float16).astype(np.float32) if plan.half else c.view(np.float32)
        if columns % LANES:
            value = np.pad(value, ((0, 0), (0, -columns % LANES)))
        redo = np.zeros(value.shape, np.int8)
        begin, end = start // self.terms * plan.step, -(-stop // self.terms) * plan.step
        args = (self.x, self.ex, self.y, self.ey, plan, self.none, value, value.view(np.int32), redo)
        if self.bounds is None:
            run = vector.fused_narrow if plan.narrow else vector.fused_wide
            rows(lambda i, j: run(*args, begin, end, i, j), c, stop - start)
        else:
            o = self.bounds
            more = (o.certified.copy(), o.units_x, o.units_y, o.norms_x, o.norms_y, begin, end)
            used: list[int] = []
            rows(lambda i, j: used.append(certified.fused_certified(*args, *more, i, j)), c, stop - start)
            self.certified_steps += sum(used)
        value, redo = value[:, :columns], redo[:, :columns]
        if plan.half:
            with np.errstate(over="ignore"):
                c[...] = value.astype(np.float16).view(c.dtype)
        elif columns % LANES:
            c[...] = value.view(c.dtype)
        bits = np.dtype(c.dtype).itemsize * 8
        c[np.isnan(value)] = ENGINE_NAN[f"f{bits}"]
        redo[self.bad_rows] = 1
        redo[:, self.bad_columns] = 1
        return redo


def exponents(codes: Array, row: Format, small: bool, mark: int, low: int) -> Array:
    """Exponents as int8 if `small`, else int16: `mark` for zeros; BAD for Inf, NaN and what lies outside low .. 62."""
    if row.bits > 16:
        return _marked(unpack(codes, row)[1], small, mark, low)
    table = _exponent_table(row, small, mark, low)
    out = np.empty(codes.shape, table.dtype)
    source, flat = codes.reshape(-1), out.reshape(-1)
    _jit.parallel(lambda i, j: cpu.look_up(source, table, len(table) - 1, flat, i, j), source.size, 1 << 16)
    return out


def scale_values(scales: Array, spec: MatmulSpec, axis: int, shape: tuple[int, ...]) -> Array:
    """The value of each element's block scale."""
    values = decode(scales, scalar_format(spec.scale or "e8m0")).astype(np.float32)
    return np.repeat(values, spec.block or 1, axis=axis)[: shape[0], : shape[1]]


@cache
def _exponent_table(row: Format, small: bool, mark: int, low: int) -> Array:
    return _marked(unpack(np.arange(1 << row.bits), row)[1], small, mark, low)


def _marked(raw: Array, small: bool, mark: int, low: int) -> Array:
    high = INFINITE - 1 if small else 62
    made = np.where((raw < low) | (raw > high), BAD, raw)
    return np.where(raw == ZERO, mark, made).astype(np.int8 if small else np.int16)


def fused(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: FusedDot, scales: Scales | None) -> None:
    if kind.fraction_bits is None:
        exact(a, b, c, spec, kind, scales)
    else:
        FusedProduct(a, b, spec, kind, scales).run(c, 0, a.shape[1])
