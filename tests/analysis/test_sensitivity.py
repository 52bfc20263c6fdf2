"""Layers judged one at a time: shared beginnings, teacher forcing, scores, resuming."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from tiny_pipelines import dit_pipeline, unet_pipeline

from analysis.runner import Calibration, calibrate, quantize
from analysis.runner.calibrate import layers_of
from analysis.runner.samples import Call
from analysis.scheme import Rule, Scheme, scheme
from analysis.sensitivity import Sensitivity, decibel, named, sensitivity
from analysis.sensitivity.one_layer import Judge, candidate, judges, whole
from analysis.sensitivity.prefix import Prefix
from analysis.sensitivity.visits import Clean, Visit, noise, restructured, visits

CAPTIONS = ["a red ring", "two blue squares", "green"]
PIPELINES = {"unet": unet_pipeline, "transformer": dit_pipeline}
#: A static, a dynamic and a block candidate.
CANDIDATES = ("int8-w8a8", "int4-w4a4+dynamic", "nvfp4")


@pytest.fixture(scope="module", params=PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def dit() -> DiffusionPipeline:
    return dit_pipeline()


@pytest.fixture(scope="module")
def ranges(dit: DiffusionPipeline) -> Calibration:
    return calibrate(dit, CAPTIONS, steps=4)


@pytest.fixture(scope="module")
def pipe(name: str) -> DiffusionPipeline:
    return PIPELINES[name]()


@pytest.fixture(scope="module")
def calibration(pipe: DiffusionPipeline) -> Calibration:
    return calibrate(pipe, CAPTIONS, steps=4)


@pytest.fixture(scope="module")
def found(pipe: DiffusionPipeline, calibration: Calibration) -> tuple[Visit, ...]:
    return visits(pipe, calibration, images=2, steps=2)


def outputs(model: torch.nn.Module, found: tuple[Visit, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(*visit.call.args, **visit.call.kwargs)[0] for visit in found]


# -- the shared beginning ---------------------------------------------------------------------------------------------


def test_a_layer_changed_behind_a_remembered_beginning_gives_the_bits_of_running_everything(
    pipe: DiffusionPipeline, name: str, calibration: Calibration, found: tuple[Visit, ...]
) -> None:
    denoiser = getattr(pipe, name)
    prefix = Prefix(denoiser)
    prefix.record(found[0].call)
    for path, layer in list(layers_of(denoiser).items())[:: 7 if name == "unet" else 3]:
        one = Scheme(name="one", rules=(replace(scheme("nvfp4").rules[0], pattern=path),))
        quantized = getattr(quantize(pipe, one, calibration=calibration), name)
        (direct,) = outputs(quantized, found[:1])
        assert torch.equal(prefix.changed(path, quantized.get_submodule(path)), direct), path
        assert prefix.model.get_submodule(path) is not quantized.get_submodule(path), "put back"
        assert type(prefix.model.get_submodule(path)) is type(layer)


def test_the_beginning_is_answered_from_memory_and_the_rest_computed(
    pipe: DiffusionPipeline, name: str, found: tuple[Visit, ...]
) -> None:
    """Exactly the layers from the changed one on run, in the order of the recorded call."""
    denoiser = getattr(pipe, name)
    prefix = Prefix(denoiser)
    ran: list[str] = []

    def counting(path: str) -> None:
        forward = prefix.model.get_submodule(path).forward
        prefix.model.get_submodule(path).forward = lambda *a, **k: ran.append(path) or forward(*a, **k)

    for path in layers_of(denoiser):
        counting(path)
    prefix.record(found[0].call)
    order = list(ran)
    assert sorted(order) == sorted(layers_of(denoiser))
    for start, path in list(enumerate(order))[:: 5 if name == "unet" else 2]:
        ran.clear()
        prefix.changed(path, prefix.model.get_submodule(path))
        assert ran == order[start:], path
    assert prefix.record(found[0].call) is not None
    assert ran[-len(order) :] == order, "and all of it again for the next call"
    nothing = Prefix(denoiser, budget=0)
    nothing.record(found[0].call)
    last = nothing.changed(order[-1], nothing.model.get_submodule(order[-1]))
    assert torch.equal(last, outputs(denoiser, found[:1])[0]), "without memory everything is computed"


def test_writing_into_a_result_spoils_nothing() -> None:
    """`add_` on what a module returned is the caller's business; the remembered result stays."""

    class Writes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.second(self.first(x).add_(1)),)

    model = Writes().eval()
    call = Call(args=(torch.ones(2, 4),), kwargs={}, images=2)
    prefix = Prefix(model)
    once = prefix.record(call)
    assert torch.equal(prefix.changed("second", model.second), once)
    assert torch.equal(prefix.changed("second", model.second), once)


