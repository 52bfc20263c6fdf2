"""Worker processes: order, progress, mistakes, sudden death, and an end without orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from analysis import workers
from analysis.workers import Workers

MODULE = """
import os, time
from analysis.workers import serve

def handle(task, tell):
    print("library noise on stdout")
    if task == "refuse":
        raise ValueError("no\\nsuch thing")
    if task == "full":
        raise OSError(28, "No space left on device", "runs/x")
    if task == "die":
        os._exit(7)
    if task == "bug":
        {}["missing"]
    if task == "sleep":
        while True:
            tell({"step": 1})
            time.sleep(0.05)
    tell({"step": task})

serve(handle)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "chore.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return "chore"


def test_every_task_is_done_once_whatever_the_number_of_workers(module: str, tmp_path: Path) -> None:
    for count in (1, 3):
        with Workers(module, [], count, tmp_path / "log") as pool:
            events = list(pool.run(list(range(7))))
        assert sorted(event["step"] for _, event in events if "step" in event) == list(range(7))
        assert sorted(index for index, event in events if "done" in event) == list(range(7))
    assert "library noise" in (tmp_path / "log").read_text()


def test_a_refused_task_is_a_value_error_in_one_line(module: str, tmp_path: Path) -> None:
    with Workers(module, [], 2, tmp_path / "log") as pool, pytest.raises(ValueError, match="no such thing"):
        list(pool.run([1, "refuse"]))


def test_a_full_disk_is_said_with_its_file(module: str, tmp_path: Path) -> None:
    with Workers(module, [], 1, tmp_path / "log") as pool, pytest.raises(ValueError, match=r"^No space .*: runs/x$"):
        list(pool.run(["full"]))


@pytest.mark.parametrize(("task", "says"), [("die", "exit code 7"), ("bug", r"exit code 1 \(KeyError: 'missing'")])
def test_a_worker_that_dies_says_how_to_go_on(task: str, says: str, module: str, tmp_path: Path) -> None:
    with Workers(module, [], 1, tmp_path / "log") as pool, pytest.raises(ChildProcessError, match=says) as raised:
        list(pool.run([1, task]))
    assert "the same command goes on from here" in str(raised.value)


def test_leaving_ends_the_processes(module: str, tmp_path: Path) -> None:
    with Workers(module, [], 2, tmp_path / "log") as pool:
        next(pool.run(["sleep", "sleep"]))
        processes = list(pool._processes)
    assert all(process.returncode == -signal.SIGKILL for process in processes)


def test_a_worker_whose_parent_is_killed_ends(module: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from analysis.workers import Workers\n"
        "pool = Workers('chore', [], 1, Path(sys.argv[1])); events = pool.run(['sleep']); next(events)\n"
        "print(pool._processes[0].pid, flush=True)\n"
        "for event in events: pass"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_cores_is_what_this_process_may_use() -> None:
    assert 1 <= workers.cores() <= (os.cpu_count() or 1)
