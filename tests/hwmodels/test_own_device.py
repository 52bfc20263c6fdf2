"""Measured rows as files and as times, and devices calibrated from them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hwmodels
from hwmodels import Gemm, gpu, kernel_rows, own_device
from hwmodels.device_file import parse_device
from hwmodels.measured import FOLDER

H200 = hwmodels.device("h200-sxm")
HEADER = "kind,shape,format,variant,mode,cache,seconds,suite\n"


def rows(text: str, tmp_path: Path) -> tuple[kernel_rows.Row, ...]:
    path = tmp_path / "kernels.csv"
    path.write_text(HEADER + text)
    return kernel_rows.read(path)


def test_a_row_is_priced_as_the_operation_it_is(tmp_path: Path) -> None:
    found = rows(
        "gemm,m=4096 n=4096 k=4096,fp8,,graph,warm,1e-4,x\n"
        "gemm,m=4096 n=4096 k=4096,fp8,,graph,cold,1e-4,x\n"
        "elementwise,elements=1048576 function=gelu,bf16,strided,eager,cold,1e-4,x\n"
        "attention,heads=8 queries=77 keys=77 head_dim=64 causal=1,bf16,cudnn,graph,warm,,x\n",
        tmp_path,
    )
    assert len(found) == 3  # a refused kernel has no time
    times = kernel_rows.modelled(found, H200, gpu.load())
    op = Gemm(m=4096, n=4096, k=4096)
    assert times[0] == hwmodels.estimate(op, "fp8", H200).time_s
    assert times[1] == hwmodels.estimate(op, "fp8", H200, cache="cold").time_s
    gelu = hwmodels.Elementwise(elements=2**20, function="gelu", layout="strided")
    assert times[2] == hwmodels.estimate(gelu, "bf16", H200, mode="eager").time_s
    assert [row.held_out for row in found[:2]] == [found[0].held_out] * 2


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("gemm,m=1 n=2,bf16,,graph,warm,1e-6,\n", "line 2: Gemm: k missing"),
        ("gemm,m=1 n=2 k=0,bf16,,graph,warm,1e-6,\n", "line 2: Gemm: k=0"),
        ("gemm,m=1 n=2 k=2,bf17,,graph,warm,1e-6,\n", "line 2: unknown format 'bf17'"),
        ("gemm,m=1 n=2 k=2,bf16,,graph,warm,-1,\n", "line 2: seconds=-1"),
        ("gem,m=1,bf16,,graph,warm,1e-6,\n", "line 2: unknown operation 'gem'"),
    ],
)
def test_bad_rows_name_file_and_line(text: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"kernels\.csv") as caught:
        rows(text, tmp_path)
    assert error in str(caught.value)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n")
    with pytest.raises(ValueError, match="no column kind, shape"):
        kernel_rows.read(path)


def made(parameters: gpu.Parameters) -> list[kernel_rows.Row]:
    """Products whose times are the model's own with other parameters."""
    rng = np.random.default_rng(0)
    ops = [
        Gemm(m=int(m), n=16 * int(n), k=16 * int(k))
        for m, n, k in zip(rng.integers(1, 8192, 48), rng.integers(8, 512, 48), rng.integers(8, 512, 48), strict=True)
    ]
    blank = [kernel_rows.Row(op=op, format="bf16", variant="", mode="graph", cache="warm", seconds=1.0) for op in ops]
    times = kernel_rows.modelled(blank, H200, parameters)
    return [replace(row, seconds=float(t)) for row, t in zip(blank, times, strict=True)]


def test_calibration_finds_what_the_rows_were_made_with_and_the_device_keeps_it(tmp_path: Path) -> None:
    truth = replace(gpu.load(), fixed=2.6e-6, efficiency_wgmma=0.7)
    found = own_device.calibrate_device(made(truth), H200)
    assert set(found.calibration) == {"fixed", "efficiency_wgmma", "hbm"}
    assert found.calibration["efficiency_wgmma"] == pytest.approx(0.7, rel=0.02)
    # few rows are bound by launches, and the pipeline's prologue, which stays global, looks like one
    assert found.calibration["fixed"] == pytest.approx(2.6e-6, rel=0.2)
    after = {row.split: row.mean for row in found.after}
    before = {row.split: row.mean for row in found.before}
    assert after["held out"] < 0.03 < 0.1 < before["held out"]
    path = tmp_path / "mine.toml"
    path.write_text(own_device.device_text(H200, found.calibration, "a test"))
    mine = hwmodels.device(path)
    assert mine.calibration == found.calibration
    op = Gemm(m=8192, n=8192, k=8192)
    assert hwmodels.estimate(op, "bf16", mine).time_s > 1.15 * hwmodels.estimate(op, "bf16", H200).time_s
    # calibrating again starts from there, and the table is replaced, not doubled
    again = own_device.device_text(mine, {"fixed": 1e-6}, "again", path.read_text())
    assert again.count("[calibration]") == 1
    assert parse_device(again, "again").calibration == {"fixed": 1e-6}


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="too few of every kind"):
        own_device.calibrate_device(made(gpu.load())[:4], H200)


@pytest.mark.parametrize(("line", "error"), [("fixd = 1.0", "unknown key"), ("fixed = -1.0", "a number from 0")])
def test_a_calibration_is_checked(line: str, error: str) -> None:
    text = own_device.device_text(H200, {"fixed": 1e-6}, "a test").replace("fixed = 1e-06", line)
    with pytest.raises(ValueError, match=error):
        parse_device(text, "mine")


def test_the_committed_measurements_are_wide_and_say_where_they_come_from() -> None:
    found = kernel_rows.own_measurements()["h200-sxm"]
    assert len(found) > 3000
    assert {row.op.kind for row in found} >= {"gemm", "conv2d", "attention", "norm", "elementwise", "quantize", "move"}
    share = np.mean([row.held_out for row in found])
    assert 0.2 < share < 0.4
    about = kernel_rows.provenance(FOLDER / "h200" / "kernels.csv")
    assert about["name"] == "NVIDIA H200"
    assert about["torch"].startswith("2.")
