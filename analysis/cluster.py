"""The sampler's tasks on a cluster: joblib hands them to Dask or Ray, which know other machines.

Workers need this package and the run directory at the same path (a shared file system): pictures go from a worker
straight into it, and only task numbers travel back. A worker that dies takes its task with it; Dask and Ray give that
task to another one, and what is finished stays finished. Nothing here keeps state: stopped, the same command goes on.

    dask scheduler & dask worker tcp://head:8786 --nworkers 8 --nthreads 1
    fpsim run experiments/origin.toml --backend dask --address tcp://head:8786

    ray start --head
    fpsim run experiments/origin.toml --backend ray --address auto
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fpsim._names import unknown

BACKENDS = ("local", "dask", "ray")


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where workers run: processes of this machine, or a cluster's. address: of its scheduler; None starts one here.

    launched : the processes are there already, `accelerate launch` started them (`analysis.launch`)
    """

    backend: str = "local"
    address: str | None = None
    launched: bool = False

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise unknown("backend", self.backend, BACKENDS)
        if self.address is not None and self.backend == "local":
            raise ValueError(f"address {self.address!r} needs a backend that has addresses: dask or ray")


HERE = Where()

_SAMPLERS: dict[str, Any] = {}  # in a worker: run directory -> its sampler, which holds the pipeline


class Cluster:
    """A context manager with the `run` of `analysis.workers.Workers`.

    where : a cluster; count : workers to start if it has no address, otherwise all that the cluster has are used
    Entering raises ValueError for an address that does not answer, ModuleNotFoundError without the backend's package.
    """

    def __init__(self, where: Where, count: int, directory: Path) -> None:
        self.where, self.count, self.directory = where, count, directory.resolve()
        self._stack = contextlib.ExitStack()
        self._parallel: Any = None

    def __enter__(self) -> Cluster:
        self._parallel = self._stack.enter_context(joined(self.where, self.count))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, tasks: Sequence[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Do `tasks`, in about their order; yield (task index, `{"done": True}`) as they end.

        Raises ValueError with a worker's message when it refuses a task.
        """
        import joblib

        work = (joblib.delayed(perform)(str(self.directory), index, task) for index, task in enumerate(tasks))
        if self.where.backend != "ray":
            for index in self._parallel(work):
                yield index, {"done": True}
            return
        for index in self._seen(tasks, work):
            yield index, {"done": True}

    def _seen(self, tasks: Sequence[Any], work: Iterator[Any]) -> Iterator[int]:
        """Ray's joblib backend tells nothing until all is done; batches that are there say it themselves."""
        from concurrent.futures import ThreadPoolExecutor
        from concurrent.futures import wait as wait_for

        from analysis.store import RunDirectory

        aside = ThreadPoolExecutor(1)
        all_of_it = aside.submit(lambda: list(self._parallel(work)))
        aside.shutdown(wait=False)
        run, left = RunDirectory(path=self.directory), set(range(len(tasks)))
        while not all_of_it.done():
            wait_for([all_of_it], timeout=0.5)
            there = {index for index in left if run.batch_path(tasks[index].get("identity", "")).exists()}
            yield from sorted(there)
            left -= there
        all_of_it.result()  # raises what a worker raised
        yield from sorted(left)


@contextlib.contextmanager
def joined(where: Where, count: int) -> Iterator[Any]:
    """joblib's Parallel with `count` processes of this machine, or on a cluster, giving results as they come.

    Raises ValueError for an address that does not answer, ModuleNotFoundError without the backend's package.
    """
    import joblib

    with contextlib.ExitStack() as stack:
        backend = "loky" if where.backend == "local" else where.backend
        if where.backend != "local":
            {"dask": _dask, "ray": _ray}[where.backend](where.address, count, stack)
        stack.enter_context(joblib.parallel_config(backend=backend, n_jobs=-1 if where.address else count))
        # Tasks are long: no batching, and all of them handed over, so that the backend fills free workers itself.
        # Ray's backend gives results only when all are there: no progress.
        order = "list" if where.backend == "ray" else "generator_unordered"
        yield joblib.Parallel(batch_size=1, pre_dispatch="all", return_as=order)


def perform(directory: str, index: int, task: dict[str, Any]) -> int:
    """One task, in a worker; `index` again. The pipeline is kept for the next."""
    from analysis.sampler import Tasks

    if directory not in _SAMPLERS:
        _SAMPLERS.clear()  # one run at a time in memory
        _SAMPLERS[directory] = Tasks(Path(directory))
    _SAMPLERS[directory].perform(task)
    return index


def _dask(address: str | None, count: int, stack: contextlib.ExitStack) -> None:
    from dask.distributed import Client, LocalCluster

    if address is None:
        cluster = stack.enter_context(LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None))
        stack.enter_context(Client(cluster))
        return
    try:
        stack.enter_context(Client(address, timeout=20))
    except OSError as error:
        raise ValueError(f"no Dask scheduler answers at {address!r}: {error}") from error


def _ray(address: str | None, count: int, stack: contextlib.ExitStack) -> None:
    import ray
    from ray.util.joblib import register_ray

    try:
        if address is None:
            ray.init(num_cpus=count, include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise ValueError(f"no Ray cluster answers at {address!r}: {error}") from error
    stack.callback(ray.shutdown)
    register_ray()
