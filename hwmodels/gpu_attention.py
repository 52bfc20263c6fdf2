"""Seconds of fused attention: two products of padded heads beside the exponentials, which overlap on Hopper and later.

A block of 128 queries of one head runs over all keys: 4 * 128 * keys * head_dim operations on the tensor cores, one
exponential per score on the special-function units, `BLOCK_STEPS` dependent accesses to start and to leave; the first
waits as a product's does (`gpu.start`).  Blocks run in waves as in `gpu.py`.  What is padded depends on whose kernel it
is (`Attention.library`):

best   heads to the next of 32, 64, 96, 128, ...; keys to 64 (FlashAttention-3 and what inference libraries ship)
torch  on Hopper, the kernel scaled_dot_product_attention picks: heads to 64, 128, 256; keys to 128; a mask is added
       score by score; heads above 256 take a kernel that keeps its sums in memory
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .gpu import Machine, start, together
from .parameters import Parameters
from .passes import PACE
from .roofline import Floats, Times

HEAD_DIMS = np.array((32, 64, 96, 128, 160, 192, 224, 256), dtype=np.float64)
TORCH_HEAD_DIMS = np.array((64, 128, 192, 256), dtype=np.float64)
#: per SM and clock: the special-function units of every NVIDIA SM since Volta (CUDA C++ programming guide)
EXPONENTIALS = 16
QUERIES = 128
BLOCK_STEPS = 3
LAUNCHES = 2  #: torch clears a buffer before its kernel
LARGE_HEAD = 0.22  #: pace of the kernel for heads above 256, relative to the others


def _padded(head_dim: Floats, table: Floats) -> Floats:
    index = np.searchsorted(table, head_dim)
    found: Floats = np.where(index < len(table), table[np.minimum(index, len(table) - 1)], np.ceil(head_dim / 32) * 32)
    return found


def attention(
    batch: Any,
    heads: Any,
    queries: Any,
    keys: Any,
    head_dim: Any,
    rate: Any,
    size: Any,
    mach: Machine,
    p: Parameters,
    torch: Any = False,
    mask: Any = False,
) -> Times:
    """Seconds of attention kernels, one array element each; size: bytes moved once.

    torch: whether it is torch's own kernel; mask: whether a mask is added to the scores; rate: operations per SM and
    clock of the products.
    """
    given = (batch, heads, queries, keys, head_dim, rate, size, torch, mask)
    arrays = np.broadcast_arrays(*[np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in given])
    batch, heads, queries, keys, head_dim, rate, size, torch, mask = arrays
    own = (torch > 0) & (mach.engine != "mma")
    padded = np.where(own, _padded(head_dim, TORCH_HEAD_DIMS), _padded(head_dim, HEAD_DIMS))
    step = np.where(own, 128.0, 64.0)
    scores = QUERIES * np.ceil(keys / step) * step
    blocks = batch * heads * np.ceil(queries / QUERIES)
    whole, part = np.divmod(blocks / mach.units, 1.0)
    waves = np.maximum(whole + np.where(part > 0, p.tail + (1 - p.tail) * part, 0.0), 1.0)
    slow = np.where(own & (head_dim > TORCH_HEAD_DIMS[-1]), LARGE_HEAD, 1.0)
    matrix = 4 * padded * scores / (rate * p.attention_efficiency * slow)
    softmax = scores / EXPONENTIALS
    q = 1.0 if mach.engine == "mma" else p.attention_overlap
    aligned = keys % 4 == 0
    masked = np.where(mask > 0, scores / np.where(aligned, 2 * p.math_rate, p.scalar_rate * PACE["strided"]), 0.0)
    block = (matrix**q + softmax**q) ** (1 / q) + masked + BLOCK_STEPS * p.latency
    compute = waves * block / mach.clock
    memory = size / (mach.bandwidth * p.hbm)
    launch = p.fixed * np.where(own, LAUNCHES, 1) + start(mach, p, 2 * padded * (QUERIES + 2 * keys))
    return Times(
        total=launch + together(compute, memory),
        compute=compute,
        memory=memory,
        launch=launch,
        l2=np.zeros_like(memory),
    )
