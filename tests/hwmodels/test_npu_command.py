"""`fpsim scalesim`: the reports on disk, what it says, and a user's mistakes in one line."""

import json
from pathlib import Path

import pytest

from analysis.cli import main

GOLDEN = Path(__file__).parents[1] / "golden" / "scalesim"


@pytest.fixture
def topology(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("Layer, M, N, K,\na, 256, 128, 256,\nb, 256, 128, 256,\n")
    return path


def _run(topology, tmp_path, *more):
    config = GOLDEN / "cfg_gemm256_32x32_os_CALC.cfg"
    return main(["scalesim", "-c", str(config), "-t", str(topology), "-i", "gemm", "-p", str(tmp_path), *more])


def test_reports_are_where_scalesim_puts_them(topology, tmp_path, capsys):
    assert _run(topology, tmp_path) == 0
    assert "2 layers, 20,350 cycles, 0 of them stalls" in capsys.readouterr().out
    report = (tmp_path / "gemm256_32x32_os_CALC" / "DETAILED_ACCESS_REPORT.csv").read_text()
    assert "-3275.0, 10129.0, 262144" in report


def test_json(topology, tmp_path, capsys):
    assert _run(topology, tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["cycles"] == 20350


def test_mistakes_are_one_line_and_exit_2(topology, tmp_path, capsys):
    assert _run(topology, tmp_path, "-l", str(tmp_path / "none.csv")) == 2
    assert "no layout file" in capsys.readouterr().err
    assert _run(topology, tmp_path, "-i", "conv") == 2
    error = capsys.readouterr().err
    assert "line 2: 4 columns" in error
    assert error.count("\n") == 1
