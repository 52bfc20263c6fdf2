"""`fpsim measure` without a GPU: what is measured, how rows are kept, and the FP8 Linear of the steps."""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch

import analysis
from analysis.cli import main
from analysis.measure import KINDS, Case, cases, fp8, measure, measure_steps, steps
from analysis.measure.cases import SOURCES, TRACED, traced
from analysis.measure.kernels import Arena, calls_of
from analysis.measure.timer import Call, HostTimer, Sample, summarise
from hwmodels.ops import Attention, Elementwise, Gemm, Softmax
from hwmodels.shape import from_words, to_words

SMALL = [
    Case(suite="ragged", op=Gemm(m=8, n=32, k=16)),
    Case(suite="ragged", op=Elementwise(elements=4096, function="silu")),
    Case(suite="ragged", op=Attention(heads=2, queries=16, keys=8, head_dim=8, mask=True)),
]


class FakeTimer:
    """Calls nothing; every kernel takes `seconds`, in both of two conditions."""

    modes: tuple[tuple[str, str], ...] = (("graph", "warm"), ("graph", "cold"))

    def __init__(self, seconds: float = 1e-4) -> None:
        self.seconds, self.timed, self.closed = seconds, [], False  # type: ignore[var-annotated]

    def roughly(self, call: Call) -> float:
        return self.seconds

    def time(self, mode: str, calls: Sequence[Call], touch: Call) -> Sample:
        self.timed.append((mode, len(calls)))
        return summarise([self.seconds * len(calls)] * 3, len(calls))

    def check(self) -> None:
        self.timed.append(("check", 0))

    def about(self) -> dict[str, object]:
        return {"name": 'a "fake" GPU', "cores": 3}

    def close(self) -> None:
        self.closed = True


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "kernels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_suites_are_many_distinct_cases_of_every_kind_in_an_order_that_never_moves() -> None:
    found = cases()
    assert len(set(found)) == len(found) > 1500
    assert found == cases()
    kinds = {case.kind for case in found[:120]}  # any beginning is a sample of all kinds
    assert kinds >= {"gemm", "conv2d", "attention", "norm", "elementwise", "quantize"}
    assert {case.format for case in cases(["gemm"])} == {"bf16", "fp16", "fp8", "int8"}
    assert all(case.format == "fp8" for case in cases(["gemm"], formats=["fp8"]))
    for names, text in ((["gem"], "unknown kind 'gem'"), (["gemm"], "unknown suite 'x'")):
        with pytest.raises(ValueError, match=text):
            cases(names, ["x"])
    with pytest.raises(ValueError, match="no case in the format fp4"):
        cases(formats=["fp4"])


def test_shapes_survive_as_words() -> None:
    for op in traced():
        assert from_words(op.kind, to_words(op)) == op
    with pytest.raises(ValueError, match="no name=value"):
        from_words("gemm", "m=1 n")


