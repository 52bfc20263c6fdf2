"""One layer of SCALE-Sim 3.0.0 with its memories: DRAM reads and writes, stalls, first and last cycles.

Between events (a fetch, a drain, a full buffer) nothing can stall, so only lines with events are looked at.  In such a
line each operand reports when it would be served, and the largest delay is added to the stalls of all that follow:

* a fetch ends `each` + 1 cycles after the last one did; if that is d cycles after the request would have been served,
  the request is moved by d, and if d > 0 by d again: SCALE-Sim adds a stall twice, and takes time back if d < 0;
* results wait for a drain only if the buffer is full.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from .cfg import Config
from .closed import closed_forms
from .drain import WriteBuffer
from .schedule import Schedule
from .topology import Layer
from .turnover import turnover
from .window import Fetches, fetches

OPERANDS = ("ifmap", "filter")
HIT = 1  # cycles from a request to its answer


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Accesses of one operand at one memory, with the cycles of the first and the last."""

    start: int
    stop: int
    count: int

    @property
    def bandwidth(self) -> float:
        """Words per cycle between first and last access."""
        return self.count / (self.stop - self.start + 1)


@dataclass(frozen=True, kw_only=True)
class LayerResult:
    """Everything SCALE-Sim reports of one layer."""

    total_cycles: int
    stall_cycles: int
    overall: float
    mapping: float
    compute: float
    sram: tuple[Traffic, Traffic, Traffic]
    dram: tuple[Traffic, Traffic, Traffic]

    @property
    def with_prefetch(self) -> int:
        """Cycles from the first fetch to the last write."""
        return self.dram[2].stop - min(self.dram[0].start, self.dram[1].start)


class _Clock:
    """Stalls so far, by the line after which they begin."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.after: list[int] = []

    def add(self, line: int, stall: int) -> None:
        self.lines.append(line)
        self.after.append((self.after[-1] if self.after else 0) + stall)

    @property
    def stalls(self) -> int:
        return self.after[-1] if self.after else 0

    def cycle(self, line: int) -> int:
        """The cycle in which a line asks."""
        before = bisect_left(self.lines, line)
        return line + (self.after[before - 1] if before else 0)


class _ReadBuffer:
    """Fetches of one operand as they happen, and how late each answer is."""

    def __init__(self, plan: Fetches) -> None:
        self.plan, self.at, self.last = plan, 0, -1
        self.late: dict[int, int] = {}

    @property
    def next_line(self) -> int | None:
        return self.plan.line[self.at] if self.at < len(self.plan.line) else None

    def serve(self, line: int, cycle: int) -> int:
        """Cycles beyond a hit that the requests of `line` take."""
        if self.next_line != line:
            return 0
        offset = HIT
        for _ in range(self.plan.moves[self.at]):
            self.last += self.plan.each + 1
            wait = self.last - (cycle + offset)
            offset += 2 * wait if wait > 0 else wait
        self.at += 1
        self.late[line] = offset - HIT
        return offset - HIT


def _run(schedule: Schedule, buffers: tuple[_ReadBuffer, ...], writes: WriteBuffer) -> tuple[_Clock, dict[int, int]]:
    """Put all events in order; (the clock, stalls of the write buffer by line)."""
    clock, waits = _Clock(), {}
    line = 0
    while True:
        lines = [b.next_line for b in buffers if b.next_line is not None]
        write = writes.next_line(clock.stalls, line, min(lines, default=schedule.lines))
        if write is not None:
            lines.append(write)
        if not lines:
            break
        line = min(lines)
        cycle = line + clock.stalls
        delays = [b.serve(line, cycle) for b in buffers]
        wait = writes.run_line(line, cycle)
        if wait:
            waits[line] = wait
        clock.add(line, max(*delays, wait, 0) if buffers else wait)
        line += 1
    last = schedule.lines - 1
    writes.finish(clock.cycle(last) + waits.get(last, 0))
    return clock, waits


def replay(layer: Layer, config: Config) -> LayerResult:
    """The full result of one layer.  Raises ValueError where SCALE-Sim itself fails on it."""
    schedule = Schedule(layer, config)
    ofmap = schedule.stream("ofmap")
    user = config.mode == "USER"
    writes = WriteBuffer(ofmap, config.ofmap_kb, config.bandwidth if user else config.columns)
    sizes = (config.ifmap_kb, config.filter_kb)
    buffers: tuple[_ReadBuffer, ...] = ()
    if user:
        rates = (config.ifmap_bandwidth, config.filter_bandwidth)
        buffers = tuple(
            _ReadBuffer(fetches(schedule, operand, kb, rate))
            for operand, kb, rate in zip(OPERANDS, sizes, rates, strict=True)
        )
    clock, waits = _run(schedule, buffers, writes)
    asked = (schedule.ifmap_lines(), schedule.stream("filter").lines)
    dram, sram = [], []
    closed = closed_forms((layer,), config)
    counts = (int(closed.ifmap_sram[0]), int(closed.filter_sram[0]))
    for i, operand in enumerate(OPERANDS):
        late = buffers[i].late if user else {}
        begin, end = (clock.cycle(line) + HIT + late.get(line, 0) for line in asked[i])
        sram.append(Traffic(start=begin, stop=end, count=counts[i]))
        if user:
            plan = buffers[i].plan
            dram.append(Traffic(start=-plan.first, stop=buffers[i].last, count=plan.reads))
        else:
            reads = turnover(schedule, operand, sizes[i])
            if reads.last_turn is None:
                dram.append(Traffic(start=-reads.fetch_cycles, stop=-1, count=reads.count))
            else:
                stop = clock.cycle(reads.last_turn) + 1
                dram.append(Traffic(start=reads.first_line - reads.fetch_cycles, stop=stop, count=reads.count))
    first, last = ofmap.lines
    final = schedule.lines - 1
    total = clock.cycle(final) + waits.get(final, 0)
    sram.append(
        Traffic(
            start=clock.cycle(first) + waits.get(first, 0),
            stop=clock.cycle(last) + waits.get(last, 0),
            count=int(closed.ofmap_sram[0]),
        )
    )
    dram.append(Traffic(start=writes.start or 0, stop=writes.stop, count=writes.writes))
    return LayerResult(
        total_cycles=total,
        stall_cycles=clock.stalls,
        overall=layer.m * layer.n * layer.k * 100 / (total * config.rows * config.columns),
        mapping=float(closed.mapping[0]),
        compute=float(closed.compute[0]),
        sram=(sram[0], sram[1], sram[2]),
        dram=(dram[0], dram[1], dram[2]),
    )
