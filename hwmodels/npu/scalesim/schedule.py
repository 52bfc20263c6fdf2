"""Which element is asked for in which line: the schedule SCALE-Sim lays out before it simulates anything.

The work (Sr x Sc x T) is cut into folds of at most R x C, columns outside, rows inside; folds never overlap.  Each
takes P lines (cycles without stalls), and in each line the array asks for a few words of each operand.  A stream is an
h x w block per fold that starts at line `first` of the fold; if it is skewed, column c is one line later than c - 1.

| | rows Sr | columns Sc | steps T | ifmap | filter | ofmap |
|---|---|---|---|---|---|---|
| os | M | N | K | T x a at 0 | T x b at 0 | a x b at T - 1 + R - a |
| ws | K | N | M | T x a at R | a x b at R - a, not skewed | T x b at 2R - 1 |
| is | K | M | N | a x b at R - a, not skewed | T x a at R | T x b at 2R - 1 |

a and b are the rows and columns a fold uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .cfg import Config
from .topology import Indices, Layer


def skewed(block: Indices) -> Indices:
    """(h + w - 1, w): column c of `block` starts c lines later; -1 where nothing is asked for."""
    h, w = block.shape
    if w == 1:
        return block.copy()
    flat = np.full((h + w - 1) * w, -1, dtype=block.dtype)
    size = flat.itemsize
    np.lib.stride_tricks.as_strided(flat, (h, w), (w * size, (w + 1) * size))[...] = block
    return flat.reshape(h + w - 1, w)


def widths(total: int, size: int) -> Indices:
    """How much of the array each fold along one axis uses."""
    folds = -(-total // size)
    out = np.full(folds, size, dtype=np.int64)
    out[-1] = total - (folds - 1) * size
    return out


@dataclass(frozen=True)
class Stream:
    """The words of one operand, fold by fold: block heights, widths, first lines, all of shape (fc * fr,)."""

    height: Indices
    width: Indices
    first: Indices
    skew: bool
    period: int

    @cached_property
    def until(self) -> Indices:
        """Elements asked for up to the end of each fold."""
        return np.cumsum(self.height * self.width)

    @property
    def total(self) -> int:
        return int(self.until[-1])

    def profile(self, fold: int) -> Indices:
        """Elements asked for up to the end of each line of one fold's block."""
        h, w = int(self.height[fold]), int(self.width[fold])
        if not self.skew:
            return np.arange(1, h + 1) * w
        line = np.arange(h + w - 1)
        count = np.minimum(np.minimum(line + 1, h + w - 1 - line), min(h, w))
        return np.cumsum(count)

    @cached_property
    def _profiles(self) -> dict[tuple[int, int], Indices]:
        return {}

    def _profile(self, fold: int) -> Indices:
        key = (int(self.height[fold]), int(self.width[fold]))
        if key not in self._profiles:
            self._profiles[key] = self.profile(fold)
        return self._profiles[key]

    def line_of(self, position: int) -> int:
        """The line in which element number `position` is asked for."""
        fold = int(np.searchsorted(self.until, position, side="right"))
        within = position - (int(self.until[fold - 1]) if fold else 0)
        line = int(np.searchsorted(self._profile(fold), within, side="right"))
        return fold * self.period + int(self.first[fold]) + line

    def before(self, line: int) -> int:
        """How many elements are asked for in lines before `line`."""
        fold, within = divmod(line, self.period)
        if fold >= len(self.until):
            return self.total
        start = int(self.until[fold - 1]) if fold else 0
        index = within - int(self.first[fold])
        if index <= 0:
            return start
        profile = self._profile(fold)
        return start + int(profile[min(index, len(profile)) - 1])

    @property
    def lines(self) -> tuple[int, int]:
        """First and last line in which anything is asked for."""
        return self.line_of(0), self.line_of(self.total - 1)


