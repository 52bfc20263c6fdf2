"""The whole way, small: measure, stop, go on, score, price, write; and every wrong input as one line."""

import json
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import cli, gather, plan, sweep
from analysis.artifacts import Run
from analysis.compare import compare
from analysis.experiment import Experiment, Sweep
from analysis.models import embedded
from analysis.plan import NOISE_FLOOR, REFERENCE, Batch, Plan
from analysis.store import RunDirectory
from analysis.whatif import make_plan
from analysis.whatif import run as run_experiment

TEXT = """
name = "small"
[quality]
pipeline = "shapes-sd"
prompts = 3
steps = 2
batch = 2
calibration = 2
[[configuration]]
scheme = ["fp32", "int8-w8a8"]
[[configuration]]
scheme = "int8-w8a8"
engine = "generic/int32"
prompts = 1
[cost]
devices = ["h200-sxm", "intel-npu4"]
models = ["shapes-sd"]
"""


def files(run: Path) -> dict[str, int]:
    """Batch -> when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in (run / "batches").glob("*.safetensors")}


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment.from_dict(tomllib.loads(TEXT))


@pytest.fixture(scope="module")
def finished(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_experiment(experiment, runs=tmp_path_factory.mktemp("finished"), workers=1, command="pytest")


def test_everything_is_there(finished: Run) -> None:
    names = {path.name for path in finished.path.iterdir()}
    assert names >= {
        "experiment.json",
        "results.csv",
        "scores.csv",
        "costs.csv",
        "layers.csv",
        "grid.png",
        "index.html",
        "results.json",
    }
    labels = [REFERENCE, NOISE_FLOOR, "int8-w8a8", "int8-w8a8 exact on generic/int32"]
    assert list(dict.fromkeys(row.configuration for row in finished.quality)) == labels
    assert {row.device for row in finished.costs} == {"h200-sxm", "intel-npu4"}
    frame = finished.table()
    assert not frame[["configuration", "metric", "value"]].iloc[: len(finished.quality)].isna().any().any()
    psnr = {
        row.configuration: row.value for row in finished.quality if row.metric == "psnr" and row.against == REFERENCE
    }
    assert psnr["int8-w8a8"] > psnr[NOISE_FLOOR]  # eight bits stay nearer than another seed does
    assert len(finished.prompts) == 3 + 3 + 3 + 1
    found = {(row.configuration, row.metric): row for row in finished.quality}
    layers = finished.layers["int8-w8a8"]
    zeros = sum(row["weights"] * row["zeros_after"] for row in layers) / sum(row["weights"] for row in layers)
    assert found["int8-w8a8", "zeros"].value == pytest.approx(zeros, rel=1e-12)  # sums in another order
    assert 0 < zeros < 0.1
    assert found["int8-w8a8", "frechet_full"].value < found[NOISE_FLOOR, "frechet_full"].value


def test_exact_integers_stay_nearer_to_their_shortcut_than_to_full_precision(finished: Run) -> None:
    """Only float32 roundings differ, but a value at the edge of a code may then take the next one."""
    found = {row.metric: row for row in finished.quality if row.engine}
    assert found["psnr_to_shortcut"].against == "int8-w8a8"
    assert found["psnr_to_shortcut"].prompts == 1
    assert found["psnr_to_shortcut"].value > found["psnr"].value


def test_a_sweep_has_a_table_over_its_runs_and_makes_no_picture_twice(finished: Run, experiment: Experiment) -> None:
    swept = replace(experiment, sweep=(Sweep(steps=(2,)), Sweep(seed=(0,), only=("fp32",))))
    found = sweep.run(swept, runs=finished.path.parent, workers=2)
    assert [cell.experiment.name for cell in found.cells] == ["small-2-steps", "small-seed-0"]
    assert not any((cell.path / "run.log").read_text().count("to measure") for cell in found.cells)
    assert found.cells[0].quality == finished.quality
    frame = pd.read_csv(found.path / "results.csv")
    assert len(frame) == len(found.table()) == sum(len(cell.table()) for cell in found.cells)
    assert set(frame.steps) == {2}
    page = found.page.read_text()
    for cell in found.cells:
        assert f"../{cell.path.name}/index.html" in page


def test_what_is_finished_can_be_looked_at_before_the_rest(
    finished: Run, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished.path, runs / finished.path.name)
    exact = next(batch for batch in make_plan(experiment).batches if batch.row == 3)
    (runs / finished.path.name / "batches" / f"{exact.identity}.safetensors").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be measured")

    monkeypatch.setattr("analysis.workers.Workers", refuse)
    found = sweep.run(experiment, runs=runs, finished=True)
    labels = dict.fromkeys(row.configuration for row in found.cells[0].quality)
    assert list(labels) == [REFERENCE, NOISE_FLOOR, "int8-w8a8"]
    with pytest.raises(ValueError, match="no configuration of 'small' is finished under"):
        sweep.run(experiment, runs=tmp_path / "elsewhere", finished=True)


def test_several_workers_begin_with_what_takes_longest() -> None:
    rows = [("fp8-w8a8", "rtn"), ("int4-w4a8", "gptq"), ("fp4-w4a8", "fp-ptq")]
    table = "".join(f'[[configuration]]\nscheme = "{scheme}"\nmethod = "{method}"\n' for scheme, method in rows)
    plan = make_plan(Experiment.from_dict(tomllib.loads(f'name = "a"\n[quality]\nprompts = 4\nbatch = 2\n{table}')))
    assert gather.tasks(plan, plan.batches, workers=1) == list(plan.batches)
    work = gather.tasks(plan, plan.batches, workers=3)
    assert [plan.rows[task.row].label for task in work[:2]] == ["fp4-w4a8 fp-ptq", "int4-w4a8 gptq"]
    assert [task.message() for task in work[:2]] == [{"prepare": 4}, {"prepare": 3}]
    batches = [task for task in work[2:] if isinstance(task, Batch)]
    assert sorted(batches, key=plan.batches.index) == list(plan.batches)
    waits = [plan.rows[task.row].preparation for task in batches]
    assert waits == sorted(waits), "rows that are ready come first"


def test_the_same_again_measures_nothing(
    finished: Run, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(finished.path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to measure")

    monkeypatch.setattr("analysis.workers.Workers", refuse)
    again = run_experiment(experiment, runs=finished.path.parent)
    assert again.path == finished.path
    assert again.quality == finished.quality
    assert files(finished.path) == before


def test_a_run_compared_with_itself_does_not_change(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(finished.path, finished.path)
    assert {row.configuration for row in found.changes} == {row.configuration for row in finished.quality}
    assert all(row.paired and (row.difference, row.low, row.high) == (0, 0, 0) for row in found.changes)
    assert cli.main(["compare", str(finished.path), str(finished.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["surroundings"] == {}
    assert cli.main(["compare", str(finished.path), str(finished.path)]) == 0
    assert "prompts obeyed" in capsys.readouterr().out


COMMAND = [sys.executable, "-m", "analysis.cli", "whatif", "small.toml", "--workers", "1", "--quiet"]


def struck(directory: Path, run: Path, blow: signal.Signals) -> tuple[int, str]:
    """Start the experiment in `directory`, strike when the first batch is there; exit code and stderr."""
    (directory / "small.toml").write_text(TEXT)
    process = subprocess.Popen(COMMAND, cwd=directory, stderr=subprocess.PIPE, text=True)
    while not files(run):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    workers = children(process.pid)
    assert workers
    process.send_signal(blow)
    _, stderr = process.communicate(timeout=60)
    end = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < end
        time.sleep(0.05)
    return process.returncode, stderr


def test_killed_it_goes_on_repeats_nothing_and_redoes_what_is_damaged(
    finished: Run, experiment: Experiment, tmp_path: Path
) -> None:
    """kill -9 after the first batch, which is then damaged, then to the end: the pictures of the uninterrupted run."""
    run = tmp_path / "runs" / finished.path.name
    code, _ = struck(tmp_path, run, signal.SIGKILL)
    assert code == -signal.SIGKILL
    first = files(run)
    assert len(first) < len(files(finished.path))
    # one more whole batch, as if it had been killed later, and damage to the first
    other = next(name for name in files(finished.path) if name not in first)
    shutil.copy2(finished.path / "batches" / other, run / "batches" / other)
    broken = run / "batches" / next(iter(first))
    broken.write_bytes(broken.read_bytes()[:-1] + bytes([broken.read_bytes()[-1] ^ 1]))
    seen = files(run)
    run_experiment(experiment, runs=tmp_path / "runs", workers=1)
    last = files(run)
    assert {name for name in seen if last[name] != seen[name]} == {broken.name}
    assert last.keys() == files(finished.path).keys()
    for name in last:
        assert (run / "batches" / name).read_bytes() == (finished.path / "batches" / name).read_bytes()
    assert (run / "results.csv").read_bytes() == (finished.path / "results.csv").read_bytes()
    log = (run / "run.log").read_text()
    assert f"{broken.name} is damaged: its content does not match its hash; measuring it again" in log


@pytest.mark.slow
def test_ctrl_c_is_one_line_that_says_how_to_go_on(finished: Run, tmp_path: Path) -> None:
    code, stderr = struck(tmp_path, tmp_path / "runs" / finished.path.name, signal.SIGINT)
    assert code == 130
    assert stderr.startswith("fpsim: stopped; what is measured is kept, go on with: fpsim whatif small.toml")
    assert stderr.count("\n") == 1


def children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_another_experiment_takes_over_the_pictures_it_shares(finished: Run, experiment: Experiment) -> None:
    tree = experiment.to_dict()
    tree["cost"]["devices"] = ["l4"]
    other = make_plan(Experiment.from_dict(tree))
    assert other.key != finished.key
    run = RunDirectory.open(finished.path.parent, name="small", key=other.key, manifest={})
    assert all(gather.stored(run, batch) is not None for batch in other.batches)


def test_identities_know_what_pictures_depend_on(experiment: Experiment) -> None:
    around = {"checkpoint": "a", "torch": "2"}
    base = {batch.identity for batch in Plan(experiment, around).batches}
    assert len(base) == len(Plan(experiment, around).batches)
    tree = experiment.to_dict()
    tree["quality"]["guidance"] = 2.0
    assert not base & {batch.identity for batch in Plan(Experiment.from_dict(tree), around).batches}
    assert not base & {batch.identity for batch in Plan(experiment, {**around, "checkpoint": "b"}).batches}
    tree = experiment.to_dict()
    tree["description"], tree["cost"] = "other words", {}
    assert base == {batch.identity for batch in Plan(Experiment.from_dict(tree), around).batches}


def test_prompts_are_mixed_fresh_and_nested() -> None:
    mixed = plan.held_out(8, (1, 2, 3, 4), 0)
    assert mixed.count.tolist() == [1, 2, 3, 4] * 2
    assert plan.held_out(64, (1, 2, 3, 4), 0).captions()[:8] == mixed.captions()
    assert len(set(plan.held_out(64, (1, 2, 3, 4), 0).captions())) == 64
    assert plan.held_out(8, (2,), 1).captions() != plan.held_out(8, (2,), 0).captions()


def test_the_noise_floor_has_seeds_of_its_own(experiment: Experiment) -> None:
    work = Plan(experiment, {})
    seeds = {row.label: set(work.seeds(row)) for row in work.rows}
    assert not seeds[REFERENCE] & seeds[NOISE_FLOOR]
    assert seeds["int8-w8a8"] == seeds[REFERENCE]


# --- wrong input -----------------------------------------------------------------------------------------------------


def mistake(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `fpsim whatif` answers to an experiment with exit code 2."""
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    assert cli.main(["whatif", str(path), "--runs", str(tmp_path / "runs"), "--quiet"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("fpsim: ")
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"h200-sxm"', '"h200"'), "unknown device 'h200'; did you mean"),
        (('models = ["shapes-sd"]', 'models = ["sdxl"]'), "unknown model 'sdxl'; did you mean 'sdxl-base'"),
        (('"int8-w8a8"]', '"int9-w8a8"]'), "unknown scheme 'int9-w8a8'; did you mean"),
        (("generic/int32", "generic/int3"), "unknown engine 'generic/int3'; did you mean"),
        (("generic/int32", "generic/fp32"), "engine 'generic/fp32' does not take a='int8', b='int8'"),
        (("[cost]", '[cost]\nestimator = "rooflin"'), "'rooflin'; did you mean 'roofline'"),
        (("steps = 2", "step = 2"), "quality: unknown key 'step'; did you mean 'steps'"),
        (('"shapes-sd"\nprompts', '"shapes-sdd"\nprompts'), "no pipeline 'shapes-sdd'; give an embedded"),
        (('scheme = ["fp32"', 'method = "rtm"\nscheme = ["fp32"'), "unknown method 'rtm'; did you mean"),
        (('scheme = ["fp32"', 'options = { ranks = 4 }\nscheme = ["fp32"'), "unknown option 'ranks'; did you"),
        (('scheme = ["fp32"', 'method = "gptq"\noptions = { rnk = 4 }\nscheme = ["fp32"'), "unknown option 'rnk'; did"),
        (('scheme = ["fp32"', 'method = "gptq"\noptions = { rank = "4" }\nscheme = ["fp32"'), "fp32 gptq rank=4"),
        (("[cost]", '[schemes.own]\nrules = [{ weight = { format = "int8" } }]\n[cost]'), "'own' is described but"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[1],
)  # fmt: skip
def test_a_wrong_experiment_is_one_line(
    change: tuple[str, str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert change[0] in TEXT
    assert says in mistake(TEXT.replace(*change, 1), tmp_path, capsys)
    assert not (tmp_path / "runs").exists()  # found before anything was written


def test_a_pattern_that_decides_no_layer_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = """
[[schemes.own.rules]]
pattern = "*.atn1.*"
[[schemes.own.rules]]
weight = { format = "int8" }
"""
    text = TEXT.replace('"int8-w8a8"]', '"own"]') + own
    says = mistake(text, tmp_path, capsys)
    assert "scheme 'own': pattern '*.atn1.*' decides no layer of shapes-sd; layer paths look like '" in says


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(embedded.PIPELINES["shapes-sd"].directory, tmp_path / "checkpoint"))


def elsewhere(checkpoint: Path) -> str:
    return TEXT.replace('"shapes-sd"\nprompts', f'"{checkpoint}"\nprompts')


def test_a_truncated_checkpoint_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = max(checkpoint.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:-1000])
    says = mistake(elsewhere(checkpoint), tmp_path, capsys)
    assert f"truncated checkpoint: {weights} has {weights.stat().st_size} bytes, its header says" in says
    weights.write_bytes(b"")
    assert "truncated checkpoint" in mistake(elsewhere(checkpoint), tmp_path, capsys)


def test_an_unsupported_component_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = checkpoint / "model_index.json"
    tree = json.loads(index.read_text())
    tree["unet"] = ["diffusers", "UNet9DConditionModel"]
    index.write_text(json.dumps(tree))
    says = mistake(elsewhere(checkpoint), tmp_path, capsys)
    assert "component 'unet' is a UNet9DConditionModel, which diffusers here does not have" in says
    index.write_text("{")
    assert "is not JSON" in mistake(elsewhere(checkpoint), tmp_path, capsys)
    index.unlink()
    assert "it has no model_index.json" in mistake(elsewhere(checkpoint), tmp_path, capsys)


def test_a_corrupt_run_directory_is_one_line(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "runs" / finished.path.name
    shutil.copytree(finished.path, copy)
    manifest = copy / "experiment.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    assert cli.main(["report", str(copy)]) == 2
    says = capsys.readouterr().err
    assert says.startswith(f"fpsim: {manifest} is damaged: ")
    assert "the command that made it repairs it" in says
    assert says.count("\n") == 1


def test_a_directory_that_cannot_be_written_is_one_line(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "small.toml").write_text(TEXT)
    assert cli.main(["whatif", str(tmp_path / "small.toml"), "--runs", str(tmp_path / "file"), "--quiet"]) == 2
    run = tmp_path / "file" / f"small-{make_plan(experiment).key[:12]}"
    assert capsys.readouterr().err == f"fpsim: Not a directory: {run / 'experiment.json'}\n"


def test_two_at_once_in_one_directory_is_one_line(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "runs" / finished.path.name
    shutil.copytree(finished.path, copy)
    with RunDirectory.existing(copy).lock():
        assert "another fpsim is working in" in mistake(TEXT, tmp_path, capsys)


def test_no_workers_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.toml").write_text(TEXT)
    assert cli.main(["whatif", str(tmp_path / "small.toml"), "--workers", "0", "--quiet"]) == 2
    assert "workers must be at least 1, not 0" in capsys.readouterr().err


def test_stored_pictures_are_float32_in_range(finished: Run, experiment: Experiment) -> None:
    work = make_plan(experiment)
    run = RunDirectory.existing(finished.path)
    for batch in work.batches:
        images = run.load(batch.identity)
        assert images is not None
        assert images.dtype == np.float32
        assert images.shape == (batch.stop - batch.start, 3, 64, 64)
        assert images.min() >= 0
        assert images.max() <= 1
