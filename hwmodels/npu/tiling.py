"""Tiles that fit the scratchpad, and the main memory traffic they leave.

Operand tiles are double-buffered: one is computed on while the next arrives.  Three loop orders are tried, each with
the largest tiles that fit, and the one with the least traffic is taken (at equal traffic, the longest streams):

* rows stay: tm rows of a with all of k, columns of b inside.        a once, b ceil(m / tm) times
* columns stay: tn columns of b with all of k, rows of a inside.     b once, a ceil(n / tn) times
* results stay: a tm x tn block of sums, k inside.                   a ceil(n / tn), b ceil(m / tm) times

Results are written once in all three: no order spills partial sums.  A convolution reads its input, not the unfolded
matrix: `density` is input over unfolded elements, and the rows neighbouring tiles share (`halo`, in units of output
rows) are read again per tile.  Activations that fit into half the scratchpad may stay there between operations
(`cache="warm"`): they then cost no traffic, and the tiles get what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..roofline import Floats
from .array import Systolic
from .dataflow import Products

LADDER = 8  # tile heights tried between the smallest and all rows
SUM_BYTES = 4.0  # partial sums are held as 32 bits
RESIDENT = 0.5  # share of the scratchpad that may hold activations from one operation to the next
ORDERS = ("rows stay", "columns stay", "results stay")


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Bytes per element of a, b and the result, and what a convolution adds; one array element per product.

    stored: b is a weight, in main memory before the operation; otherwise it is another activation.
    """

    a: Floats
    b: Floats
    out: Floats
    density: Floats
    halo: Floats
    stored: Floats


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The tiles taken: sizes, loop order (index into ORDERS), bytes of traffic, loads of each operand, pieces of m."""

    tm: Floats
    tn: Floats
    order: Floats
    traffic: Floats
    loads_a: Floats
    loads_b: Floats
    resident: Floats


def smallest(array: Systolic, packing: Floats) -> tuple[Floats, Floats, Floats]:
    """(m, n, k) of the smallest tile: one fold, with a stream as long as the array has rows."""
    r, c = np.full_like(packing, array.rows), np.full_like(packing, array.columns)
    depth = np.maximum(np.floor(r * packing), 1.0)
    return (c, r, depth) if array.dataflow == "is" else (r, c, depth)


def _ladder(low: Floats, high: Floats) -> Floats:
    """(products, LADDER): sizes from low to high, evenly spaced in ratio, whole multiples of low."""
    steps = np.arange(LADDER) / (LADDER - 1)
    sizes = low[:, None] * np.power(np.maximum(high / low, 1.0)[:, None], steps)
    return np.minimum(np.ceil(sizes / low[:, None]) * low[:, None], high[:, None])


def _down(value: Floats, unit: Floats, most: Floats) -> Floats:
    """The largest multiple of `unit` in `value`, or `most` if that fits; 0 if not even one unit does."""
    return np.where(value >= most, most, np.floor(np.maximum(value, 0.0) / unit) * unit)


def tile(work: Products, size: Operands, array: Systolic, warm: bool, names: tuple[str, ...] = ()) -> Tiles:
    """The tiles of every product.  Raises ValueError, saying what is needed, if the smallest tile does not fit."""
    gm, gn, gk = smallest(array, work.packing)
    gm, gn, gk = np.minimum(gm, work.m), np.minimum(gn, work.n), np.minimum(gk, work.k)
    a, shared = size.a * np.minimum(size.density, 1.0), array.accumulators == 0
    held_sum = SUM_BYTES if shared else 0.0
    once_a, once_b = work.m * work.k * a, work.n * work.k * size.b
    once_out = work.m * work.n * size.out
    moving = work.batch * (once_a + once_out + np.where(size.stored > 0, 0.0, once_b))
    need = 2 * gk * (gm * a + gn * size.b) + gm * gn * held_sum
    _check(need, gm * gn * SUM_BYTES, array, names)
    resident = (moving <= RESIDENT * array.scratchpad) & (moving + need <= array.scratchpad) & warm
    room = array.scratchpad - np.where(resident, moving, 0.0)
    most_sums = np.inf if shared else array.accumulators / SUM_BYTES

    tm, tn, order = _candidates(work, size.b, a, held_sum, room, most_sums, (gm, gn, gk))
    rows, columns = np.ceil(work.m[:, None] / tm), np.ceil(work.n[:, None] / tn)
    loads_a = np.where(order == 0, 1.0, columns)
    loads_b = np.where(order == 1, 1.0, rows)
    unfolded = 1.0 / np.maximum(np.minimum(size.density, 1.0), 1e-12)[:, None]
    halo = np.where(rows > 1, np.minimum(1 + size.halo[:, None] / tm, unfolded), 1.0)
    moved_a = np.where(resident[:, None], 0.0, once_a[:, None] * loads_a * halo)
    moved_b = np.where((resident & (size.stored == 0))[:, None], 0.0, once_b[:, None] * loads_b)
    traffic = np.where(np.isfinite(tm) & (tm > 0) & (tn > 0), moved_a + moved_b, np.inf)
    pieces = columns if array.dataflow == "is" else rows  # parts a stream comes in: at equal traffic, the fewest
    best = np.argmin(traffic + np.where(np.isfinite(traffic), 1e-9 * pieces * traffic, 0.0), axis=1)[:, None]

    def take(values: Floats) -> Floats:
        return np.take_along_axis(np.broadcast_to(values, traffic.shape), best, axis=1)[:, 0]

    return Tiles(
        tm=take(tm),
        tn=take(tn),
        order=take(order),
        traffic=work.batch * (take(traffic) + np.where(resident, 0.0, once_out)),
        loads_a=take(loads_a),
        loads_b=take(loads_b),
        resident=resident.astype(np.float64),
    )


def _check(need: Floats, sums: Floats, array: Systolic, names: tuple[str, ...]) -> None:
    """The smallest tile must fit, and so must its sums where they have a memory of their own."""
    for wanted, have, what in ((need, array.scratchpad, "scratchpad"), (sums, array.accumulators, "accumulators")):
        if have and (wanted > have).any():
            worst = int(np.argmax(wanted))
            layer = f" of {names[worst]!r}" if names and names[worst] else ""
            raise ValueError(
                f"{array.name}: one tile{layer} needs {wanted[worst] / 1024:,.1f} KiB of {what}, "
                f"it has {have / 1024:,.1f} KiB; give it more, or a smaller array"
            )


def _candidates(
    work: Products,
    b: Floats,
    a: Floats,
    held_sum: float,
    room: Floats,
    most_sums: float,
    least: tuple[Floats, Floats, Floats],
) -> tuple[Floats, Floats, Floats]:
    """(tm, tn, order) of shape (products, candidates); tiles that do not fit have size 0."""
    gm, gn, gk = least
    m, n, k = work.m, work.n, work.k
    tiny = 1e-30
    # rows stay: two panels of a unless one holds all rows
    stream_b = 2 * gk * gn * b
    whole = m * k * a + stream_b + m * gn * held_sum <= room
    panel = _down((room - stream_b) / np.maximum(2 * k * a + gn * held_sum, tiny), gm, m)
    tm_rows = np.minimum(np.where(whole, m, panel), _down(np.full_like(m, most_sums) / gn, gm, m))
    # columns stay, for several heights of the stream of a
    tall = _ladder(gm, m)
    stream_a = 2 * gk[:, None] * tall * a[:, None]
    own = k * b
    one = n[:, None] * (own[:, None] + tall * held_sum) + stream_a <= room[:, None]
    fit = (room[:, None] - stream_a) / np.maximum(2 * own[:, None] + tall * held_sum, tiny)
    sums = _down(most_sums / tall, gn[:, None], n[:, None])
    tn_columns = np.minimum(np.where(one, n[:, None], _down(fit, gn[:, None], n[:, None])), sums)
    # results stay
    fit = (room[:, None] - stream_a) / np.maximum(2 * (gk * b)[:, None] + tall * held_sum, tiny)
    tn_results = np.minimum(_down(fit, gn[:, None], n[:, None]), sums)
    tm = np.concatenate((tm_rows[:, None], tall, tall), axis=1)
    tn = np.concatenate((gn[:, None], tn_columns, tn_results), axis=1)
    order = np.repeat([0.0, 1.0, 2.0], (1, LADDER, LADDER))[None, :]
    ok = (tm > 0) & (tn > 0)
    return np.where(ok, tm, np.nan), np.where(ok, tn, np.nan), np.broadcast_to(order, tm.shape)
