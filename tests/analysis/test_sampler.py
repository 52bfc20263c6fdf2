"""Where pictures are made, and what a killed run finds again: calibration and quantized denoisers."""

import argparse
import importlib
import json
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import analysis.runner
from analysis.commands import whatif as command
from analysis.experiment import Experiment, Sweep
from analysis.plan import described
from analysis.sampler import Sampler
from analysis.store import RunDirectory
from analysis.whatif import make_plan

TEXT = """
name = "kept"
[quality]
pipeline = "shapes-dit"
prompts = 2
steps = 2
batch = 2
calibration = 2
[[configuration]]
scheme = "fp4-w4a8"
method = ["rtn", "gptq"]
"""


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment.from_dict(tomllib.loads(TEXT))


def test_workers_share_calibration_and_quantized_pipelines_and_find_them_again(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    plan = make_plan(experiment)
    batches = {plan.rows[batch.row].label: batch for batch in plan.batches}
    first = Sampler(plan, folder=tmp_path)
    made = {label: first.images(batches[label]) for label in ("fp4-w4a8", "fp4-w4a8 gptq")}
    row = next(row for row in plan.rows if row.label == "fp4-w4a8 gptq")
    place = tmp_path / "quantized" / plan.quantization(row)[:16]
    assert set((tmp_path / "quantized").iterdir()) == {place, place.with_name(f"{place.name}.json")}
    assert len(json.loads((tmp_path / "calibration.json").read_text())["captions"]) == 2

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(analysis.runner, "quantize", refuse)
    monkeypatch.setattr(importlib.import_module("analysis.runner.calibrate"), "call", refuse)
    second = Sampler(plan, folder=tmp_path)
    assert second.calibration == first.calibration
    assert np.array_equal(second.images(batches["fp4-w4a8 gptq"]), made["fp4-w4a8 gptq"])
    assert not np.array_equal(made["fp4-w4a8"], made["fp4-w4a8 gptq"])


def test_what_is_kept_and_damaged_is_made_again(
    experiment: Experiment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(1)
    plan = make_plan(experiment)
    row = next(row for row in plan.rows if row.label == "fp4-w4a8 gptq")
    identity = plan.quantization(row)
    folder = tmp_path / "runs" / "one"  # what lies beside a run is looked at too
    folder.mkdir(parents=True)
    run, place = RunDirectory(path=folder), folder / "quantized" / identity[:16]

    def weights(sampler: Sampler) -> dict[str, torch.Tensor]:
        return dict(sampler.quantized(row).transformer.state_dict())

    first = weights(Sampler(plan, folder=folder))
    calibration, layers = folder / "calibration.json", run.layers_path(identity)
    for file in (calibration, next(place.glob("*.safetensors")), place / "config.json", layers):
        whole = file.read_bytes()
        broken = bytearray(whole)
        broken[len(whole) // 2] ^= 1
        file.write_bytes(bytes(broken))
        caplog.clear()
        again = weights(Sampler(plan, folder=folder))
        assert file.read_bytes() == whole
        assert again.keys() == first.keys()
        assert all(torch.equal(again[name], value) for name, value in first.items())
        assert file == layers or f"{file} is damaged" in caplog.text


def test_the_device_is_part_of_what_results_depend_on(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    here = make_plan(experiment)
    assert here.device == here.surroundings["device"] == "cpu"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H200")
    there = make_plan(experiment, "cuda:1")
    assert there.device == "cuda:1"
    assert there.surroundings["device"] == "cuda:1, NVIDIA H200"
    assert there.key != here.key
    assert {batch.identity for batch in there.batches}.isdisjoint(batch.identity for batch in here.batches)
    with pytest.raises(ValueError, match=r"'cuda:2' is not here: .* sees 2 CUDA devices"):
        described("cuda:2")
    for wrong in ("mps", "gpu", "h200-sxm"):
        with pytest.raises(ValueError, match="known: cpu, cuda, cuda:N"):
            described(wrong)


def test_a_device_that_is_not_here_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"'cuda' is not here: .* leave --device out to run on the CPU"):
        described("cuda")


def test_the_command_line_may_change_what_is_measured(experiment: Experiment) -> None:
    parser = argparse.ArgumentParser()
    command.arguments(parser)
    options = parser.parse_args(["some.toml", "--pipeline", "shapes-sd", "--steps", "4"])
    assert options.device == "cpu"
    changed = command.overridden(experiment, options)
    assert (changed.quality.pipeline, changed.quality.steps, changed.quality.prompts) == ("shapes-sd", 4, 2)
    assert changed.configuration == experiment.configuration
    assert changed.key() != experiment.key()
    assert command.overridden(experiment, parser.parse_args(["some.toml"])) is experiment
    swept = replace(experiment, sweep=(Sweep(steps=(1, 4)), Sweep(seed=(1, 2))))
    assert [cell.name for cell in command.overridden(swept, options).cells()] == [
        f"{experiment.name}-4-steps",
        f"{experiment.name}-seed-1",
        f"{experiment.name}-seed-2",
    ]
    with pytest.raises(ValueError, match="steps must be at least 1"):
        command.overridden(experiment, parser.parse_args(["some.toml", "--steps", "0"]))


def test_the_origin_study_is_an_experiment() -> None:
    study = Experiment.load(Path(__file__).parents[2] / "experiments" / "origin.toml")
    assert study.quality.prompts >= 2048
    assert {one.method for one in study.configuration} >= {"rtn", "gptq", "gptaq", "q-diffusion", "fp-search", "fp-ptq"}
    for one in study.configuration:
        study.scheme_of(one)
