"""Layers quantized one after the other: stages, what is compensated, split concatenations, learned steps."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import dit_pipeline, unet_pipeline

from analysis.methods import Layer, _in_order
from analysis.methods._prepare import compensated
from analysis.runner import Calibration, calibrate, quantize, restore, sample, save
from analysis.runner.lockstep import Lockstep, _Run
from analysis.runner.quantize import plan
from analysis.runner.samples import Call, collect, joined, replay, singles, take
from analysis.scheme import scheme
from analysis.store import read_json
from fpsim.nn import Concatenated, QuantizedLayer, scaling

CAPTIONS = ["a red ring", "two blue squares", "green", "small dots"]
PIPELINES = {"unet": unet_pipeline, "transformer": dit_pipeline}


@pytest.fixture(scope="module", params=PIPELINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(name: str) -> DiffusionPipeline:
    return PIPELINES[name]()


@pytest.fixture(scope="module")
def calibration(pipe: DiffusionPipeline) -> Calibration:
    return calibrate(pipe, CAPTIONS, steps=3)


@pytest.fixture(scope="module")
def unet() -> DiffusionPipeline:
    return unet_pipeline()


def output_error(pipe: DiffusionPipeline, made: DiffusionPipeline, name: str) -> float:
    """Squared error of the denoiser on calls that calibration did not see."""
    calls = collect(pipe, calibrate(pipe, ["blue dots", "a ring"], seeds=[7, 8], steps=3), 24)
    total = 0.0
    with torch.no_grad():
        for call in calls:
            outputs = [getattr(one, name)(*call.args, **call.kwargs)[0] for one in (pipe, made)]
            total += float((outputs[0] - outputs[1]).square().sum())
    return total


def input_error(pipe: DiffusionPipeline, made: DiffusionPipeline, name: str, paths: set[str]) -> float:
    """Mean relative squared error of what the quantized layers at `paths` make of their inputs in full precision."""
    errors: list[float] = []

    def look(path: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        layer = getattr(made, name).get_submodule(path)

        def see(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            change = layer.rounded_input(args[0]) - args[0]
            errors.append(float(change.square().sum() / args[0].square().sum()))

        return see

    handles = [getattr(pipe, name).get_submodule(path).register_forward_pre_hook(look(path)) for path in paths]
    sample(pipe, ["blue dots", "a ring"], [7, 8], steps=3)
    for handle in handles:
        handle.remove()
    return sum(errors) / len(errors)


# -- samples ----------------------------------------------------------------------------------------------------------


def test_samples_are_calls_of_every_step_and_replaying_them_gives_the_same_outputs(
    pipe: DiffusionPipeline, name: str, calibration: Calibration
) -> None:
    denoiser = getattr(pipe, name)
    seen: list[torch.Tensor] = []
    handle = denoiser.register_forward_hook(lambda _, args, kwargs, out: seen.append(out[0]), with_kwargs=True)
    calls = collect(pipe, calibration, 9)
    handle.remove()
    assert [(call.images, call.halves) for call in calls] == [(4, 2)] * 3  # both halves of two images a step
    again = collect(pipe, calibration, 9)
    for one, other, whole in zip(calls, again, seen, strict=True):
        with torch.no_grad():
            output = denoiser(*one.args, **one.kwargs)[0]
            assert torch.equal(output, denoiser(*other.args, **other.kwargs)[0])
        # The same images in a smaller batch: float32 sums of another order, a few hundred terms of order 1.
        assert all(((whole - image).abs().amax((1, 2, 3)) < 1e-4).any() for image in output)


def test_samples_respect_a_memory_budget(pipe: DiffusionPipeline, calibration: Calibration) -> None:
    whole = collect(pipe, calibration, 24)

    def size(value: object) -> int:
        if isinstance(value, torch.Tensor) and value.ndim:
            return value.numel() * value.element_size()
        if isinstance(value, dict):
            return sum(map(size, value.values()))
        return sum(map(size, value)) if isinstance(value, tuple) else 0

    total = sum(size(call.args) + size(dict(call.kwargs)) for call in whole)
    budget = total // 2
    half = collect(pipe, calibration, 24, budget=budget)
    assert 0 < sum(size(call.args) + size(dict(call.kwargs)) for call in half) <= budget
    with pytest.raises(ValueError, match="100 bytes do not hold one image"):
        collect(pipe, calibration, 24, budget=100)


def test_calls_are_cut_and_joined_without_loss() -> None:
    whole = Call(args=(torch.arange(12.0).view(4, 3), 5.0), kwargs={"k": {"t": torch.arange(4)}, "n": None}, images=4)
    back = joined(list(singles(whole)))
    assert torch.equal(back.args[0], whole.args[0])
    assert torch.equal(back.kwargs["k"]["t"], whole.kwargs["k"]["t"])
    assert (back.args[1], back.kwargs["n"], back.images) == (5.0, None, 4)
    assert torch.equal(take(whole, torch.tensor([2])).args[0], whole.args[0][2:3])


def test_replaying_ends_where_it_is_told_to(pipe: DiffusionPipeline, name: str, calibration: Calibration) -> None:
    denoiser = getattr(pipe, name)
    calls = collect(pipe, calibration, 3)
    order = list(calibration.ranges)
    seen: list[str] = []
    hooks = {denoiser.get_submodule(path): (lambda *_, path=path: seen.append(path)) for path in (order[3], order[5])}
    replay(denoiser, calls[:1], hooks, denoiser.get_submodule(order[3]))
    assert seen == [order[3]]
    assert not any(module._forward_hooks for module in denoiser.modules())


# -- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_finds_where_skip_connections_join(unet: DiffusionPipeline) -> None:
    found = calibrate(unet, CAPTIONS[:1], steps=1)
    joints = {path for path in found.ranges if path.startswith("up_blocks") and "resnets" in path}
    assert set(found.splits) == {path for path in joints if path.endswith(("conv1", "conv_shortcut"))}
    for path, channels in found.splits.items():
        assert 0 < channels < unet.unet.get_submodule(path).in_channels
    assert calibrate(dit_pipeline(), CAPTIONS[:1], steps=1).splits == {}


def test_calibration_goes_on_where_it_was_killed(unet: DiffusionPipeline, tmp_path: Path) -> None:
    file = tmp_path / "ranges.json"
    whole = calibrate(unet, CAPTIONS, steps=2, batch_size=1)

    def kill(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(unet, CAPTIONS, steps=2, batch_size=1, resume=file, progress=kill)
    assert read_json(file)["captions"] == CAPTIONS[:2]
    counted: list[int] = []
    resumed = calibrate(
        unet, CAPTIONS, steps=2, batch_size=1, resume=file, progress=lambda done, _: counted.append(done)
    )
    assert counted == [3, 4]
    assert resumed == whole
    assert calibrate(unet, CAPTIONS, steps=2, batch_size=1, resume=file) == whole
    with pytest.raises(ValueError, match=r"ranges\.json was made with other steps"):
        calibrate(unet, CAPTIONS, steps=3, batch_size=1, resume=file)
    whole_file = file.read_text()
    for damaged in (whole_file[:100], whole_file.replace("1", "2", 1)):
        file.write_text(damaged)
        with pytest.raises(ValueError, match=r"cannot be resumed: .*delete it"):
            calibrate(unet, CAPTIONS, steps=2, batch_size=1, resume=file)


# -- lockstep ---------------------------------------------------------------------------------------------------------


def test_calls_side_by_side_are_those_one_after_the_other(
    pipe: DiffusionPipeline, name: str, calibration: Calibration
) -> None:
    denoiser = getattr(pipe, name)
    calls = collect(pipe, calibration, 6)
    paths = [list(calibration.ranges)[i] for i in (0, 5, 9)]
    inputs: dict[str, list[torch.Tensor]] = {path: [] for path in paths}
    outputs: dict[str, list[torch.Tensor]] = {path: [] for path in paths}

    def keep(path: str) -> Callable[..., None]:
        def see(_: object, args: tuple[torch.Tensor], kwargs: object, output: torch.Tensor) -> None:
            inputs[path].append(args[0])
            outputs[path].append(output)

        return see

    replay(denoiser, calls, {denoiser.get_submodule(path): keep(path) for path in paths}, None)
    with Lockstep(denoiser, calls, paths) as run:
        for path in paths:
            for one, seen in zip(run.before(path), inputs[path], strict=True):
                assert torch.equal(one.args[0], seen)
                assert one.images == 2
            assert all(torch.equal(a, b) for a, b in zip(run.after(path), outputs[path], strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in denoiser.modules())
    assert not any(isinstance(thread, _Run) and thread.is_alive() for thread in threading.enumerate())


def test_what_is_replaced_while_calls_wait_before_it_computes_what_goes_on() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    second, other, x = model[1], torch.nn.Linear(3, 3), torch.randn(2, 3)
    with Lockstep(model, [Call(args=(x,), kwargs={}, images=2)], ["0", "1"]) as run:
        assert torch.equal(run.before("0")[0].args[0], x)
        model[0] = torch.nn.ReLU()
        assert torch.equal(run.after("0")[0], x.relu())
        assert torch.equal(run.before("1")[0].args[0], x.relu())
        model[1] = other
        assert torch.equal(run.after("1")[0], other(x.relu()))
    assert not second._forward_hooks


def test_calls_that_leave_a_module_out_or_fail_do_not_hang() -> None:
    class Some(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Identity(), torch.nn.Identity()

        def forward(self, x: torch.Tensor, skip: bool) -> torch.Tensor:
            y: torch.Tensor = self.b(x if skip else self.a(x) * 2)
            if skip is None:
                raise OSError("broken")
            return y

    x = torch.ones(1, 1)
    calls = [Call(args=(x, skip), kwargs={}, images=1) for skip in (False, True)]
    with Lockstep(Some(), calls, ["a", "b"]) as run:
        assert [len(run.before("a")), len(run.after("a"))] == [1, 1]
        assert [float(call.args[0]) for call in run.before("b")] == [2.0, 1.0]
    with Lockstep(Some(), [Call(args=(x, None), kwargs={}, images=1)], ["b"]) as run:
        run.after("b") if run.before("b") else None
        with pytest.raises(OSError, match="broken"):
            run.before("none")


# -- order ------------------------------------------------------------------------------------------------------------


def test_units_and_stages_follow_the_order_of_execution(unet: DiffusionPipeline) -> None:
    calibration = calibrate(unet, CAPTIONS[:1], steps=1)
    layers, _, _ = plan(unet.unet, scheme("fp4-w4a16"))
    units = _in_order.units(unet.unet, layers, calibration)
    assert [layer.path for found in units.values() for layer in found] != [layer.path for layer in layers]
    assert {layer.path for found in units.values() for layer in found} == {layer.path for layer in layers}
    names = list(units)
    assert names.index("conv_in") < names.index("down_blocks.0.resnets.0") < names.index("conv_out")
    block = next(path for path in names if path.endswith("transformer_blocks.0"))
    with Lockstep(unet.unet, collect(unet, calibration, 2), [block]) as run:
        seen = _in_order._meet(unet.unet.get_submodule(block), block, units[block], run, run)
    assert len(seen.calls) == len(seen.outputs) == 2
    stages = [[layer.path.removeprefix(f"{block}.") for layer in stage] for stage in seen.stages]
    assert ["attn1.to_q", "attn1.to_k", "attn1.to_v"] in stages
    assert ["attn2.to_k", "attn2.to_v"] in stages
    assert stages.index(["ff.net.0.proj"]) + 1 == stages.index(["ff.net.2"])


def test_the_compensated_weight_is_the_least_squares_solution() -> None:
    torch.manual_seed(0)
    weight, z = torch.randn(5, 12, dtype=torch.float64), torch.randn(4000, 12, dtype=torch.float64)
    x = z @ torch.randn(12, 12, dtype=torch.float64) * 0.3 + z
    made = compensated(weight.float(), (x.T @ x / 4000).float(), (x.T @ z / 4000).float())

    def loss(w: torch.Tensor) -> float:
        return float((x @ w.T - z @ weight.T).square().mean())

    exact = torch.linalg.lstsq(x, z @ weight.T).solution.T
    assert loss(exact) < 1e-20  # x is an invertible map of z here
    assert loss(made.double()) < 0.02 * loss(weight)  # one per cent of damping
    assert torch.equal(compensated(weight.float(), torch.zeros(12, 12), torch.zeros(12, 12)), weight.float())


def cases(methods: tuple[str, str], slow: tuple[str, str]) -> pytest.MarkDecorator:
    """Both pipelines with each method; `slow` is the pair that repeats another one's code at length."""
    pairs = [(name, method) for name in PIPELINES for method in methods]
    rows = [pytest.param(*pair, marks=pytest.mark.slow if pair == slow else ()) for pair in pairs]
    return pytest.mark.parametrize(("name", "method"), rows, indirect=["name"])


