"""Comparisons with silicon: the CPU's own instructions, and the tensor cores of a GPU where there is one."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fpsim
from fpsim.silicon import cpu, inputs, nvidia, nvrtc, record, source
from fpsim.silicon.inputs import KINDS, Stream, Tiles
from fpsim.silicon.instructions import ARCHITECTURES, Instruction, instructions
from fpsim.silicon.results import Verification
from fpsim.silicon.verify import emulate, names, verify, verify_instruction

ROWS = list(instructions().values())


@pytest.mark.parametrize("name", cpu.PROBES)
def test_instruction_equals_emulator(name: str) -> None:
    reason = cpu.missing(name)
    if reason:
        pytest.skip(reason)
    (result,) = verify([name], outputs=60_000)
    assert result.compared == len(KINDS) * 3 * 64 * 64  # 10,000 a class, in tiles of 64 x 64
    assert result.differences == 0, result.first


def test_difference_is_found_and_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that lies on one output of each batch: the report names it, with the operands of that output."""
    seen = []

    def lie(name: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        out = fpsim.matmul(a, b, cpu.spec(name), c)
        seen.append((a[0, 3], b[0, :, 5], c[0, 3, 5], out[0, 3, 5]))
        out[0, 3, 5] += 1
        return out

    monkeypatch.setattr(cpu, "run", lie)
    monkeypatch.setattr(cpu, "missing", lambda name: None)
    (result,) = verify(["x86/vpdpbusd"], outputs=6)
    assert result.differences == len(KINDS)
    assert not result.passed
    assert result.first is not None
    assert result.first.inputs == "bits, batch 0, tile 0, row 3, column 5"
    assert result.first.ulps == 1
    a, b, c, d = seen[0]
    assert result.first.a == tuple(hex(v) for v in a.tolist())
    assert result.first.b == tuple(hex(v & 255) for v in b.tolist())
    assert result.first.c == hex(int(c) & 0xFFFFFFFF)
    assert result.first.emulated == hex(int(d) & 0xFFFFFFFF)


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    (result,) = verify(["cdna3/mfma"])
    assert result.skipped == "no probe for this engine"
    with pytest.raises(ValueError, match="unknown engine 'hopper/wgmmma'; did you mean 'hopper/wgmma'"):
        verify(["hopper/wgmmma"])
    monkeypatch.setattr(nvidia, "capability", lambda: None)
    results = verify(["hopper/wgmma", "hopper/torch-mm"])
    assert len(results) == 16 + 4
    assert {r.skipped for r in results} == {"no NVIDIA GPU, or no cupy (pip install 'fpsim[cuda]')"}
    monkeypatch.setattr(nvidia, "capability", lambda: (9, 0))
    (result,) = verify(["rtx-blackwell/mma e2m1 x e3m2 -> f16 m16n8k32"])
    assert result.skipped == "this GPU has compute capability 9.0, rtx-blackwell is 12.0 or 12.1"
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset())
    assert cpu.missing("x86/vpmaddubsw") in ("this CPU has no avx2", "this CPU is aarch64, not x86-64")
    with pytest.raises(RuntimeError, match="x86/vpmaddubsw cannot run"):
        cpu.run("x86/vpmaddubsw", *(np.zeros((1, 4, 4), d) for d in (np.uint8, np.int8, np.int32)))
    with pytest.raises(ValueError, match="unknown CPU engine 'x86/amx'"):
        cpu.missing("x86/amx")


# -- the table of GPU instructions ------------------------------------------------------------------------------------


def test_every_engine_with_an_instruction_has_probes_for_all_its_rows() -> None:
    """What an NVIDIA engine claims to emulate can be run: operand types, results, scales and its own k."""
    probed = {(r.engine, r.a, r.b, r.out, r.scale, r.block, r.spec_k) for r in ROWS}
    for name, engine in fpsim.ENGINES.items():
        if engine.architecture in ARCHITECTURES and engine.name.partition("/")[2].startswith(("mma", "wgmma", "tcgen")):
            for row in engine.rows:
                for a, b in row.pairs():
                    assert (name, a, b, row.output, row.scale, row.block, row.k) in probed
    assert len({row.symbol for row in ROWS}) == len(ROWS) == len(instructions())


