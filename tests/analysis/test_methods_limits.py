"""What methods do at their limits: memory of full-size models, bad inputs, odd shapes, searched block scales."""

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import dit_pipeline, unet_pipeline

from analysis.methods import Layer, _ranges
from analysis.models import model
from analysis.runner import Calibration, calibrate, quantize, report_of
from analysis.runner.quantize import plan
from analysis.runner.statistics import PER_COLUMN, _passes, enough, statistics
from analysis.scheme import scheme
from fpsim.nn import functional, scaling
from fpsim.nn.quantizer import Quantizer, resolve

CAPTIONS = ["a red ring", "two blue squares"]


@pytest.fixture(scope="module")
def unet() -> DiffusionPipeline:
    return unet_pipeline()


@pytest.fixture(scope="module")
def calibration(unet: DiffusionPipeline) -> Calibration:
    return calibrate(unet, CAPTIONS, steps=2)


def layers_of(denoiser: torch.nn.Module) -> tuple[Layer, ...]:
    return plan(denoiser, scheme("fp4-w4a8"))[0]


# -- memory -----------------------------------------------------------------------------------------------------------


def needed(layer: Layer, kept_rows: int) -> int:
    weight = layer.module.get_parameter("weight")
    width = weight.numel() // len(weight)
    return 4 * width * (width + kept_rows)


def test_statistics_of_full_size_sdxl_fit_a_budget() -> None:
    part = model("sdxl-base").parts["denoiser"][0]
    layers = layers_of(part.build("meta"))
    assert sum(layer.kind == "Linear" for layer in layers) == 743
    budget = 2 << 30
    groups = list(_passes(layers, 1024, budget))
    assert [layer.path for group in groups for layer in group] == [layer.path for layer in layers]
    for group in groups:
        # A layer that needs more than the budget has a pass of its own: the convolutions on 2,560 channels, K = 23,040.
        assert sum(needed(layer, 1024) for layer in group) <= budget or len(group) == 1
    assert max(needed(layer, 1024) for layer in layers) == 4 * 23040 * (23040 + 1024)  # 2.2 GB
    # 62.5 GB of Gram matrices in all; every pass is a run of the trajectories.
    assert len(groups) <= 45
    assert max(enough(layer, 16384, PER_COLUMN) for layer in layers) == 16384
    assert min(enough(layer, 16384, PER_COLUMN) for layer in layers) == PER_COLUMN * 36  # conv_in: 4 channels x 9 taps


def test_statistics_hold_what_was_planned_and_no_more(unet: DiffusionPipeline, calibration: Calibration) -> None:
    layers = layers_of(unet.unet)
    kept = 64
    sizes = []
    for layer, seen in statistics(unet, layers, calibration, gram_rows=256, kept_rows=kept, budget=4 << 20):
        held = seen.gram.untyped_storage().nbytes() + seen.rows.untyped_storage().nbytes()
        calls = calibration.steps  # of the pipeline's one batch; rows are drawn per call, rounded up
        assert held <= needed(layer, kept + calls)
        sizes.append(held)
    assert sum(sizes) > 4 * (4 << 20)  # in one go they would not have fitted


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_activations_that_overflow_name_the_layer(calibration: Calibration, method: str) -> None:
    broken = unet_pipeline()
    with torch.no_grad():
        broken.unet.conv_in.weight.fill_(3e38)  # finite itself, its outputs are not
    with pytest.raises(ValueError, match=r"input of layer \S+ has NaN or Inf"):
        quantize(broken, "fp4-w4a16", method=method, calibration=calibration, gram_rows=256)


def test_empty_calibration_and_rules_that_match_nothing_are_one_line(unet: DiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="no captions: give at least one"):
        calibrate(unet, [])
    with pytest.raises(ValueError, match="no captions: give at least one"):
        quantize(unet, "fp8-w8a8", method="gptq", calibration=[])
    with pytest.raises(ValueError, match="group >= 1, got 0"):
        Quantizer(format="int4", granularity="block", group=0)