@cases(("gptaq", "adaround"), slow=("unet", "adaround"))
def test_quantizing_in_order_beats_looking_at_full_precision_inputs(
    pipe: DiffusionPipeline, name: str, calibration: Calibration, method: str
) -> None:
    options = {"steps": 30, "samples": 24} if method == "adaround" else {"samples": 24}
    made = quantize(pipe, "fp4-w4a16", method=method, calibration=calibration, **options)
    plain = quantize(pipe, "fp4-w4a16", method="gptq", calibration=calibration)
    assert output_error(pipe, made, name) < output_error(pipe, plain, name)
    again = quantize(pipe, "fp4-w4a16", method=method, calibration=calibration, **options)
    for one, other in zip(getattr(made, name).modules(), getattr(again, name).modules(), strict=True):
        if isinstance(one, QuantizedLayer):
            assert torch.equal(one.weight_codes, other.weight_codes)


@pytest.mark.parametrize("formats", ["fp4-w4a8", "int4-w4a8+asymmetric"])
def test_learned_roundings_are_codes_and_differ_from_their_start(formats: str) -> None:
    pipe = dit_pipeline()
    calibration = calibrate(pipe, CAPTIONS, steps=3)
    options = {"samples": 12, "gram_rows": 1024, "steps": 60}  # an integer needs 49 steps of 0.04 to change sides
    denoisers = {
        method: quantize(pipe, formats, method=method, calibration=calibration, **used).transformer
        for method, used in (("gptaq", {"samples": 12, "gram_rows": 1024}), ("adaround", options))
    }
    changed = 0
    for path, layer in denoisers["adaround"].named_modules():
        if isinstance(layer, QuantizedLayer):
            codes, scales = layer.weight_codes, layer.weight_scales
            again = scaling.encode(layer.weight, layer.weight_quantizer, scales, 1)
            assert torch.equal(scaling.decode(again, layer.weight_quantizer, scales, 1), layer.weight), path
            changed += int((codes != denoisers["gptaq"].get_submodule(path).weight_codes).sum())
    assert changed > 0


