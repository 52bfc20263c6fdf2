"""How long a kernel takes on a GPU: tiles, waves, split-K, caches, and the clock the power limit leaves.

A closed form, vectorised over kernels and over the tile shapes a library would choose from.  For a product (m, n, k):

1. The output is cut into tiles of (tm, tn); k may be cut into s parts.  ceil(m/tm) * ceil(n/tn) * s tiles run on the
   SMs in waves.  The last, partly filled wave is not worth a full one: it costs `tail` plus its share.
2. One SM needs, per tile, the larger of its multiply-accumulates at `efficiency` of the tensor cores' rate and of the
   operand loads at `load_bytes` per clock; plus `prologue` cycles to fill and drain, plus the write of the tile.
3. All SMs together read operands through L2 (`l2_bytes` per clock and SM; clusters share loads on Hopper and later) ...
4. ... and what L2 does not hold comes from memory at `hbm` of its bandwidth: weights always (they are cold), operands
   again for every group of tiles that runs at once once they outgrow `l2_share` of the cache.
5. The three overlap, imperfectly: time = (compute^4 + l2^4 + memory^4)^(1/4) + `fixed`; split-K adds its reduction.
6. The tile and split with the least time is taken, as an autotuned library would.

The sustained clock lies between base and boost, boost * (base/boost)^`throttle`: both are published facts of a device,
the exponent is one number for all.  Other kernels: pointwise work moves its bytes; attention is two products of padded
heads beside the exponentials of the special-function units, which overlap them on Hopper and later.

What is left out: library heuristics that choose badly (the largest errors on measured data are shapes one row above a
multiple of a tile), temperature, other work on the device.  `calibrate.py` fits the numbers and states the errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np

from .device import ComputeRate, Device
from .parameters import Parameters as Parameters
from .parameters import load as load
from .roofline import Floats, Times

#: tiles libraries ship, (rows, columns), and the ways they cut k
TILES = (
    *((256, 128), (128, 256), (256, 256), (192, 128), (128, 192), (128, 128)),
    *((256, 64), (64, 256), (128, 64), (64, 128), (64, 64)),
)
SPLITS = (1, 2, 4, 8)
_TM, _TN, _SPLIT = (
    np.array(c, dtype=np.float64) for c in zip(*((m, n, s) for m, n in TILES for s in SPLITS), strict=True)
)

#: head dimensions attention kernels are compiled for; others are padded to the next
HEAD_DIMS = (32, 64, 96, 128, 160, 192, 224, 256)
K_STEP = 64
CHUNK = 1024  # kernels at a time: their candidates stay in the host's cache
#: bytes per SM and clock that ordinary loads and stores stream through L2: about 3.2 TB/s on an A100
L2_STREAM = 22
#: per SM and clock: the special-function units of every NVIDIA SM since Volta (CUDA C++ programming guide)
EXPONENTIALS = 16

#: how a generation feeds its tensor cores: registers, shared memory (asynchronously), tensor memory
ENGINES: Mapping[str, str] = MappingProxyType({"hopper": "wgmma", "blackwell": "tcgen05"})
DEFAULT_ENGINE = "mma"
#: base / boost assumed where no base clock is published: the SXM modules that publish one lie at 0.87 to 0.90
DEFAULT_RATIO = 0.9
DEFAULT_CLOCK = 1.8e9  # assumed where no clock is published at all; it only scales the cycles of prologues and L2


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the model needs of a device, in SI units and per SM."""

    name: str
    units: float
    clock: float
    boost: float
    engine: str
    bandwidth: float
    l2: float
    vector: float


class NotModelled(ValueError):  # noqa: N818
    """The GPU model does not cover this device: too little about it is published."""


def machine(device: Device, parameters: Parameters) -> Machine:
    """The machine of a GPU.  Raises NotModelled for another kind of device, or one without units or L2 size."""
    l2 = device.caches.get("l2")
    if device.kind != "gpu" or device.vendor != "nvidia" or device.units is None or l2 is None or l2.capacity is None:
        raise NotModelled(f"{device.name}: the GPU model needs an NVIDIA GPU with its number of SMs and its L2 size")
    clocks = {name: float(value) for name, value in device.clocks.items()}
    boost = clocks.get("tensor") or clocks.get("boost") or max(clocks.values(), default=DEFAULT_CLOCK)
    ratio = clocks["base"] / boost if "base" in clocks else DEFAULT_RATIO
    vector = device.rates.get(("f32", "f32", "f32"))
    return Machine(
        name=device.name,
        units=float(device.units),
        clock=boost * ratio**parameters.throttle,
        boost=boost,
        engine=ENGINES.get(device.architecture, DEFAULT_ENGINE),
        bandwidth=device.bandwidth,
        l2=l2.capacity.value,
        vector=vector.peak.value if vector else 0.0,
    )