@dataclass(frozen=True)
class Schedule:
    """The folds of one layer on one array."""

    layer: Layer
    config: Config

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """(Sr, Sc, T)."""
        m, n, k = self.layer.m, self.layer.n, self.layer.k
        return {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[self.config.dataflow]

    @cached_property
    def rows(self) -> Indices:
        """Rows each row fold uses."""
        return widths(self.sizes[0], self.config.rows)

    @cached_property
    def columns(self) -> Indices:
        """Columns each column fold uses."""
        return widths(self.sizes[1], self.config.columns)

    @property
    def period(self) -> int:
        """Lines of one fold."""
        r, c, t = self.config.rows, self.config.columns, self.sizes[2]
        return r + c + t - 2 if self.config.dataflow == "os" else 2 * r + c + t - 2

    @property
    def lines(self) -> int:
        """Lines of all folds."""
        return len(self.rows) * len(self.columns) * self.period

    @cached_property
    def _streams(self) -> dict[str, Stream]:
        return {operand: self._stream(operand) for operand in ("ifmap", "filter", "ofmap")}

    def stream(self, operand: str) -> Stream:
        """The stream of "ifmap", "filter" or "ofmap", as if no window stuck out."""
        return self._streams[operand]

    def _stream(self, operand: str) -> Stream:
        r, t, flow = self.config.rows, self.sizes[2], self.config.dataflow
        a = np.tile(self.rows, len(self.columns))
        b = np.repeat(self.columns, len(self.rows))
        steps, zero = np.full_like(a, t), np.zeros_like(a)
        if operand == "ofmap":
            if flow == "os":
                return Stream(a, b, t - 1 + r - a, True, self.period)
            return Stream(steps, b, zero + 2 * r - 1, True, self.period)
        if operand == self.stationary:
            return Stream(a, b, r - a, False, self.period)
        if flow == "os":
            return Stream(steps, a if operand == "ifmap" else b, zero, True, self.period)
        return Stream(steps, a, zero + r, True, self.period)

    def stack_shape(self, operand: str) -> tuple[int, int, int]:
        """(folds, lines of each, lanes) of `stack`."""
        r, c, flow = self.config.rows, self.config.columns, self.config.dataflow
        sr, _, t = self.sizes
        if self.by_row(operand):
            return len(self.rows), t, r
        return len(self.columns), sr if flow != "os" else t, c

    @cached_property
    def _stacks(self) -> dict[str, Indices]:
        return {}

    def stack(self, operand: str) -> Indices:
        """All words of an operand, (folds along one axis * lines, lanes), -2 where a lane or a window has none.

        The folds along one axis on top of each other, each as wide as the array: read as one skewed block, this is the
        order SCALE-Sim fetches them in ahead of need, and its slices are what the folds ask for.
        """
        if operand in self._stacks:
            return self._stacks[operand]
        folds, height, size = self.stack_shape(operand)
        total = self.sizes[0 if self.by_row(operand) else 1]
        # four bytes a word, as long as they are enough, to move half as much
        words = self.layer.words if operand == "ifmap" else self.layer.k * self.layer.n
        dtype = np.int32 if words < np.iinfo(np.int32).max else np.int64
        stack = np.full((folds * height, size), -2, dtype=dtype)
        for fold in range(folds):
            lanes = np.arange(fold * size, min(fold * size + size, total))
            stack[fold * height : (fold + 1) * height, : len(lanes)] = self._words(operand, lanes, height, dtype)
        if operand == "ifmap" and self.layer.overhangs:
            stack[stack < 0] = -2
        self._stacks[operand] = stack
        return stack

    def fetched(self, operand: str) -> Indices:
        """All words of an operand in the order they are fetched, gaps left out."""
        stack = self.stack(operand)
        flat = (stack if operand == self.stationary else skewed(stack)).ravel()
        return flat[flat >= 0]

    @property
    def stationary(self) -> str:
        """The operand that is loaded, and not streamed ("" for os)."""
        return {"ws": "filter", "is": "ifmap"}.get(self.config.dataflow, "")

    def by_row(self, operand: str) -> bool:
        """Whether an operand is cut along the array's rows; the other way is along its columns."""
        return (self.config.dataflow != "is") == (operand == "ifmap")

    @cached_property
    def _edges(self) -> dict[str, Indices]:
        return {}

    def edges(self, operand: str) -> Indices:
        """First line in the stack of each block of an operand, and the end of the last."""
        if operand not in self._edges:
            if operand == self.stationary:
                ends = np.cumsum(np.tile(self.rows, len(self.columns)))
                self._edges[operand] = np.concatenate(([0], ends))
            else:
                folds = len(self.rows if self.by_row(operand) else self.columns)
                self._edges[operand] = np.arange(folds + 1) * self.sizes[2]
        return self._edges[operand]

    def block_of(self, operand: str, fold: int) -> int:
        """Which block of its stack a fold asks for."""
        if operand == self.stationary:
            return fold
        column, row = divmod(fold, len(self.rows))
        return row if self.by_row(operand) else column

    def block(self, operand: str, number: int) -> Indices:
        """Block `number` of a stack as a fold asks for it: (lines, lanes) in order, negative where it asks for none."""
        begin, end = self.edges(operand)[number : number + 2]
        stack = self.stack(operand)
        if operand == self.stationary:
            return stack[begin:end][::-1]
        used = (self.rows if self.by_row(operand) else self.columns)[number]
        return skewed(stack[begin:end, :used])

    def _words(self, operand: str, lanes: Indices, height: int, dtype: type[np.signedinteger]) -> Indices:
        """(height, lanes) of the operand matrix, lanes along the array's edge."""
        steps, flow = np.arange(height), self.config.dataflow
        if operand == "ifmap":
            if flow == "ws":
                return self.layer.addresses(steps, lanes, dtype)
            return self.layer.addresses(lanes, steps, dtype).T
        if flow == "is":
            return np.add.outer(steps.astype(dtype), lanes.astype(dtype) * self.layer.n)
        return np.add.outer(steps.astype(dtype) * self.layer.n, lanes.astype(dtype))

    def _ifmap_block(self, fold: int) -> Indices:
        """`block` of the input for a fold, without making the whole stack."""
        r, c, flow = self.config.rows, self.config.columns, self.config.dataflow
        sr, sc, t = self.sizes
        column, row = divmod(fold, len(self.rows))
        down = np.arange(row * r, min(row * r + r, sr))
        if flow == "os":
            return skewed(np.ascontiguousarray(self.layer.addresses(down, np.arange(t)).T))
        if flow == "ws":
            return skewed(self.layer.addresses(np.arange(t), down))
        across = np.arange(column * c, min(column * c + c, sc))
        return self.layer.addresses(across, down).T[::-1]

    def ifmap_lines(self) -> tuple[int, int]:
        """First and last line in which the input is asked for, windows that stick out taken into account."""
        stream = self.stream("ifmap")
        first, last = stream.lines
        if self.layer.overhangs:
            for fold in range(len(stream.until) - 1, -1, -1):
                asked = np.flatnonzero((self._ifmap_block(fold) >= 0).any(axis=1))
                if len(asked):
                    last = fold * self.period + int(stream.first[fold]) + int(asked[-1])
                    break
        return first, last
