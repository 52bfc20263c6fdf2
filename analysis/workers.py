"""Worker processes that outlive nothing: tasks go in as JSON lines, events come out, both over pipes.

Processes rather than threads, one thread each: matrix products this small run best so, and sums do not depend on how
many cores the machine has. Plain subprocesses rather than a pool, because a pool imports the caller's script again
(which breaks notebooks and unguarded scripts) and keeps its processes when the caller is killed; here a worker whose
parent is gone fails at its next event, and ends.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from analysis.errors import one_line

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
MOST = 16  # workers by default; each holds its own copy of the model


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(device: str) -> tuple[str, ...]:
    """The GPUs that "cuda" stands for, as CUDA_VISIBLE_DEVICES names them; empty for any other device."""
    if device != "cuda":
        return ()
    import torch

    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    count = torch.cuda.device_count()
    return tuple(named[:count]) if named else tuple(map(str, range(count)))


def quiet() -> None:
    """Turn off what libraries say while loading: their bars would cut through ours. For programs, not for libraries."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read once, when transformers is imported
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


class Workers:
    """`count` processes running `python -m module arguments`; use as a context manager, it ends them all.

    devices: values of CUDA_VISIBLE_DEVICES that the processes take in turn, so that they share several GPUs
    """

    def __init__(
        self, module: str, arguments: Sequence[str], count: int, log: Path, devices: Sequence[str] = ()
    ) -> None:
        self._log: IO[bytes] = log.open("ab")
        self._log_path = log
        environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONUNBUFFERED": "1"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment | ({"CUDA_VISIBLE_DEVICES": devices[index % len(devices)]} if devices else {}),
                start_new_session=True,  # Ctrl-C is for us; we end them
            )
            for index in range(count)
        ]

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._log.close()

    def run(self, tasks: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Hand out `tasks` in order; yield (task index, event) as events come, `{"done": true}` ending each task.

        Raises ValueError with a worker's message when it refuses a task, ChildProcessError when a worker dies.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(tasks)):
            waiting.put(index)
        events: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        for process in self._processes:
            threading.Thread(target=_serve, args=(process, tasks, waiting, events), daemon=True).start()
        unfinished = len(tasks)
        while unfinished:
            index, event = events.get()
            if "error" in event:
                raise ValueError(event["error"])
            if "died" in event:
                raise ChildProcessError(
                    f"a worker process ended with exit code {event['died']}{self._last_words()}; "
                    "the same command goes on from here (with less memory: --workers 1)"
                )
            unfinished -= "done" in event
            yield index, event

    def _last_words(self) -> str:
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f" ({lines[-1].strip()[:160]}; all of it in {self._log_path})" if lines else ""


def _serve(
    process: subprocess.Popen[bytes],
    tasks: Sequence[Any],
    waiting: queue.SimpleQueue[int],
    events: queue.SimpleQueue[tuple[int, dict[str, Any]]],
) -> None:
    """Feed one process until there is nothing left, passing on what it says."""
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise ValueError("a worker needs both pipes")
    index = -1
    try:
        while True:
            index = waiting.get_nowait()
            stdin.write(json.dumps(tasks[index]).encode() + b"\n")
            stdin.flush()
            while True:
                line = stdout.readline()
                if not line:
                    events.put((index, {"died": process.wait()}))
                    return
                event = json.loads(line)
                events.put((index, event))
                if "done" in event or "error" in event:
                    break
    except queue.Empty:
        return
    except (OSError, ValueError):  # the pipe closed under us: the process is gone, or we are being ended
        events.put((index, {"died": process.poll()}))


def serve(handle: Any) -> None:
    """A worker's main loop: `handle(task, tell)` for each line of stdin; `tell(event)` reports progress.

    ValueError and OSError become an `error` event; anything else ends the process with its traceback in the log. What
    libraries print goes to the log too: the real stdout is only for events.
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")

    for line in sys.stdin:
        try:
            handle(json.loads(line), tell)
        except BrokenPipeError:  # the parent is gone
            return
        except (ValueError, OSError) as error:
            tell({"error": one_line(error)})
        else:
            tell({"done": True})
