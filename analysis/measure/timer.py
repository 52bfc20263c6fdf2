"""Clocks: CUDA graphs and events on a GPU, the host's clock elsewhere."""

from __future__ import annotations

import datetime
import platform
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Call: TypeAlias = Callable[[], Any]

FLUSH_BYTES = 512 * 2**20  #: several times the L2 of any GPU, and long enough to write to hide the next launch
REPLAYS = 7


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Seconds of one call: median and quartiles over `repeats`, each of `calls` calls; clock and power seen then."""

    seconds: float
    low: float
    high: float
    calls: int
    repeats: int
    clock_mhz: float | None = None
    power_w: float | None = None

    def row(self) -> dict[str, object]:
        """As CSV cells."""
        return {
            "seconds": f"{self.seconds:.6g}",
            "low": f"{self.low:.6g}",
            "high": f"{self.high:.6g}",
            "calls": self.calls,
            "repeats": self.repeats,
            "clock_mhz": "" if self.clock_mhz is None else f"{self.clock_mhz:.0f}",
            "power_w": "" if self.power_w is None else f"{self.power_w:.0f}",
        }


SAMPLE_COLUMNS = ("seconds", "low", "high", "calls", "repeats", "clock_mhz", "power_w")


def summarise(times: Sequence[float], calls: int, state: tuple[float | None, float | None] = (None, None)) -> Sample:
    """The sample of total times of `calls` calls each."""
    each = sorted(t / calls for t in times)
    quarters = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else [each[0]] * 3
    return Sample(
        seconds=statistics.median(each),
        low=quarters[0],
        high=quarters[2],
        calls=calls,
        repeats=len(each),
        clock_mhz=state[0],
        power_w=state[1],
    )


class Timer(Protocol):
    """What a clock must do; `modes` are the (mode, cache) pairs it can time."""

    @property
    def modes(self) -> tuple[tuple[str, str], ...]: ...

    def roughly(self, call: Call) -> float:
        """Seconds of one call, warmed up, to choose how many to time."""

    def time(self, mode: str, calls: Sequence[Call], touch: Call) -> Sample:
        """Time `calls` in `mode`; `touch` runs before each measurement, outside it."""

    def check(self) -> None:
        """Raise OSError if the device no longer works after a failure."""

    def about(self) -> dict[str, object]:
        """Device and software, for provenance."""

    def close(self) -> None:
        """Stop what runs beside."""


class HostTimer:
    """The host's clock, for machines without a GPU; `clock` can be replaced in tests."""

    modes: tuple[tuple[str, str], ...] = (("host", "warm"),)

    def __init__(self, clock: Callable[[], float] = time.perf_counter, repeats: int = 3) -> None:
        self.clock, self.repeats = clock, repeats

    def roughly(self, call: Call) -> float:
        call()
        start = self.clock()
        call()
        return self.clock() - start

    def time(self, mode: str, calls: Sequence[Call], touch: Call) -> Sample:
        totals = []
        for _ in range(self.repeats):
            touch()
            start = self.clock()
            for call in calls:
                call()
            totals.append(self.clock() - start)
        return summarise(totals, len(calls))

    def check(self) -> None:
        """The host always works."""

    def about(self) -> dict[str, object]:
        import torch

        return {
            "name": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
        }

    def close(self) -> None:
        """Nothing runs beside."""


class Sensor:
    """SM clock and board power, read from `nvidia-smi` four times a second; None where there is no such program."""

    QUERY = "clocks.sm,power.draw"

    def __init__(self) -> None:
        self.latest: tuple[float | None, float | None] = (None, None)
        self._process: subprocess.Popen[str] | None = None
        program = shutil.which("nvidia-smi")
        if program is None:
            return
        command = [program, f"--query-gpu={self.QUERY}", "--format=csv,noheader,nounits", "-lms", "250", "-i", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        for line in process.stdout:
            parts = line.split(",")
            if len(parts) == 2:
                self.latest = (_number(parts[0]), _number(parts[1]))

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def smi(query: str) -> str:
    """One answer of `nvidia-smi --query-gpu`, "unknown" without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown"
    command = [program, f"--query-gpu={query}", "--format=csv,noheader", "-i", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() or "unknown"


class CudaTimer:
    """CUDA graphs and events on GPU 0.  Raises ValueError where torch finds no GPU."""

    modes: tuple[tuple[str, str], ...] = (("graph", "warm"), ("graph", "cold"), ("eager", "cold"))

    def __init__(self, repeats: int = REPLAYS) -> None:
        import torch

        if not torch.cuda.is_available():
            raise ValueError("no CUDA GPU found by torch; `--device cpu` tries the command out on the host's clock")
        self.torch, self.repeats = torch, repeats
        self.flushed = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
        self.stream = torch.cuda.Stream()
        self.sensor = Sensor()

    def _events(self) -> tuple[Any, Any]:
        return self.torch.cuda.Event(enable_timing=True), self.torch.cuda.Event(enable_timing=True)

    def _timed(self, run: Call, touch: Call, repeats: int) -> list[float]:
        pairs = [self._events() for _ in range(repeats)]
        for start, end in pairs:
            self.flushed.zero_()
            touch()
            start.record()
            run()
            end.record()
        self.torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in pairs]

    def roughly(self, call: Call) -> float:
        call()
        self.torch.cuda.synchronize()
        return min(self._timed(call, lambda: None, 2))

    def capture(self, calls: Sequence[Call]) -> Any:
        """A CUDA graph of the calls (each kind of call must have run before)."""
        torch = self.torch
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            calls[0]()  # libraries allocate their workspace of this stream outside the graph
            torch.cuda.synchronize()
            graph.capture_begin()
            try:
                for call in calls:
                    call()
            finally:
                graph.capture_end()
        torch.cuda.synchronize()
        return graph

    def time(self, mode: str, calls: Sequence[Call], touch: Call) -> Sample:
        if mode == "eager":
            calls[0]()
            times = [t for call in calls for t in self._timed(call, touch, 1)]
            return summarise(times, 1, self.sensor.latest)
        graph = self.capture(calls)
        graph.replay()
        times = self._timed(graph.replay, touch, self.repeats)
        del graph
        if self.torch.cuda.memory_reserved() > 64 * 2**30:
            self.torch.cuda.empty_cache()
        return summarise(times, len(calls), self.sensor.latest)

    def check(self) -> None:
        try:
            self.torch.cuda.synchronize()
        except RuntimeError as error:
            raise OSError(f"the GPU was lost ({error}); the same command goes on with the next case") from error

    def about(self) -> dict[str, object]:
        torch = self.torch
        return {
            "name": torch.cuda.get_device_name(0),
            "driver": smi("driver_version"),
            "power_limit": smi("power.limit"),
            "largest_sm_clock": smi("clocks.max.sm"),
            "clocks_locked": "no",
            "torch": torch.__version__,
            "cuda": str(torch.version.cuda),
            "cudnn": str(torch.backends.cudnn.version()),
            "python": platform.python_version(),
            "date": datetime.date.today().isoformat(),
        }

    def close(self) -> None:
        self.sensor.close()