def test_a_module_called_twice_is_computed_twice() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.last = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.last(self.shared(self.shared(x))),)

    model = Twice().eval()
    prefix = Prefix(model)
    once = prefix.record(Call(args=(torch.randn(2, 4),), kwargs={}, images=2))
    assert torch.equal(prefix.changed("last", model.last), once)


def test_nothing_is_repeated_before_it_was_recorded() -> None:
    with pytest.raises(ValueError, match="record a call first"):
        Prefix(torch.nn.Sequential(torch.nn.Linear(2, 2))).changed("0", torch.nn.Identity())


# -- visits and scores ------------------------------------------------------------------------------------------------


def test_visits_are_whole_calls_at_timesteps_spread_over_the_trajectory(
    pipe: DiffusionPipeline, calibration: Calibration
) -> None:
    every = visits(pipe, calibration, images=2, steps=4)
    assert [visit.timestep for visit in every] == sorted(calibration.timesteps, reverse=True)
    assert {visit.call.images for visit in every} == {4}, "two captions, both halves of guidance"
    two = visits(pipe, calibration, images=2, steps=2)
    assert [visit.timestep for visit in two] == [every[1].timestep, every[3].timestep]
    for images, steps, words in ((4, 2, "4 images"), (0, 2, "0 images"), (2, 5, "5 timesteps"), (2, 0, "0 timesteps")):
        with pytest.raises(ValueError, match=words):
            visits(pipe, calibration, images=images, steps=steps)


def test_the_picture_of_the_last_step_is_the_one_the_pipeline_draws(pipe: DiffusionPipeline, name: str) -> None:
    """With one denoising step the scheduler returns x0 itself, so the pipeline's picture is the predicted clean one."""
    calibration = calibrate(pipe, CAPTIONS[:2], steps=1)
    (visit,) = visits(pipe, calibration, images=2, steps=1)
    seen: list[torch.Tensor] = []
    decode = pipe.vae.decode
    try:
        pipe.vae.decode = lambda z, *args, **kwargs: seen.append(z) or decode(z, *args, **kwargs)
        from analysis.runner import sample

        drawn = sample(pipe, CAPTIONS[:2], calibration.seeds, steps=1)
    finally:
        pipe.vae.decode = decode
    made = Clean(pipe, 2, 3.0).pictures(visit, outputs(getattr(pipe, name), (visit,))[0])
    # float32 arithmetic in another order (a few ulps of latents of size 10), then a decoder of small gain.
    assert torch.allclose(made.float(), drawn, rtol=0, atol=1e-4)
    assert float(drawn.std()) > 1e-3, "a picture of something"


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_clean_picture_is_what_the_scheduler_says(kind: str) -> None:
    pipe = unet_pipeline()
    pipe.scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    x, output = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    visit = Visit(call=Call(args=(x,), kwargs={}, images=2), timestep=500.0)
    pipe.scheduler.set_timesteps(10)
    expected = pipe.scheduler.step(output, 500, x).pred_original_sample
    made = Clean(pipe, 2, 1.0).latents(visit, output)
    if kind == "sample":
        assert torch.equal(made, expected)
    # With u = 2**-24, relative to (|x| + |output|) / sqrt(a): the scheduler rounds 1 - a, two roots, a product, the
    # difference and the quotient, which come to at most 7 u; ours, with roots in float64, to at most 5 u.
    a = float(pipe.scheduler.alphas_cumprod[500])
    assert ((made - expected).abs() <= 12 * 2.0**-24 * (x.abs() + output.abs()) / a**0.5).all()


def test_clean_pictures_of_flow_matching_follow_the_straight_line() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe = unet_pipeline()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    clean, start = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    x = 0.75 * clean + 0.25 * start
    visit = Visit(call=Call(args=(x,), kwargs={}, images=2), timestep=250.0)
    made = Clean(pipe, 2, 1.0).latents(visit, start - clean)
    # u = 2**-24 for each of: 0.75 clean, the sum x, the difference v (of which a quarter is taken) and the result:
    # at most u (0.75 |c| + |x| + 0.25 (|c| + |s|) + |c|), and |x| is at most 0.75 |c| + 0.25 |s|.
    assert ((made - clean).abs() <= 3 * 2.0**-24 * (clean.abs() + start.abs())).all()