def test_the_traced_shapes_are_those_of_the_models() -> None:
    assert {entry for row in csv.DictReader(TRACED.open()) for entry in row["of"].split()} <= {
        f"{name}:{part}:{rows}" for name, part, rows in SOURCES
    }
    ops = analysis.trace("dit-xl-2-256", batch=2).ops
    now = {op.shape_key for op in ops if isinstance(op, Gemm)}
    now |= {replace(op, library="").shape_key for op in ops if isinstance(op, Attention)}
    assert now <= {op.shape_key for op in traced()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_of_running_a_kind_runs(kind: str) -> None:
    """One small case of each (format, variant, function) on the CPU, and its result has the size the operation says."""
    arena, seen = Arena("cpu", 2**22), set()
    for case in cases([kind]):
        op = case.op
        key = (case.format, case.variant, op.dtype, *(getattr(op, n, "") for n in ("function", "layout", "variant")))
        if key in seen or case.variant == "cudnn" or op.macs > 2e8 or op.traffic.reads > 3e6:
            continue
        seen.add(key)
        (call, other), touch = calls_of(case, arena, 2, cold=False)
        touch()
        out = other()
        assert out.numel() == op.traffic.writes, case
        assert call is not other
    assert len(seen) >= (1 if kind == "attention" else 2)


def test_warm_operands_are_shared_and_weights_never_are() -> None:
    arena = Arena("cpu", 2**22)
    taken: list[tuple[int, tuple[int, ...]]] = []
    take = arena.take

    def spy(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        out = take(shape, dtype)
        taken.append((out.data_ptr(), shape))
        return out

    arena.take = spy  # type: ignore[method-assign]
    calls_of(SMALL[0], arena, 3, cold=False)
    assert [shape for _, shape in taken] == [(8, 16), (32, 16), (32, 16), (32, 16)]
    taken.clear()
    calls_of(SMALL[0], arena, 3, cold=True)
    assert len({pointer for pointer, _ in taken}) == len(taken) == 6
    with pytest.raises(ValueError, match="nothing here runs a softmax"):
        calls_of(Case(suite="", op=Softmax(rows=2, columns=2)), arena, 1, cold=True)


def test_a_sample_is_the_median_of_one_call() -> None:
    sample = summarise([0.3, 0.1, 0.2], 10)
    assert (sample.seconds, sample.low, sample.high) == pytest.approx((0.02, 0.015, 0.025))
    ticks: Iterator[float] = chain([0.0, 3.0, 10.0, 12.0, 20.0, 21.0], repeat(0.0))
    timed = HostTimer(clock=lambda: next(ticks)).time("host", [lambda: None] * 2, lambda: None)
    assert (timed.seconds, timed.calls, timed.repeats) == (1.0, 2, 3)


def test_rows_are_kept_and_the_same_command_goes_on(tmp_path: Path) -> None:
    timer = FakeTimer()
    done = measure(tmp_path, device="cpu", timer=timer, chosen=SMALL[:2], command="mine")
    assert (done.written, done.failed, done.left) == (3, 0, 0)  # both warm, every third cold
    assert timer.closed
    assert timer.timed == [("graph", 8)] * 3  # 0.8 ms of 0.1 ms each
    more = measure(tmp_path, device="cpu", timer=FakeTimer(), chosen=SMALL)
    assert more.written == 1
    written = rows(tmp_path)
    assert len(written) == 4
    assert written[0]["shape"] == "m=8 n=32 k=16"
    assert float(written[0]["seconds"]) == pytest.approx(1e-4)
    about = tomllib.loads((tmp_path / "kernels.toml").read_text())["run"]
    assert about["name"] == 'a "fake" GPU'
    assert about["cores"] == 3


def test_a_budget_leaves_the_rest_and_says_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = chain([0.0, 1.0, 2.0], repeat(99.0))
    monkeypatch.setattr("analysis.measure.run.time.monotonic", lambda: next(ticks))
    done = measure(tmp_path, device="cpu", timer=FakeTimer(), chosen=SMALL, budget=5)
    assert (done.written, done.left) == (2, 2)


def test_a_kernel_that_is_refused_gets_a_row_without_a_time(tmp_path: Path) -> None:
    class Refusing(FakeTimer):
        def roughly(self, call: Call) -> float:
            raise RuntimeError("no such\n kernel")

    timer = Refusing()
    done = measure(tmp_path, device="cpu", timer=timer, chosen=SMALL[:1])
    assert (done.written, done.failed) == (2, 2)
    assert timer.timed == [("check", 0)] * 2
    assert {(row["seconds"], row["note"]) for row in rows(tmp_path)} == {("", "no such kernel")}


def test_a_file_of_other_columns_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "kernels.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has the columns a, b"):
        measure(tmp_path, device="cpu", timer=FakeTimer(), chosen=SMALL)
    assert (tmp_path / "kernels.csv").read_text() == "a,b\n1,2\n"


def _linear(bias: bool, in_features: int = 256, out_features: int = 32) -> torch.nn.Linear:
    layer = torch.nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
    values = torch.arange(layer.weight.numel()).view_as(layer.weight)
    layer.weight.copy_(values % 7 - 3)
    layer.weight[0, 0] = 3.5  # the largest magnitude: a scale of 2**-7, so that nothing rounds
    return layer


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_an_fp8_linear_is_exact_on_values_that_fit(dynamic: bool, bias: bool) -> None:
    layer = _linear(bias)
    if bias:
        layer.bias.copy_(torch.arange(32.0) - 16)
    x = (torch.arange(2 * 3 * 256).view(2, 3, 256) % 5 - 2).to(torch.float32)
    x[0, 0, 0] = 3.5
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias).to(torch.bfloat16).float()
    made = fp8.Fp8Linear(layer, dynamic)
    assert torch.equal(made(x), expected)
    assert made(x.bfloat16()).dtype == torch.bfloat16


def test_casts_saturate() -> None:
    x = torch.tensor([1000.0, -1000.0, 448.0, 0.0])
    assert fp8.plain_cast(x, torch.tensor(1.0)).float().tolist() == [448.0, -448.0, 448.0, 0.0]
    assert fp8.plain_amax(x) == 1000.0


def test_conversion_takes_the_linears_of_the_shorthand() -> None:
    net = torch.nn.Sequential(
        _linear(True), torch.nn.Linear(255, 32), torch.nn.Linear(256, 31), torch.nn.Linear(128, 64)
    )
    assert fp8.convert(net) == 1
    assert isinstance(net[0], fp8.Fp8Linear)
    with pytest.raises(ValueError, match="no Linear"):
        fp8.convert(net)


def test_a_step_is_built_as_the_trace_sees_it() -> None:
    job = steps.Job(model="dit-xl-2-256", rows=2)
    module, inputs = steps.build(job, "meta")
    assert inputs["hidden_states"].shape == (2, 4, 32, 32)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    priced = analysis.trace("dit-xl-2-256", batch=2)
    eligible = {op.path for op in priced.ops if isinstance(op, Gemm) and op.k >= 256 and op.n % 16 == 0}
    assert fp8.convert(module) == len(eligible)
    with torch.no_grad():
        assert module(**inputs)[0].shape == (2, 8, 32, 32)


def test_steps_need_a_gpu_and_known_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown name 'sd16'"):
        measure_steps(tmp_path, models=["sd16"])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA GPU"):
            measure_steps(tmp_path)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--kinds", "gem"], "unknown kind 'gem'"),
        (["--time-budget", "0"], "--time-budget must be a positive number"),
        (["--on", "tpu"], "--on"),
    ],
)
def test_mistakes_are_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    try:
        code: Any = main(["measure", "--out", str(tmp_path), *words])
    except SystemExit as leaving:
        code = leaving.code
    error = capsys.readouterr().err
    assert (code, error.count("\n")) == (2, 1)
    assert text in error


def test_the_command_measures_on_the_host(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(*args: object, **kwargs: object) -> list[Case]:
        return SMALL

    chosen: Callable[..., list[Case]] = few
    monkeypatch.setattr("analysis.measure.run.cases", chosen)
    assert main(["measure", "--on", "cpu", "--out", str(tmp_path)]) == 0
    assert "3 rows in" in capsys.readouterr().out
    assert {row["mode"] for row in rows(tmp_path)} == {"host"}
