"""DRAM reads where SCALE-Sim estimates the bandwidth ("CALC").

Its read buffer is cut into 100 sets of floor(words / 100).  Distinct words fill one set after another; when 50 are
full, all of them are thrown away at once and filling starts over, so that words seen before are read again.  Hence: the
stream of words asked for falls into epochs of E = 50 * floor(words / 100) distinct words, and DRAM reads are the
distinct words of each epoch.  Reads never stall.

For products no word has to be looked at.  A stream is a sequence of blocks of d distinct words asked for `times` times
over, in the same order: from a point with x requests left in the block, the next min(x, d) are distinct.  A convolution
whose windows overlap repeats words within a block; there the previous request of each word is found once by sorting,
and an epoch ends where enough requests have theirs before its start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .schedule import Schedule, Stream
from .topology import Indices

SETS = 50
SEEN_BEFORE = -(2**62)


@dataclass(frozen=True, kw_only=True)
class Reads:
    """DRAM reads of one operand: how many, cycles the first fetch takes, first line, line the last epoch ends in."""

    count: int
    fetch_cycles: int
    first_line: int
    last_turn: int | None


def epoch_size(kb: int) -> int:
    """Distinct words after which the buffer starts over."""
    return SETS * (kb * 1024 // 100)


def _epochs(blocks: Sequence[tuple[int, int]], size: int) -> tuple[int, int | None]:
    """(reads, position of the last request of the last complete epoch) of blocks of (distinct words, times over)."""
    reads, last, need, position = 0, None, size, 0
    for distinct, times in blocks:
        left = distinct * times
        while left:
            if need == size and distinct >= size and left >= size:
                whole = left // size  # epochs that begin and end in this block
                position, left, reads = position + whole * size, left - whole * size, reads + whole * size
                last = position - 1
                continue
            new = min(left, distinct)
            if new < need:
                position, left, reads, need = position + left, 0, reads + new, need - new
            else:
                position, left, reads, last = position + need, left - need, reads + need, position + need - 1
                need = size
    return reads, last


def _previous(words: Indices) -> Indices:
    """Index of the previous request of each word when the stream runs again and again (negative: an earlier run)."""
    n = len(words)
    bits = int(n).bit_length()
    keys = np.sort((words << bits) | np.arange(n))
    at, word = keys & ((1 << bits) - 1), keys >> bits
    previous = np.empty(n, dtype=np.int64)
    same = word[1:] == word[:-1]
    previous[at[1:]] = at[:-1]
    start = np.flatnonzero(np.concatenate(([True], ~same)))
    end = np.concatenate((start[1:], [n])) - 1
    previous[at[start]] = at[end] - n
    return previous


def _replayed(previous: Indices, times: int, size: int) -> tuple[int, int | None]:
    """`_epochs` of a stream that repeats words within itself, run `times` times over."""
    n, reads, last = len(previous), 0, None
    start, need, at, total = 0, size, 0, times * len(previous)
    step = size
    while at < total:
        run, offset = divmod(at, n)
        end = min(offset + step, n)
        limit = start - run * n
        if run == 0:
            new = previous[offset:end] < max(limit, 0)  # the first run has nothing before it: negative means never
        else:
            new = previous[offset:end] < limit
        count = int(np.count_nonzero(new))
        if count < need:
            need, reads, at = need - count, reads + count, at + end - offset
            continue
        last = at + int(np.flatnonzero(new)[need - 1])
        reads, at, start, need = reads + need, last + 1, last + 1, size
    return reads, last


def _conv_ifmap(schedule: Schedule, size: int) -> tuple[int, int | None]:
    """(reads, line of the last epoch's end) of an input whose words repeat or stick out."""
    rows, columns = len(schedule.rows), len(schedule.columns)
    outer = columns if schedule.config.dataflow == "is" else 1
    words, lines = [], []
    stream = schedule.stream("ifmap")
    for fold in range(outer * rows):
        block = schedule.block("ifmap", schedule.block_of("ifmap", fold))
        flat = block.ravel()
        asked = np.flatnonzero(flat >= 0)
        words.append(flat[asked])
        lines.append(asked // block.shape[1] + (fold * schedule.period + int(stream.first[fold])))
    reads, last = _replayed(_previous(np.concatenate(words).astype(np.int64)), columns // outer, size)
    if last is None:
        return reads, None
    line = np.concatenate(lines)
    run, offset = divmod(last, len(line))
    return reads, int(line[offset]) + run * rows * schedule.period


def _blocks(schedule: Schedule, operand: str) -> list[tuple[int, int]]:
    t = schedule.sizes[2]
    flow, folds = schedule.config.dataflow, len(schedule.columns)
    if operand == "ifmap":
        return [(schedule.layer.m * schedule.layer.k, 1 if flow == "is" else folds)]
    if flow == "os":
        return [(t * int(b), len(schedule.rows)) for b in schedule.columns]
    return [(schedule.layer.k * schedule.layer.n, 1 if flow == "ws" else folds)]


def turnover(schedule: Schedule, operand: str, kb: int, bandwidth: int = 10) -> Reads:
    """DRAM reads of "ifmap" or "filter" through a buffer of `kb` kB, first filled at `bandwidth` words per cycle.

    Raises ValueError where SCALE-Sim itself divides by zero: a buffer smaller than what the array asks for in a cycle.
    """
    size = epoch_size(kb)
    stream: Stream = schedule.stream(operand)
    width = int(stream.width.max())
    layer = schedule.layer
    distinct, alone = layer.distinct if operand == "ifmap" else (layer.k * layer.n, True)
    first = stream.lines[0]
    if distinct < size:
        sets = -(-distinct // (size // SETS))
        return Reads(
            count=distinct, fetch_cycles=-(-sets * (size // SETS) // bandwidth), first_line=first, last_turn=None
        )
    if size < width:
        raise ValueError(
            f"layer {layer.name!r}: the {operand} memory of {kb} kB turns over within a cycle, where SCALE-Sim divides "
            f"by zero; at least {-(-width // SETS) * 100 // 1024 + 1} kB are needed"
        )
    if alone:
        reads, position = _epochs(_blocks(schedule, operand), size)
        turn = None if position is None else stream.line_of(position)
    else:
        reads, turn = _conv_ifmap(schedule, size)
    return Reads(count=reads, fetch_cycles=-(-size // bandwidth), first_line=first, last_turn=turn)