def test_pipelines_without_clean_pictures_are_refused() -> None:
    from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

    pipe = unet_pipeline()
    packed = Visit(call=Call(args=(torch.zeros(2, 16, 4),), kwargs={}, images=2), timestep=1.0)
    with pytest.raises(ValueError, match="leave it out"):
        Clean(pipe, 2, 1.0).latents(packed, torch.zeros(2, 16, 4))
    pipe.scheduler = EulerDiscreteScheduler()
    del pipe.scheduler.alphas_cumprod
    with pytest.raises(ValueError, match="EulerDiscreteScheduler says nothing"):
        Clean(pipe, 2, 1.0)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    pipe.vae = None
    with pytest.raises(ValueError, match="no autoencoder"):
        Clean(pipe, 2, 1.0)


def test_noise_is_the_inverse_of_the_sqnr() -> None:
    reference = torch.tensor([3.0, 4.0])
    # float32 holds 3.3 and 3.6 to 2**-23, 4e-7 of an error of 0.3; its square to twice that
    assert noise(reference + torch.tensor([0.3, -0.4]), reference) == pytest.approx(0.01, rel=1e-6)
    assert noise(reference, reference) == 0.0
    assert (noise(torch.ones(2), torch.zeros(2)), noise(torch.zeros(2), torch.zeros(2))) == (1.0, 0.0)
    assert decibel(0.01) == pytest.approx(20.0)
    assert decibel(0.0) == math.inf


def test_equal_pictures_differ_by_exactly_nothing_and_16_bits_by_something() -> None:
    pictures = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    assert restructured(pictures, pictures.clone()) == 0.0
    assert 0 < restructured(pictures.bfloat16().double(), pictures) < 1e-3