# -- q-diffusion ------------------------------------------------------------------------------------------------------


def test_q_diffusion_splits_learns_steps_and_survives_a_round_trip(tmp_path: Path) -> None:
    pipe = unet_pipeline()
    with torch.no_grad():  # hidden states a hundred times the skip connection, undone behind the concatenation
        pipe.unet.up_blocks[1].resnets[0].conv_shortcut.weight[:, :48] /= 100
        pipe.unet.up_blocks[0].upsamplers[0].conv.weight *= 100
        pipe.unet.up_blocks[0].upsamplers[0].conv.bias *= 100
    calibration = calibrate(pipe, CAPTIONS, steps=3)
    options = {"steps": 4, "samples": 6, "gram_rows": 512}
    made = quantize(pipe, "int4-w4a8+asymmetric", method="q-diffusion", calibration=calibration, **options)
    cut = {path for path, layer in made.unet.named_modules() if isinstance(layer, Concatenated)}
    assert cut == set(calibration.splits)
    shortcut = made.unet.up_blocks[1].resnets[0].conv_shortcut
    steps = [float(half.input_step) for half in shortcut.halves]
    assert steps[0] > 10 * steps[1]
    learned = quantize(
        pipe, "int4-w4a8+asymmetric", method="q-diffusion", calibration=calibration, **options, learn_steps=False
    )
    other = learned.unet.conv_out.input_step, learned.unet.down_blocks[0].resnets[0].conv2.input_step
    mine = made.unet.conv_out.input_step, made.unet.down_blocks[0].resnets[0].conv2.input_step
    assert any(float(a) != float(b) for a, b in zip(mine, other, strict=True))
    whole = quantize(
        pipe, "int4-w4a8+asymmetric", method="q-diffusion", calibration=calibration, **options, concat=False
    )
    assert output_error(pipe, made, "unet") < output_error(pipe, whole, "unet")
    save(made, tmp_path / "made")
    back = restore(pipe, tmp_path / "made")
    assert torch.equal(sample(back, CAPTIONS, [1, 2, 3, 4], steps=2), sample(made, CAPTIONS, [1, 2, 3, 4], steps=2))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


