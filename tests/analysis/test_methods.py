"""Methods on small pipelines: statistics are right, formats are kept, and the output error goes down."""

import sys

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import dit_pipeline, unet_pipeline

from analysis.methods import METHODS, Layer, method
from analysis.methods._axes import Axes
from analysis.runner import Calibration, calibrate, quantize, report_of, sample
from analysis.runner.quantize import plan
from analysis.runner.statistics import as_matrix, as_weight, draw, statistics
from analysis.scheme import scheme
from fpsim.nn import functional, rounding
from fpsim.nn.layer import QuantizedLayer
from fpsim.nn.quantizer import resolve

#: Methods that bound integer registers and refuse other numbers; they have tests of their own.
REGISTERS = ("a2q", "oaq")
EVERYWHERE = tuple(name for name in METHODS if name not in REGISTERS)

CAPTIONS = ["a red ring", "two blue squares", "green", "small dots"]


@pytest.fixture(scope="module")
def dit() -> DiffusionPipeline:
    return dit_pipeline()


@pytest.fixture(scope="module")
def calibration(dit: DiffusionPipeline) -> Calibration:
    return calibrate(dit, CAPTIONS, steps=3)


def layers_like(pipe: DiffusionPipeline, *paths: str) -> tuple[Layer, ...]:
    found, _, _ = plan(pipe.unet if hasattr(pipe, "unet") else pipe.transformer, scheme("fp4-w4a8"))
    return tuple(layer for layer in found if not paths or layer.path in paths)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"padding": (0, 2)}, {"kernel_size": (1, 3)}])
def test_windows_of_a_convolution_are_what_its_weight_multiplies(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(5, 4, **({"kernel_size": 3, "padding": 1, "bias": False} | options))
    x = torch.randn(2, 5, 9, 7)
    y = conv(x).movedim(1, -1).reshape(-1, 4)
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(3))
    rows = draw(conv, x, len(y), generator)
    # Sums of at most 45 products below 1 in another order: 45 * 2^-24 = 2.7e-6.
    assert torch.allclose(rows @ as_matrix(conv.weight).T, y[order], atol=1e-5)
    assert torch.equal(as_weight(as_matrix(conv.weight), conv.weight.shape), conv.weight)


def test_statistics_are_those_of_the_inputs_that_pass() -> None:
    pipe = unet_pipeline()
    calibration = calibrate(pipe, CAPTIONS[:2], steps=2)
    layers = layers_like(pipe, "conv_out", "time_embedding.linear_1")
    seen: dict[str, list[torch.Tensor]] = {layer.path: [] for layer in layers}
    handles = [
        layer.module.register_forward_pre_hook(lambda _, args, path=layer.path: seen[path].append(args[0].detach()))
        for layer in layers
    ]
    found = {layer.path: one for layer, one in statistics(pipe, layers, calibration, gram_rows=10**6, kept_rows=50)}
    for handle in handles:
        handle.remove()
    times = torch.cat(seen["time_embedding.linear_1"])
    # The same rows, added batch by batch here and at once there: n additions of 2^-24 each, and some cancellation.
    assert torch.allclose(found["time_embedding.linear_1"].gram, times.T @ times / len(times), rtol=1e-4, atol=1e-5)
    images = torch.cat(seen["conv_out"])
    assert torch.equal(found["conv_out"].channel_max, images.abs().amax((0, 2, 3)))
    patches = torch.nn.functional.unfold(images, 3, padding=1)  # (N, C * 9, L), channel-major
    rows = patches.unflatten(1, (images.shape[1], 9)).permute(0, 3, 2, 1).flatten(2).flatten(0, 1)
    assert torch.allclose(found["conv_out"].gram, rows.T @ rows / len(rows), rtol=1e-3, atol=1e-4)
    assert found["conv_out"].rows.shape == (50, 9 * images.shape[1])


def test_statistics_repeat_and_do_not_depend_on_the_memory_budget(
    dit: DiffusionPipeline, calibration: Calibration
) -> None:
    layers = layers_like(dit)[:4]
    one = list(statistics(dit, layers, calibration, gram_rows=100))
    again = list(statistics(dit, layers, calibration, gram_rows=100))
    small = list(statistics(dit, layers, calibration, gram_rows=10**6, budget=1))
    whole = list(statistics(dit, layers, calibration, gram_rows=10**6))
    for (_, a), (_, b), (_, c), (_, d) in zip(one, again, small, whole, strict=True):
        assert torch.equal(a.gram, b.gram)
        assert torch.allclose(c.gram, d.gram, rtol=1e-4, atol=1e-6)  # the same rows, added in other batches


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize("formats", ["fp4-w4a8", "int4-w4a8+dynamic", "nvfp4", "mxfp4", "int4-w4a8+g32"])
def test_every_method_keeps_its_weights_on_the_grid_of_the_scheme(
    dit: DiffusionPipeline, calibration: Calibration, name: str, formats: str
) -> None:
    made = quantize(dit, formats, method=name, calibration=calibration, **_short(name))
    assert report_of(made).method == name
    for path, layer in made.transformer.named_modules():
        if isinstance(layer, QuantizedLayer):
            row = layer.weight_quantizer.row
            bits = row.bits if hasattr(row, "bits") else row.element.bits
            assert bits == 4, path
            assert len(layer.weight_codes.unique()) <= 16, path
            assert torch.isfinite(layer.weight).all(), path
    image = sample(made, CAPTIONS[:1], [1], steps=1)
    assert image.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("name", [name for name in EVERYWHERE if name != "rtn"])