# -- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chosen"), [("unet", "nvfp4"), *(("transformer", one) for one in CANDIDATES)], indirect=["name"]
)
def test_scores_are_those_of_quantizing_that_layer_alone_bit_for_bit(
    pipe: DiffusionPipeline, name: str, calibration: Calibration, found: tuple[Visit, ...], chosen: str
) -> None:
    denoiser = getattr(pipe, name)
    clean = Clean(pipe, 2, calibration.guidance)
    paths = list(layers_of(denoiser))
    few = [paths[0], paths[len(paths) // 2], paths[-1]]
    rule = scheme(chosen).rules[0]
    some = Scheme(name="some", rules=tuple(replace(rule, pattern=path) for path in few))
    scores = candidate(pipe, some, found, calibration, clean)
    reference = outputs(denoiser, found)
    for index, path in enumerate(paths):
        if path not in few:
            assert not scores[index].any()
            continue
        one = Scheme(name="one", rules=(replace(rule, pattern=path),))
        quantized = quantize(pipe, one, calibration=calibration)
        direct = outputs(getattr(quantized, name), found)
        for i, visit in enumerate(found):
            assert scores[index, i].tolist() == list(Judge(visit, reference[i], clean)(direct[i])), path
        assert scores[index].tolist() == whole(quantized, judges(pipe, found, clean)).tolist()
        assert (scores[index] > 0).all(), path


def test_an_unquantized_candidate_changes_exactly_nothing(
    pipe: DiffusionPipeline, name: str, calibration: Calibration, found: tuple[Visit, ...]
) -> None:
    clean = Clean(pipe, 2, calibration.guidance)
    assert not candidate(pipe, scheme("fp32"), found, calibration, clean).any()
    # Not because nothing ran: the very layers put back in their own places give the very output and picture.
    denoiser = getattr(pipe, name)
    prefix = Prefix(denoiser)
    judge = Judge(found[0], prefix.record(found[0].call), clean)
    for path, layer in list(layers_of(denoiser).items())[::3]:
        assert judge(prefix.changed(path, layer)) == (0.0, 0.0), path


def test_ranges_by_timestep_follow_the_visits(dit: DiffusionPipeline, ranges: Calibration) -> None:
    """Layers with a clock: the copy that is changed layer by layer tells them the time."""
    found = visits(dit, ranges, images=1, steps=2)
    rule = scheme("int8-w8a8").rules[0]
    assert rule.activation is not None
    timed = Scheme(name="timed", rules=(replace(rule, activation=replace(rule.activation, steps=4)),))
    scores = candidate(dit, timed, found, ranges, None)
    path = list(layers_of(dit.transformer))[1]
    one = replace(timed, rules=(replace(timed.rules[0], pattern=path),))
    quantized = quantize(dit, one, calibration=ranges)
    assert scores[1, :, 0].tolist() == whole(quantized, judges(dit, found, None))[:, 0].tolist()
    still = replace(rule, activation=replace(rule.activation, steps=1))
    plain = candidate(dit, Scheme(name="plain", rules=(still,)), found, ranges, None)
    assert (plain[..., 0] != scores[..., 0]).any()


def test_layers_that_a_candidate_spares_score_nothing(dit: DiffusionPipeline, ranges: Calibration) -> None:
    spared = Scheme(name="x", rules=(Rule(pattern="*attn*"), *scheme("nvfp4").rules))
    scores = candidate(dit, spared, visits(dit, ranges, images=1, steps=1), ranges, None)
    inside = np.array(["attn" in path for path in layers_of(dit.transformer)])
    assert not scores[inside, :, 0].any()
    assert (scores[~inside, :, 0] > 0).all()
    assert np.isnan(scores[~inside, :, 1]).all(), "content was not asked for"


def test_a_stopped_study_goes_on_where_it_was_and_a_damaged_visit_is_done_again(
    dit: DiffusionPipeline, ranges: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_study = sensitivity(dit, ["nvfp4"], ranges, images=1, steps=2, content=False)

    def stop(stage: str, done: float, total: float) -> None:
        if done == 1:
            raise KeyboardInterrupt

    arguments = {"images": 1, "steps": 2, "content": False, "keep": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        sensitivity(dit, ["nvfp4"], ranges, progress=stop, **arguments)
    (first,) = tmp_path.glob("*.json")
    runs: list[str] = []
    record = Prefix.record
    monkeypatch.setattr(Prefix, "record", lambda self, call: runs.append("") or record(self, call))
    again = sensitivity(dit, ["nvfp4"], ranges, **arguments)
    assert len(runs) == 1
    assert again.quality.tolist() == whole_study.quality.tolist()
    first.write_text(first.read_text().replace("0.", "1.", 1))
    repaired = sensitivity(dit, ["nvfp4"], ranges, **arguments)
    assert len(runs) == 2
    assert repaired.quality.tolist() == whole_study.quality.tolist()
    renamed = replace(scheme("nvfp4"), name="another name")
    sensitivity(dit, [renamed, "fp32"], ranges, **arguments)
    assert len(runs) == 2, "what a scheme is called changes nothing"
    sensitivity(dit, ["nvfp4"], ranges, **{**arguments, "images": 2})
    assert len(runs) == 4


@pytest.fixture(scope="module")
def result(dit: DiffusionPipeline, ranges: Calibration) -> Sensitivity:
    return sensitivity(dit, ["fp32", "nvfp4"], ranges, images=1, steps=2)


def test_the_table_is_tidy_and_the_json_comes_back(result: Sensitivity) -> None:
    frame = result.table()
    assert list(frame.columns) == ["layer", "kind", "candidate", "timestep", "quality", "sqnr_db", "content"]
    assert len(frame) == len(result.layers) * 2 * 2
    row = frame.iloc[3]
    assert (row.layer, row.candidate, row.timestep) == (next(iter(result.layers)), "nvfp4", result.timesteps[1])
    assert row.quality == result.quality[0, 1, 1]
    assert (frame[frame.candidate == "fp32"].sqnr_db == math.inf).all()
    assert result.scores("content")[:, 1].tolist() == result.content.mean(axis=2)[:, 1].tolist()  # type: ignore[union-attr]
    times = result.by_timestep()
    assert times.quality.iloc[3] == pytest.approx(result.quality[:, 1, 1].sum(), rel=1e-12)
    back = Sensitivity.from_json(result.to_json())
    assert back.table().equals(frame)
    assert back.candidates == result.candidates
    for text in ("{}", "[1]", result.to_json().replace('"timesteps": [', '"timesteps": [1, ')):
        with pytest.raises(ValueError, match="not a sensitivity"):
            Sensitivity.from_json(text)


def test_what_was_not_measured_is_not_made_up(result: Sensitivity) -> None:
    without = replace(result, content=None)
    assert without.table().content.isna().all()
    assert Sensitivity.from_json(without.to_json()).content is None
    with pytest.raises(ValueError, match="content was left out"):
        without.scores("content")
    with pytest.raises(ValueError, match="unknown metric 'contents'; did you mean 'content'"):
        result.scores("contents")  # type: ignore[arg-type]


def test_candidates_must_be_several_schemes_of_layers(dit: DiffusionPipeline, ranges: Calibration) -> None:
    for wrong, words in (([], "at least one"), ("nvfp4", "must be a list"), (["nvfp4", "nvfp4"], "there twice")):
        with pytest.raises(ValueError, match=re.escape(words)):
            named(wrong)
    with pytest.raises(ValueError, match="quantizes attention"):
        sensitivity(dit, ["int8-w8a8+attention"], ranges, images=1, steps=1)