def test_channels_that_a_group_does_not_divide_end_with_a_short_group() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 80)
    quantizer = Quantizer(format="int4", granularity="block", group=64)
    scales = scaling.find(weight, quantizer, 1)
    assert scales is not None
    assert scales.step.shape == (6, 2, 1)
    wanted = torch.cat([weight[:, :64].abs().amax(1, keepdim=True), weight[:, 64:].abs().amax(1, keepdim=True)], 1) / 7
    assert torch.equal(scales.step[..., 0], wanted)
    change = scaling.fake_quantize(weight, quantizer, scales, 1) - weight
    assert torch.all(change.abs() <= 0.5001 * torch.cat([wanted[:, :1].expand(6, 64), wanted[:, 1:].expand(6, 16)], 1))


# -- block scales -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "mxfp8", "mxfp6"])
@pytest.mark.parametrize("shape", [(24, 80), (8, 40, 3, 3)])
def test_searched_block_scales_lose_less_in_every_block(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    weight = torch.randn(shape) * torch.exp(torch.randn(shape))
    quantizer, row = Quantizer(format=name, granularity="block"), resolve(name)
    plain = scaling.find(weight, quantizer, 1)
    _, found = _ranges.of_weight(quantizer, weight, "tensor-error", False, None)
    assert plain is not None
    assert found is not None
    errors = []
    for scales in (plain, found):
        change = functional.blocked(scaling.fake_quantize(weight, quantizer, scales, 1) - weight, row.block, 1)
        errors.append(change.square().sum(2))
        assert torch.equal(scales.step, functional.block_step(scales.codes, scales.tensor, row, 1))
    assert torch.all(errors[1] <= errors[0])
    # Eight bits hardly care where a block's largest value lands; four do: a tenth of the error, on heavy tails.
    assert errors[1].sum() < (0.97 if "4" in name else 1.0) * errors[0].sum()
    taps = weight[0, 0].numel()
    same = _ranges.of_weight(quantizer, weight, "output-error", False, torch.eye(taps * shape[1]))[1]
    assert same is not None
    assert torch.equal(same.codes, found.codes)


def test_block_scales_follow_the_inputs_where_these_are_known() -> None:
    torch.manual_seed(2)
    weight, x = torch.randn(16, 64), torch.randn(4096, 64) * torch.logspace(-2, 1, 64)
    quantizer = Quantizer(format="mxfp4", granularity="block")

    def error(ranges: _ranges.Ranges) -> float:
        scales = _ranges.of_weight(quantizer, weight, ranges, False, x.T @ x / len(x))[1]
        return float(((scaling.fake_quantize(weight, quantizer, scales, 1) - weight) @ x.T).square().mean())

    assert error("output-error") < error("tensor-error")
    assert error("output-error") < error("max-abs")


# -- what a quantized pipeline tells ----------------------------------------------------------------------------------


def test_zero_fractions_before_and_after_are_there_per_layer(calibration: Calibration) -> None:
    pipe = unet_pipeline()
    with torch.no_grad():
        pipe.unet.conv_in.weight[:, 0] = 0
    report = report_of(quantize(pipe, "fp4-w4a16", method="gptq", calibration=calibration, gram_rows=256))
    by_path = {layer.path: layer for layer in report.layers}
    assert by_path["conv_in"].zeros_before == 0.25  # one of four input channels
    assert all(layer.zeros_after > layer.zeros_before for layer in report.layers)  # 4 bits: many round to zero


def test_learned_rounding_goes_with_transformed_inputs() -> None:
    pipe = dit_pipeline()
    calibration = calibrate(pipe, CAPTIONS, steps=2)
    options = {"transform": "hadamard", "weights": "output-error", "samples": 8, "gram_rows": 256}
    made = [
        quantize(pipe, "nvfp4", method=method, calibration=calibration, **options, **more)
        for method, more in (("gptaq", {}), ("adaround", {"steps": 60}))
    ]
    layers = [one.transformer.transformer_blocks[0].attn1.to_q for one in made]
    assert all(layer.transform is not None for layer in layers)
    assert not torch.equal(layers[0].weight_codes, layers[1].weight_codes)
    assert torch.equal(layers[0].weight_scale_codes, layers[1].weight_scale_codes)
