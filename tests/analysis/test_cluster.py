"""The sampler's tasks on Dask and Ray: the same pictures, workers that die, addresses that do not answer.

One smoke test of Dask runs with the others; real clusters of two workers each, and one that loses a worker in the
middle, are slow (`make test-cluster`).
"""

import importlib.util
import os
import signal
import threading
import time
import tomllib
from pathlib import Path

import pytest

from analysis import cli
from analysis.artifacts import Run
from analysis.cluster import Where
from analysis.experiment import Experiment
from analysis.plan import REFERENCE
from analysis.store import file_digest
from analysis.whatif import run as run_experiment

TEXT = """
name = "spread"
[quality]
pipeline = "shapes-sd"
prompts = {prompts}
steps = 1
batch = 1
calibration = 1
[[configuration]]
scheme = "int8-w8a8"
"""


def experiment(prompts: int) -> Experiment:
    return Experiment.from_dict(tomllib.loads(TEXT.format(prompts=prompts)))


def pictures(run: Run) -> dict[str, str]:
    return {path.name: file_digest(path) for path in (run.path / "batches").glob("*.safetensors")}


def test_dask_makes_the_same_pictures(tmp_path: Path) -> None:
    here = run_experiment(experiment(2), runs=tmp_path / "here", workers=1)
    there = run_experiment(experiment(2), runs=tmp_path / "there", workers=2, where=Where(backend="dask"))
    assert pictures(there) == pictures(here)
    assert there.quality == here.quality


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--backend", "dusk"], "unknown backend 'dusk'; did you mean 'dask'? (known: local, dask, ray)"),
        (["--address", "tcp://head:8786"], "address 'tcp://head:8786' needs a backend that has addresses: dask or ray"),
    ],
)
def test_a_wrong_place_is_one_line(options: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["whatif", "default", "--quiet", *options]) == 2
    assert capsys.readouterr().err == f"fpsim: {says}\n"


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:9'"):
        run_experiment(experiment(2), runs=tmp_path, where=Where(backend="dask", address="tcp://127.0.0.1:9"))


@pytest.mark.slow
def test_ray_makes_the_same_pictures(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.fail("Ray is not here; pip install 'fpsim[distributed]'")
    here = run_experiment(experiment(3), runs=tmp_path / "here", workers=1)
    there = run_experiment(experiment(3), runs=tmp_path / "there", workers=2, where=Where(backend="ray"))
    assert pictures(there) == pictures(here)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    from dask.distributed import Client, LocalCluster

    here = run_experiment(experiment(12), runs=tmp_path / "here", workers=2)
    killed: list[int] = []

    def kill_one(client: Client) -> None:
        """As soon as a few batches are there, one of the two workers dies without a word."""
        while len(list((tmp_path / "there").glob("*/batches/*.safetensors"))) < 4:
            time.sleep(0.05)
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        killer = threading.Thread(target=kill_one, args=(client,), daemon=True)
        killer.start()
        where = Where(backend="dask", address=cluster.scheduler_address)
        there = run_experiment(experiment(12), runs=tmp_path / "there", where=where)
        killer.join(timeout=10)
    assert killed
    assert pictures(there) == pictures(here)
    assert {row.configuration for row in there.quality} >= {REFERENCE, "int8-w8a8"}
