"""Bounds, observed partial sums and counts of accumulators against enumeration and the emulator."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_pipelines import dit_pipeline, unet_pipeline

import analysis
import fpsim
from analysis.accumulators import ALL, Candidate, Found, Row, Study, _sources, grid, study
from analysis.accumulators.cost import _two_levels, costs
from analysis.accumulators.partial_sums import (
    adversary,
    beyond,
    by_data_type,
    by_weight,
    ends,
    nothing,
    observe,
    reach,
    sums,
    watched,
    width,
)
from analysis.accumulators.plot import draw
from analysis.accumulators.registers import Register, register_of
from analysis.accumulators.runs import on_accumulator
from analysis.cli import main
from analysis.experiment import Experiment
from analysis.plan import Plan
from analysis.pricing import price
from analysis.registry import workload
from analysis.runner import calibrate
from analysis.runner.quantize import engine_for
from analysis.silicon import counted, spelled
from fpsim import counts
from fpsim.accumulators import IntegerAccumulator, Promoted, SequentialFma
from fpsim.nn import counting
from fpsim.nn.layer import QuantizedLayer

CAPTIONS = ["a red ball", "two green boxes"]
rng = np.random.default_rng(0)


def holds(bits: int, low: int, high: int) -> bool:
    return -(2 ** (bits - 1)) <= low and high <= 2 ** (bits - 1) - 1


def test_width_is_the_narrowest_two_s_complement() -> None:
    for low, high in itertools.product(range(-70, 1), range(0, 70)):
        bits = width(low, high)
        assert holds(bits, low, high)
        assert bits == 1 or not holds(bits - 1, low, high), (low, high, bits)


@pytest.mark.parametrize(("a", "b"), [("int4", "int4"), ("uint4", "int4"), ("e2m1", "e2m1"), ("e2m1", "int4")])
def test_the_data_type_bound_is_that_of_all_products(a: str, b: str) -> None:
    rows = [fpsim.format(name) for name in (a, b)]
    values = []
    for row in rows:
        low, high = ends(row)
        step = 1.0 if row.kind == "int" else row.smallest_subnormal
        codes = np.arange(-8, 8, dtype=np.int8) if row.kind == "int" and row.signed else np.arange(16, dtype=np.uint8)
        found = fpsim.decode(codes, row) / step
        assert (found == found.round()).all()
        assert (found.min(), found.max()) == (low, high)
        values.append([int(one) for one in found])
    products = [x * y for x, y in itertools.product(*values)]
    for k in (1, 3, 100):
        assert by_data_type(rows[0], rows[1], k) == width(k * min(products), k * max(products))


@pytest.mark.parametrize(("low", "high"), [(-8, 7), (0, 15), (-3, 0)])
def test_the_weight_bound_is_reached_and_never_exceeded(low: int, high: int) -> None:
    weights = rng.integers(-8, 8, (5, 3)).astype(np.float64)
    inputs = np.array(list(itertools.product(range(low, high + 1), repeat=3)))
    parts = inputs[:, None, :] * weights  # every input, every output, every product
    subsets = np.stack([parts[..., list(s)].sum(-1) for n in range(4) for s in itertools.combinations(range(3), n)])
    lows, highs = reach(weights, low, high)
    assert [int(one) for one in subsets.min((0, 1))] == [min(0, one) for one in lows.tolist()]
    assert [int(one) for one in subsets.max((0, 1))] == [max(0, one) for one in highs.tolist()]
    assert by_weight(weights, low, high) == width(int(subsets.min()), int(subsets.max()))
    worst = adversary(weights, low, high) @ weights.T
    assert (worst[1].min(), worst[0].max()) == (subsets.min(), subsets.max())


def test_inputs_that_never_are_zero_have_no_bound() -> None:
    with pytest.raises(ValueError, match="0 must be among them"):
        reach(np.ones((1, 1)), 1, 5)


def naive(a: np.ndarray, b: np.ndarray, stretch: int) -> dict[tuple[int, int], list[list[int]]]:
    """Partial sums of each output, one list per stretch, in Python integers."""
    found: dict[tuple[int, int], list[list[int]]] = {}
    for i, j in itertools.product(range(len(a)), range(len(b))):
        found[i, j] = []
        for start in range(0, a.shape[1], stretch):
            running = [0]
            for k in range(start, min(start + stretch, a.shape[1])):
                running.append(running[-1] + int(a[i, k]) * int(b[j, k]))
            found[i, j].append(running)
    return found


@pytest.mark.parametrize("stretch", [None, 1, 7, 32])
def test_observed_sums_are_those_of_a_loop(stretch: int | None) -> None:
    a, b = rng.integers(-128, 128, (6, 50)), rng.integers(-128, 128, (4, 50))
    seen = nothing()
    observe(seen, torch.from_numpy(a).float(), torch.from_numpy(b).float(), stretch)
    expected = naive(a, b, stretch or 50)
    runs = [run for parts in expected.values() for run in parts]
    assert seen.in_order == (min(min(run) for run in runs), max(max(run) for run in runs))
    assert seen.final == (min(0, *(run[-1] for run in runs)), max(0, *(run[-1] for run in runs)))
    sizes = [width(min(run), max(run)) for run in runs]
    assert seen.outputs == len(runs)
    for bits in range(1, 30):
        assert seen.beyond(bits) == sum(size > bits for size in sizes)
    for low, high, total, below, above in sums(torch.from_numpy(a).double(), torch.from_numpy(b).double(), stretch):
        assert ((below <= low) & (low <= total) & (total <= high) & (high <= above)).all()


@pytest.mark.parametrize(
    "register", [Register(bits=14), Register(bits=16), Register(bits=12, tile=8, outer=15), Register(bits=20)]
)
def test_outputs_that_leave_a_register_are_those_the_emulator_counts(register: Register) -> None:
    a, b = rng.integers(-128, 128, (40, 60)), rng.integers(-30, 30, (9, 60))
    # A saturating register leaves its range for the first time where a wide one would.
    spec = fpsim.MatmulSpec("int8", "int8", register.accumulator("saturate"))
    found = counts.matmul(a.astype(np.int8), np.ascontiguousarray(b.astype(np.int8).T), spec).totals
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    assert beyond(x, y, register, most=10**9) == found.overflowed_outputs
    if found.overflowed_outputs > 1:
        assert beyond(x, y, register, most=0) >= 1  # stops early


def test_registers() -> None:
    two = Register(bits=12, tile=8, outer=15)
    assert register_of(two.accumulator()) == two
    assert register_of(IntegerAccumulator(16)) == Register(bits=16)
    assert register_of(fpsim.SequentialFma("f16")) is None
    for wrong in ({"bits": 1}, {"bits": 16, "tile": 8}, {"bits": 16, "tile": 8, "outer": 12}, {"bits": 9, "outer": 12}):
        with pytest.raises(ValueError, match=r"register|tile"):
            Register(**wrong)


@pytest.mark.parametrize("make", [unet_pipeline, dit_pipeline])
def test_what_is_watched_is_what_the_engine_multiplies(make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = make()
    calibration = calibrate(pipe, CAPTIONS, steps=1)
    quantized = analysis.quantize(pipe, "int8-w8a8", calibration=calibration)
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    wide = on_accumulator(quantized, IntegerAccumulator(32))
    running: list[str] = []
    for path, module in getattr(wide, name).named_modules():
        if isinstance(module, QuantizedLayer):
            module.register_forward_pre_hook(lambda *_, path=path: running.append(path) and None)
    seen: dict[str, list[tuple[int, int]]] = {}

    def note(a, b, spec, sides) -> None:
        product = a.astype(np.int64) @ b.astype(np.int64)
        seen.setdefault(running[-1], []).append((int(product.min()), int(product.max())))

    monkeypatch.setattr(counting, "note", note)
    with watched(getattr(wide, name), rows=None) as found:
        analysis.runner.sample(wide, CAPTIONS[:1], [0], steps=1)
    rows = found()
    assert len(rows) == len(seen)
    for row in rows:
        finals = seen[row.path]
        assert row.observed.final == (min(0, *(x for x, _ in finals)), max(0, *(y for _, y in finals))), row.path
        assert row.final <= row.in_order <= row.any_order <= row.weight <= row.data_type
        assert row.macs == row.observed.outputs * row.products


def test_another_accumulator_changes_nothing_but_the_sums() -> None:
    pipe = unet_pipeline()
    calibration = calibrate(pipe, CAPTIONS, steps=1)
    quantized = analysis.quantize(pipe, "int8-w8a8", calibration=calibration)
    engine = analysis.quantize(pipe, analysis.scheme.scheme("int8-w8a8").exact("turing/mma"), calibration=calibration)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(2))

    def run(one) -> torch.Tensor:
        with torch.no_grad():
            return one.unet(x, 10, encoder_hidden_states=hidden).sample

    before = run(quantized)
    assert torch.equal(run(on_accumulator(quantized, IntegerAccumulator(32))), run(engine))
    assert not torch.equal(run(on_accumulator(quantized, IntegerAccumulator(12))), run(engine))
    assert torch.equal(run(quantized), before)
    with pytest.raises(ValueError, match="no layer multiplies"):
        on_accumulator(pipe, IntegerAccumulator(32))
    scheme = analysis.scheme.scheme("int8-w8a8")
    rule = replace(scheme.rules[0], weight=replace(scheme.rules[0].weight, format="uint8"))
    shifted = analysis.quantize(pipe, replace(scheme, rules=(rule,)), calibration=calibration)
    with pytest.raises(ValueError, match="zero point"):
        on_accumulator(shifted, IntegerAccumulator(32))
    with pytest.raises(ValueError, match="multiplies codes by codes"), watched(pipe.unet):
        pass


def test_candidates_say_what_they_are() -> None:
    made = grid([16, 20], methods=["rtn", "a2q"])
    assert [one.words for one in made] == ["int16", "int16-saturate", "int20", "int20-saturate", "int16", "int20"]
    assert made[4].options["bits"] == 16
    assert made[1].kind == IntegerAccumulator(16, "saturate")
    tiles = grid([16], methods=["oaq"], tile=32)[0]
    assert tiles.words == "int16 per 32 in int24"
    assert tiles.kind == Register(bits=16, tile=32, outer=24).accumulator()
    assert (Candidate(accumulator="fixed40").bits, Candidate(accumulator="f16").bits) == (40, None)
    # the smallest product of E4M3 is 2**-18: a register that begins at 2**8 reaches 26 bits higher
    assert Candidate(accumulator="fixed16-lsb8").reach("e4m3", "e4m3") == 42
    assert Candidate(accumulator="fixed16").reach("e4m3", "e4m3") == 16
    for wrong in ({}, {"accumulator": "int16", "register": Register(bits=16)}, {"accumulator": "int99"}):
        with pytest.raises(ValueError, match=r"accumulator|IntegerAccumulator"):
            Candidate(**wrong)
    with pytest.raises(ValueError, match="outer belongs to tiles"):
        grid([16], outer=20)
    with pytest.raises(ValueError, match="there twice"):
        Study(pipeline="shapes-sd", candidates=(made[0], made[0]))
    with pytest.raises(ValueError, match="watched"):
        Study(pipeline="shapes-sd", candidates=made, watched=9)


def test_a_narrow_register_costs_less_and_one_without_a_circuit_nothing_known() -> None:
    wide, narrow = (costs(Candidate(accumulator=words), "int8", "int8") for words in ("int32", "int24"))
    assert wide.gates is not None
    assert narrow.gates is not None
    assert wide.energy is not None
    assert narrow.gates < wide.gates == wide.wide_gates
    row = narrow.added(_row("int24", 24))
    assert row.gates_saved == 1 - narrow.gates / wide.gates
    assert row.energy == pytest.approx(narrow.energy * row.macs)
    tree = costs(Candidate(accumulator="PairwiseTree:terms=4"), "e4m3", "e4m3")
    assert tree.gates is None
    assert "trees" in tree.notes[0]


def test_two_levels_are_two_adders_and_the_outer_one_works_once_per_tile() -> None:
    inner, tiles = (
        costs(Candidate(register=register), "int8", "int8")
        for register in (Register(bits=16), Register(bits=16, tile=64, outer=24))
    )
    assert inner.gates is not None and inner.energy is not None  # noqa: PT018
    adder = 5 * 24 - 6  # full adders of five gates, no carry into the first and none out of the last
    assert tiles.gates == inner.gates + adder
    assert tiles.energy == pytest.approx(inner.energy * (1 + adder / inner.gates / 64))
    overflowing = Promoted(IntegerAccumulator(16, "saturate"), 64, outer=IntegerAccumulator(24, "saturate"))
    clamped, _ = _two_levels(overflowing, "int8", "int8")
    assert clamped > counted("int8", "int8", overflowing.inner)[0] + adder
    chain, _ = _two_levels(Promoted(SequentialFma("f16"), 32), "e4m3", "e4m3")
    assert chain == counted("e4m3", "e4m3", SequentialFma("f16"))[0] + counted("e2m1", "e2m1", SequentialFma("f32"))[0]
    step = fpsim.engine("ada/mma", "e4m3").accumulator
    shared, _ = _two_levels(Promoted(step, 128), "e4m3", "e4m3")
    assert shared == counted("e4m3", "e4m3", step)[0] + counted("e2m1", "e2m1", SequentialFma("f32"))[0] / 16


def _row(accumulator: str, bits: int | None, layer: str = ALL, psnr: float | None = None) -> Row:
    return Row(
        pipeline="p", scheme="int8-w8a8", method="rtn", accumulator=accumulator, bits=bits, layer=layer, kind="",
        a="int8", b="int8", products=9, macs=1e9, data_type=25, weight=22, any_order=20, in_order=19, final=18,
        needing=0.1, psnr=psnr, psnr_low=psnr, psnr_high=psnr,
    )  # fmt: skip


def test_the_plot_is_drawn_and_the_same_every_time() -> None:
    candidates = grid([16, 20], ["saturate"])
    rows = [_row(one.accumulator, one.bits, layer, 30.0) for one in candidates for layer in (ALL, "a", "b")]
    found = Found(study=Study(pipeline="p", candidates=candidates), rows=tuple(rows))
    picture = draw(found)
    assert picture.startswith(b"\x89PNG")
    assert picture == draw(found)
    assert list(found.table()["layer"]) == [ALL, "a", "b"] * 2
    assert len(found.whole) == 2


def test_the_command_bounds_a_model_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["accumulators", "dit-xl-2-256", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    widest = found["results"][0]
    assert widest["products"] == 4608  # the second product of its feed-forward
    assert widest["bits"] == width(-4608 * 128 * 127, 4608 * 128 * 128)
    assert sum(row["macs"] for row in found["results"]) == pytest.approx(1)
    assert main(["accumulators", "dit-xl-2-256", "--scheme", "w8a16"]) == 2
    assert "multiplies codes by codes" in capsys.readouterr().err
    assert main(["accumulators", "shapes-sd", "--bits", "16", "18", "--method", "a2q", "--trained", "x"]) == 2
    assert "one width" in capsys.readouterr().err


def test_what_a_study_depends_on_is_there() -> None:
    found = _sources()
    for name in ("accumulators/runs.py", "accumulators/partial_sums.py", "metrics/__init__.py", "metrics/pictures.py"):
        assert len(found[name]) == 64


@pytest.mark.slow
def test_a_study_finds_the_order_that_theory_has(tmp_path) -> None:
    candidates = (*grid([32, 14], ["saturate"]), *grid([16], methods=["a2q", "oaq"]), Candidate(accumulator="f32"))
    asked = Study(
        pipeline="shapes-sd", candidates=candidates, prompts=1, steps=2, calibration=2, watched=1, rows=16, counted=1
    )
    found = study(asked, tmp_path)
    wide, narrow, bound, aware, chain = found.whole
    assert wide.overflow == 0
    assert wide.needing == 0
    assert narrow.overflow
    assert narrow.needing
    assert narrow.psnr < wide.psnr
    assert bound.overflow == 0
    assert bound.weight <= 16 < wide.weight
    assert aware.needing < 1e-4  # what calibration saw fits by construction; of what it did not see, nearly all
    assert aware.weight > 16
    assert chain.bits is None
    # A float32 sum is exact to 2**24, where most of these end: its noise is nothing beside that of 8-bit operands.
    assert abs(chain.psnr - wide.psnr) < 1
    assert (tmp_path / found.folder.name / "accumulators.png").is_file()
    assert study(asked, tmp_path).rows == found.rows  # kept, not measured again


def experiment(**configuration: object) -> Experiment:
    """One configuration on the template array."""
    tree = {"name": "t", "configuration": [configuration], "cost": {"devices": ["my-npu"], "models": ["shapes-sd"]}}
    return Experiment.from_dict(tree)


def test_an_accumulator_in_words_does_as_an_engine() -> None:
    made = experiment(scheme="int8-w8a8", engine="int16-saturate", method="oaq")
    row = made.configuration[0]
    assert (row.accumulator, row.arithmetic, row.label) == (
        "int16-saturate", "exact", "int8-w8a8 oaq exact on int16-saturate",
    )  # fmt: skip
    rule = made.scheme_of(row).rules[0]
    assert rule.activation is not None and rule.weight is not None  # noqa: PT018
    assert engine_for(rule.spec or "", rule.activation, rule.weight) == fpsim.MatmulSpec(
        "int8", "int8", IntegerAccumulator(16, "saturate")
    )
    assert experiment(scheme="int8-w8a8", engine="turing/mma").configuration[0].accumulator is None
    for engine, words in (("hopper/wgma", "did you mean 'hopper/wgmma'"), ("int3.5", "nor is it an accumulator")):
        wrong = experiment(scheme="int8-w8a8", engine=engine)
        with pytest.raises(ValueError, match=f"unknown engine '{engine}'.*{words}"):
            wrong.scheme_of(wrong.configuration[0])


def test_the_cost_table_prices_exactly_that_accumulator() -> None:
    tree = experiment(scheme="int8-w8a8").to_dict()
    tree["configuration"] = [
        {"scheme": "int8-w8a8", "engine": engine} if engine else {"scheme": "int8-w8a8"}
        for engine in (None, "int32", "int24", "turing/mma")
    ]
    plan = Plan(Experiment.from_dict(tree), {"device": "cpu"})
    rows = {row.configuration: row for row in price(plan)}
    wide, narrow = rows["int8-w8a8 exact on int32"], rows["int8-w8a8 exact on int24"]
    assert (wide.gates, narrow.gates) == tuple(spelled("int8", "int8", words)[0] for words in ("int32", "int24"))
    assert wide.energy_per_image == rows["int8-w8a8"].energy_per_image
    assert narrow.cycles_per_image == wide.cycles_per_image
    assert wide.cycles_per_image == pytest.approx(wide.time_per_image * 1e9)  # my-npu runs at 1 GHz
    assert "int8-w8a8 exact on turing/mma" not in rows  # costs what its scheme costs
    # what the narrower unit saves on every product of two int8 codes, and nothing else
    products = sum(
        op.macs * op.count for op in workload("shapes-sd", 2).ops if type(op).__name__ in ("Gemm", "Conv2d") and op.path
    )
    each = spelled("int8", "int8", "int32")[1] - spelled("int8", "int8", "int24")[1]
    assert wide.energy_per_image - narrow.energy_per_image == pytest.approx(each * products * 20, rel=1e-6)
