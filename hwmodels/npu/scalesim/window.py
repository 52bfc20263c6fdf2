"""DRAM reads where the user gives the bandwidth ("USER").

All words of an operand are lined up in the order they are fetched ahead of need and cut into sets of ceil(words / 100).
The buffer holds a window of up to 50 consecutive sets of this ring.  A request outside the window moves it on by a
prefetch buffer's worth of sets, as often as it takes; each move is one fetch of ceil(words / 2 / bandwidth) lines, sets
that are passed over included.  Which request moves the window does not depend on time, so the moves are found here and
what they cost in `replay.py`.

Between two moves the window is a table with one truth value per word, so that millions of requests are looked up at
once, many folds at a time; only a fold in which one fails is gone through in order.  A convolution's words are in
several sets each, and are in the table if any of those is in the window.  Where folds ask for the same words again (the
stream, once per column of folds), the moves depend only on where the window stands, and are not looked for again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .schedule import Schedule
from .topology import Indices

CHUNK = 4096  # requests looked up at first; twice as many each time none moves the window
Moves = list[tuple[int, int]]


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


class _Window:
    """The ring of `count` sets, `held` of them inside from `start` on, moved by `step`; alone: no word is in two."""

    def __init__(self, fetched: Indices, per_set: int, count: int, held: int, step: int, alone: bool) -> None:
        self.fetched = fetched.astype(np.intp)  # numpy would cast narrower indices each time, at ten times the cost
        self.per_set, self.count, self.held, self.step, self.alone, self.start = per_set, count, held, step, alone, 0
        # the last two entries are what the indices -1 and -2 find: nothing is asked for, so nothing is missing
        self.inside = np.zeros(int(fetched.max()) + 3, dtype=np.bool_)
        self.inside[-2:] = True
        self._mark(0, held, True)

    def _mark(self, first: int, number: int, inside: bool) -> None:
        """The words of `number` sets of the ring from `first` on."""
        first %= self.count
        beyond = max(first + number - self.count, 0)
        self.inside[self.fetched[first * self.per_set : (first + number) * self.per_set]] = inside
        self.inside[self.fetched[: beyond * self.per_set]] = inside

    def go(self, start: int) -> None:
        """Let the window begin with the set `start`."""
        by = (start - self.start) % self.count
        if self.alone and by < self.held:
            self._mark(self.start, by, False)
            self._mark(self.start + self.held, by, True)
        else:
            self.inside[:-2] = False
            self._mark(start, self.held, True)
        self.start = start

    def move_to(self, word: int) -> int:
        """Move until a word is inside; the number of moves."""
        sets = set((np.flatnonzero(self.fetched == word) // self.per_set).tolist())
        start, moves = self.start, 0
        while all((one - start) % self.count >= self.held for one in sets):
            start, moves = (start + self.step) % self.count, moves + 1
        self.go(start)
        return moves

    def first_miss(self, words: Indices, begin: int = 0) -> int:
        """Position of the first word from `begin` on that is outside; the length if none is."""
        ahead = CHUNK
        while begin < len(words):
            found = self.inside.take(words[begin : begin + ahead])
            at = int(found.argmin())
            if not found[at]:
                return begin + at
            begin, ahead = begin + ahead, ahead * 2
        return len(words)


def fetches(schedule: Schedule, operand: str, kb: int, bandwidth: int) -> Fetches:
    """The fetches of "ifmap" or "filter" through a buffer of `kb` kB at `bandwidth` words per cycle."""
    total = kb * 1024
    active = -(-total // 2)
    rest = total - active
    per_set = -(-total // 100)
    held = -(-active // per_set)
    found: list[tuple[int, int]] = []
    # windows that stick out ask for less than the whole matrix; if that fits, nothing ever moves
    layer = schedule.layer
    if (layer.m if operand == "ifmap" else layer.n) * layer.k // per_set >= held:
        fetched = schedule.fetched(operand)
        count = len(fetched) // per_set + 1
        if count > held:
            step = min(-(-rest // per_set), count - held)
            alone = operand == "filter" or layer.distinct[1]
            found = list(_moves(schedule, operand, _Window(fetched, per_set, count, held, step, alone)))
    folds, lines, lanes = schedule.stack_shape(operand)
    return Fetches(
        line=tuple(line for line, _ in found),
        moves=tuple(moves for _, moves in found),
        first=min(-(-active // bandwidth), -(-folds * lines * lanes // bandwidth)),
        each=-(-rest // bandwidth),
        bandwidth=bandwidth,
    )


def _moves(schedule: Schedule, operand: str, window: _Window) -> Iterator[tuple[int, int]]:
    """(line, moves) of all folds."""
    known: dict[tuple[int, int], tuple[Moves, int]] = {}
    for fold, blocks in _passes(schedule, operand):
        key = blocks.start, window.start
        if key not in known:
            known[key] = list(_pass(schedule, operand, fold, blocks, window)), window.start
        found, end = known[key]
        if end != window.start:
            window.go(end)
        begin = fold * schedule.period
        for line, moves in found:
            yield begin + line, moves


def _passes(schedule: Schedule, operand: str) -> Iterator[tuple[int, range]]:
    """(first fold, its and the following folds' blocks of the stack): folds that ask for the same words share them."""
    rows, folds = len(schedule.rows), len(schedule.rows) * len(schedule.columns)
    if operand == schedule.stationary:
        yield 0, range(folds)
    elif schedule.by_row(operand):
        for fold in range(0, folds, rows):
            yield fold, range(rows)
    else:
        for fold in range(folds):
            yield fold, range(fold // rows, fold // rows + 1)


def _pass(schedule: Schedule, operand: str, fold: int, blocks: range, window: _Window) -> Iterator[tuple[int, int]]:
    """(line after the first fold's beginning, moves) of one pass over some blocks."""
    edges, first = schedule.edges(operand), schedule.stream(operand).first
    stack = schedule.stack(operand)
    flat, lanes = stack.ravel(), stack.shape[1]
    last = int(edges[blocks.stop]) * lanes
    number = blocks.start
    while number < blocks.stop:
        miss = window.first_miss(flat[:last], int(edges[number]) * lanes)
        if miss == last:
            break
        number = int(np.searchsorted(edges, miss // lanes, side="right")) - 1
        index = number - blocks.start
        begin = index * schedule.period + int(first[fold + index])
        for line, moves in _block(schedule.block(operand, number), window):
            yield begin + line, moves
        number += 1


def _block(words: Indices, window: _Window) -> Iterator[tuple[int, int]]:
    """(line, moves) of one fold, its requests in order."""
    flat, lanes = words.ravel(), words.shape[1]
    at, line, moves = window.first_miss(flat), -1, 0
    while at < len(flat):
        if at // lanes != line and moves:
            yield line, moves
            moves = 0
        line = at // lanes
        moves += window.move_to(int(flat[at]))
        at = window.first_miss(flat, at + 1)
    if moves:
        yield line, moves
