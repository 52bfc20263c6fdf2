"""Processes that `accelerate launch` (or torchrun) started, one per GPU: each samples its share of a run.

    accelerate launch --num_processes 8 -m analysis.cli run study.toml --device cuda

The first process leads: it reads the experiment, opens the run directory, tells the others which batches are missing,
scores and writes the page. The others wait to be told. Pictures go straight into the run directory, so a run that
was killed goes on with any number of processes, or with none (`fpsim run`), where it was.

Shares are consecutive, cut where the work adds up to equal parts: batches of one configuration lie together, so most
configurations are quantized by one process only.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import PartialState

#: A process with little to do waits for the others; only a dead one must not be waited for, and the launcher ends all.
LONGEST_WAIT = datetime.timedelta(days=7)


def launched() -> bool:
    """Whether a launcher started several processes of this command."""
    size = os.environ.get("WORLD_SIZE", "1")
    return "LOCAL_RANK" in os.environ and size.isdecimal() and int(size) > 1


def state(device: str) -> PartialState:
    """What accelerate knows of this process and the others; it chooses this process's GPU. device: "cpu" or "cuda"."""
    from accelerate import PartialState

    return PartialState(cpu=device == "cpu", timeout=LONGEST_WAIT)


@contextlib.contextmanager
def leading(device: str) -> Iterator[None]:
    """For the first process: inside, `Launched` shares work; the others end when it is left."""
    joined = state(device)
    try:
        yield
    except (ValueError, OSError):
        _told([None])
        raise  # after anything else, an interrupt too, the launcher ends the others
    _told([None])
    joined.destroy_process_group()


def following(device: str) -> None:
    """For every other process: do what the first one asks for, until it is through."""
    joined = state(device)
    while (asked := _told([None])) is not None:
        with contextlib.suppress(ValueError):  # the first process says it
            for _ in _share(joined, *asked):
                pass
    joined.destroy_process_group()


def is_first(device: str) -> bool:
    """Whether this is the process that leads."""
    return bool(state(device).is_main_process)


class Launched:
    """A context manager with the `run` of `analysis.workers.Workers`, over the processes that were launched.

    work : relative time of each task, for equal shares
    """

    def __init__(self, directory: Path, work: Sequence[float], device: str) -> None:
        self.directory, self.work, self.device = directory.resolve(), work, device

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, tasks: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Do `tasks`; yield (task index, `{"done": True}`): this process's as they end, the others' at the end.

        Raises ValueError with a process's message when it refuses a task.
        """
        joined = state(self.device)
        shares = equal_shares(list(enumerate(tasks)), self.work, joined.num_processes)
        _told([(str(self.directory), shares)])
        mine = {index for index, _ in shares[0]}
        for index in _share(joined, str(self.directory), shares):
            yield index, {"done": True}
        for index in range(len(tasks)):
            if index not in mine:
                yield index, {"done": True}


def equal_shares(tasks: Sequence[Any], work: Sequence[float], count: int) -> list[list[Any]]:
    """`tasks` cut into `count` consecutive parts of about equal work; some are empty if there are few tasks."""
    shares: list[list[Any]] = [[] for _ in range(count)]
    total, done = sum(work), 0.0
    for task, share in zip(tasks, work, strict=True):
        middle = done + share / 2
        shares[min(count - 1, int(count * middle / total))].append(task)
        done += share
    return shares


def _told(what: list[Any]) -> Any:
    """What the first process says, in every process. Every one of them must ask."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list(what, from_process=0)[0]


def _share(joined: PartialState, directory: str, shares: list[list[tuple[int, dict[str, Any]]]]) -> Iterator[int]:
    """Do this process's share, task by task. Raises ValueError, in every process, if one of them refused a task."""
    from accelerate.utils import gather_object

    from analysis.sampler import Tasks

    problem = ""
    try:
        with joined.split_between_processes(shares) as [mine]:
            made = Tasks(Path(directory)) if mine else None
            for index, task in mine:
                if made is not None:
                    made.perform(task)
                yield index
    except (ValueError, OSError) as error:
        problem = " ".join(str(error).split())
    problems = [said for said in gather_object([problem]) if said]
    if problems:
        raise ValueError(problems[0])
