"""Chains and trees on the CPU: one rounding (or one clamp) per product or addition."""

import numpy as np

from fpsim import certificates
from fpsim._cpu.rows import Scales, rows
from fpsim._kernels import products
from fpsim.accumulators import IntegerAccumulator, PairwiseTree, SequentialFma
from fpsim.codec import Array, decode
from fpsim.reference import ENGINE_NAN
from fpsim.spec import MatmulSpec


def sequential(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: SequentialFma, scales: Scales | None) -> None:
    del scales
    if kind.output not in ("f32", "f64") or kind.rounding != "rne" or (kind.flush and kind.output != "f32"):
        raise ValueError(f"SequentialFma runs in f32 or f64 with rounding 'rne', flushing in f32 only; got {kind}")
    dtype = np.dtype(np.float32 if kind.output == "f32" else np.float64)
    x, y = decode(a, spec.a), decode(b, spec.b)
    if dtype.itemsize < max(x.dtype.itemsize, y.dtype.itemsize):
        raise ValueError(
            f"operands {spec.a.name} x {spec.b.name} do not fit a {kind.output} multiplier; use output='f64'"
        )
    x, y, total = x.astype(dtype), y.astype(dtype), c.view(dtype)
    if kind.order == "odd-even":
        pad = x.shape[1] % 2
        x, y = np.pad(x, ((0, 0), (0, pad))), np.pad(y, ((0, pad), (0, 0)))
        k = np.arange(x.shape[1]) ^ 1
        x, y = np.ascontiguousarray(x[:, k]), np.ascontiguousarray(y[k])
    if kind.flush:
        smallest = np.float32(2.0**-126)
        for array in (x, y, total):
            array[np.abs(array) < smallest] *= np.float32(0)
        rows(lambda i, j: products.sequential_fma_flush(x, y, smallest, total, i, j), c, a.shape[1])
    else:
        rows(lambda i, j: products.sequential_fma(x, y, total, i, j), c, a.shape[1])
    c[np.isnan(total)] = np.array(ENGINE_NAN[kind.output], np.uint64).astype(c.dtype)


def pairwise(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: PairwiseTree, scales: Scales | None) -> None:
    del scales
    x, y, total = decode(a, spec.a), decode(b, spec.b), c.view(np.float32)
    if kind.output != "f32" or x.dtype != np.float32 or y.dtype != np.float32:
        raise ValueError(f"PairwiseTree adds in f32, got {spec.a.name} x {spec.b.name} into {kind.output}")
    pad = -x.shape[1] % kind.terms
    x, y = np.pad(x, ((0, 0), (0, pad))), np.pad(y, ((0, pad), (0, 0)))
    if kind.flush:
        x[np.abs(x) < np.float32(spec.a.smallest_normal)] = 0
        y[np.abs(y) < np.float32(spec.b.smallest_normal)] = 0
        total[np.abs(total) < np.float32(2.0**-126)] = 0
    smallest = np.float32(2.0**-126 if kind.flush else 0)
    rows(lambda i, j: products.pairwise_tree(x, y, kind.terms, smallest, total, i, j), c, a.shape[1])
    c[np.isnan(total)] = ENGINE_NAN["f32"]


def integer(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: IntegerAccumulator, scales: Scales | None) -> None:
    del scales
    if spec.a.kind != "int" or spec.b.kind != "int" or spec.a.bias or spec.b.bias:
        raise ValueError(f"an IntegerAccumulator takes integer operands, got {spec.a.name} x {spec.b.name}")
    low, high = -(1 << (kind.bits - 1)), (1 << (kind.bits - 1)) - 1
    if kind.overflow == "wrap" and kind.step_bits is None:
        rows(lambda i, j: products.integer_wrap(a, b, c, i, j), c, a.shape[1])
        if kind.bits < 32:
            c[...] = ((c.astype(np.int64) - low) & ((1 << kind.bits) - 1)) + low
        return
    if c.min() < low or c.max() > high:
        raise ValueError(f"c leaves the range of the {kind.bits}-bit accumulator ({low} to {high})")
    if kind.step_bits is None and certificates.holds(a, b, c, kind):  # no sum leaves the range: order does not matter
        rows(lambda i, j: products.integer_wrap(a, b, c, i, j), c, a.shape[1])
        return
    largest = max(abs(spec.a.min), spec.a.max) * max(abs(spec.b.min), spec.b.max)
    if kind.overflow == "saturate" and kind.step == 1 and kind.step_bits is None and largest + high < 2**31:
        rows(lambda i, j: products.integer_saturate(a, b, low, high, c, i, j), c, a.shape[1])
        return
    step_bits = kind.step_bits or 63
    plan = products.Integer(
        low=low,
        high=high,
        overflow=("wrap", "saturate", "error").index(kind.overflow),
        step=kind.step,
        step_low=-(1 << (step_bits - 1)),
        step_high=(1 << (step_bits - 1)) - 1,
    )
    failed = np.full((c.shape[0], 3), -1, np.int64)
    rows(lambda i, j: products.integer_wide(a, b, plan, c, failed, i, j), c, a.shape[1])
    if (failed[:, 0] >= 0).any():
        i = int(np.argmax(failed[:, 0] >= 0))
        j, k, total = (int(v) for v in failed[i])
        raise OverflowError(
            f"output [{i}, {j}] reaches {total} at k = {k}, outside the {kind.bits}-bit accumulator ({low} to {high})"
        )
