"""DRAM reads where the user gives the bandwidth ("USER").

All words of an operand are lined up in the order they are fetched ahead of need and cut into sets of ceil(words / 100).
The buffer holds a window of up to 50 consecutive sets of this ring.  A request outside the window moves it on by a
prefetch buffer's worth of sets, as often as it takes; each move is one fetch of ceil(words / 2 / bandwidth) lines, sets
that are passed over included.  Which request moves the window does not depend on time, so the moves are found here and
what they cost in `replay.py`.

A request is answered if the set its own element was lined up in is inside the window; a line of requests, if its lowest
and highest such set are.  Words of a convolution are in other sets too, which are looked up only where that fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

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
class _Block:
    """What one fold asks for: the set of each request (lines, lanes), -1 for none, and the extremes of each line."""

    sets: npt.NDArray[np.int32]
    low: npt.NDArray[np.int32]
    high: npt.NDArray[np.int32]
    words: Callable[[], Indices]


def _block(places: Indices, per_set: int, words: Callable[[], Indices]) -> _Block:
    sets = (places // per_set).astype(np.int32)  # -1 stays -1
    high = sets.max(axis=1)
    return _Block(sets, np.where(sets < 0, np.iinfo(np.int32).max, sets).min(axis=1), high, words)


@dataclass
class _Ring:
    """The window of sets: `count` of them, `active` inside, moved by `step`."""

    count: int
    active: int
    step: int
    start: int = 0

    def serve(self, requests: list[list[int]]) -> int:
        """Moves that one line takes, each request given as the sets its word is in."""
        moves, start, count, active, step = 0, self.start, self.count, self.active, self.step
        for sets in requests:
            while all((one - start) % count >= active for one in sets):
                start = (start + step) % count
                moves += 1
        self.start = start
        return moves


class _Copies:
    """All sets each word is in, found when first asked for."""

    def __init__(self, order: Indices, per_set: int, count: int) -> None:
        found = order[order >= 0]
        self.count = count
        most = (int(found.max()) + 1) * count
        small = np.int32 if most < np.iinfo(np.int32).max else np.int64  # half the bytes sort in half the time
        pairs = np.sort((found * count + np.arange(len(found)) // per_set).astype(small))
        pairs = pairs[np.concatenate(([True], pairs[1:] != pairs[:-1]))]
        self.sets = (pairs % count).tolist()
        self.start = np.searchsorted(pairs, np.arange(0, most + 1, count, dtype=small)).tolist()

    def of(self, words: Indices) -> list[list[int]]:
        """The sets of each word."""
        return [self.sets[self.start[word] : self.start[word + 1]] for word in words.tolist()]


def fetches(schedule: Schedule, operand: str, kb: int, bandwidth: int) -> Fetches:
    """The fetches of "ifmap" or "filter" through a buffer of `kb` kB at `bandwidth` words per cycle."""
    total = kb * 1024
    active = -(-total // 2)
    rest = total - active
    order, places = schedule.fetch_order(operand)
    per_set = -(-total // 100)
    count = (int(places.max()) + 1) // per_set + 1
    held = min(-(-active // per_set), count)
    step = min(-(-rest // per_set), count - held)
    out: list[tuple[int, int]] = []
    if step:
        alone = operand == "filter" or schedule.layer.distinct[1]
        copies = None if alone else _Copies(order, per_set, count)
        ring, blocks = _Ring(count, held, step), dict[tuple[int, int], _Block]()
        stream, rows = schedule.stream(operand), len(schedule.rows)
        for fold in range(len(stream.until)):
            column, row = divmod(fold, rows)
            key = _key(schedule.config.dataflow, operand, column, row)
            if key not in blocks:
                words = cache(partial(schedule.ifmap_block, column, row))
                blocks[key] = _block(schedule.place_block(operand, places, column, row), per_set, words)
            first = fold * schedule.period + int(stream.first[fold])
            out += [(first + line, moves) for line, moves in _fold(ring, blocks[key], copies)]
    return Fetches(
        line=tuple(line for line, _ in out),
        moves=tuple(moves for _, moves in out),
        first=min(-(-active // bandwidth), -(-len(order) // bandwidth)),
        each=-(-rest // bandwidth),
        bandwidth=bandwidth,
    )


def _key(flow: str, operand: str, column: int, row: int) -> tuple[int, int]:
    """Folds that ask for the same words share a key."""
    if flow == "os":
        return (-1, row) if operand == "ifmap" else (column, -1)
    moving = {"ws": "ifmap", "is": "filter"}[flow]
    return (-1, row) if operand == moving else (column, row)


def _fold(ring: _Ring, block: _Block, copies: _Copies | None) -> list[tuple[int, int]]:
    """(line, moves) of one fold."""
    out = []
    line, step, lines = 0, LINES, len(block.sets)
    while line < lines:
        end = min(line + step, lines)
        high = block.high[line:end]
        down, up = (block.low[line:end] - ring.start) % ring.count, (high - ring.start) % ring.count
        bad = ((up >= ring.active) | (down > up)) & (high >= 0)
        start = ring.start
        for at in np.flatnonzero(bad).tolist():
            here = line + at
            asked = block.sets[here] >= 0
            if copies is not None:
                requests = copies.of(block.words()[here][asked])
            else:
                requests = block.sets[here][asked, None].tolist()
            moves = ring.serve(requests)
            if moves:
                out.append((here, moves))
                end = here + 1  # the lines after it face another window
                break
        line, step = end, LINES if ring.start != start else step * 2
    return out
