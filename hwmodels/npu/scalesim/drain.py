"""The write buffer of SCALE-Sim 3.0.0, from one event to the next.

Results gather in rows as wide as the bandwidth.  Once more than half the buffer is full and no drain is going on, the
row being filled is cut off and up to ceil(words / 2 / bandwidth) rows drain, one a cycle.  Only the last row of a drain
is counted by what is in it: rows cut short earlier count in full, both as DRAM writes and as space made free.  If the
buffer fills up while a drain goes on, the array waits for its end.

Only the number of results per line matters, so the buffer can be told where the next event is.
"""

from __future__ import annotations

from collections import deque

from .schedule import Stream


class WriteBuffer:
    """State of the buffer while the events of one layer are put in order."""

    def __init__(self, stream: Stream, kb: int, bandwidth: int) -> None:
        self.stream, self.bandwidth = stream, bandwidth
        self.lines = len(stream.until) * stream.period
        self.size = kb * 1024
        self.half = -(-self.size // 2)
        self.rows_per_drain = -(-(self.size - self.half) // bandwidth)
        self.position = 0  # results stored so far
        self.cut = 0  # results already in rows
        self.freed = 0
        self.writes = 0
        self.drain_end = 0
        self.start: int | None = None
        self.stop = 0
        self._line_of: dict[int, int | None] = {}
        self._rows: deque[list[int]] = deque()  # [full rows, words of the short row that follows]

    def _next(self, cycle: int) -> int:
        """Position of the next event if the time stays `cycle`: a drain, or a buffer that is full."""
        wanted = self.size + self.freed - (self.half if cycle >= self.drain_end else 1)
        return max(wanted, self.position)

    def _line(self, position: int) -> int | None:
        """The line of a result, None after the last; the two positions waited for change only with a drain."""
        if position not in self._line_of:
            if len(self._line_of) > 2:
                self._line_of.clear()
            self._line_of[position] = self.stream.line_of(position) if position < self.stream.total else None
        return self._line_of[position]

    def next_line(self, stalls: int, line: int, until: int) -> int | None:
        """The first line from `line` on in which something happens, if there are no more stalls before it.

        A line after `until` may be given too early: something else happens first, and time will have moved on.
        """
        found = None
        begin = self._line(self.size + self.freed - self.half)
        if begin is not None:
            found = max(begin, line, self.drain_end - stalls)
            if begin < found and (found <= until or found >= self.lines):  # it may be one without results
                position = self.stream.before(found)
                found = self.stream.line_of(position) if position < self.stream.total else None
        full = self._line(self.size + self.freed - 1)
        if full is not None and full >= line and full + stalls < self.drain_end and (found is None or full < found):
            found = full
        return found

    def run_line(self, line: int, cycle: int) -> int:
        """Store the results of one line; the cycles the array waits."""
        end = self.stream.before(line + 1)
        self.position = max(self.position, self.stream.before(line))
        now = cycle
        while True:
            at = self._next(now)
            if at >= end:
                break
            self.position = at + 1
            if now < self.drain_end:
                now = self.drain_end
            else:
                self._cut_row()
                self.drain_end = self._drain(now)
        self.position = end
        return now - cycle

    def _cut_row(self) -> None:
        full, part = divmod(self.position - self.cut, self.bandwidth)
        self.cut = self.position
        self._rows.append([full, part])

    def _drain(self, cycle: int) -> int:
        """Drain up to half a buffer from `cycle` on; the cycle of its last row."""
        rows, short = 0, 0
        while self._rows and rows < self.rows_per_drain:
            group = self._rows[0]
            take = min(group[0], self.rows_per_drain - rows)
            rows, group[0] = rows + take, group[0] - take
            if take:
                short = 0
            if not group[0]:
                if group[1] and rows < self.rows_per_drain:
                    rows, short = rows + 1, self.bandwidth - group[1]
                    group[1] = 0
                if not group[1]:
                    self._rows.popleft()
                else:
                    break
        words = rows * self.bandwidth - short
        self.writes += words
        self.freed += words
        if self.start is None:
            self.start = cycle
        self.stop = max(self.stop, cycle + rows - 1)
        return cycle + rows - 1

    def finish(self, cycle: int) -> None:
        """Drain what is left after the last line."""
        self.position = self.stream.total
        if self.position > self.cut:
            self._cut_row()
        while self._rows:
            cycle = self._drain(cycle) + 1
