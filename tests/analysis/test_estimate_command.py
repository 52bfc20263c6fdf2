"""`fpsim estimate`, `trace` and `calibrate` with the options of a whole model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import analysis
from analysis.cli import main
from analysis.measure.compare import STEPS, step_errors
from analysis.recorder.kernels import layout
from hwmodels.measured import FOLDER

DIT = ["--model", "dit-xl-2-256", "--batch", "2", "--device", "h200-sxm"]


def test_a_model_an_image_and_its_timeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trace.json"
    assert main(["estimate", *DIT, "--spec", "fp8", "--steps", "20", "--trace-out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "gpu"
    image = found["image"]
    assert image["steps"] == 20
    assert image["batch"] == 1
    assert image["seconds"] == pytest.approx(20 * found["time_s"] + image["decode_s"] + image["text_s"])
    assert found["energy_j"] == pytest.approx(700 * found["time_s"])
    events = json.loads(out.read_text())["traceEvents"]
    assert sum(event["ph"] == "X" and event["tid"] == 2 for event in events) > 1000


def test_parts_sizes_and_saved_workloads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sized = ["trace", "dit-xl-2-256", "--height", "512", "--width", "512", "--json"]
    assert main(sized) == 0
    text = capsys.readouterr().out
    path = tmp_path / "dit.json"
    path.write_text(text)
    assert main(["estimate", "--model", str(path), "--device", "l40s", "--top", "2"]) == 0
    shown = capsys.readouterr().out
    assert "kernels" in shown
    assert "bound by" in shown
    assert main(["trace", "sd15", "--part", "vae-decode"]) == 0
    assert "sd15:vae-decode" in capsys.readouterr().out
    assert main(["estimate", "gemm", "8", "8", "8", "--device", "l4", "--steps", "3"]) == 2
    assert "--steps makes an image" in capsys.readouterr().err


def test_a_device_is_calibrated_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (FOLDER / "h200" / "kernels.csv").read_text().splitlines()
    some = tmp_path / "kernels.csv"
    some.write_text("\n".join([lines[0], *[line for line in lines if line.startswith("elementwise,")][:60]]) + "\n")
    out = tmp_path / "mine.toml"
    assert main(["calibrate", str(some), "--device", "h200-sxm", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "pointwise_hbm" in shown
    assert "held out" in shown
    assert main(["estimate", "gemm", "64", "64", "64", "--device", str(out)]) == 0
    assert "[calibration]" in out.read_text()
    assert main(["calibrate", str(some), "--device", "h200-sxm", "--out", str(tmp_path / "x.json")]) == 2


def test_layouts_are_those_the_kernels_see() -> None:
    x = torch.empty(2, 8, 16, device="meta")
    assert layout([x, x], torch.empty_like(x)) == ""
    assert layout([x, x[:, :1]], torch.empty_like(x)) == "strided"
    wide = torch.empty(2, 8, 32, device="meta")
    assert layout([wide[..., :16]], torch.empty_like(x)) == "strided"
    turned = torch.empty(2, 16, 8 * 16, device="meta").transpose(1, 2)
    assert layout([turned], torch.empty(2, 128, 16, device="meta")) == "transposed"
    last = torch.empty(2, 8, 4, 4, device="meta").to(memory_format=torch.channels_last)
    assert layout([last, last], torch.empty_like(last)) == ""
    ops = analysis.trace("dit-xl-2-256", batch=2).ops
    # torch's own profile of this step has 113 multiplications with an index per element (measurements/h200)
    assert sum(getattr(op, "layout", "") == "strided" and op.dtype == "" and op.function == "mul" for op in ops) == 113


def test_measured_steps_are_projected_within_ten_per_cent(tmp_path: Path) -> None:
    """Two models that no fit has seen, replayed as graphs (the whole table: docs/gpu-model.md)."""
    lines = STEPS.read_text().splitlines()
    some = tmp_path / "steps.csv"
    some.write_text("\n".join([lines[0], *[line for line in lines if line.startswith(("dit-", "sdxl"))]]) + "\n")
    found = step_errors(some, modes=["graph"])
    assert len(found) == 8
    assert all(abs(step.ratio - 1) < 0.1 for step in found), found
