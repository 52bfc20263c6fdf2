"""What silicon returned, kept. The file was made on an H200 with

fpsim verify --capture tests/golden/hopper-h200.npz hopper/wgmma hopper/mma
"""

from pathlib import Path

import pytest

import fpsim
from fpsim.silicon import cpu, golden
from tests.strategies import assert_same_bits

FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_emulators_return_the_recorded_bits(file: Path) -> None:
    seen = 0
    for case in golden.cases(file):
        got = fpsim.matmul(case.a, case.b, golden.spec_of(case), c=case.c)
        assert_same_bits(got, case.silicon, f"{case.engine} {case.operand} {case.kind}")
        seen += case.silicon.size
    assert seen >= 10 * 5 * 512  # ten instructions, five classes of inputs, 512 outputs each


def test_a_recorded_bit_matters() -> None:
    """The oracle has teeth: another generation's engine does not pass the same vectors."""
    wrong = 0
    for case in golden.cases(FILES[0]):
        if case.engine == "hopper/wgmma" and case.operand == "e4m3":
            spec = fpsim.engine("blackwell/tcgen05", a="e4m3", b="e4m3", out="f32")
            wrong += int((fpsim.matmul(case.a, case.b, spec, c=case.c).view("u4") != case.silicon.view("u4")).sum())
    assert wrong > 100


def test_capture_and_read_back(tmp_path: Path) -> None:
    runnable = [name for name in cpu.PROBES if not cpu.missing(name)]
    if not runnable:
        with pytest.raises(ValueError, match="nothing to capture"):
            golden.capture(tmp_path / "here.npz", engines=["x86/vpdpbusd"])
        return
    golden.capture(tmp_path / "here.npz", engines=runnable[:1])
    for case in golden.cases(tmp_path / "here.npz"):
        got = fpsim.matmul(case.a, case.b, golden.spec_of(case), c=case.c)
        assert case.engine == runnable[0]
        assert got.dtype == case.silicon.dtype


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"an \.npz file"):
        golden.capture(tmp_path / "x.bin")
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="not a file of golden vectors"):
        list(golden.cases(tmp_path / "x.npz"))
