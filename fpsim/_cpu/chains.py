"""Chains and trees on the CPU: every product or addition is rounded.

float32 and float64 to nearest even are the machine's own operations; every other format and rounding runs in float64
with one correct rounding per operation (`_kernels.chain`).
"""

import numpy as np

from fpsim._cpu.plans import narrow_plan, top_exponent, wide_plan
from fpsim._cpu.rows import Scales, rows
from fpsim._kernels import chain, chain_wide, products
from fpsim.accumulators import PairwiseTree, SequentialFma
from fpsim.codec import Array, decode, encode
from fpsim.formats import Format, container, scalar_format
from fpsim.reference import engine_nan
from fpsim.spec import MatmulSpec


def sequential(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: SequentialFma, scales: Scales | None) -> None:
    del scales
    x, y = chain_operands(a, b, spec, kind)
    row, depth = scalar_format(kind.output), a.shape[1]
    if not native(x, y, kind):
        x, y = float64_operands(x, y, spec)
        down, total = kind.rounding == "rd", start_values(c, row)
        if kind.flush:
            flush(total, row.smallest_normal)
        if row.name == "f64":
            wide = wide_plan(kind)
            rows(lambda i, j: chain_wide.chain(x, y, wide, total, i, j), c, depth)
            finish(total, row, c)
            return
        product, to = narrow_plans(kind)
        if kind.fused:
            rows(lambda i, j: chain.fused(x, y, down, to, total, i, j), c, depth)
        else:
            rows(lambda i, j: chain.unfused(x, y, down, product, to, total, i, j), c, depth)
        finish(total, row, c)
        return
    dtype = np.dtype(row.value_dtype)
    x, y, total = x.astype(dtype, copy=False), y.astype(dtype, copy=False), c.view(dtype)
    smallest = dtype.type(row.smallest_normal if kind.flush else 0)
    if kind.flush:
        flush(total, row.smallest_normal)
    if not kind.fused:
        rows(lambda i, j: products.sequential_multiply_add(x, y, smallest, total, i, j), c, depth)
    elif kind.flush:
        rows(lambda i, j: products.sequential_fma_flush(x, y, smallest, total, i, j), c, depth)
    else:
        rows(lambda i, j: products.sequential_fma(x, y, total, i, j), c, depth)
    c[np.isnan(total)] = np.array(engine_nan(row), np.uint64).astype(c.dtype)


def pairwise(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: PairwiseTree, scales: Scales | None) -> None:
    del scales
    row, depth = scalar_format(kind.output), a.shape[1]
    x, y = tree_operands(a, b, spec, kind)
    if native(x, y, kind) and kind.output == "f32":
        total = c.view(np.float32)
        smallest = np.float32(row.smallest_normal if kind.flush else 0)
        if kind.flush:
            total[np.abs(total) < smallest] = 0
        rows(lambda i, j: products.pairwise_tree(x, y, kind.terms, smallest, total, i, j), c, depth)
        c[np.isnan(total)] = engine_nan(row)
        return
    x, y = float64_operands(x, y, spec)
    total = start_values(c, row)
    if kind.flush:
        total[np.abs(total) < row.smallest_normal] = 0
    if row.name == "f64":
        wide = wide_plan(kind)
        rows(lambda i, j: chain_wide.tree(x, y, kind.terms, wide, total, i, j), c, depth)
        finish(total, row, c)
        return
    product, to = narrow_plans(kind)
    rows(lambda i, j: chain.tree(x, y, kind.terms, kind.rounding == "rd", product, to, total, i, j), c, depth)
    finish(total, row, c)


def chain_operands(a: Array, b: Array, spec: MatmulSpec, kind: SequentialFma) -> tuple[Array, Array]:
    """Values of the operands, flushed, in the order in which the chain takes them."""
    x, y = decode(a, spec.a), decode(b, spec.b)
    if kind.order == "odd-even":
        k = np.arange(x.shape[1]) ^ 1
        k[k == k.size] -= 1  # an odd K leaves its last element in place
        x, y = np.ascontiguousarray(x[:, k]), np.ascontiguousarray(y[k])
    if kind.flush:
        flush(x, spec.a.smallest_normal)
        flush(y, spec.b.smallest_normal)
    return x, y


def tree_operands(a: Array, b: Array, spec: MatmulSpec, kind: PairwiseTree) -> tuple[Array, Array]:
    """Values of the operands, flushed to +0, K filled up with zeros to whole trees."""
    pad = -a.shape[1] % kind.terms
    x, y = decode(a, spec.a), decode(b, spec.b)
    x, y = np.pad(x, ((0, 0), (0, pad))), np.pad(y, ((0, pad), (0, 0)))
    if kind.flush:
        x[np.abs(x) < spec.a.smallest_normal] = 0
        y[np.abs(y) < spec.b.smallest_normal] = 0
    return x, y


def narrow_plans(kind: SequentialFma | PairwiseTree) -> tuple[chain.Narrow, chain.Narrow]:
    """Where products and sums are rounded to."""
    to = narrow_plan(kind.output, kind.rounding, kind.overflow, flush=kind.flush)
    return narrow_plan(kind.product or kind.output, kind.rounding, kind.overflow, flush=kind.flush), to


def native(x: Array, y: Array, kind: SequentialFma | PairwiseTree) -> bool:
    """Whether the machine's own float32 or float64 operations are the accumulator's."""
    same = kind.product in ("", kind.output) and kind.rounding == "rne" and kind.overflow == "infinity"
    return same and (kind.output == "f64" or (kind.output == "f32" and x.dtype == y.dtype == np.float32))


def float64_operands(x: Array, y: Array, spec: MatmulSpec) -> tuple[Array, Array]:
    """Operands in float64, where their products are exact; ValueError if they are not."""
    significant, ranges = 0, True
    for row in (spec.a, spec.b):
        significant += row.precision if row.kind != "codebook" else 24
        ranges = ranges and (row.kind != "float" or (row.minimum_exponent > -300 and top_exponent(row) < 300))
    if significant > 53 or not ranges:
        raise ValueError(
            f"products of {spec.a.name} x {spec.b.name} are not exact in float64, in which this accumulator runs; "
            "allowed: at most 53 significant bits together, or an f64 accumulator to nearest even"
        )
    with np.errstate(invalid="ignore"):  # a signalling NaN is as good as a quiet one
        return x.astype(np.float64, copy=False), y.astype(np.float64, copy=False)


def start_values(c: Array, row: Format) -> Array:
    """Container codes of `row` as float64 values."""
    held = container(row)
    with np.errstate(invalid="ignore"):
        return decode(c.view(held.code_dtype), held).astype(np.float64)


def finish(total: Array, row: Format, c: Array) -> None:
    """float64 values on the grid of `row` -> their container codes, in c."""
    held = container(row)
    codes = encode(total, held, conversion="ocp-nonsat")
    codes[np.isnan(total)] = engine_nan(held)
    c[...] = codes.view(c.dtype)


def flush(x: Array, smallest: float) -> None:
    """Everything below `smallest` becomes a zero of its sign, in place."""
    x[np.abs(x) < smallest] *= 0