@pytest.mark.parametrize("engine", sorted({row.engine for row in ROWS}))
def test_probes_compile(engine: str) -> None:
    """To machine code, so the assembler has looked at every instruction."""
    built = nvrtc.build(engine)
    if built.skipped:
        pytest.skip(built.skipped)
    wanted = {row.name for row in ROWS if row.engine == engine}
    assert built.instructions == len(wanted - set(built.left_out))
    assert set(built.left_out) <= {"rtx-blackwell/mma-mxf4nvf4 e2m1 x e2m1 -> f32 m16n8k64 e8m0/16"}
    assert built.bytes > 1000 * built.instructions


def test_wrong_assembly_does_not_compile() -> None:
    compiler = nvrtc.compiler("sm_90a")
    if compiler is None:
        pytest.skip("no NVRTC for sm_90a here (pip install nvidia-cuda-nvrtc)")
    row = instructions()["hopper/wgmma e4m3 x e5m2 -> f32 m64n8k32"]
    wrong = replace(row, ptx=row.ptx.replace("e5m2", "e3m2"))
    with pytest.raises(nvrtc.CompileError, match=r"NVRTC 1\d\.\d+ for sm_90a"):
        compiler.compile(source.source([wrong]), "sm_90a")
    with pytest.raises(nvrtc.CompileError, match="sm_80"):
        compiler.compile(source.source([row]), "sm_80")


# -- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "hopper/wgmma e4m3 x e5m2 -> f16 m64n8k32",
        "hopper/mma tf32 x tf32 -> f32 m16n8k8",
        "hopper/mma f64 x f64 -> f64 m8n8k4",
        "ada/mma-satfinite uint4 x int4 -> int32 m16n8k64",
        "rtx-blackwell/mma-mxf4nvf4 e2m1 x e2m1 -> f32 m16n8k64 ue4m3/16",
    ],
)
def test_inputs_are_codes_and_depend_on_their_stream_alone(name: str, kind: str) -> None:
    row = instructions()[name]
    tiles = Tiles(count=3, rows=row.rows, k=row.k, columns=row.columns)
    drawn = inputs.draw(row.spec, tiles, Stream(seed=5, kind=kind))
    for part, shape in inputs.shapes(row.spec, tiles).items():
        assert drawn[part].shape == shape
    for part, fmt in (("a", row.spec.a), ("b", row.spec.b)):
        assert drawn[part].dtype == fmt.code_dtype
        low, high = (fmt.min, fmt.max) if fmt.kind == "int" else (0, (1 << (fmt.bits + fmt.shift)) - 1)
        assert low <= int(drawn[part].min())
        assert int(drawn[part].max()) <= high
    again = inputs.draw(row.spec, tiles, Stream(seed=5, kind=kind))
    more = inputs.draw(row.spec, replace(tiles, count=4), Stream(seed=5, kind=kind))
    other = inputs.draw(row.spec, tiles, Stream(seed=5, kind=kind, batch=1))
    for part, x in drawn.items():
        assert x.tobytes() == again[part].tobytes() == more[part][:3].tobytes()
    assert drawn["a"].tobytes() != other["a"].tobytes()


def test_bits_are_every_code_and_cancelling_cancels() -> None:
    row = instructions()["hopper/wgmma e4m3 x e5m2 -> f32 m64n8k32"]
    tiles = Tiles(count=64, rows=64, k=32, columns=8)
    assert len(np.unique(inputs.draw(row.spec, tiles, Stream(seed=0, kind="bits"))["a"])) == 256
    drawn = inputs.draw(row.spec, tiles, Stream(seed=0, kind="cancelling"))
    a, b = (fpsim.decode(drawn[part], fmt).astype(np.float64) for part, fmt in (("a", "e4m3"), ("b", "e5m2")))
    assert (a @ b.transpose(0, 2, 1) == 0).all()
    with pytest.raises(ValueError, match="seed is -1"):
        Stream(seed=-1, kind="bits")


def test_inputs_are_those_of_the_recorded_vectors() -> None:
    """Written down once: golden vectors hold seeds, so a change of the generator must not go unseen."""
    row = instructions()["hopper/mma bf16 x bf16 -> f32 m16n8k16"]
    drawn = inputs.draw(row.spec, Tiles(count=1, rows=16, k=16, columns=8), Stream(seed=0, kind="ordinary"))
    assert [hex(code) for code in drawn["a"][0, 0, :4]] == ["0xbf3d", "0xbf97", "0x3f22", "0xbf2b"]


# -- the record -------------------------------------------------------------------------------------------------------


