"""Mixed precision: the integer program against brute force, real costs, schemes as chosen, the commands."""

import ctypes
import itertools
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import milp
from tiny_pipelines import dit_pipeline

import hwmodels
from analysis.allocation import Infeasible, allocate, cheapest, decoupled, front, solve
from analysis.allocation.costs import Costs, costs
from analysis.allocation.mixture import experiment_text, mixture
from analysis.allocation.outcomes import best, measured, mixed, table, uniform
from analysis.cli import main
from analysis.commands.allocate import budget
from analysis.experiment import Experiment
from analysis.registry import workload
from analysis.scheme import Rule, Scheme, scheme
from analysis.sensitivity import Sensitivity, Study, named
from analysis.sensitivity import run as run_study

NAMES = ("fp32", "fp8-w8a8", "nvfp4")
DIT = [op.path for op in workload("shapes-dit").ops if type(op).__name__ in ("Gemm", "Conv2d")]
LAYERS = dict.fromkeys(DIT, "Linear") | {"pos_embed.proj": "Conv2d"}


def made(quality: Any, content: Any = None, layers: Mapping[str, str] | None = None) -> Sensitivity:
    """A sensitivity with these scores (layers, candidates) at its one timestep."""
    scores = np.asarray(quality, dtype=np.float64)[..., None]
    names = [f"blocks.{i}.{'ff' if i % 2 else 'attn1'}.to" for i in range(len(scores))]
    return Sensitivity(
        pipeline="made up",
        method="rtn",
        layers=layers or dict.fromkeys(names, "Linear"),
        candidates={name: scheme(name) for name in NAMES[: scores.shape[1]]},
        timesteps=(1.0,),
        quality=scores,
        content=None if content is None else np.asarray(content, dtype=np.float64)[..., None],
    )


def priced(found: Sensitivity, values: Any, rest: Any = (0.0,)) -> Costs:
    """Costs of (sums, layers, candidates)."""
    values = np.asarray(values, dtype=np.float64)
    return Costs(
        what="latency",
        unit="s",
        about="made up",
        layers=tuple(found.layers),
        candidates=tuple(found.candidates),
        values=values,
        rest=np.asarray(rest, dtype=np.float64),
        unquantized=1.0,
    )


# -- the program ------------------------------------------------------------------------------------------------------


def test_pictures_are_kept_where_they_were_judged() -> None:
    """The layer whose SQNR is worse is the one that pictures hardly notice."""
    quality, content = [[0.0, 0.1], [0.0, 0.2]], [[0.0, 0.02], [0.0, 0.01]]
    costs_ = [[[2.0, 1.0], [2.0, 1.0]]]
    both, one = made(quality, content), made(quality)
    for found, metric, cheap in ((both, "content", 1), (both, "quality", 0), (one, "quality", 0)):
        asked = None if (found, metric) in ((both, "content"), (one, "quality")) else metric
        chosen = allocate(found, priced(found, costs_), 3.0, asked)
        assert chosen.metric == metric
        names = list(found.candidates)
        assert list(chosen.choice.values()) == [names[int(index == cheap)] for index in range(2)]
        assert front(found, priced(found, costs_), 2, asked)[0].metric == metric


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_program_finds_what_brute_force_finds(data: st.DataObject) -> None:
    """Scores over nine decades, one or two sums, limits that some choice meets exactly."""
    layers, candidates, sums = (data.draw(st.integers(1, most)) for most in (5, 4, 2))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    scores = 10 ** generator.uniform(-9, 0, (layers, candidates))
    values = 10 ** generator.uniform(-6, -3, (sums, layers, candidates))
    if data.draw(st.booleans()):
        scores[:, 0] = 0
    if data.draw(st.booleans()):
        values = np.round(values, 5)  # ties
    every = np.array(list(itertools.product(range(candidates), repeat=layers)))
    totals = values[:, np.arange(layers), every].sum(axis=2)
    limits = totals[:, data.draw(st.integers(0, len(every) - 1))] * (1 + 1e-9)
    within = (totals <= limits[:, None]).all(axis=0)
    least = scores[np.arange(layers), every].sum(axis=1)[within].min()
    chosen = solve(scores, values, limits)
    assert (values[:, np.arange(layers), chosen].sum(axis=1) <= limits * (1 + 2e-9)).all()
    # The solver stops within 1e-6 of the optimum, relative and in units of the answer.
    assert scores[np.arange(layers), chosen].sum() <= least * (1 + 3e-6)


