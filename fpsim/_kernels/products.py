"""Loops of the CPU matrix products. Each fills rows start .. stop of a flat batch of outputs."""

import numpy as np

from fpsim._jit import kernel
from fpsim._kernels.accumulate import fused_chain
from fpsim._kernels.intrinsics import fma


@kernel
def fused(sa, ea, sb, eb, c, plan, marked, out, begin, end, start, stop):  # type: ignore[no-untyped-def]
    """out[i, j] = T-FDPA steps over k in begin .. end from c[i, j], where marked; b is transposed, (N, K)."""
    for i in range(start, stop):
        for j in range(sb.shape[0]):
            if marked[i, j]:
                out[i, j] = fused_chain(sa, ea, i, sb, eb, j, begin, end, np.int64(c[i, j]), plan)


@kernel
def sequential_fma(a, b, out, start, stop):  # type: ignore[no-untyped-def]
    """out[i, :] += a[i, k] * b[k, :], one fused multiply-add per k, ascending; out arrives holding c."""
    for i in range(start, stop):
        for k in range(a.shape[1]):
            x = a[i, k]
            for j in range(b.shape[1]):
                out[i, j] = fma(x, b[k, j], out[i, j])


@kernel
def integer_wrap(a, b, out, start, stop):  # type: ignore[no-untyped-def]
    """out[i, :] += a[i, k] * b[k, :] modulo 2**32, int32."""
    for i in range(start, stop):
        for k in range(a.shape[1]):
            x = np.int32(a[i, k])
            for j in range(b.shape[1]):
                out[i, j] = np.int32(out[i, j] + np.int32(x * np.int32(b[k, j])))


@kernel
def integer_saturate(a, b, low, high, out, start, stop):  # type: ignore[no-untyped-def]
    """The same, clamped to low .. high after every addition. Sums must fit int32 before the clamp."""
    least, most = np.int32(low), np.int32(high)
    for i in range(start, stop):
        for k in range(a.shape[1]):
            x = np.int32(a[i, k])
            for j in range(b.shape[1]):
                total = np.int32(out[i, j] + np.int32(x * np.int32(b[k, j])))
                total = least if total < least else total
                out[i, j] = most if total > most else total


@kernel
def integer_wide(a, b, low, high, saturate, out, failed, start, stop):  # type: ignore[no-untyped-def]
    """int64 sums: clamp to low .. high, or note per row the first output and k that leave the range in `failed`."""
    for i in range(start, stop):
        for j in range(b.shape[1]):
            total = np.int64(out[i, j])
            for k in range(a.shape[1]):
                total += np.int64(a[i, k]) * np.int64(b[k, j])
                if total < low or total > high:
                    if not saturate:
                        if failed[i, 0] < 0:
                            failed[i, 0], failed[i, 1], failed[i, 2] = j, k, total
                        break
                    total = min(max(total, low), high)
            out[i, j] = min(max(total, low), high)
