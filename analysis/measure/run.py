"""Time a list of cases, row by row, within a budget."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.measure.cases import KINDS, SUITES, Case, cases
from analysis.measure.table import Table, write_toml
from analysis.measure.timer import SAMPLE_COLUMNS, CudaTimer, HostTimer, Timer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from analysis.measure.kernels import Arena

KEY = ("kind", "shape", "format", "variant", "mode", "cache")
COLUMNS = (*KEY, *SAMPLE_COLUMNS, "suite", "note")
KERNELS, PROVENANCE = "kernels.csv", "kernels.toml"

ARENA_BYTES = 4 * 2**30
GRAPH_SECONDS = 8e-4  #: time of one replay that the number of calls aims at
MOST_CALLS, LEAST_CALLS = 40, 3
EAGER_CALLS = 7
OTHER_MODES = 3  #: the first (mode, cache) is timed for every case, the others for one in three


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run got: rows written, cases a kernel refused, cases the budget left out."""

    written: int
    failed: int
    left: int
    seconds: float


@contextmanager
def no_collection() -> Iterator[None]:
    """Python's collector stays off: it could free CUDA graphs while another one is captured."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def failures() -> tuple[type[Exception], ...]:
    """What is raised where a library has no kernel for a shape or memory runs out, by torch or by Triton."""
    if find_spec("triton") is None:
        return (RuntimeError,)
    return (RuntimeError, import_module("triton").TritonError)


def find_timer(device: str) -> Timer:
    """The clock for "cuda" or "cpu"; ValueError for another name, or where there is no GPU."""
    if device == "cuda":
        return CudaTimer()
    if device == "cpu":
        return HostTimer()
    raise ValueError(f"unknown device {device!r} (known: cuda, cpu)")


def measure(
    out: Path,
    kinds: Iterable[str] = KINDS,
    suites: Iterable[str] = SUITES,
    formats: Iterable[str] = (),
    budget: float = math.inf,
    device: str = "cuda",
    command: str = "fpsim measure",
    progress: Callable[[str], None] = lambda text: None,
    timer: Timer | None = None,
    chosen: Iterable[Case] | None = None,
) -> Progress:
    """Append rows to out/kernels.csv until every case has one or `budget` seconds are over; provenance beside it.

    chosen: these cases instead of those of kinds, suites and formats.  A case that the library refuses gets a row with
    its message and no time.  Raises ValueError for unknown names, no GPU, or a file of another shape.
    """
    import torch

    from analysis.measure.kernels import Arena

    started = time.monotonic()
    todo = list(chosen) if chosen is not None else cases(kinds, suites, formats)
    table = Table(out / KERNELS, COLUMNS, KEY)
    timer = timer or find_timer(device)
    arena = Arena(device, ARENA_BYTES if device == "cuda" else 2**24)
    written = failed = left = 0
    try:
        write_toml(
            out / PROVENANCE,
            "Where kernels.csv comes from. Columns: see analysis/measure.",
            {
                "run": {
                    **timer.about(),
                    "command": command,
                    "operands": "normally distributed",
                    "convolutions": "cuDNN's heuristic choice (benchmark off)",
                }
            },
        )
        with no_collection(), torch.no_grad():
            for mode, cache in timer.modes:
                for case in todo if (mode, cache) == timer.modes[0] else todo[::OTHER_MODES]:
                    identity = {**case.identity, "mode": mode, "cache": cache}
                    if table.has(**identity):
                        continue
                    if time.monotonic() - started > budget:
                        left += 1
                        continue
                    row = _row(case, timer, arena, mode, cache == "cold")
                    table.add(**identity, suite=case.suite, **row)
                    if row["note"]:
                        failed += 1
                        timer.check()
                    written += 1
                    if written % 100 == 0:
                        progress(f"{mode}/{cache}: {written} rows, {time.monotonic() - started:.0f} s")
    finally:
        timer.close()
    return Progress(written=written, failed=failed, left=left, seconds=time.monotonic() - started)


def _row(case: Case, timer: Timer, arena: Arena, mode: str, cold: bool) -> dict[str, object]:
    from analysis.measure.kernels import calls_of

    try:
        (call,), _ = calls_of(case, arena, 1, cold)
        rough = timer.roughly(call)
        count = EAGER_CALLS if mode == "eager" else min(max(math.ceil(GRAPH_SECONDS / rough), LEAST_CALLS), MOST_CALLS)
        calls, touch = calls_of(case, arena, count, cold)
        return {**timer.time(mode, calls, touch).row(), "note": ""}
    except failures() as error:
        return {**dict.fromkeys(SAMPLE_COLUMNS, ""), "note": " ".join(str(error).split())[:160]}