def test_a_hundred_layers_take_no_longer_than_a_blink() -> None:
    """Size of a real denoiser; greedy choices by the best ratio of score to cost cannot be better."""
    generator = np.random.default_rng(0)
    scores = np.sort(10 ** generator.uniform(-7, -1, (120, 4)), axis=1)
    values = np.sort(10 ** generator.uniform(-6, -4, (120, 4)), axis=1)[:, ::-1][None]
    limit = values.min(axis=2).sum() * 0.7 + values[0, :, 0].sum() * 0.3
    chosen = solve(scores, values, np.array([limit]))
    assert values[0, np.arange(120), chosen].sum() <= limit * (1 + 1e-9)
    greedy = np.argmin(values[0], axis=1)
    steps = sorted(
        ((scores[i, greedy[i]] - scores[i, c]) / (values[0, i, c] - values[0, i, greedy[i]]), i, c)
        for i in range(120)
        for c in range(3)
    )
    for _, i, c in reversed(steps):
        tried = greedy.copy()
        tried[i] = c
        if scores[i, c] < scores[i, greedy[i]] and values[0, np.arange(120), tried].sum() <= limit:
            greedy = tried
    assert scores[np.arange(120), chosen].sum() <= scores[np.arange(120), greedy].sum()


def test_what_the_solver_prints_stays_out_of_results(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Some versions print for debugging, from C++, past every option; `--json` must stay JSON."""

    def noisy(*arguments: Any, **options: Any) -> Any:
        os.write(1, b"HighsMipSolverData::transformNewIntegerFeasibleSolution\n")
        ctypes.CDLL(None).puts(b"held back by the C library")
        return milp(*arguments, **options)

    monkeypatch.setattr("scipy.optimize.milp", noisy)
    scores, values = np.array([[0.0, 1.0]] * 3), np.array([[[2.0, 1.0]] * 3])
    assert solve(scores, values, np.array([5.0])).sum() == 1
    print("but this is ours")
    assert capfd.readouterr().out == "but this is ours\n"


def test_a_budget_that_nothing_keeps_to_names_the_smallest_one_in_one_line() -> None:
    found = made([[0.0, 1.0, 2.0]] * 3)
    for values, rest, smallest in (
        ([[[3e-3, 2e-3, 1e-3]] * 3], [5e-4], 3.5e-3),
        # Two sums, as for eager latency: the least of the larger one is not where either sum is least.
        ([[[3e-3, 2e-3, 1e-3]] * 3, [[1e-3, 2e-3, 3e-3]] * 3], [0.0, 0.0], 6e-3),
    ):
        priced_ = priced(found, values, rest)
        assert cheapest(priced_) == pytest.approx(smallest, rel=1e-9)
        with pytest.raises(Infeasible, match=re.escape("smallest feasible budget is")) as error:
            allocate(found, priced_, smallest * 0.999)
        assert "\n" not in str(error.value)
        assert error.value.smallest == pytest.approx(smallest, rel=1e-9)
        given_back = float(re.findall(r"budget is .*\(([0-9.e-]+) s\)", str(error.value))[0])
        assert allocate(found, priced_, given_back * (1 + 1e-5)).cost == pytest.approx(smallest, rel=1e-5)
        with pytest.raises(Infeasible):
            allocate(found, priced_, math.nan)
        assert allocate(found, priced_, error.value.smallest).cost <= smallest * (1 + 1e-9)


def test_the_front_only_gets_better_as_it_costs_more() -> None:
    generator = np.random.default_rng(1)
    found = made(np.sort(10 ** generator.uniform(-6, -1, (12, 3)), axis=1))
    priced_ = priced(found, np.sort(10 ** generator.uniform(-6, -4, (1, 12, 3)), axis=2)[..., ::-1])
    points = front(found, priced_, points=9)
    assert len(points) == 9
    for cheap, dear in itertools.pairwise(points):
        assert cheap.cost < dear.cost
        assert cheap.quality > dear.quality
    assert points[0].cost == pytest.approx(cheapest(priced_), rel=1e-12)
    assert points[-1].quality == pytest.approx(found.scores()[:, 0].sum(), rel=1e-12)
    assert [one.scheme.name for one in points] == [f"mixed-{i + 1}" for i in range(9)]
    with pytest.raises(ValueError, match="at least 2 points"):
        front(found, priced_, points=1)


def test_a_candidate_that_is_worse_and_dearer_is_never_taken_and_the_front_is_one_point() -> None:
    """Where quantizing saves nothing anywhere, the answer is not to quantize."""
    found = made([[0.0, 0.1, 0.2]] * 4)
    priced_ = priced(found, [[[1.0, 1.5, 1.2]] * 4])
    (only,) = front(found, priced_)
    assert only.counts() == {"fp32": 4}
    assert not any(rule.quantizes for rule in only.scheme.rules)


def test_decoupled_programs_keep_to_one_budget_and_shares_move_it_between_groups() -> None:
    generator = np.random.default_rng(2)
    quality = np.sort(10 ** generator.uniform(-6, -1, (10, 3)), axis=1)
    content = np.sort(10 ** generator.uniform(-6, -1, (10, 3)), axis=1)
    found = made(quality, content)
    priced_ = priced(found, np.sort(10 ** generator.uniform(-6, -4, (1, 10, 3)), axis=2)[..., ::-1], [1e-5])
    allowed = (cheapest(priced_) + priced_.uniform("fp32")) / 2
    made_ = decoupled(found, priced_, allowed)
    assert len(made_) > 2
    assert [one.share for one in made_] == sorted(one.share for one in made_ if one.share is not None)
    inside = [i for i, path in enumerate(found.layers) if ".ff." in path]
    outside = [i for i in range(10) if i not in inside]

    def score(one: Any, rows: list[int], scores: np.ndarray) -> float:
        return sum(scores[i, NAMES.index(list(one.choice.values())[i])] for i in rows)

    contents = [score(one, inside, content) for one in made_]
    qualities = [score(one, outside, quality) for one in made_]
    assert contents == sorted(contents, reverse=True)
    assert qualities == sorted(qualities)
    assert max(one.cost for one in made_) <= allowed * (1 + 1e-8)
    # Each group is optimal within its share: brute force over the content group at share 1, which gets all there is.
    room = allowed - 1e-5 - priced_.values[0][outside].min(axis=1).sum()
    every = np.array(list(itertools.product(range(3), repeat=len(inside))))
    total = priced_.values[0][inside][np.arange(len(inside)), every].sum(axis=1)
    least = content[inside][np.arange(len(inside)), every].sum(axis=1)[total <= room * (1 + 1e-9)].min()
    assert contents[-1] == pytest.approx(least, rel=3e-6)
    for shares, patterns, words in (
        ((2.0,), ("*.ff.*",), "between 0 and 1"),
        ((0.5,), ("*",), "match all of the layers"),
        ((0.5,), ("*.nothing",), "match none of the layers"),
    ):
        with pytest.raises(ValueError, match=words):
            decoupled(found, priced_, allowed, shares, patterns)
    with pytest.raises(Infeasible):
        decoupled(found, priced_, cheapest(priced_) / 2)
    with pytest.raises(ValueError, match="content was left out"):
        decoupled(replace(found, content=None), priced_, allowed)


def test_sensitivity_and_costs_must_be_of_the_same_things() -> None:
    found = made([[0.0, 0.1]] * 2)
    with pytest.raises(ValueError, match="same layers and candidates"):
        allocate(found, replace(priced(found, [[[1.0, 0.5]] * 2]), candidates=("fp8-w8a8", "fp32")), 2.0)


# -- costs ------------------------------------------------------------------------------------------------------------

CASES = [
    ("rtx-5090", "graph", "latency", None, 64),
    ("rtx-5090", "compiled", "latency", None, 64),
    ("rtx-5090", "eager", "latency", None, 2),  # the host is slower
    ("rtx-5090", "eager", "latency", None, 256),  # and here it depends
    ("h200-sxm", "eager", "energy", None, 2),
    ("my-npu", "compiled", "latency", None, 2),
    ("my-npu", "graph", "energy", "7nm", 2),
    ("mi300x", "graph", "latency", None, 2),
    ("rtx-5090", "graph", "memory", None, 2),
    ("rtx-5090", "graph", "bitops", None, 2),
]


@pytest.mark.parametrize(("device", "mode", "what", "node", "batch"), CASES)
def test_costs_of_layers_add_up_to_the_estimate_of_any_mixture(
    device: str, mode: Any, what: str, node: str | None, batch: int
) -> None:
    """The sum over layers is the estimate of the mixed scheme, to the rounding of float64 sums."""
    candidates = named(["fp32", "fp8-w8a8", "nvfp4", "w4a16", "int8-w8a8+dynamic"])
    work = workload("shapes-dit", batch)
    found = costs(work, tuple(LAYERS), candidates, device, what, mode, node=node)
    generator = np.random.default_rng(batch)
    for _ in range(2):
        choice = {path: str(generator.choice(list(candidates))) for path in LAYERS}
        mix = mixture("mix", choice, LAYERS, candidates)
        estimate = hwmodels.estimate(work, mix, device=device, mode=mode)
        true: float | None = {
            "latency": estimate.time_s,
            "energy": estimate.energy_j,
            "memory": estimate.footprint.weights,
            "bitops": sum(
                op.macs * op.count * mix.precision_for(op).widths(op)[0] * mix.precision_for(op).widths(op)[1]
                for op in work.ops
                if type(op).__name__ in ("Gemm", "Conv2d")
            )
            + sum(op.macs * op.count * 256 for op in work.ops if type(op).__name__ == "Attention"),
        }[what]
        if node is not None:
            true = hwmodels.npu.joules(estimate, node).total
        assert found.total(choice) == pytest.approx(true, rel=1e-12)
    plain = hwmodels.estimate(work, "bf16", device=device, mode=mode)
    if what == "latency":
        assert found.unquantized == pytest.approx(plain.time_s, rel=1e-12)
        assert found.uniform("fp32") == pytest.approx(found.unquantized, rel=1e-12)


def test_quantize_work_is_part_of_a_layers_cost() -> None:
    """On a small batch an H200 is slower in FP8 than in bf16, layer for layer; weights alone in 4 bits are not."""
    found = costs(workload("shapes-dit", 2), tuple(LAYERS), named(["fp32", "fp8-w8a8", "w4a16"]), "h200-sxm")
    assert (found.values[0, :, 1] > found.values[0, :, 0]).all()
    assert (found.values[0, :, 2] <= found.values[0, :, 0]).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"what": "latencies"}, "unknown cost 'latencies'; did you mean 'latency'"),
        ({"what": "energy", "device": "my-npu"}, "needs a technology node .*7nm"),
        ({"what": "energy", "device": "mi300x"}, "no energy is known"),
        ({"device": "ethos-u85-class"}, "has no rate for bf16"),
    ],
)
def test_what_cannot_be_priced_is_refused(changes: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        costs(workload("shapes-dit"), tuple(LAYERS), named(["nvfp4"]), **{"device": "h200-sxm", **changes})


# -- the scheme -------------------------------------------------------------------------------------------------------


def test_a_mixture_treats_each_layer_as_its_candidate_does_and_survives_being_written() -> None:
    candidates = named(["fp32", "nvfp4", "fp8-w8a8+keep-edges"])
    generator = np.random.default_rng(3)
    choice = {path: str(generator.choice(list(candidates))) for path in LAYERS}
    mix = mixture("mix", choice, LAYERS, candidates)
    for again in (mix, Scheme.from_toml(mix.to_toml()), Scheme.from_json(mix.to_json())):
        assert again == mix
        for path, kind in LAYERS.items():
            wanted, got = candidates[choice[path]].rule_for(path, kind), again.rule_for(path, kind)
            assert got is not None
            assert wanted is not None
            assert (got.weight, got.activation) == (wanted.weight, wanted.activation), path
    assert not mix.unused_rules(LAYERS)
    assert len(mix.rules) == 3
    assert mix.rest == "bf16"


def test_mixtures_of_what_no_layer_stands_for_are_refused() -> None:
    choice = dict.fromkeys(LAYERS, "a")
    with pytest.raises(ValueError, match="quantizes attention"):
        mixture("x", choice, LAYERS, {"a": scheme("nvfp4+attention")})
    two = {"a": scheme("fp8-w8a8"), "b": scheme("fp8-w8a8").exact("hopper/wgmma")}
    with pytest.raises(ValueError, match="all exact or all quantize"):
        mixture("x", {**choice, DIT[0]: "b"}, LAYERS, two)
    exact = mixture("x", {**dict.fromkeys(LAYERS, "b"), DIT[0]: "c"}, LAYERS, {**two, "c": scheme("fp32")})
    assert exact.arithmetic == "exact"


def test_the_experiment_file_says_the_same(tmp_path: Path) -> None:
    mix = mixture("mixed-1", {path: NAMES[i % 3] for i, path in enumerate(LAYERS)}, LAYERS, named(NAMES))
    changed = replace(scheme("nvfp4"), name="nvfp4+dynamic", rules=(Rule(pattern="*attn*"), *scheme("nvfp4").rules))
    file = tmp_path / "mixed.toml"
    file.write_text(experiment_text("try", "shapes-dit", [scheme("nvfp4"), mix, changed], ["rtx-5090"], "compiled"))
    found = Experiment.load(file)
    assert [one.scheme for one in found.configuration] == ["nvfp4", "mixed-1", "nvfp4+dynamic"]
    assert [found.scheme_of(one) for one in found.configuration] == [scheme("nvfp4"), mix, changed]
    assert (found.cost.devices, found.cost.models, found.cost.mode) == (("rtx-5090",), ("shapes-dit",), "compiled")


# -- end to end -------------------------------------------------------------------------------------------------------


def test_an_allocation_of_an_embedded_pipeline_is_predicted_about_right(tmp_path: Path) -> None:
    """Six layers of a real denoiser in NVFP4 or MXFP4: sums against the whole, on another caption."""
    some = "transformer_blocks.[03].ff.net.*", "transformer_blocks.5.attn1.to_[qk]"
    candidates = tuple(
        Scheme(name=name, rules=tuple(replace(scheme(name).rules[0], pattern=one) for one in some))
        for name in ("nvfp4", "mxfp4")
    )
    study = Study(
        pipeline="shapes-dit",
        candidates=(scheme("fp32"), *candidates),
        images=1,
        steps=2,
        content=False,
        captions=2,
        trajectory=2,
    )
    done = run_study(study, runs=tmp_path)
    found = done.sensitivity
    priced_ = costs(workload("shapes-dit"), tuple(found.layers), found.candidates, "rtx-5090", "memory")
    points = front(found, priced_, points=3)
    assert [bool(one.counts().get("fp32", 0) == len(found.layers)) for one in points] == [False, False, True]
    assert points[0].scheme.rule_for("transformer_blocks.0.ff.net.2") is not None
    assert points[0].counts() == {"fp32": len(found.layers) - 6, "mxfp4": 6}, "the fewest bits"
    rows = measured((*uniform(found, priced_)[:2], *mixed(points[1:], priced_)), done)
    frame = table(rows, priced_)
    assert frame.kind.tolist() == ["uniform", "uniform", "mixed", "uniform"], "the end of the front is uniform too"
    assert rows[-1].quality == rows[-1].measured_quality == 0.0
    for one in rows:
        if one.quality:
            assert one.measured_quality is not None
            assert 0.5 < one.measured_quality / one.quality < 2, one.name
            assert one.other_quality not in (None, 0.0, one.measured_quality)
    assert rows[0].measured_quality == 0.0
    assert best(rows).measured_quality == 0.0
    assert (done.folder / "sensitivity.csv").is_file()
    again = run_study(study, runs=tmp_path)
    assert again.sensitivity.table().equals(found.table())
    few = replace(done, calibration=replace(done.calibration, captions=("one",), seeds=(1,)))
    assert measured(uniform(found, priced_)[:1], few)[0].other_quality is None


# -- the commands -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pipelines") / "tiny"
    dit_pipeline().save_pretrained(path)
    return path


def command(folder: Path, words: str) -> list[str]:
    small = "--images 1 --steps 1 --trajectory 2 --calibration 2 --quiet --candidates fp32 fp8-w8a8 nvfp4"
    verb, *others = words.split()
    return [verb, str(folder), *small.split(), "--runs", str(folder.parent / "runs"), *others]


def test_the_commands_measure_choose_and_write(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder, f"sensitivity --csv {tmp_path}/layers.csv --top 3")) == 0
    shown = capsys.readouterr().out
    assert "SQNR in dB with one layer in it" in shown
    assert max(map(len, shown.splitlines())) <= 80 + len(str(folder.parent))
    assert (tmp_path / "layers.csv").read_text().startswith("layer,kind,candidate,timestep,quality,sqnr_db,content")
    assert main(command(folder, "sensitivity --json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["candidate"] for row in found["layers"]} == set(NAMES)
    assert all(("sqnr_db" in row) == (row["quality"] > 0) for row in found["layers"])
    words = f"allocate --device my-npu --cost memory --points 3 --out {tmp_path}/mixed.toml --csv {tmp_path}/front.csv"
    assert main(command(folder, words)) == 0
    shown = capsys.readouterr().out
    assert "memory MB" in shown
    assert "mixed-1" in shown
    assert "nan" not in shown
    assert len(Experiment.load(tmp_path / "mixed.toml").configuration) == 3 + 3
    assert (tmp_path / "front.csv").read_text().count("\n") == 1 + 3 + 3
    assert main(command(folder, "allocate --device rtx-5090 --cost memory --budget 60% --decoupled --json")) == 0
    found = json.loads(capsys.readouterr().out)
    shares = [row for row in found["results"] if "share" in row]
    assert shares
    for row in shares:
        assert row["memory_B"] <= 0.6 * found["unquantized"] * (1 + 1e-8)
        assert row["measured_sqnr_db"] > 0
        assert Scheme.from_dict(found["schemes"][row["scheme"]]).name == row["scheme"]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("allocate --device rtx-5090 --budget 1e-9 --no-check", "the smallest feasible budget is"),
        ("allocate --device rtx-509 ", "did you mean 'rtx-5090'"),
        ("allocate --device rtx-5090 --cost time", "unknown cost 'time'"),
        ("allocate --device rtx-5090 --budget 3MB", "'3MB' is no latency; give a number with one of %, s, ms"),
        ("allocate --device rtx-5090 --budget 1.2.3ms", "is no number"),
        ("allocate --device rtx-5090 --decoupled", "give it with --budget"),
        ("allocate --device rtx-5090 --no-content --metric content", "--no-content leaves out"),
        ("allocate --device rtx-5090 --out mixed.json", "is a .toml file"),
        ("allocate --device rtx-5090 --batch 0", "--batch must be at least 1"),
        ("sensitivity --method gptk", "unknown method 'gptk'; did you mean 'gptq'"),
        ("sensitivity --candidates fp9", "unknown scheme 'fp9'"),
        ("sensitivity --candidates nvfp4 nvfp4", "there twice"),
        ("sensitivity --steps 0", "steps must be at least 1"),
    ],
)
def test_mistakes_are_one_line(folder: Path, words: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, words)) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


def test_a_pipeline_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", "shapes-vit", "--quiet"]) == 2
    assert "no pipeline 'shapes-vit'" in capsys.readouterr().err


def test_schemes_of_your_own_are_candidates(tmp_path: Path) -> None:
    from analysis.commands.sensitivity import candidate

    (tmp_path / "mine.toml").write_text(replace(scheme("nvfp4"), name="mine").to_toml())
    assert candidate(str(tmp_path / "mine.toml")) == replace(scheme("nvfp4"), name="mine")
    (tmp_path / "bad.toml").write_text("rules = 3")
    with pytest.raises(ValueError, match=r"bad\.toml"):
        candidate(str(tmp_path / "bad.toml"))


@pytest.mark.parametrize(
    ("text", "cost", "value"),
    [
        *(("1.5ms", "latency", 1.5e-3), ("2 us", "latency", 2e-6), ("1e-3", "latency", 1e-3)),
        *(("80%", "energy", 8.0), ("40mJ", "energy", 0.04), ("3MiB", "memory", 3 * 2**20), ("1e12", "bitops", 1e12)),
    ],
)
def test_budgets_have_units(text: str, cost: str, value: float) -> None:
    assert budget(text, cost, 10.0) == pytest.approx(value, rel=1e-12)