# -- signs ------------------------------------------------------------------------------------------------------------


def one_sided(denoiser: torch.nn.Module) -> set[str]:
    return {
        path
        for path, layer in denoiser.named_modules()
        if isinstance(layer, QuantizedLayer) and layer.activation_quantizer.has_zero
    }


@pytest.mark.parametrize("variant", ["asymmetric", "asymmetric+dynamic"])
@cases(("rtn", "fp-search"), slow=("unet", "fp-search"))
def test_float_activations_become_unsigned_where_inputs_are_one_sided(
    pipe: DiffusionPipeline, name: str, calibration: Calibration, variant: str, method: str
) -> None:
    made = quantize(pipe, f"fp4-w4a4+{variant}", method=method, calibration=calibration)
    plain = quantize(pipe, f"fp4-w4a4{variant.removeprefix('asymmetric')}", method=method, calibration=calibration)
    found = one_sided(getattr(made, name))
    assert not one_sided(getattr(plain, name))
    if method == "rtn":
        low_high = {path: calibration.range(path) for path in calibration.ranges}
        assert found == {path for path, (low, high) in low_high.items() if -low <= high / 4}
        assert input_error(pipe, made, name, found) < 0.8 * input_error(pipe, plain, name, found)
    assert found


def test_integers_with_a_zero_point_per_timestep(unet: DiffusionPipeline) -> None:
    calibration = calibrate(unet, CAPTIONS, steps=10)
    made = quantize(unet, "int8-w8a8+asymmetric+timesteps", calibration=calibration)
    layer = made.unet.conv_out
    assert layer.input_zero.shape == layer.input_step.shape == (10,)
    low, high = torch.tensor(calibration.range_by_group("conv_out", 10)).T
    assert torch.equal(layer.input_zero, torch.round(-low / ((high - low) / 255)))
    plain = quantize(unet, "int8-w8a8+timesteps", calibration=calibration)
    assert output_error(unet, made, "unet") < output_error(unet, plain, "unet")


