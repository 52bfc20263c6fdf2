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
the exponent is one number for all.  Other kernels: `gpu_attention.py`, `gpu_pointwise.py` and `passes.py`.

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
    *((192, 192), (192, 160), (128, 160), (160, 128)),
    *((256, 64), (64, 256), (128, 64), (64, 128), (64, 64)),
    *((32, 128), (16, 128), (32, 64), (16, 64), (8, 64)),
)
SPLITS = (1, 2, 4, 8)
#: those of them that convolution libraries ship, what a partly filled last wave of theirs costs (they do not split what
#: is left over), and their prologue beside a product's (they compute where every row of a tile comes from)
IMPLICIT_TILES = ((256, 128), (128, 256), (128, 128), (256, 64), (128, 64), (64, 64))
IMPLICIT_TAIL = 1.0
IMPLICIT_PROLOGUE = 3.0
_TM, _TN, _SPLIT = (
    np.array(c, dtype=np.float64) for c in zip(*((m, n, s) for m, n in TILES for s in SPLITS), strict=True)
)

K_STEP = 64
CHUNK = 1024  # kernels at a time: their candidates stay in the host's cache
CLUSTER = 2.0  #: SMs that share one operand's loads, on Hopper and later

_IMPLICIT = np.array([(m, n) in IMPLICIT_TILES for m, n in TILES for _ in SPLITS])

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


def together(*terms: Floats) -> Floats:
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
    implicit: Any = 0.0,
) -> Times:
    """Seconds of products, one array element each.

    rate: operations per SM and clock; read, weight, write: bytes per element of a, b and the result; source: elements
    of a in memory where they are fewer than m * k (a convolution's input); shared: 1 where b is a weight (cold),
    0 where it is another activation; warm: activations may still be in L2; implicit: 1 for a convolution's kernel.
    """
    given = (m, n, k, batch, rate, read, weight, write, shared, implicit)
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
    m, n, k, batch, rate, read, weight, write, shared, implicit, once = given
    f = mach.clock
    efficiency = getattr(p, f"efficiency_{mach.engine}")
    rows, columns = np.ceil(m / _TM), np.ceil(n / _TN)
    tiles = rows * columns * _SPLIT * batch
    whole, part = np.divmod(tiles / mach.units, 1.0)
    tail = np.maximum(p.tail, implicit * IMPLICIT_TAIL)
    waves = np.maximum(whole + np.where(part > 0, tail + (1 - tail) * part, 0.0), 1.0)
    depth = np.ceil(k / _SPLIT / K_STEP) * K_STEP
    # on tcgen05 two SMs share one operand, and tensor memory holds the result of one tile while the next is computed
    paired = 2.0 if mach.engine == "tcgen05" else 1.0
    tile = np.maximum(
        2 * _TM * _TN * depth / (rate * efficiency), (_TM * read + _TN * weight / paired) * depth / p.load_bytes
    )
    store = _TM * _TN * write / p.store_bytes
    exposed = store if paired == 1.0 else store / waves
    prologue = getattr(p, f"prologue_{mach.engine}") * (1 + (IMPLICIT_PROLOGUE - 1) * implicit)
    tile = tile + prologue + exposed
    compute = waves * tile / f

    fan = 1.0 if mach.engine == "mma" else CLUSTER
    loads = np.minimum(
        _TM * read / np.minimum(columns, fan) + _TN * weight, _TM * read + _TN * weight / np.minimum(rows, fan)
    )
    l2_rate = mach.units * p.l2_bytes * f
    l2 = (tiles * loads * depth + batch * m * n * write) / l2_rate

    memory = _memory(m, n, k, batch, read, weight, write, shared, rows, columns, once, warm, mach, p)
    reduce = np.where(_SPLIT > 1, p.split_traffic * _SPLIT * batch * m * n * 8 / l2_rate + p.split_fixed, 0.0)
    total = p.fixed + together(compute, l2, memory) + reduce
    total = np.where((implicit > 0) & ~_IMPLICIT, np.inf, total)
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


def join(parts: Sequence[tuple[Any, Times]], size: int) -> Times:
    """Times of a list of kernels from those of its groups; each part comes with the positions it fills."""
    out = {item.name: np.zeros(size) for item in fields(Times)}
    for where, times in parts:
        for name, column in out.items():
            column[where] = getattr(times, name)
    return Times(**out)
