"""What happens to a run when things go wrong: stopped or killed in every phase, no room, no permission, damaged files.

In every case the same command goes on, nothing that was measured is lost or done twice, and the results are those of a
run that nobody disturbed. Real processes and signals take long: most of this is slow.
"""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analysis.artifacts import Run
from analysis.experiment import Experiment
from analysis.store import is_sealed, read_json
from analysis.whatif import make_plan
from analysis.whatif import run as run_experiment

TEXT = """
name = "sturdy"
[quality]
prompts = 3
steps = 2
batch = 2
calibration = 2
[[configuration]]
scheme = "int8-w8a8"
[[configuration]]
scheme = "int4-w4a8"
method = "gptq"
[cost]
devices = ["h200-sxm"]
models = ["shapes-sd"]
"""
COMMAND = [sys.executable, "-m", "analysis.cli", "whatif", "sturdy.toml", "--workers", "1"]


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment.from_dict(tomllib.loads(TEXT))


@pytest.fixture(scope="module")
def finished(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Undisturbed."""
    return run_experiment(experiment, runs=tmp_path_factory.mktemp("finished"), workers=1)


def measured(run: Path) -> dict[str, int]:
    """What is measured, and when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (run / "batches").glob("*.safetensors")}


def goes_on(experiment: Experiment, finished: Run, run: Path, repeated: tuple[str, ...] = ()) -> None:
    """To the end from here: nothing done twice but `repeated`, and every result as if nothing had happened."""
    before = measured(run)
    found = run_experiment(experiment, runs=run.parent, workers=1)
    assert found.path == run
    after = measured(run)
    assert {name for name in before if after[name] != before[name]} == set(repeated)
    assert after.keys() == measured(finished.path).keys()
    for name in after:
        assert (run / "batches" / name).read_bytes() == (finished.path / "batches" / name).read_bytes()
    for name in ("results.csv", "scores.csv", "layers.csv", "grid.png"):
        assert (run / name).read_bytes() == (finished.path / name).read_bytes(), name
    assert not list(run.rglob("*.partial"))
    assert not list(run.rglob("*.unfinished"))


@contextlib.contextmanager
def started(folder: Path, command: list[str] = COMMAND, **how: object) -> Iterator[subprocess.Popen[bytes]]:
    """The command in `folder`, its stderr in a file there; gone at the end, whatever happens."""
    (folder / "sturdy.toml").write_text(TEXT)
    with (folder / "stderr").open("wb") as said:
        process = subprocess.Popen(command, cwd=folder, stderr=said, **how)  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def said(folder: Path) -> str:
    return (folder / "stderr").read_text(errors="replace").replace("\r", "\n")


# --- stopped and killed ----------------------------------------------------------------------------------------------


def of_role(run: Path, roles: tuple[str, ...]) -> bool:
    plan = make_plan(Experiment.from_dict(tomllib.loads(TEXT)))
    there = measured(run)
    return any(f"{one.identity}.safetensors" in there for one in plan.batches if plan.rows[one.row].role in roles)