def test_record_replaces_rows_of_the_same_device_and_keeps_the_rest(tmp_path: Path) -> None:
    one = Verification(
        name="n", engine="hopper/mma", a="f16", b="f16", out="f32", shape="m16n8k16", compared=10, differences=2
    )
    two = replace(one, a="bf16", b="bf16")
    path = tmp_path / "record.json"
    assert record.merge(path, [one, two, replace(one, skipped="no")], {"device": "x", "date": "2026-01-01"}) == 2
    record.merge(path, [replace(one, differences=0)], {"device": "x", "date": "2026-01-02"})
    record.merge(path, [one], {"device": "y", "date": "2026-01-03"})
    runs = json.loads(path.read_text())["runs"]
    assert [(run["device"], run["date"], [row["a"] for row in run["compared"]]) for run in runs] == [
        ("x", "2026-01-01", ["bf16"]),
        ("x", "2026-01-02", ["f16"]),
        ("y", "2026-01-03", ["f16"]),
    ]


def test_evidence_is_what_the_record_says() -> None:
    """Every engine of the record exists, and what differed is not called silicon."""
    for engine in fpsim.ENGINES.values():
        seen = [s for row in engine.rows for a, b in row.pairs() for s in engine.seen(row, a, b)]
        if any(s.differences for s in seen):
            assert "differs" in engine.evidence
        assert bool(seen) == ("silicon" in engine.evidence)
    known = {(e.name, a, b, r.output) for e in fpsim.ENGINES.values() for r in e.rows for a, b in r.pairs()}
    path = Path(fpsim.__file__).parent / "engines" / "verified.json"
    for run in json.loads(path.read_text())["runs"]:
        assert {"device", "date", "command", "compared"} <= run.keys()
        assert {(row["engine"], row["a"], row["b"], row["out"]) for row in run["compared"]} <= known


# -- with a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_tensor_core_equals_emulator(row: Instruction) -> None:
    reason = nvidia.missing(row.name)
    if reason:
        pytest.skip(reason)
    result = verify_instruction(row.name, outputs=100_000)
    assert result.differences == 0, result.first


@pytest.mark.gpu
@pytest.mark.parametrize("row", [r for r in ROWS if r.architecture in ("volta", "turing")], ids=lambda row: row.name)
def test_older_shapes_have_the_right_layout(row: Instruction) -> None:
    """Later GPUs still take them. On small integers every engine's arithmetic is exact: what is left is the layout."""
    if nvidia.capability() is None:
        pytest.skip("no NVIDIA GPU, or no cupy (pip install 'fpsim[cuda]')")
    import cupy

    tiles = Tiles(count=37, rows=row.rows, k=row.k, columns=row.columns)
    given = inputs.draw(row.spec, tiles, Stream(seed=2, kind="ordinary"))
    if row.a == "f16":
        rng = np.random.default_rng(2)
        given = {part: rng.integers(-8, 9, x.shape).astype(np.float16) for part, x in given.items()}
        given = {part: x.astype(np.float32) if (part, row.out) == ("c", "f32") else x for part, x in given.items()}
        want = given["a"].astype(int) @ given["b"].transpose(0, 2, 1).astype(int) + given["c"].astype(int)
    else:
        want = emulate(row.spec, given, "cpu")
    module = nvidia.compiled(source.source([row]))
    got = nvidia.launch(module, row, {part: cupy.asarray(x) for part, x in given.items()}).get()
    assert (got == want).all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n in names(["hopper/mma", "hopper/wgmma"]) if "k16" in n or "k4" in n])
def test_inputs_drawn_on_the_gpu_are_the_same(name: str) -> None:
    if nvidia.capability() is None:
        pytest.skip("no NVIDIA GPU, or no cupy (pip install 'fpsim[cuda]')")
    row = instructions()[name]
    tiles = Tiles(count=5, rows=row.rows, k=row.k, columns=row.columns)
    for kind in KINDS:
        stream = Stream(seed=3, kind=kind, batch=7)
        here, there = inputs.draw(row.spec, tiles, stream), nvidia.draw(row.spec, tiles, stream)
        for part, x in here.items():
            assert x.tobytes() == there[part].get().tobytes(), (name, kind, part)


def test_the_page_shows_the_record() -> None:
    """docs/silicon.md is generated: `python docs/update_silicon.py`."""
    folder = Path(__file__).parents[2] / "docs"
    update = runpy.run_path(str(folder / "update_silicon.py"))
    text = (folder / "silicon.md").read_text(encoding="utf-8")
    assert update["page"](text) == text
    assert update["operands"]([{"a": "e4m3", "b": "e4m3"}, {"a": "e4m3", "b": "e5m2"}]) == "e4m3 x e4m3, e4m3 x e5m2"
