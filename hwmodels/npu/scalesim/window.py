"""DRAM reads where the user gives the bandwidth ("USER").

All words of an operand are lined up in the order they are fetched ahead of need and cut into sets of ceil(words / 100).
The buffer holds a window of up to 50 consecutive sets of this ring.  A request outside the window moves it on by a
prefetch buffer's worth of sets, as often as it takes; each move is one fetch of ceil(words / 2 / bandwidth) lines, sets
that are passed over included.  Which request moves the window does not depend on time, so the moves are found here and
what they cost in `replay.py`.

A product has each word in one set; a line of requests is inside the window if its lowest and highest set are.  Words of
a convolution may be in several sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .schedule import Schedule
from .topology import Indices

LINES = 128


@dataclass(frozen=True, kw_only=True)
class Fetches:
    """Moves of the window: in which line, how often; lines of the first fetch and of each later one; words per line."""

    line: tuple[int, ...]
    moves: tuple[int, ...]
    first: int
    each: int
    bandwidth: int

    @property
    def reads(self) -> int:
        """Words fetched, gaps in the fetch order counted as SCALE-Sim counts them."""
        return (self.first + sum(self.moves) * self.each) * self.bandwidth


@dataclass
class _Ring:
    """The window of sets, and the sets each word is in: (words, copies)."""

    sets: npt.NDArray[np.int32]
    count: int
    active: int
    step: int
    start: int = 0
    blocks: dict[tuple[int, int], tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]] = field(default_factory=dict)

    def missing(self, ids: npt.NDArray[np.int32], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Requests outside the window; ids has the copies of a word along its last axis."""
        outside = (ids - self.start) % self.count >= self.active
        return valid & outside.all(axis=-1)

    def serve(self, ids: npt.NDArray[np.int32]) -> int:
        """Moves that one line of requests (words, copies) takes."""
        moves, start, count, active, step = 0, self.start, self.count, self.active, self.step
        if ids.shape[1] == 1:
            for only in ids[:, 0].tolist():
                while (only - start) % count >= active:
                    start = (start + step) % count
                    moves += 1
        else:
            for copies in ids.tolist():
                while all((one - start) % count >= active for one in copies):
                    start = (start + step) % count
                    moves += 1
        self.start = start
        return moves


def _sets(order: Indices, per_set: int, words: int, alone: bool) -> tuple[npt.NDArray[np.int32], int]:
    """((words, copies): the sets each word is in, number of sets) of a fetch order; alone: each word once."""
    found = order[order >= 0]
    ids = np.arange(len(found)) // per_set
    count = len(found) // per_set + 1
    if alone:
        single = np.zeros((words, 1), dtype=np.int32)
        single[found, 0] = ids
        return single, count
    pairs = np.unique(found * count + ids)
    word, number = np.divmod(pairs, count)
    start = np.searchsorted(word, np.arange(words))
    copies = np.diff(np.append(start, len(word)))
    table = np.empty((words, max(int(copies.max()), 1)), dtype=np.int32)
    for column in range(table.shape[1]):
        table[:, column] = number[np.minimum(start + np.minimum(column, np.maximum(copies - 1, 0)), len(number) - 1)]
    return table, count


def fetches(schedule: Schedule, operand: str, kb: int, bandwidth: int) -> Fetches:
    """The fetches of "ifmap" or "filter" through a buffer of `kb` kB at `bandwidth` words per cycle."""
    total = kb * 1024
    active = -(-total // 2)
    rest = total - active
    order = schedule.prefetch(operand)
    lines = -(-len(order) // bandwidth)
    layer = schedule.layer
    words = layer.height * layer.width * layer.channels if operand == "ifmap" else layer.k * layer.n
    alone = operand == "filter" or layer.distinct[1]
    per_set = -(-total // 100)
    table, count = _sets(order, per_set, words, alone)
    held = min(-(-active // per_set), count)
    step = min(-(-rest // per_set), count - held)
    out: list[tuple[int, int]] = []
    if step:
        ring = _Ring(sets=table, count=count, active=held, step=step)
        block = schedule.ifmap_block if operand == "ifmap" else schedule.filter_block
        stream, rows = schedule.stream(operand), len(schedule.rows)
        for fold in range(len(stream.until)):
            column, row = divmod(fold, rows)
            key = _key(schedule.config.dataflow, operand, column, row)
            if key not in ring.blocks:
                asked = block(column, row)
                ring.blocks[key] = table[np.maximum(asked, 0)], asked >= 0
            first = fold * schedule.period + int(stream.first[fold])
            out += [(first + line, moves) for line, moves in _fold(ring, *ring.blocks[key])]
    return Fetches(
        line=tuple(line for line, _ in out),
        moves=tuple(moves for _, moves in out),
        first=min(-(-active // bandwidth), lines),
        each=-(-rest // bandwidth),
        bandwidth=bandwidth,
    )


def _key(flow: str, operand: str, column: int, row: int) -> tuple[int, int]:
    """Folds that ask for the same words share a key."""
    if flow == "os":
        return (-1, row) if operand == "ifmap" else (column, -1)
    moving = {"ws": "ifmap", "is": "filter"}[flow]
    return (-1, row) if operand == moving else (column, row)


def _fold(ring: _Ring, ids: npt.NDArray[np.int32], valid: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(line, moves) of one fold."""
    out = []
    simple = ids.shape[-1] == 1
    if simple:
        low = np.where(valid, ids[..., 0], ring.count).min(axis=1)
        high = np.where(valid, ids[..., 0], -1).max(axis=1)
        empty = high < 0
    line, step = 0, LINES
    while line < len(ids):
        end = min(line + step, len(ids))
        if simple:
            down, up = (low[line:end] - ring.start) % ring.count, (high[line:end] - ring.start) % ring.count
            bad = ((up >= ring.active) | (down > up)) & ~empty[line:end]
        else:
            bad = ring.missing(ids[line:end], valid[line:end]).any(axis=1)
        if not bad.any():
            line, step = end, step * 2
            continue
        line += int(bad.argmax())
        moves = ring.serve(ids[line][valid[line]])
        if moves:
            out.append((line, moves))
            step = LINES
        line += 1
    return out