def per_clock(rate: ComputeRate, mach: Machine) -> float:
    """Matrix operations per SM and clock of a rate."""
    return rate.peak.value / mach.units / mach.boost


def _column(values: Any, size: int) -> Floats:
    return np.broadcast_to(np.asarray(values, dtype=np.float64), (size,))[:, None]


def _together(*terms: Floats) -> Floats:
    """The 4-norm: work that overlaps almost entirely (4 was what a free exponent settled near, and is cheap)."""
    fourth: Floats = sum((np.square(np.square(term)) for term in terms), start=np.zeros(1))
    return np.sqrt(np.sqrt(fourth))


def gemm(
    m: Any,
    n: Any,
    k: Any,
    rate: Any,
    mach: Machine,
    parameters: Parameters,
    batch: Any = 1,
    read: Any = 2.0,
    weight: Any = 2.0,
    write: Any = 2.0,
    source: Any = None,
    shared: Any = 1.0,
    warm: bool = True,
) -> Times:
    """Seconds of products, one array element each.

    rate: operations per SM and clock; read, weight, write: bytes per element of a, b and the result; source: elements
    of a in memory where they are fewer than m * k (a convolution's input); shared: 1 where b is a weight (cold),
    0 where it is another activation; warm: activations may still be in L2.
    """
    given = (m, n, k, batch, rate, read, weight, write, shared)
    size = int(np.broadcast(*(np.asarray(x) for x in given)).size)
    columns = [_column(x, size) for x in given]
    once = columns[0] * columns[2] * columns[3] if source is None else _column(source, size)
    columns.append(once)
    chunks = [[c[i : i + CHUNK] for c in columns] for i in range(0, size, CHUNK)]
    found = [_gemm(chunk, warm, mach, parameters) for chunk in chunks]
    return (
        found[0]
        if len(found) == 1
        else Times(
            **{item.name: np.concatenate([getattr(part, item.name) for part in found]) for item in fields(Times)}
        )
    )


def _gemm(given: Sequence[Floats], warm: bool, mach: Machine, p: Parameters) -> Times:
    """`gemm` on columns of shape (kernels, 1), candidates along the second axis."""
    m, n, k, batch, rate, read, weight, write, shared, once = given
    f = mach.clock
    efficiency = getattr(p, f"efficiency_{mach.engine}")
    rows, columns = np.ceil(m / _TM), np.ceil(n / _TN)
    tiles = rows * columns * _SPLIT * batch
    whole, part = np.divmod(tiles / mach.units, 1.0)
    waves = np.maximum(whole + np.where(part > 0, p.tail + (1 - p.tail) * part, 0.0), 1.0)
    depth = np.ceil(k / _SPLIT / K_STEP) * K_STEP
    # on tcgen05 two SMs share one operand, and tensor memory holds the result of one tile while the next is computed
    paired = 2.0 if mach.engine == "tcgen05" else 1.0
    tile = np.maximum(
        2 * _TM * _TN * depth / (rate * efficiency), (_TM * read + _TN * weight / paired) * depth / p.load_bytes
    )
    store = _TM * _TN * write / p.store_bytes
    exposed = store if paired == 1.0 else store / waves
    tile = tile + getattr(p, f"prologue_{mach.engine}") + exposed
    compute = waves * tile / f

    fan = 1.0 if mach.engine == "mma" else p.multicast
    loads = np.minimum(
        _TM * read / np.minimum(columns, fan) + _TN * weight, _TM * read + _TN * weight / np.minimum(rows, fan)
    )
    l2_rate = mach.units * p.l2_bytes * f
    l2 = (tiles * loads * depth + batch * m * n * write) / l2_rate

    memory = _memory(m, n, k, batch, read, weight, write, shared, rows, columns, once, warm, mach, p)
    reduce = np.where(_SPLIT > 1, p.split_traffic * _SPLIT * batch * m * n * 8 / l2_rate + p.split_fixed, 0.0)
    total = p.fixed + _together(compute, l2, memory) + reduce
    best = total.argmin(axis=1)[:, None]

    def take(term: Floats) -> Floats:
        return np.take_along_axis(np.broadcast_to(term, total.shape), best, axis=1)[:, 0]

    return Times(
        total=take(total),
        compute=take(compute),
        memory=take(memory),
        launch=np.full(len(m), p.fixed),
        l2=take(l2),
    )


