"""The CPU's own instructions against their emulators: real silicon, skipped (with the reason) where it is not."""

import numpy as np
import pytest

import fpsim
from fpsim.silicon import cpu, nvidia
from fpsim.silicon.verify import verify


@pytest.mark.parametrize("name", cpu.PROBES)
def test_instruction_equals_emulator(name: str) -> None:
    reason = cpu.missing(name)
    if reason:
        pytest.skip(reason)
    (result,) = verify([name], rounds=3)
    assert result.compared == 3 * 5 * 64 * 64
    assert result.differences == 0, result.first


def test_difference_is_found_and_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that lies on one output: the report names it."""

    def lie(name: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        out = fpsim.matmul(a, b, fpsim.engine(name, "uint8", "int8"), c)
        out[3, 5] += 1
        return out

    monkeypatch.setattr(cpu, "run", lie)
    monkeypatch.setattr(cpu, "missing", lambda name: None)
    (result,) = verify(["x86/vpdpbusd"], rounds=1)
    assert result.differences == 5
    assert result.first is not None
    assert result.first.inputs == "bits"
    assert result.first.ulps == 1
    assert len(result.first.a) == 24


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    (result,) = verify(["volta/mma"])
    assert result.skipped == "no probe for this engine"
    if nvidia.capability() is None:
        (result,) = verify(["hopper/wgmma e4m3"])
        assert result.skipped is not None
        assert "no NVIDIA GPU" in result.skipped
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset())
    assert cpu.missing("x86/vpmaddubsw") in ("this CPU has no avx2", "this CPU is aarch64, not x86-64")
    with pytest.raises(RuntimeError, match="x86/vpmaddubsw cannot run"):
        cpu.run("x86/vpmaddubsw", np.zeros((1, 4), np.uint8), np.zeros((4, 1), np.int8), np.zeros((1, 1), np.int32))
    with pytest.raises(ValueError, match="unknown CPU engine 'x86/amx'"):
        cpu.missing("x86/amx")


@pytest.mark.gpu
@pytest.mark.parametrize("name", nvidia.PROBES)
def test_tensor_core_equals_emulator(name: str) -> None:
    reason = nvidia.missing(name)
    if reason:
        pytest.skip(reason)
    (result,) = verify([name], rounds=4)
    assert result.differences == 0, result.first
