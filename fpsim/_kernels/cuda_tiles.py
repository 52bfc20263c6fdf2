"""The fused dot product on a GPU: register tiles, same bits as `accumulate.fused_step`.

The arithmetic is that of `vector` (its essay says why it is exact): products in float32, times 2**(F - e), truncated to
int32 by one conversion, summed as integers. A block of 16 x 16 threads owns 64 x 64 outputs, a thread 4 x 4 of them;
one step of K lies in shared memory as float32 values and int32 exponents. Per product that is one add-and-maximum, two
multiplications, one conversion, one addition, and a quarter of a 16-byte load.

Operands arrive transposed and padded, (batch, K, rows), K to whole steps and rows to whole tiles; zeros have the
exponent ABSENT. What does not fit (rows and columns with Inf, NaN or extreme exponents; sums that become tiny) is
noted in `redo` and left to the scalar kernel.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import cuda

from fpsim._kernels.accumulate import Fused, align, round_sum, special_code, unpack_code
from fpsim._kernels.cuda_words import float_word, integer_float, long_float, word_float

TILE = 64  #: outputs of a block along either side
THREADS = (16, 16)
ABSENT = -10000  #: exponent of a zero; the sum of two of them, and of one and a real exponent, is below LOWEST
LOWEST = -5000
_EACH = 4  #: outputs of a thread along either side
_COUNT = 256  #: threads of a block
_GROUP = 8  #: products whose truncated sum is known to fit an int32


class Tile(NamedTuple):
    """A fused dot product for these kernels."""

    fused: Fused
    low: int  #: smallest step exponent whose scales are normal float32
    keep: int  #: mask of the bits of a float32 result that its format keeps


# What a running sum is, in two ways: a float32 (results toward zero), or the code of any format and rounding. Each has
# the exponent it counts with, its share of a step's sum, the rounding of that sum, and what is stored at the end.


@cuda.jit(device=True)
def float_exponent(v, plan):
    field = np.int32(((float_word(v) >> 23) & 255) - 127)
    return max(field, np.int32(-126)) if v != np.float32(0) else np.int32(ABSENT)


@cuda.jit(device=True)
def float_share(v, e, scale, plan):
    return np.int32(np.float32(v * scale)) if abs(v) < np.float32(np.inf) else np.int32(0)


@cuda.jit(device=True)
def narrow_result(v, total, scale, plan):
    return _masked(v, integer_float(total), scale, plan)


@cuda.jit(device=True)
def wide_result(v, total, scale, plan):
    return _masked(v, long_float(total), scale, plan)


@cuda.jit(device=True)
def _masked(v, total, scale, plan):
    inverse = word_float(np.int32(np.int32(254 << 23) - float_word(scale)))
    result = word_float(np.int32(float_word(np.float32(total * inverse)) & np.int32(plan.keep)))
    return result if abs(v) < np.float32(np.inf) else v


@cuda.jit(device=True)
def float_stored(v, plan):
    return v if v == v else word_float(np.int32(plan.fused.sum.nan))


@cuda.jit(device=True)
def code_exponent(v, plan):
    significand, exponent, _ = unpack_code(v, plan.fused.sum)
    return np.int32(exponent if significand != 0 else ABSENT)


@cuda.jit(device=True)
def code_share(v, e, scale, plan):
    significand, exponent, kind = unpack_code(v, plan.fused.sum)
    shift = plan.fused.fraction_bits - e + exponent - plan.fused.sum.container_mantissa_bits
    return align(significand, shift) if kind == 0 else np.int64(0)


@cuda.jit(device=True)
def code_result(v, total, scale, plan):
    significand, _, kind = unpack_code(v, plan.fused.sum)
    if kind != 0:
        return np.int64(special_code(kind == 2, significand > 0, significand < 0, plan.fused.sum))
    return np.int64(round_sum(total, np.int64(127 - (float_word(scale) >> 23)), plan.fused.sum))


@cuda.jit(device=True)
def code_stored(v, plan):
    return v


@cache
def tile_kernel(terms: int, wide: bool, coded: bool, promoted: bool) -> Any:
    """The kernel for steps of `terms` products.

    wide: sums beyond 2**24, in int64. coded: running sums are codes of any format, else float32 toward zero.
    promoted: every `every` products the chain is added to an outer float32 sum and starts anew.
    Arguments of the kernel: x, ex (T, K, M), y, ey (1 or T, K, N): operands; bad_x (T, M), bad_y (1 or T, N): rows and
    columns to be redone. start, out: (T, M, N), float32 or codes. redo: int8 like out; any_redo: int8 (1,). begin, end:
    range of K, and `every`, all uint32.
    """
    operand = terms * TILE
    group = min(terms, _GROUP)
    total_type = np.int64 if wide or coded else np.int32
    held_type = np.int64 if coded else np.float32
    exponent_of, share = (code_exponent, code_share) if coded else (float_exponent, float_share)
    result = code_result if coded else wide_result if wide else narrow_result
    stored = code_stored if coded else float_stored

    @cuda.jit
    def run(x, ex, bad_x, y, ey, bad_y, start, out, redo, any_redo, plan, begin, end, every):
        xs = cuda.shared.array(operand, np.float32)  # a line each: numba's simulator tells them apart by line
        ys = cuda.shared.array(operand, np.float32)
        exs = cuda.shared.array(operand, np.int32)
        eys = cuda.shared.array(operand, np.int32)
        largest = cuda.local.array((_EACH, _EACH), np.int32)
        scale = cuda.local.array((_EACH, _EACH), np.float32)
        part = cuda.local.array((_EACH, _EACH), np.int32)
        total = cuda.local.array((_EACH, _EACH), total_type)
        value = cuda.local.array((_EACH, _EACH), held_type)
        outer = cuda.local.array((_EACH, _EACH), held_type)
        tiny = cuda.local.array((_EACH, _EACH), np.int8)
        thread = np.uint32(cuda.threadIdx.y * 16 + cuda.threadIdx.x)
        i0, j0 = np.uint32(cuda.threadIdx.y * _EACH), np.uint32(cuda.threadIdx.x * _EACH)
        m0, n0 = np.uint32(cuda.blockIdx.y * TILE), np.uint32(cuda.blockIdx.x * TILE)
        t = cuda.blockIdx.z
        ty = min(t, y.shape[0] - 1)
        rows, columns = np.uint32(out.shape[1]), np.uint32(out.shape[2])
        up = np.int32(127 + plan.fused.fraction_bits)
        low, floor = np.int32(plan.low), np.int32(plan.fused.zero_exponent)
        for i in range(_EACH):
            for j in range(_EACH):
                row, column = m0 + i0 + np.uint32(i), n0 + j0 + np.uint32(j)
                tiny[i, j] = 0
                outer[i, j] = 0
                if row < rows and column < columns:
                    outer[i, j] = held_type(start[t, row, column])
                value[i, j] = held_type(0) if promoted else outer[i, j]
        for k in range(begin, end, np.uint32(terms)):
            cuda.syncthreads()
            for q in range(thread, np.uint32(operand), np.uint32(_COUNT)):
                source, side = k + q // np.uint32(TILE), q % np.uint32(TILE)
                xs[q], exs[q] = x[t, source, m0 + side], ex[t, source, m0 + side]
                ys[q], eys[q] = y[ty, source, n0 + side], ey[ty, source, n0 + side]
            cuda.syncthreads()
            for i in range(_EACH):
                for j in range(_EACH):
                    largest[i, j] = 2 * ABSENT
            for at in range(np.uint32(0), np.uint32(terms), np.uint32(2)):
                for u in range(2):
                    left, right = (at + np.uint32(u)) * np.uint32(TILE) + i0, (at + np.uint32(u)) * np.uint32(TILE) + j0
                    for i in range(_EACH):
                        for j in range(_EACH):
                            e = np.int32(exs[left + np.uint32(i)] + eys[right + np.uint32(j)])
                            largest[i, j] = max(largest[i, j], e)
            for i in range(_EACH):
                for j in range(_EACH):
                    v = value[i, j]
                    e = largest[i, j] if largest[i, j] > np.int32(LOWEST) else np.int32(-1000)
                    of_v = exponent_of(v, plan)
                    e = max(max(e, of_v), floor)
                    if e < low and of_v > np.int32(ABSENT):
                        tiny[i, j] = 1
                    e = max(e, low)
                    scale[i, j] = word_float(np.int32(np.int32(up - e) << 23))
                    total[i, j] = share(v, e, scale[i, j], plan)
            for at in range(np.uint32(0), np.uint32(terms), np.uint32(group)):
                for i in range(_EACH):
                    for j in range(_EACH):
                        part[i, j] = 0
                for u in range(group):
                    left, right = (at + np.uint32(u)) * np.uint32(TILE) + i0, (at + np.uint32(u)) * np.uint32(TILE) + j0
                    for i in range(_EACH):
                        for j in range(_EACH):
                            product = np.float32(xs[left + np.uint32(i)] * ys[right + np.uint32(j)])
                            part[i, j] = np.int32(part[i, j] + np.int32(np.float32(product * scale[i, j])))
                for i in range(_EACH):
                    for j in range(_EACH):
                        total[i, j] = total_type(total[i, j] + part[i, j])
            after = np.uint32(k + np.uint32(terms))
            for i in range(_EACH):
                for j in range(_EACH):
                    value[i, j] = result(value[i, j], total[i, j], scale[i, j], plan)
                    if promoted and (after >= end or np.uint32(after - begin) % every == 0):
                        outer[i, j] = outer[i, j] + value[i, j]
                        value[i, j] = 0
        for i in range(_EACH):
            for j in range(_EACH):
                row, column = m0 + i0 + np.uint32(i), n0 + j0 + np.uint32(j)
                if row < rows and column < columns:
                    out[t, row, column] = stored(outer[i, j] if promoted else value[i, j], plan)
                    if tiny[i, j] != 0 or bad_x[t, row] != 0 or bad_y[ty, column] != 0:
                        redo[t, row, column] = 1
                        any_redo[0] = 1

    return run