#: phase -> whether a run is in it, or just past its first piece
PHASES: dict[str, Callable[[Path, Path], bool]] = {
    "calibration": lambda folder, run: (run / ".calibration.lock").exists(),
    "preparation": lambda folder, run: any(len(path.stem) > 15 for path in run.glob(".*.lock")),
    "quantized sampling": lambda folder, run: of_role(run, ("configuration",)),
    "reference sampling": lambda folder, run: of_role(run, ("reference", "noise floor")),
    "scoring": lambda folder, run: "scoring" in said(folder),
    "writing": lambda folder, run: "writing" in said(folder),
}


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("phase", PHASES)
def test_in_every_phase(
    phase: str, blow: signal.Signals, experiment: Experiment, finished: Run, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / finished.path.name
    with started(tmp_path) as process:
        while not PHASES[phase](tmp_path, run):
            assert process.poll() is None, said(tmp_path)
            time.sleep(0.01)
        process.send_signal(blow)
        code = process.wait(timeout=60)
    if blow == signal.SIGINT:
        assert code == 130, said(tmp_path)
        assert "Traceback" not in said(tmp_path)
        words = "fpsim: stopped; what is measured is kept, go on with: fpsim whatif sturdy.toml --workers 1"
        assert said(tmp_path).splitlines()[-1] == words
    else:
        assert code == -signal.SIGKILL
    goes_on(experiment, finished, run)


@pytest.mark.slow
def test_killed_again_and_again_at_any_moment(experiment: Experiment, finished: Run, tmp_path: Path) -> None:
    run = tmp_path / "runs" / finished.path.name
    draw = random.Random(7)
    began = time.monotonic()
    with started(tmp_path) as process:
        while not measured(run):
            assert process.poll() is None, said(tmp_path)
            time.sleep(0.05)
    first, kills, kept = time.monotonic() - began, 1, measured(run)
    for _ in range(6):
        with started(tmp_path) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(draw.uniform(0.3, 1.3) * first)
            over = process.poll() == 0
        now = measured(run)
        assert {name: now[name] for name in kept} == kept, "what is measured is measured once"
        kept = now
        if over:
            break
        kills += 1
    assert kills > 1
    goes_on(experiment, finished, run)


@pytest.mark.slow
def test_the_second_of_two_says_so_and_the_first_is_not_disturbed(
    experiment: Experiment, finished: Run, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / finished.path.name
    with started(tmp_path) as process:
        while not (run / ".lock").exists():
            assert process.poll() is None, said(tmp_path)
            time.sleep(0.05)
        second = subprocess.run([*COMMAND, "--quiet"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert process.poll() is None
        assert second.returncode == 2
        assert second.stderr.startswith(f"fpsim: another fpsim is working in {Path('runs') / run.name}")
        assert second.stderr.count("\n") == 1
        assert process.wait(timeout=300) == 0
    goes_on(experiment, finished, run)


# --- no room, no permission ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_files_that_must_not_grow(experiment: Experiment, finished: Run, tmp_path: Path) -> None:
    """A batch of two pictures has 98 kB: with room for 60 kB per file nothing is measured, and nothing half is left."""
    run = tmp_path / "runs" / finished.path.name
    limit = (60_000, 60_000)
    with started(tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)) as process:
        assert process.wait(timeout=300) == 2
    last = said(tmp_path).splitlines()[-1]
    assert last.startswith("fpsim: File too large: ")
    assert str(Path("runs") / run.name / "batches") in last
    assert "Traceback" not in said(tmp_path)
    assert not measured(run)
    assert not list(run.rglob("*.partial"))
    goes_on(experiment, finished, run)


@pytest.mark.slow
def test_a_disk_that_is_full(experiment: Experiment, finished: Run, tmp_path: Path) -> None:
    disk = tmp_path / "runs"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk takes permissions that are not here")
    try:
        with started(tmp_path) as process:
            assert process.wait(timeout=300) == 2
        assert said(tmp_path).splitlines()[-1].startswith("fpsim: No space left on device")
        assert "Traceback" not in said(tmp_path)
        kept = measured(disk / finished.path.name)
        assert not list(disk.rglob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
        goes_on(experiment, finished, disk / finished.path.name)
        assert kept.items() <= measured(disk / finished.path.name).items()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def powerless(command: list[str]) -> list[str]:
    """The command without root's right to write everywhere."""
    if os.geteuid():
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("root writes everywhere, and setpriv is not here")
    return ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override", "--", *command]


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    inside = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in inside:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path in inside:
            path.chmod(0o755)


@pytest.mark.slow
def test_a_folder_for_reading_only(experiment: Experiment, finished: Run, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished.path.parent, runs)
    run = runs / finished.path.name
    for file in (run / ".lock", *run.glob("*.lock")):
        file.unlink(missing_ok=True)
    report = [sys.executable, "-m", "analysis.cli", "report", str(run)]
    compare = [sys.executable, "-m", "analysis.cli", "compare", str(run), str(run)]
    with read_only(runs):
        for command in (COMMAND, report):
            with started(tmp_path, powerless(command)) as process:
                assert process.wait(timeout=300) == 2, said(tmp_path)
            assert (
                said(tmp_path)
                .splitlines()[-1]
                .startswith(f"fpsim: Permission denied: {'runs' if command is COMMAND else run}")
            )
            assert "Traceback" not in said(tmp_path)
        with started(tmp_path, powerless(compare), stdout=subprocess.DEVNULL) as process:
            assert process.wait(timeout=60) == 0, said(tmp_path)  # reading is enough to compare
    goes_on(experiment, finished, run)


# --- damage ----------------------------------------------------------------------------------------------------------


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other(path: Path) -> None:
    """Well-formed, but with another hash."""
    if path.suffix == ".json":
        document = json.loads(path.read_text())
        document["sha256"] = "0" * 64
        path.write_text(json.dumps(document))
    else:
        neighbour = next(one for one in sorted(path.parent.glob(f"*{path.suffix}")) if one != path)
        shutil.copyfile(neighbour, path)


#: kinds of kept files -> one of them; what has to be measured again with it
KINDS: dict[str, str] = {
    "manifest": "experiment.json",
    "batch": "batches/*.safetensors",
    "layers": "layers/*.json",
    "calibration": "calibration.json",
    "prepared weights": "quantized/*/*.safetensors",
    "prepared recipe": "quantized/*/config.json",
    "seal of prepared weights": "quantized/*.json",
    "results": "results.json",
    "scores": "scores.csv",
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flipped, cut, other], ids=lambda one: one.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_every_kind_is_found_and_mended(
    kind: str, damage: Callable[[Path], None], experiment: Experiment, finished: Run, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished.path.parent, runs)
    run = runs / finished.path.name
    file = next(iter(sorted(run.glob(KINDS[kind]))))
    if damage is other and file.suffix != ".json" and len(list(file.parent.glob(f"*{file.suffix}"))) < 2:
        pytest.skip("there is no other file to mistake for it")
    whole = file.read_bytes()
    damage(file)
    assert file.read_bytes() != whole
    again = (file.name,) if kind == "batch" else ()
    if "prepared" in kind or kind == "calibration":  # looked at when something has to be made with it
        plan = make_plan(experiment)
        lost = next(one for one in plan.batches if plan.rows[one.row].configuration.method == "gptq")
        (run / "batches" / f"{lost.identity}.safetensors").unlink()
    goes_on(experiment, finished, run, again)
    if kind == "results":
        assert "rows" in read_json(file)  # what its hash says; it holds a date
    elif "weights" in kind:
        assert all(map(is_sealed, (path for path in (run / "quantized").iterdir() if path.is_dir())))
    else:  # equal to the byte, but for weights, whose notes come in any order
        assert file.read_bytes() == whole
