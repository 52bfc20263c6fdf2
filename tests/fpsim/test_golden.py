"""What silicon returned, kept. The files were made on the machines they are named after with

fpsim verify --capture tests/golden/x86-zen4.npz x86/vdpbf16ps x86/vpdpbusd x86/vpdpbusds x86/vpdpwssd x86/vpdpwssds \
    x86/vpmaddubsw
fpsim verify --capture tests/golden/hopper-h200.npz hopper/mma hopper/mma-satfinite hopper/wgmma \
    hopper/wgmma-satfinite hopper/scaled_mm hopper/scaled_mm-fast hopper/torch-mm
"""

from pathlib import Path

import numpy as np
import pytest

import fpsim
from fpsim.silicon import cpu, golden
from fpsim.silicon.inputs import KINDS
from fpsim.silicon.splits import words
from fpsim.silicon.verify import emulate, names
from tests.strategies import assert_same_bits

FOLDER = Path(__file__).parents[1] / "golden"
FILES = sorted(FOLDER.glob("*.npz"))
HOPPER = FOLDER / "hopper-h200.npz"


def compare(case: golden.Case) -> None:
    got, want = emulate(case.spec, case.arrays, "cpu"), case.silicon
    if case.name in cpu.PROBES or got.dtype == np.float64:  # these hand NaN payloads through
        payload = np.isnan(got) & np.isnan(want)
        got, want = (np.where(payload, 0, x).astype(x.dtype) for x in (got, want))
    assert_same_bits(got, want, f"{case.name} {case.kind}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_emulators_return_the_recorded_bits(file: Path) -> None:
    seen = set()
    for case in golden.cases(file):
        compare(case)
        assert case.silicon.size == golden.OUTPUTS
        seen.add(case.name)
    assert seen == set(golden.about(file)["inputs"])
    assert len(seen) >= 6


def test_library_products_return_the_recorded_bits() -> None:
    found = list(golden.library_cases(HOPPER))
    assert len(found) == len(golden.GEMMS)
    for case in found:
        gemm, given = case.gemm, case.operands
        spec = fpsim.engine(gemm.engine, gemm.a, gemm.b, gemm.out, split_k=case.splits)
        epilogue = {part: x for part, x in given.items() if part not in "ab"}
        got = words(fpsim.matmul(given["a"], given["b"], spec, **epilogue))
        assert_same_bits(got, case.silicon, f"{gemm.engine} {gemm.name}, {case.splits} splits")
    assert [case.splits for case in found if case.splits > 1] == [6, 3]


def test_the_hopper_file_has_every_instruction_of_hopper() -> None:
    kept = set(golden.about(HOPPER)["inputs"])
    wanted = names(["hopper/mma", "hopper/mma-satfinite", "hopper/wgmma", "hopper/wgmma-satfinite"])
    assert kept == set(wanted)


def test_a_recorded_bit_matters() -> None:
    """The oracle has teeth: another generation's engine does not pass the same vectors."""
    wrong = 0
    spec = fpsim.engine("blackwell/tcgen05", a="e4m3", b="e4m3", out="f32")
    for case in golden.cases(HOPPER, ["hopper/wgmma e4m3 x e4m3 -> f32 m64n8k32"]):
        wrong += int((emulate(spec, case.arrays, "cpu").view("u4") != case.silicon.view("u4")).sum())
    assert wrong > 100


def test_capture_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runnable = [name for name in cpu.PROBES if not cpu.missing(name)]
    path = tmp_path / "here.npz"
    if not runnable:
        with pytest.raises(ValueError, match="nothing to capture"):
            golden.capture(path, ["x86/vpdpbusd"])
        pytest.skip("this CPU has none of the instructions")
    assert golden.capture(path, runnable[:1], seed=4, command="fpsim verify") == runnable[:1]
    assert golden.about(path)["command"] == "fpsim verify"
    assert golden.about(path)["seed"] == 4
    read = list(golden.cases(path))
    assert [case.kind for case in read] == list(KINDS)
    for case in read:
        assert case.name == runnable[0]
        compare(case)
    monkeypatch.setattr(golden, "digest", lambda drawn: "another")
    with pytest.raises(ValueError, match="are not those it was recorded with; capture it again"):
        list(golden.cases(path))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"an \.npz file"):
        golden.capture(tmp_path / "x.bin", [])
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    with pytest.raises(ValueError, match="not a file of golden vectors"):
        list(golden.cases(tmp_path / "x.npz"))
    np.savez(tmp_path / "y.npz", x=np.zeros(1))
    with pytest.raises(ValueError, match="not a file of golden vectors"):
        list(golden.cases(tmp_path / "y.npz"))
