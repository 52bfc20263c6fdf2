"""`fpsim verify`: exit codes, and where results, records and golden vectors go."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.cli import main
from fpsim.silicon import cpu, golden, nvrtc
from fpsim.silicon import verify as comparison
from fpsim.silicon.results import Difference, Verification

GOOD = Verification(name="x86/vpdpbusd", engine="x86/vpdpbusd", a="uint8", b="int8", out="int32", compared=1234567)
FIRST = Difference(
    inputs="bits, tile 0", a=("0x1", "0x2"), b=("0x3",), c="0x0", emulated="0x10", silicon="0x11", ulps=1
)
WRONG = replace(GOOD, differences=2, first=FIRST)
STRANGE = replace(GOOD, name="hopper/torch-mm bf16", engine="hopper/torch-mm", unmatched=("1x16x4096 (gemv_kernel)",))
ABSENT = replace(GOOD, name="volta/mma", engine="volta/mma", skipped="no GPU")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Verification]:
    """What the comparison finds; tests put results in."""
    results: list[Verification] = []
    monkeypatch.setattr(comparison, "verify", lambda *options: results)
    return results


def test_no_difference(found: list[Verification], capsys: pytest.CaptureFixture[str]) -> None:
    found += [GOOD, ABSENT]
    assert main(["verify"]) == 0
    told = capsys.readouterr().out
    assert "x86/vpdpbusd         1,234,567          0" in told
    assert "not run: volta/mma: no GPU" in told


def test_a_difference_is_an_error_and_is_shown(found: list[Verification], capsys: pytest.CaptureFixture[str]) -> None:
    found += [WRONG]
    assert main(["verify"]) == 1
    told = capsys.readouterr().out
    for line in ("x86/vpdpbusd, first difference:", "a: 0x1 0x2", "emulated: 0x10", "silicon: 0x11", "ulps: 1"):
        assert line in told
    assert "a_scale" not in told
    found[:] = [WRONG]
    assert main(["verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["first"]["silicon"] == "0x11"


def test_an_unmatched_shape_is_an_error(found: list[Verification], capsys: pytest.CaptureFixture[str]) -> None:
    found += [STRANGE]
    assert main(["verify"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "unmatched: hopper/torch-mm 1x16x4096 (gemv_kernel): no number of splits of K gives this result" in told


def test_record_and_capture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = next((name for name in cpu.PROBES if not cpu.missing(name)), None)
    if name is None:
        pytest.skip("this CPU has none of the instructions")
    record, vectors = tmp_path / "record.json", tmp_path / "vectors.npz"
    assert main(["verify", name, "--outputs", "6", "--record", str(record)]) == 0
    (run,) = json.loads(record.read_text())["runs"]
    assert run["command"] == f"fpsim verify {name} --outputs 6 --seed 0"
    assert run["device"] == cpu.model()
    assert [(row["engine"], row["differences"]) for row in run["compared"]] == [(name, 0)]
    assert f"recorded 1 rows in {record}" in capsys.readouterr().err
    assert main(["verify", name, "--capture", str(vectors), "--seed", "3"]) == 0
    assert golden.about(vectors)["seed"] == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--outputs", "0"], "--outputs must be 1 to 1e12, not 0"),
        (["hopper/wgmmma"], "unknown engine 'hopper/wgmmma'; did you mean 'hopper/wgmma'"),
        (["--capture", "x.bin"], "golden vectors are an .npz file, not 'x.bin'"),
    ],
)
def test_mistakes(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_shapes_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "--shapes", "64x0x32"])
    assert stopped.value.code == 2
    assert "a shape is MxNxK, such as 64x128x4096, not '64x0x32'" in capsys.readouterr().err


def test_compile_without_a_compiler_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nvrtc, "compiler", lambda target: None)
    assert main(["verify", "--compile", "volta/mma"]) == 0
    assert "no NVRTC for sm_70 here" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", "--compile", "x86/vpdpbusd"]) == 2
