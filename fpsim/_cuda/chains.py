"""Sequential, pairwise and integer accumulators on the device, one thread per output."""

from typing import Any

import numpy as np
from numba import cuda

from fpsim._cpu.chains import native
from fpsim._cpu.integers import check_integers, integer_plan
from fpsim._cuda.arrays import Codes, launch
from fpsim._cuda.operands import values
from fpsim._kernels import cuda_arrays, cuda_products
from fpsim.accumulators import IntegerAccumulator, PairwiseTree, SequentialFma
from fpsim.formats import scalar_format
from fpsim.reference import engine_nan
from fpsim.spec import MatmulSpec

Scales = tuple[Codes, Codes]


def sequential(a: Codes, b: Codes, c: Any, spec: MatmulSpec, kind: SequentialFma, scales: Scales | None) -> None:
    del scales
    depth = a.shape[2]
    order = np.arange(depth)
    if kind.order == "odd-even":
        order ^= 1
        order[order == depth] -= 1
    x, y = values(a, spec.a, order), values(b.transposed(), spec.b, order)
    if not native(x, y, kind) or not kind.fused:
        raise ValueError(f"backend='cuda' does not run {kind}; use backend='cpu'")
    row = scalar_format(kind.output)
    dtype = np.dtype(row.value_dtype)
    total = c.view(dtype)
    smallest = dtype.type(row.smallest_normal if kind.flush else 0)
    if kind.flush:
        for array, limit in ((x, spec.a.smallest_normal), (y, spec.b.smallest_normal), (total, row.smallest_normal)):
            launch(cuda_arrays.flush, array.size, array, array.dtype.type(limit), False)
    launch(cuda_products.sequential, c.size, x, y, smallest, total)
    launch(cuda_arrays.canonical, c.size, total, c, c.dtype.type(engine_nan(row)))


def pairwise(a: Codes, b: Codes, c: Any, spec: MatmulSpec, kind: PairwiseTree, scales: Scales | None) -> None:
    del scales
    depth = a.shape[2]
    order = np.arange(-(-depth // kind.terms) * kind.terms)
    order[order >= depth] = -1
    x, y = values(a, spec.a, order), values(b.transposed(), spec.b, order)
    if not native(x, y, kind) or kind.output != "f32":
        raise ValueError(f"backend='cuda' does not run {kind}; use backend='cpu'")
    row, total = scalar_format(kind.output), c.view(np.float32)
    smallest = np.float32(row.smallest_normal if kind.flush else 0)
    if kind.flush:
        for array, limit in ((x, spec.a.smallest_normal), (y, spec.b.smallest_normal), (total, row.smallest_normal)):
            launch(cuda_arrays.flush, array.size, array, np.float32(limit), True)
    launch(cuda_products.pairwise_kernel(kind.terms), c.size, x, y, smallest, total)
    launch(cuda_arrays.canonical, c.size, total, c, c.dtype.type(engine_nan(row)))


def integer(a: Codes, b: Codes, c: Any, spec: MatmulSpec, kind: IntegerAccumulator, scales: Scales | None) -> None:
    """Raises OverflowError where overflow="error" and a sum leaves the range."""
    del scales
    check_integers(spec.a, spec.b, kind)
    if kind.order != "ascending":
        raise ValueError(f"backend='cuda' does not run {kind}; use backend='cpu'")
    failed = cuda.to_device(np.zeros(1, np.int32))
    x, y = values(a, spec.a), values(b.transposed(), spec.b)
    launch(cuda_products.integer, c.size, x, y, integer_plan(kind), c, failed)
    if failed.copy_to_host()[0]:
        raise OverflowError(
            f"a sum leaves the {kind.bits}-bit accumulator ({kind.low} to {kind.high}); backend='cpu' says which"
        )
