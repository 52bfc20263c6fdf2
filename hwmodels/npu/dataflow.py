"""Cycles of products on a systolic array, as hardware has them.

A product (m, n, k) is cut into folds that fill the array; what stays in place, what streams past it:

| | rows hold | columns hold | streams for T steps | stays |
|---|---|---|---|---|
| ws | k | n | m rows of activations | weights |
| os | m | n | k, both operands | partial sums |
| is | k | m | n columns of weights | activations |

A fold takes R cycles to load what stays (os: to shift the results out), R + C - 2 for the skew, T to stream:
2R + C + T - 2 for all three.  SCALE-Sim's os formula leaves the shift out, as if the results of a column could leave
through one port at once.  With `overlap` the next fold streams while this one drains and what stays is loaded behind
it: max(T, R) per fold, and 2R + C - 2 once.  A format packed p times runs p values of k through each element and cycle.

With several arrays, folds are dealt out, or the stream is cut (not for os, whose stream is the sum), or both,
whichever is faster.  All of it is arithmetic on arrays, one element per product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..roofline import Floats
from .array import Systolic


@dataclass(frozen=True, kw_only=True)
class Products:
    """Shapes of independent products, one array element each: `batch` times (m, k) x (k, n); packing as in array.py."""

    m: Floats
    n: Floats
    k: Floats
    batch: Floats
    packing: Floats

    @property
    def macs(self) -> Floats:
        return self.m * self.n * self.k * self.batch


@dataclass(frozen=True, kw_only=True)
class Cycles:
    """Where the cycles go: they add up to `total`.  Reads and writes count elements at the scratchpad."""

    ideal: Floats
    mapping: Floats
    fill_drain: Floats
    reads_a: Floats
    reads_b: Floats
    sums: Floats

    @property
    def total(self) -> Floats:
        return self.ideal + self.mapping + self.fill_drain


def splits(arrays: int) -> list[tuple[int, int]]:
    """Ways to deal work to arrays: (by folds, by cutting the stream)."""
    return [(arrays // cut, cut) for cut in range(1, arrays + 1) if arrays % cut == 0]


def cycles(work: Products, array: Systolic, pieces: Floats | float = 1.0) -> Cycles:
    """Cycles of products; pieces: how many parts the stream of each fold comes in, as the tiles dictate."""
    r, c = array.rows, array.columns
    depth = np.ceil(work.k / work.packing)
    sr, sc, t = {
        "ws": (depth, work.n, work.m),
        "os": (work.m, work.n, depth),
        "is": (depth, work.m, work.n),
    }[array.dataflow]
    fr, fc = np.ceil(sr / r), np.ceil(sc / c)
    folds = work.batch * fr * fc
    ways = splits(array.arrays) if array.dataflow != "os" else [(array.arrays, 1)]
    best_stream, best_total = np.full_like(folds, np.inf), np.full_like(folds, np.inf)
    for by_fold, cut in ways:
        each = np.ceil(folds / by_fold)
        step = np.ceil(t / cut)
        parts = np.minimum(np.maximum(pieces / cut, 1.0), step)
        stream = each * step
        if array.overlap:
            total = each * np.maximum(step, parts * r) + 2 * r + c - 2
        else:
            total = each * (step + parts * (2 * r + c - 2))
        better = total < best_total
        best_stream, best_total = np.where(better, stream, best_stream), np.where(better, total, best_total)
    ideal = work.macs / (array.elements * work.packing)
    a, b, out = work.batch * work.m * work.k, work.batch * work.k * work.n, work.batch * work.m * work.n
    one = np.ones_like(fr)
    again = {"ws": (fc, one * pieces, 2 * fr - 1), "os": (fc, fr, one), "is": (one * pieces, fc, 2 * fr - 1)}
    twice_a, twice_b, twice_sums = again[array.dataflow]
    return Cycles(
        ideal=ideal,
        mapping=best_stream - ideal,
        fill_drain=best_total - best_stream,
        reads_a=a * twice_a,
        reads_b=b * twice_b,
        sums=out * twice_sums,
    )
