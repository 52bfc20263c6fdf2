"""Sensitivity studies beside a run: found if they are of the same pipeline, scheme and method; shown layer by layer."""

import json
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from analysis import sensitivity
from analysis.experiment import Experiment
from analysis.layer_times import LONGEST, MINDING, layer_times
from analysis.plan import Plan
from analysis.report.tables import layer_tables
from analysis.scheme import scheme
from analysis.sensitivity import Sensitivity, decibel
from analysis.sensitivity.kept import FILE, alone, keep
from analysis.store import RunDirectory
from analysis.whatif import run

AROUND = {"fpsim": "0", "checkpoint": "c0ffee", "device": "cpu"}
EXPERIMENT = {
    "name": "page",
    "configuration": [
        {"scheme": ["fp32", "int4-w4a8", "nvfp4"]},
        {"scheme": "int4-w4a8", "method": "gptq"},
        {"scheme": "int4-w4a8", "options": {"transform": "hadamard"}},
    ],
    "cost": {"devices": ["h200-sxm"], "models": ["shapes-sd"]},
}
PATHS = [f"up_blocks.{i}.resnets.{j}.conv{k}" for i in (0, 1) for j in (0, 1) for k in (1, 2)]
PATHS += [f"down_blocks.{i}.resnets.{j}.conv{k}" for i in (0, 1) for j in (0, 1) for k in (1, 2)]
PATHS += ["conv_in", "conv_out", *(f"mid_block.resnets.{j}.conv{k}" for j in (0, 1) for k in (1, 2))]


def plan(around: Mapping[str, str] = AROUND) -> Plan:
    return Plan(Experiment.from_dict(EXPERIMENT), around)


def scores(*, content: bool = True, scale: float = 1.0) -> Sensitivity:
    """Two candidates, two visits; the later a layer in the list, the more it minds."""
    size = np.arange(len(PATHS), dtype=float)[:, None, None] * np.array([1.0, 10.0])[:, None] * np.array([1.0, 3.0])
    mine = scheme("int4-w4a8")
    return Sensitivity(
        pipeline="shapes-sd",
        method="rtn",
        layers=dict.fromkeys(PATHS, "Conv2d"),
        candidates={"another name": mine, "nvfp4": scheme("nvfp4")},
        timesteps=(900.0, 100.0),
        quality=size * 1e-4 * scale,
        content=size * 1e-5 * scale if content else None,
    )


def kept(runs: Path, found: Sensitivity, key: str = "a" * 64, **changes: object) -> Path:
    """A finished study, as `fpsim sensitivity` leaves it behind."""
    study = {"pipeline": "shapes-sd", "method": "rtn", "images": 2, "steps": 2, "trajectory": 20} | changes
    around = study.pop("surroundings", AROUND)
    manifest = {"study": study, "surroundings": around}
    folder = RunDirectory.open(runs, name="sensitivity-shapes-sd", key=key, manifest=manifest).path
    keep(folder, found)
    return folder


def test_a_study_of_the_same_pipeline_scheme_and_method_is_found(tmp_path: Path) -> None:
    assert alone(plan(), tmp_path) == {}
    kept(tmp_path, scores(), surroundings={**AROUND, "device": "cuda, H200"})  # another device is no other pipeline
    found = alone(plan(), tmp_path)
    assert list(found) == ["int4-w4a8", "nvfp4"]  # not: full precision, another method, options
    one = found["int4-w4a8"]
    assert (one.images, one.steps, one.trajectory) == (2, 2, 20)
    assert one.layers[PATHS[3]] == (pytest.approx(6e-4, rel=1e-12), pytest.approx(6e-5, rel=1e-12))  # mean of 3 and 9
    assert found["nvfp4"].layers[PATHS[3]][0] == pytest.approx(6e-3, rel=1e-12)
    kept(tmp_path, scores(scale=2), key="b" * 64, images=4)
    assert alone(plan(), tmp_path)["int4-w4a8"].images == 4  # the one that judged more


@pytest.mark.parametrize(
    "changes",
    [{"pipeline": "shapes-dit"}, {"method": "gptaq"}, {"surroundings": {**AROUND, "checkpoint": "other"}}],
    ids=str,
)
def test_any_other_study_is_left_out(changes: dict[str, object], tmp_path: Path) -> None:
    kept(tmp_path, scores(), **changes)
    assert alone(plan(), tmp_path) == {}


