"""How long a kernel takes on a GPU: tiles, waves, split-K, caches, and the clock the power limit leaves.

A closed form, vectorised over kernels and over the tile shapes a library would choose from.  For a product (m, n, k):

1. The output is cut into tiles of (tm, tn); k may be cut into s parts.  ceil(m/tm) * ceil(n/tn) * s tiles run on the
   SMs in waves.  The last, partly filled wave is not worth a full one: it costs `tail` plus its share.
2. One SM needs, per tile, the larger of its multiply-accumulates at `efficiency` of the tensor cores' rate and of the
   operand loads at `load_bytes` per clock, in steps of 128 bytes of k; plus `prologue` cycles to fill and drain, plus
   the write of the tile.  Where tensor memory holds one result while the next is computed, only the first tile waits.
3. Nothing overlaps with the start: until the first `fill_window` bytes of a tile have come from cold memory, at
   `fill_bytes` per clock, no SM computes, and the last tile's write comes when all else is done.
4. All SMs together read operands through L2 (`l2_bytes` per clock and SM; clusters share loads on Hopper and later) ...
5. ... and what L2 does not hold comes from memory at `hbm` of its bandwidth: weights always (they are cold), operands
   again for every group of tiles that runs at once once they outgrow `l2_share` of the cache.
6. The three overlap, imperfectly: time = `fixed` + start + (compute^4 + l2^4 + memory^4)^(1/4); split-K writes and
   reads its partial sums on top, `split_fixed` later.
7. The tile and split with the least time is taken, as an autotuned library would (`gpu_tiles.py` has the catalogues).

The clock under load is a fact of a device: boost * (base/boost)^`throttle` where a base clock is published, with one
exponent for all; where none is but somebody published the best rate of a search over products, the clock of that rate.
Other kernels: `gpu_attention.py`, `gpu_pointwise.py` and `passes.py`.

What is left out: library heuristics that choose badly (the largest errors on measured data: one row above a multiple of
a tile, single rows, long k with few tiles), temperature, other work on the device.  `calibrate.py` fits the numbers and
states the errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import numpy as np

from .device import ComputeRate, Device
from .gpu_tiles import DEFAULT_ENGINE, ENGINES, SPLITS, TILES, WIDE_TILE, Columns
from .parameters import Parameters as Parameters
from .parameters import load as load
from .roofline import Floats, Times

#: what a partly filled last wave of a convolution costs (its libraries do not split what is left over), and its
#: prologue beside a product's (it computes where every row of a tile comes from)
IMPLICIT_TAIL = 1.0
IMPLICIT_PROLOGUE = 3.0

K_BYTES = 128.0  #: of one row of an operand that a step of the pipeline loads
CHUNK = 256  # kernels at a time: their candidates stay in the host's cache
CLUSTER = 2.0  #: SMs that share one operand's loads, on Hopper and later
IMPLICIT = 9  # position of the flag among the columns of `_gemm`
LEAST_SPLIT = 512.0  #: shorter k is not split
PARTIAL = 8.0  #: bytes that one float32 partial sum moves, written and read

#: whose prologue a block has that does not hide it behind the block before
PROLOGUES: Mapping[str, str] = MappingProxyType({"mma": "mma", "wgmma": "wgmma", "tcgen05": "wgmma"})
#: base / boost assumed where no base clock is published: the SXM modules that publish one lie at 0.87 to 0.90
DEFAULT_RATIO = 0.9
#: what the best products reach of the rate at the clock they run at (the fitted efficiencies of mma and wgmma)
BEST_EFFICIENCY = 0.9
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
    best = clocks.pop("best", None)
    boost = clocks.get("tensor") or clocks.get("boost") or max(clocks.values(), default=DEFAULT_CLOCK)
    if best is not None and "base" not in clocks:
        clock = best / BEST_EFFICIENCY
    else:
        clock = boost * (clocks["base"] / boost if "base" in clocks else DEFAULT_RATIO) ** parameters.throttle
    vector = device.rates.get(("f32", "f32", "f32"))
    return Machine(
        name=device.name,
        units=float(device.units),
        clock=clock,
        boost=boost,
        engine=ENGINES.get(device.architecture, DEFAULT_ENGINE),
        bandwidth=device.bandwidth,
        l2=l2.capacity.value,
        vector=vector.peak.value if vector else 0.0,
    )


def start(mach: Machine, p: Parameters, size: Any) -> Floats:
    """Seconds until a block with operands of `size` bytes computes: its prologue, and the first of them from memory."""
    cycles = getattr(p, f"prologue_{PROLOGUES[mach.engine]}") + np.minimum(size, p.fill_window) / p.fill_bytes
    return np.asarray(cycles / mach.clock, dtype=np.float64)


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
    """`gemm` on columns of shape (kernels, 1): convolutions and products by their catalogues, then the splits of k."""
    implicit = given[IMPLICIT][:, 0] > 0
    m, n, k, batch = (column[:, 0] for column in given[:4])
    wide = np.ceil(m / WIDE_TILE[0]) * np.ceil(n / WIDE_TILE[1]) * batch
    few = (wide <= mach.units) & (k >= LEAST_SPLIT)
    parts: list[tuple[Any, Times]] = []
    for catalogue, chosen in ((mach.engine, ~implicit), ("implicit", implicit)):
        for where, splits in ((np.flatnonzero(chosen & ~few), (1,)), (np.flatnonzero(chosen & few), (1, *SPLITS))):
            if len(where):
                parts.append((where, _fastest([c[where] for c in given], TILES[catalogue], splits, warm, mach, p)))
    return parts[0][1] if len(parts) == 1 else join(parts, len(m))


def _fastest(
    given: Sequence[Floats], tiles: Columns, splits: Sequence[int], warm: bool, mach: Machine, p: Parameters
) -> Times:
    """The fastest of some tiles and splits of k for each kernel: arrays of (kernels, splits, tiles)."""
    m, n, k, batch, rate, read, weight, write, shared, implicit, once = given
    tm, tn = tiles
    f, engine = mach.clock, mach.engine
    buffered = engine == "tcgen05"
    rows, columns = np.ceil(m / tm), np.ceil(n / tn)
    if buffered:  # tiles come in pairs, one above the other
        rows = np.where(rows > 1, 2 * np.ceil(rows / 2), rows)
    loads = tm * read + tn * (weight / 2 if buffered else weight)
    multiply = np.maximum(tm * tn * (2 / (rate * getattr(p, f"efficiency_{engine}"))), loads / p.load_bytes)
    store = tm * tn * (write / p.store_bytes)
    edge = np.zeros_like(store)
    if not buffered:
        edge = getattr(p, f"prologue_{engine}") * (1 + (IMPLICIT_PROLOGUE - 1) * implicit) + store
    fan = 1.0 if engine == "mma" else CLUSTER
    traffic = np.minimum(
        tm * read / np.minimum(columns, fan) + tn * weight, tm * read + tn * weight / np.minimum(rows, fan)
    )
    l2_rate = mach.units * p.l2_bytes * f
    memory = _memory(m, n, k, batch, read, weight, write, shared, rows, columns, once, warm, mach, p, tiles)
    tail = np.maximum(p.tail, implicit * IMPLICIT_TAIL)
    split = np.array(splits, dtype=np.float64)[:, None]
    number = _deep(rows * columns * batch) * split
    waves = number / mach.units
    whole = np.floor(waves)
    tail = _deep(tail)
    waves = np.maximum(whole + np.where(waves > whole, tail + (1 - tail) * (waves - whole), 0.0), 1.0)
    depth = np.ceil(_deep(k * read) / (split * K_BYTES)) * _deep(K_BYTES / read)
    compute = (waves * (_deep(multiply) * depth + _deep(edge)) - _deep(edge)) / f
    fill = np.minimum(_deep(tm * read + tn * weight) * depth, p.fill_window) / p.fill_bytes
    begin = (fill + _deep(store if buffered else edge)) / f
    l2 = (number * _deep(traffic) * depth + _deep(batch * m * n * write)) / l2_rate
    total = p.fixed + begin + together(compute, l2, _deep(memory))
    if len(splits) > 1:
        added = p.split_fixed + split * _deep(batch * m * n) * (PARTIAL / l2_rate)
        total += np.where(split == 1, 0.0, added)
    best = total.reshape(len(total), -1).argmin(axis=1)[:, None]

    def take(term: Floats) -> Floats:
        return np.take_along_axis(np.broadcast_to(term, total.shape).reshape(len(total), -1), best, axis=1)[:, 0]

    return Times(
        total=take(total),
        compute=take(compute),
        memory=take(_deep(memory)),
        launch=p.fixed + take(begin),
        l2=take(l2),
    )


def _deep(columns: Floats) -> Floats:
    """(kernels, tiles) as (kernels, 1, tiles)."""
    return columns[:, None, :]


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
    tiles: Columns,
) -> Floats:
    """Seconds of main memory traffic: operands once, again per group of concurrent tiles when they outgrow L2."""
    a, once = batch * m * k * read, once * read
    b, c = batch * n * k * weight, batch * m * n * write
    room = p.l2_share * mach.l2
    tm, tn = tiles
    down = np.minimum(np.sqrt(mach.units * tn / tm), rows)
    across = np.minimum(mach.units / down, columns)
    groups = np.ceil(rows / down) * np.ceil(columns / across)
    grouped = batch * groups * (down * tm * read + across * tn * weight) * k * (once / a)
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