# -- bad input --------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line_each(unet: DiffusionPipeline) -> None:
    calibration = calibrate(unet, CAPTIONS[:1], steps=1)
    with pytest.raises(ValueError, match="pass calibration="):
        quantize(unet, "fp4-w4a4+asymmetric+dynamic")
    with pytest.raises(ValueError, match="goes with no transform and no side branch"):
        quantize(unet, "int8-w8a8", method="q-diffusion", calibration=calibration, transform="smooth", rounding="gptq")
    with pytest.raises(ValueError, match="unknown budget 'shrt'; did you mean 'short'"):
        quantize(unet, "int8-w8a8", method="adaround", calibration=calibration, budget="shrt")
    with pytest.raises(ValueError, match="unknown inputs 'quantised'; did you mean 'quantized'"):
        quantize(unet, "int8-w8a8", method="gptq", calibration=calibration, inputs="quantised")
    with pytest.raises(ValueError, match="10 timestep groups go with inputs='full-precision'"):
        quantize(unet, "int8-w8a8+timesteps", method="gptaq", calibration=calibration)
    broken = unet_pipeline()
    with torch.no_grad():
        broken.unet.mid_block.resnets[0].conv1.weight[0, 0, 0, 0] = float("nan")
    for method in ("rtn", "gptaq"):
        with pytest.raises(ValueError, match=r"layer mid_block\.resnets\.0\.conv1: the weight has NaN or Inf"):
            quantize(broken, "fp4-w4a16", method=method, calibration=calibration)
    elsewhere = calibrate(dit_pipeline(), CAPTIONS[:1], steps=1)
    with pytest.raises(ValueError, match="layer conv_in was not seen during calibration"):
        quantize(unet, "fp4-w4a16", method="gptaq", calibration=elsewhere)
    assert isinstance(plan(unet.unet, scheme("mxfp4"))[0][0], Layer)