def _memory(
    m: Floats,
    n: Floats,
    k: Floats,
    batch: Floats,
    read: Floats,
    weight: Floats,
    write: Floats,
    shared: Floats,
    rows: Floats,
    columns: Floats,
    once: Floats,
    warm: bool,
    mach: Machine,
    p: Parameters,
) -> Floats:
    """Seconds of main memory traffic: operands once, again per group of concurrent tiles when they outgrow L2."""
    a, once = batch * m * k * read, once * read
    b, c = batch * n * k * weight, batch * m * n * write
    room = p.l2_share * mach.l2
    down = np.minimum(np.sqrt(mach.units * _TN / _TM), rows)
    across = np.minimum(mach.units / down, columns)
    groups = np.ceil(rows / down) * np.ceil(columns / across)
    grouped = batch * groups * (down * _TM * read + across * _TN * weight) * k * (once / a)
    operands = once + b
    missing = np.clip(1 - room / operands, 0.0, 1.0)
    traffic = operands + np.maximum(grouped - operands, 0.0) * missing
    if warm:
        activations = once + (1 - shared) * b
        traffic = traffic - activations * np.clip(room / (activations + c), 0.0, 1.0)
        written = c * np.clip(1 - room / c, 0.0, 1.0)
    else:
        written = c
    return (traffic + written) / (mach.bandwidth * p.hbm)


def pointwise(read: Any, written: Any, flops: Any, maximum: Any, mach: Machine, p: Parameters, warm: bool) -> Times:
    """Seconds of kernels that move `read` and `written` bytes; maximum: 1 for a max-abs over a whole tensor."""
    read, written, flops, maximum = (
        np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (read, written, flops, maximum)
    )
    size = read + written
    room = p.l2_share * mach.l2
    held = np.clip(room / np.maximum(size, 1.0) - 1.0, 0.0, 1.0) if warm else np.zeros_like(size)
    share = np.where(maximum > 0, p.amax_hbm, p.pointwise_hbm)
    l2 = size / (mach.units * L2_STREAM * mach.clock)
    memory = size * (1 - held) / (mach.bandwidth * share)
    compute = flops / mach.vector if mach.vector else np.zeros_like(size)
    launch = np.where(maximum > 0, p.amax_fixed, p.pointwise_fixed)
    return Times(
        total=launch + np.maximum(np.maximum(l2, memory), compute), compute=compute, memory=memory, launch=launch, l2=l2
    )


def attention(
    batch: Any, heads: Any, queries: Any, keys: Any, head_dim: Any, rate: Any, size: Any, mach: Machine, p: Parameters
) -> Times:
    """Seconds of fused attention: `size` bytes moved once, heads padded to the dimension a kernel exists for."""
    arrays = [
        np.atleast_1d(np.asarray(x, dtype=np.float64)) for x in (batch, heads, queries, keys, head_dim, rate, size)
    ]
    batch, heads, queries, keys, head_dim, rate, size = np.broadcast_arrays(*arrays)
    table = np.array(HEAD_DIMS, dtype=np.float64)
    index = np.searchsorted(table, head_dim)
    padded = np.where(index < len(table), table[np.minimum(index, len(table) - 1)], np.ceil(head_dim / 32) * 32)
    blocks = batch * heads * np.ceil(queries / 128)
    whole, part = np.divmod(blocks / mach.units, 1.0)
    waves = np.maximum(whole + np.where(part > 0, p.tail + (1 - p.tail) * part, 0.0), 1.0)
    scores = 128 * np.ceil(keys / 64) * 64
    matrix = 4 * padded * scores / (rate * p.attention_efficiency)
    softmax = scores / EXPONENTIALS
    q = 1.0 if mach.engine == "mma" else p.attention_overlap
    compute = waves * ((matrix**q + softmax**q) ** (1 / q) + getattr(p, f"prologue_{mach.engine}")) / mach.clock
    memory = size / (mach.bandwidth * p.hbm)
    total = p.fixed + _together(compute, memory)
    return Times(
        total=total, compute=compute, memory=memory, launch=np.full(len(total), p.fixed), l2=np.zeros(len(total))
    )


def join(parts: Sequence[tuple[Any, Times]], size: int) -> Times:
    """Times of a list of kernels from those of its groups; each part comes with the positions it fills."""
    out = {item.name: np.zeros(size) for item in fields(Times)}
    for where, times in parts:
        for name, column in out.items():
            column[where] = getattr(times, name)
    return Times(**out)