def test_a_damaged_study_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = kept(tmp_path, scores())
    whole = (folder / FILE).read_text()
    assert "0.0012" in whole
    for text in (whole.replace("0.0012", "0.0013", 1), whole[:-20], "{}", "[" * 100_000):
        (folder / FILE).write_text(text)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert alone(plan(), tmp_path) == {}
        assert "is left out" in caplog.text
    (folder / FILE).write_text(whole)
    assert alone(plan(), tmp_path)


def layers() -> list[dict[str, object]]:
    fixed = {"kind": "Conv2d", "weight": "int4", "activation": "int8", "weights": 9, "zeros_before": 0.0}
    return [{"path": path, "zeros_after": 0.1, **fixed} for path in PATHS]


def test_layers_that_mind_most_join_those_that_take_longest(tmp_path: Path) -> None:
    kept(tmp_path, scores())
    found = alone(plan(), tmp_path)
    [with_it] = layer_times(plan(), {"int4-w4a8": layers()}, found)
    [without] = layer_times(plan(), {"int4-w4a8": layers()})
    longest = [layer["path"] for layer in without["shown"]]
    assert len(longest) == LONGEST
    shown = [layer["path"] for layer in with_it["shown"]]
    minding = PATHS[::-1][:MINDING]
    assert shown == [*longest, *(path for path in minding if path not in longest)]
    assert with_it["judged"] == [2, 2, 20]
    assert without["judged"] is None
    table = layer_tables(json.loads(json.dumps(with_it)), ["h200-sxm"])
    row = next(row for row in table["shown"] if row["path"] == PATHS[-1])
    noise, content = found["int4-w4a8"].layers[PATHS[-1]]
    assert [cell["main"] for cell in row["alone"]] == [f"{decibel(noise):.1f}", f"{content:.5f}"]
    first = {"path": PATHS[0], "alone": [0.0, 0.0], "times": [1.0]}
    assert layer_tables(with_it | {"shown": [layers()[0] | first]}, [])["shown"][0]["alone"][0]["main"] == "unchanged"


def test_sensitivity_is_shown_where_the_pipeline_is_not_priced(tmp_path: Path) -> None:
    kept(tmp_path, scores(content=False))
    tree = EXPERIMENT | {"cost": {"devices": ["h200-sxm"], "models": ["dit-xl-2-256"]}}
    other = Plan(Experiment.from_dict(tree), AROUND)
    assert layer_times(other, {"int4-w4a8": layers()}) == []
    [found] = layer_times(other, {"int4-w4a8": layers()}, alone(other, tmp_path))
    assert [layer["path"] for layer in found["shown"]] == PATHS[::-1][:MINDING]  # by the output, without pictures
    assert (found["devices"], found["kinds"]) == ([], [])
    assert layer_tables(found, ["h200-sxm"])["shown"][0]["alone"][1]["main"] == "—"


TEXT = """
name = "judged"
[quality]
prompts = 1
steps = 1
batch = 1
calibration = 1
sensitivity = true
[[configuration]]
scheme = ["fp32", "int8-w8a8"]
[cost]
devices = ["h200-sxm"]
models = ["shapes-sd"]
"""


@pytest.mark.slow
def test_an_experiment_may_ask_for_it(tmp_path: Path) -> None:
    asked = Experiment.from_dict(tomllib.loads(TEXT))
    first = run(asked, runs=tmp_path, workers=1)
    page = first.page.read_text()
    assert "alone: SQNR, dB" in page
    assert "on 1 captions at 1 of 1 timesteps" in " ".join(page.split())
    results = json.loads((first.path / "results.json").read_text())
    [entry] = results["layer_times"]
    assert all(layer["alone"][0] > 0 for layer in entry["shown"])
    assert results["seconds"]["sensitivity"] > 0
    (folder,) = tmp_path.glob("sensitivity-*")
    visits = {path: path.stat().st_mtime_ns for path in (folder / "visits").iterdir()}
    run(asked, runs=tmp_path, workers=1)
    assert {path: path.stat().st_mtime_ns for path in (folder / "visits").iterdir()} == visits


def test_it_judges_at_the_pipelines_own_size(tmp_path: Path) -> None:
    tree = tomllib.loads(TEXT)
    tree["quality"] |= {"height": 32, "width": 32}
    with pytest.raises(ValueError, match="leave out height, width and frames"):
        run(Experiment.from_dict(tree), runs=tmp_path, workers=1)


def test_files_that_scores_depend_on_are_there() -> None:
    here = Path(sensitivity.__file__).parent
    assert all((here / name).is_file() for name in sensitivity._FILES)
