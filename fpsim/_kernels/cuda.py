"""Matrix products on a CUDA device, one thread per output, calling the same scalar functions as the CPU."""

import numpy as np
from numba import cuda

from fpsim._kernels.accumulate import fused_chain


@cuda.jit
def fused(sa, ea, sb, eb, c, plan, out, begin, end):
    """out[i, j] = T-FDPA steps over k in begin .. end from c[i, j]; b is transposed, (N, K)."""
    i, j = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        out[i, j] = fused_chain(sa, ea, i, sb, eb, j, begin, end, np.int64(c[i, j]), plan)


@cuda.jit
def add(total, words, part, nan):
    """total += part, IEEE float32; `words` are the bits of total, `nan` the engine's NaN."""
    i, j = cuda.grid(2)
    if i < total.shape[0] and j < total.shape[1]:
        value = total[i, j] + part[i, j]
        if value != value:
            words[i, j] = nan
        else:
            total[i, j] = value


@cuda.jit
def integer(a, b, low, high, saturate, out):
    """out[i, j] += a[i, :] * b[:, j], clamped to low .. high after every product, or wrapped into it at the end."""
    i, j = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        total = np.int64(out[i, j])
        for k in range(a.shape[1]):
            total += np.int64(a[i, k]) * np.int64(b[k, j])
            if saturate:
                total = min(max(total, low), high)
        out[i, j] = ((total - low) & (high - low)) + low