def test_every_method_beats_nearest_rounding_at_the_output_of_the_denoiser(
    dit: DiffusionPipeline, calibration: Calibration, name: str
) -> None:
    torch.manual_seed(5)
    inputs = {
        "hidden_states": torch.randn(4, 4, 8, 8),
        "timestep": torch.tensor([332, 332, 666, 999]),
        "encoder_hidden_states": torch.randn(4, 24, 32),
    }
    inputs["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}

    def error(with_method: str, **options: object) -> float:
        made = quantize(dit, "fp4-w4a8", method=with_method, calibration=calibration, **options)
        with torch.no_grad():
            return float((made.transformer(**inputs).sample - dit.transformer(**inputs).sample).square().mean())

    assert error(name, **_short(name)) < error("rtn")


def _short(name: str) -> dict[str, object]:
    """Options that keep a method quick on a toy; none where it is quick by itself."""
    return {"steps": 20} if name in ("adaround", "fp-ptq") else {}


def test_learned_rounding_keeps_the_scales_and_beats_nearest_rounding_at_a_block(
    dit: DiffusionPipeline, calibration: Calibration
) -> None:
    options = {"inputs": "full-precision", **_short("adaround")}
    made = {
        "rtn": quantize(dit, "w4a16", method="rtn").transformer,
        "adaround": quantize(dit, "w4a16", method="adaround", calibration=calibration, **options).transformer,
    }
    block, path = dit.transformer.transformer_blocks[0], "transformer_blocks.0"
    inputs: list[tuple[object, dict[str, object]]] = []
    handle = block.register_forward_hook(lambda _, args, kwargs, out: inputs.append((args, kwargs)), with_kwargs=True)
    sample(dit, CAPTIONS, [5, 6, 7, 8], steps=3)
    handle.remove()
    error = dict.fromkeys(made, 0.0)
    with torch.no_grad():
        for args, kwargs in inputs:
            for name, transformer in made.items():
                error[name] += float(
                    (transformer.get_submodule(path)(*args, **kwargs) - block(*args, **kwargs)).square().sum()
                )
    for one, other in zip(*(transformer.modules() for transformer in made.values()), strict=True):
        if isinstance(one, QuantizedLayer):
            assert torch.equal(one.weight_step, other.weight_step)
    assert error["adaround"] < 0.8 * error["rtn"]


@pytest.mark.parametrize("name", ["e2m1", "e4m3", "int4", "e3m0-finite", "e1m2-finite"])
def test_neighbours_enclose_the_value_and_lie_on_the_grid(name: str) -> None:
    row = resolve(name)
    x = torch.cat([torch.linspace(-9, 9, 3601), torch.randn(5000) * 3, torch.tensor([0.0, -0.0, 1e30, -1e30])])
    lower, unit = rounding.neighbours(x, row)
    upper, inside = lower + unit, x.clamp(row.min, row.max)
    one = torch.ones_like(x)
    assert torch.equal(rounding.nearest(lower, one, row), lower)
    assert torch.equal(rounding.nearest(upper, one, row), upper)
    assert torch.all((lower <= inside) & (inside <= upper))
    near = rounding.nearest(x, one, row)
    assert torch.all((near == lower) | (near == upper))


def test_axes_can_be_set_from_outside(dit: DiffusionPipeline, calibration: Calibration) -> None:
    made = quantize(dit, "nvfp4", method="gptq", calibration=calibration, transform="hadamard")
    layer = made.transformer.transformer_blocks[0].attn1.to_q
    assert layer.transform is not None
    with pytest.raises(ValueError, match="unknown option 'transfrom'; did you mean 'transform'"):
        quantize(dit, "nvfp4", method="gptq", calibration=calibration, transfrom="hadamard")
    with pytest.raises(ValueError, match="unknown transform 'hadamrd'; did you mean 'hadamard'"):
        quantize(dit, "nvfp4", method="gptq", calibration=calibration, transform="hadamrd")
    with pytest.raises(ValueError, match="pass calibration="):
        quantize(dit, "nvfp4", method="gptq")
    with pytest.raises(ValueError, match="at least"):
        Axes(rank=-1)


def test_captions_are_calibrated_with_wherever_scheme_or_method_looks_at_inputs(
    dit: DiffusionPipeline, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def noted(pipe: DiffusionPipeline, captions: list[str]) -> Calibration:
        seen.append(captions)
        return calibration

    monkeypatch.setattr(sys.modules["analysis.runner.quantize"], "calibrate", noted)
    quantize(dit, "nvfp4", method="rtn", calibration=CAPTIONS)
    quantize(dit, "nvfp4", method="hadamard", calibration=CAPTIONS, rounding="nearest", transform="none")
    assert not seen
    quantize(dit, "nvfp4", method="low-rank", calibration=CAPTIONS)
    quantize(dit, "fp8-w8a8", method="rtn", calibration=CAPTIONS)
    assert seen == [CAPTIONS, CAPTIONS]


def test_fp_ptq_chooses_splits_per_tensor(dit: DiffusionPipeline, calibration: Calibration) -> None:
    made = quantize(dit, "fp8-w8a8+per-tensor", method="fp-ptq", calibration=calibration)
    layers = [m for m in made.transformer.modules() if isinstance(m, QuantizedLayer)]
    # 8 bits and a scale of one's own: mantissa bits are worth more than exponent bits (2 or 3 suffice).
    assert {layer.weight_quantizer.format for layer in layers} <= {"e1m6-finite", "e2m5-finite", "e3m4-finite"}
    fixed = quantize(dit, "fp8-w8a8+per-tensor", method="fp-ptq", calibration=calibration, split=False)
    assert {m.weight_quantizer.format for m in fixed.transformer.modules() if isinstance(m, QuantizedLayer)} == {"e4m3"}


@pytest.mark.parametrize("formats", ["fp8-w8a8+per-tensor+asymmetric", "int8-w8a8"])
def test_searched_ranges_of_eight_bits_hold_all_that_calibration_saw(
    dit: DiffusionPipeline, calibration: Calibration, formats: str
) -> None:
    some = {"kept_rows": 40}  # a sample that misses much
    made = quantize(dit, formats, method="fp-search", calibration=calibration, **some)
    for path, layer in made.transformer.named_modules():
        if isinstance(layer, QuantizedLayer):
            row, step = layer.activation_quantizer.row, float(layer.input_step)
            low, high = calibration.range(path)
            # A zero point is rounded, by half the step there, which is at most 2^-mantissa bits of the whole range.
            zero, slack = 0.0, 0.0
            if layer.input_zero is not None:
                zero, slack = float(layer.input_zero), 0.5 * (row.max - row.min) * 2.0**-row.mantissa_bits * step
            assert (row.min - zero) * step - slack <= low * (1 - 1e-6)
            assert (row.max - zero) * step + slack >= high * (1 - 1e-6)


def test_low_rank_branch_and_residual_add_up_to_the_weight(dit: DiffusionPipeline, calibration: Calibration) -> None:
    made = quantize(
        dit, "bf16", method="low-rank", calibration=calibration, transform="none", rounding="nearest", rank=4
    )
    source = dit.transformer.transformer_blocks[0].ff.net[2]
    layer = made.transformer.transformer_blocks[0].ff.net[2]
    x = torch.randn(3, source.in_features)
    # bf16 operands: 2^-9 relative per factor, so within 2^-7 of the sum of magnitudes.
    assert torch.all((layer(x) - source(x)).abs() <= 2.0**-7 * (x.abs() @ source.weight.abs().T + 1))
    assert layer.branch is not None
    assert layer.branch[0].weight.shape == (4, source.in_features)


def test_ranges_per_timestep_follow_the_clock(dit: DiffusionPipeline) -> None:
    calibration = calibrate(dit, CAPTIONS, steps=10)
    made = quantize(dit, "int8-w8a8+timesteps", calibration=calibration)
    layer = made.transformer.proj_out
    assert layer.input_step.shape == (10,)
    wanted = torch.tensor(calibration.range_by_group("proj_out", 10)).abs().amax(1) / 127
    assert torch.allclose(layer.input_step, wanted)
    seen: list[tuple[float, int]] = []
    layer.register_forward_pre_hook(lambda _, args: seen.append((float(args[0].abs().max()), layer.clock.group)))
    sample(made, CAPTIONS[:1], [1], steps=10)
    assert [group for _, group in seen] == list(range(9, -1, -1))  # sampling runs from late timesteps to early ones
    assert functional.quantize(torch.tensor([0.4]), "int8").item() == 0.0
    with pytest.raises(ValueError, match="11 timestep groups, but calibration saw 10"):
        calibration.groups(11)


def test_the_methods_modules_are_found_by_name() -> None:
    assert {"rtn", "gptq", "smoothquant", "hadamard", "low-rank", "fp-ptq"} <= set(METHODS)
    assert method("low-rank").__name__ == "analysis.methods.low_rank"
