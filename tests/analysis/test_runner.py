"""The runner on small pipelines with random weights, of the two classes the embedded ones have."""

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny_pipelines import dit_pipeline, unet_pipeline

from analysis.methods import METHODS, method
from analysis.runner import Calibration, calibrate, load, quantize, report_of, sample
from analysis.runner.quantize import engine_for
from analysis.scheme import Rule, Scheme, scheme
from fpsim.nn import QuantizedConv2d, QuantizedLinear, Quantizer

CAPTIONS = ["a red ring", "two blue squares", "green"]
SEEDS = [1, 2, 3]
E4M3 = Quantizer(format="e4m3", granularity="channel")


@pytest.fixture(scope="module", params=["unet", "dit"])
def pipe(request: pytest.FixtureRequest) -> DiffusionPipeline:
    return {"unet": unet_pipeline, "dit": dit_pipeline}[request.param]()


@pytest.fixture(scope="module")
def unet() -> DiffusionPipeline:
    return unet_pipeline()


@pytest.fixture(scope="module")
def calibration(pipe: DiffusionPipeline) -> Calibration:
    return calibrate(pipe, CAPTIONS, steps=3)


def denoiser(pipe: DiffusionPipeline) -> torch.nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


# -- sample -----------------------------------------------------------------------------------------------------------


def test_images_depend_on_caption_and_seed_not_on_the_batch(pipe: DiffusionPipeline) -> None:
    done = []
    together = sample(pipe, CAPTIONS, SEEDS, steps=2, progress=lambda i, n: done.append((i, n)))
    split = sample(pipe, CAPTIONS, SEEDS, steps=2, batch_size=2, progress=lambda i, n: done.append((i, n)))
    assert together.shape == (3, 3, 16, 16)
    assert together.dtype == torch.float32
    assert 0 <= together.min() <= together.max() <= 1
    assert done == [(3, 3), (2, 3), (3, 3)]
    # Matrix products of another batch size may add in another order; 20 layers of float32 rounding stay below 1e-4.
    assert torch.allclose(together, split, atol=1e-4)
    assert torch.equal(together, sample(pipe, CAPTIONS, SEEDS, steps=2))
    other = sample(pipe, CAPTIONS, [9, 2, 3], steps=2)
    assert not torch.allclose(together[0], other[0], atol=1e-2)
    assert torch.allclose(together[1:], other[1:], atol=1e-4)


def test_sampling_leaves_the_pipeline_as_it_was(unet: DiffusionPipeline) -> None:
    before = dict(unet.scheduler.__dict__)
    sample(unet, CAPTIONS, SEEDS, steps=3)
    assert dict(unet.scheduler.__dict__) == before
    assert getattr(unet, "_progress_bar_config", {}) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": [], "seeds": []}, "no captions"),
        ({"captions": "a ring", "seeds": [1]}, "one string"),
        ({"captions": ["a"], "seeds": [1, 2]}, "one seed per caption"),
        ({"captions": ["a"], "seeds": [1], "steps": 0}, "at least 1"),
        ({"captions": ["a"], "seeds": [1], "batch_size": 0}, "at least 1"),
    ],
)
def test_sample_refuses_what_does_not_fit(unet: DiffusionPipeline, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(unet, **options)  # type: ignore[arg-type]


def test_images_that_are_not_finite_are_an_error() -> None:
    broken = unet_pipeline()
    with torch.no_grad():
        broken.unet.conv_out.bias[0] = float("nan")
    with pytest.raises(ValueError, match="1 of 1 images have NaN or Inf"):
        sample(broken, ["a"], [1], steps=1)


# -- calibrate --------------------------------------------------------------------------------------------------------


def test_calibration_sees_every_layer_at_every_timestep(pipe: DiffusionPipeline, calibration: Calibration) -> None:
    layers = {path for path, m in denoiser(pipe).named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))}
    assert set(calibration.ranges) == layers
    assert len(calibration.timesteps) == 3
    assert all(len(seen) == 3 for seen in calibration.ranges.values())
    assert Calibration.from_json(calibration.to_json()) == calibration


def test_ranges_are_those_of_the_tensors_that_pass(unet: DiffusionPipeline) -> None:
    seen: list[torch.Tensor] = []
    handle = unet.unet.conv_out.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    found = calibrate(unet, CAPTIONS, steps=2, batch_size=2)
    handle.remove()
    assert [len(x) for x in seen] == [4, 4, 2, 2]  # both halves of guidance, two steps, batches of 2 and 1
    late, early = torch.cat([seen[1], seen[3]]), torch.cat([seen[0], seen[2]])
    assert found.ranges["conv_out"] == tuple((float(x.min()), float(x.max())) for x in (late, early))
    assert found.max_abs("conv_out") == float(torch.cat([late, early]).abs().max())


def test_calibration_leaves_no_hooks(unet: DiffusionPipeline) -> None:
    calibrate(unet, ["a"], steps=1)
    assert not any(module._forward_pre_hooks for module in unet.unet.modules())


def test_calibration_mistakes(unet: DiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="no captions"):
        calibrate(unet, [])
    with pytest.raises(ValueError, match="not a calibration"):
        Calibration.from_json('{"ranges": {}}')
    with pytest.raises(ValueError, match="layer conv_nowhere was not seen"):
        calibrate(unet, ["a"], steps=1).max_abs("conv_nowhere")
    broken = unet_pipeline()
    with torch.no_grad():
        broken.unet.conv_in.bias[0] = float("inf")
    with pytest.raises(ValueError, match=r"input of layer down_blocks\.0\.resnets\.0\.conv1 has NaN or Inf"):
        calibrate(broken, ["a"], steps=1)


# -- quantize ---------------------------------------------------------------------------------------------------------


def test_layers_are_replaced_and_the_given_pipeline_is_untouched(
    pipe: DiffusionPipeline, calibration: Calibration
) -> None:
    before = sample(pipe, CAPTIONS, SEEDS, steps=2)
    weights = {name: value.clone() for name, value in denoiser(pipe).state_dict().items()}
    made = quantize(pipe, "fp8-w8a8", calibration=calibration)
    assert type(made) is type(pipe)
    assert sum(isinstance(m, (QuantizedLinear, QuantizedConv2d)) for m in denoiser(made).modules()) == len(
        calibration.ranges
    )
    after = sample(made, CAPTIONS, SEEDS, steps=2)
    assert not torch.equal(before, after)
    assert not any(isinstance(m, (QuantizedLinear, QuantizedConv2d)) for m in denoiser(pipe).modules())
    assert all(torch.equal(weights[name], value) for name, value in denoiser(pipe).state_dict().items())
    assert torch.equal(before, sample(pipe, CAPTIONS, SEEDS, steps=2))
    assert made.scheduler is not pipe.scheduler


def test_what_is_not_quantized_is_shared(unet: DiffusionPipeline) -> None:
    made = quantize(unet, "w8a16")
    assert made.unet.conv_norm_out.weight is unet.unet.conv_norm_out.weight
    assert made.unet.conv_in.bias is unet.unet.conv_in.bias
    assert made.vae is unet.vae


def test_fp32_changes_no_bit_and_16_bits_next_to_nothing(pipe: DiffusionPipeline) -> None:
    reference = sample(pipe, CAPTIONS, SEEDS, steps=2)
    assert torch.equal(sample(quantize(pipe, "fp32"), CAPTIONS, SEEDS, steps=2), reference)
    half = sample(quantize(pipe, "fp16"), CAPTIONS, SEEDS, steps=2)
    assert 0 < float((half - reference).abs().max()) < 0.02


@pytest.mark.parametrize(
    "name", ["int8-w8a8", "fp4-w4a8+dynamic", "mxfp4", "nvfp4+keep-edges", "int4-w4a8+g32", "mxfp6"]
)
def test_schemes_run_and_more_bits_are_closer(pipe: DiffusionPipeline, calibration: Calibration, name: str) -> None:
    reference = sample(pipe, CAPTIONS, SEEDS, steps=2)
    made = quantize(pipe, name, calibration=calibration)
    image = sample(made, CAPTIONS, SEEDS, steps=2)
    eight = sample(quantize(pipe, "int8-w8a8+dynamic"), CAPTIONS, SEEDS, steps=2)
    assert (image - reference).square().mean() > (eight - reference).square().mean() > 0
    assert report_of(made).scheme == scheme(name)


def test_report(unet: DiffusionPipeline) -> None:
    report = report_of(quantize(unet, "int4-w4a8+dynamic+keep-edges"))
    assert report.skipped["conv_in"].startswith("kept by rule 're:")
    layer = next(row for row in report.layers if row.path == "up_blocks.0.resnets.0.conv_shortcut")
    assert (layer.kind, layer.weight, layer.activation) == ("Conv2d", "int4 per output channel", "int8 per token")
    assert layer.zeros_before == 0.0
    # Uniform weights of +-m become 0 below half a step, 1 / 14 of the range; not every channel reaches m.
    assert layer.zeros_after == pytest.approx(1 / 14, abs=0.02)
    assert str(report).startswith("int4-w4a8+dynamic+keep-edges by rtn: 107 layers")
    with pytest.raises(ValueError, match="not made by quantize"):
        report_of(unet)


def test_rules_that_decide_nothing_are_warned_about(unet: DiffusionPipeline) -> None:
    typo = Rule(pattern="conv_inn")
    with pytest.warns(UserWarning, match="rule 'conv_inn' decides no layer of the unet") as caught:
        made = quantize(unet, Scheme(name="x", rules=(typo, Rule(weight=E4M3))))
    assert len(caught) == 1
    assert report_of(made).unused_rules == (typo,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(unet, Scheme(name="x", rules=(Rule(pattern="conv_in"), Rule(weight=E4M3))))


def test_a_scheme_that_matches_nothing_is_an_error(unet: DiffusionPipeline) -> None:
    with pytest.raises(ValueError, match=r"matches no layer: patterns 'transformer_blocks\.\*'; layers are named like"):
        quantize(unet, Scheme(name="x", rules=(Rule(pattern="transformer_blocks.*", weight=E4M3),)))


def test_a_pipeline_is_quantized_and_calibrated_once(unet: DiffusionPipeline) -> None:
    made = quantize(unet, "mxfp4+keep-edges")
    for again in (lambda: quantize(made, "mxfp4"), lambda: calibrate(made, CAPTIONS, steps=1)):
        with pytest.raises(ValueError, match=r"this UNet2DConditionModel is quantized already: start from"):
            again()


def test_a_denoiser_without_attention_or_without_layers_is_refused() -> None:
    class Bare(torch.nn.Module):
        def __init__(self, *layers: torch.nn.Module) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(layers)

    with pytest.raises(ValueError, match="this Bare has no Linear or Conv2d layer to quantize"):
        quantize(SimpleNamespace(unet=Bare(torch.nn.ReLU())), "mxfp4")
    with pytest.raises(ValueError, match=r"scheme 'nvfp4\+attention' quantizes attention, and Bare has none"):
        quantize(SimpleNamespace(unet=Bare(torch.nn.Linear(16, 16))), "nvfp4+attention")


def test_captions_calibrate_when_ranges_are_needed(unet: DiffusionPipeline) -> None:
    made = quantize(
        unet,
        Scheme(name="x", rules=(Rule(pattern="conv_out", weight=E4M3, activation=Quantizer(format="e4m3")),)),
        calibration=["a"],
    )
    assert made.unet.conv_out.input_step == pytest.approx(calibrate(unet, ["a"]).max_abs("conv_out") / 448)
    with pytest.raises(ValueError, match="layer conv_in: activations e4m3 per tensor are static: pass calibration="):
        quantize(unet, "fp8-w8a8")


def test_bad_weights_name_their_layer() -> None:
    broken = unet_pipeline()
    with torch.no_grad():
        broken.unet.mid_block.resnets[0].conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"layer mid_block\.resnets\.0\.conv1: the weight has NaN or Inf"):
        quantize(broken, "w8a16")


def test_a_pipeline_without_a_denoiser_is_refused(unet: DiffusionPipeline) -> None:
    class WithoutDenoiser(DiffusionPipeline):
        def __init__(self, vae: torch.nn.Module) -> None:
            super().__init__()
            self.register_modules(vae=vae)

    with pytest.raises(ValueError, match=r"has no denoiser to quantize.*\(it has: vae\)"):
        quantize(WithoutDenoiser(unet.vae), "w8a16")


# -- exact arithmetic -------------------------------------------------------------------------------------------------


def test_exact_integers_agree_with_quantize_arithmetic_in_every_layer(
    pipe: DiffusionPipeline, calibration: Calibration
) -> None:
    """Layer by layer on the same inputs: over whole images a single value on a rounding boundary is amplified."""
    made = scheme("int8-w8a8")
    fast = quantize(pipe, made, calibration=calibration)
    exact = denoiser(quantize(pipe, made.exact("generic/int32"), calibration=calibration))
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def keep(path: str) -> object:
        return lambda _, args, output: seen.__setitem__(path, (args[0], output))

    for path, layer in denoiser(fast).named_modules():
        if isinstance(layer, (QuantizedLinear, QuantizedConv2d)):
            layer.register_forward_hook(keep(path))
    sample(fast, CAPTIONS[:1], SEEDS[:1], steps=1)
    assert len(seen) == len(calibration.ranges)
    with torch.no_grad():
        for path, (x, y) in seen.items():
            other = exact.get_submodule(path)(x)
            # Integer sums are exact. float32 sums of at most 864 products err by 864 * 2^-24 of the sum of magnitudes,
            # which is well under 20 times the largest output here.
            assert (other - y).abs().max() <= 864 * 2.0**-24 * 20 * y.abs().max(), path


def test_hopper_truncation_shows_in_the_image(unet: DiffusionPipeline) -> None:
    made = scheme("fp8-w8a8+dynamic")
    fast = sample(quantize(unet, made), CAPTIONS[:1], SEEDS[:1], steps=1)
    quantized = quantize(unet, made.exact("hopper/wgmma"))
    exact = sample(quantized, CAPTIONS[:1], SEEDS[:1], steps=1)
    assert report_of(quantized).layers[0].engine == "hopper/wgmma"
    assert not torch.equal(fast, exact)
    assert (fast - exact).abs().mean() < 0.05


def test_engines_are_matched_with_operands() -> None:
    e4m3, e2m1, int8 = (Quantizer(format=name) for name in ("e4m3", "e2m1", "int8"))
    assert engine_for("hopper/wgmma", e4m3, e4m3).a.name == "e4m3"
    widened = engine_for("hopper/wgmma", e4m3, e2m1)
    assert (widened.a.name, widened.b.name) == ("e4m3", "e4m3")
    with pytest.raises(ValueError, match="does not take a='int8', b='e4m3'"):
        engine_for("hopper/wgmma", int8, e4m3)
    with pytest.raises(ValueError, match="did you mean 'hopper/wgmma'"):
        engine_for("hopper/wgma", e4m3, e4m3)


def test_an_engine_that_does_not_take_the_operands_names_the_layer(unet: DiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="layer conv_in: engine 'generic/int32' does not take"):
        quantize(unet, scheme("fp8-w8a8+dynamic").exact("generic/int32"))


# -- methods ----------------------------------------------------------------------------------------------------------


def test_methods_are_the_files_of_the_folder() -> None:
    folder = Path(__file__).parents[2] / "analysis" / "methods"
    assert set(METHODS) == {file.stem.replace("_", "-") for file in folder.glob("[!_]*.py")}
    assert "rtn" in METHODS


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_function_and_says_what_it_does(name: str) -> None:
    module = method(name)
    assert callable(module.quantize)
    assert (module.__doc__ or "").strip()


def test_an_unknown_method_is_refused(unet: DiffusionPipeline) -> None:
    with pytest.raises(ValueError, match="unknown method 'rnt'; did you mean 'rtn'"):
        quantize(unet, "w8a16", method="rnt")


# -- load -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(unet: DiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipe"
    unet.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "pipe"))


def test_a_saved_pipeline_makes_the_same_images(unet: DiffusionPipeline, saved: Path) -> None:
    loaded = load(saved)
    assert loaded.unet.dtype == loaded.text_encoder.dtype == torch.float32
    assert torch.equal(sample(loaded, CAPTIONS, SEEDS, steps=2), sample(unet, CAPTIONS, SEEDS, steps=2))
    half = load(saved, dtype=torch.bfloat16)
    assert half.unet.dtype == half.text_encoder.dtype == torch.bfloat16


def test_a_truncated_checkpoint_is_named(copied: Path) -> None:
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model\.safetensors is truncated or corrupt"):
        load(copied)


def test_an_unsupported_component_is_named(copied: Path) -> None:
    index = copied / "model_index.json"
    data = json.loads(index.read_text())
    index.write_text(json.dumps({**data, "unet": ["diffusers", "UNet9000"]}))
    with pytest.raises(ValueError, match="component 'unet' is a UNet9000, which diffusers here does not have"):
        load(copied)


def test_a_missing_component_is_named(copied: Path) -> None:
    shutil.rmtree(copied / "vae")
    with pytest.raises(ValueError, match=r"component 'vae' is listed in .* but its folder is missing"):
        load(copied)


def test_directories_that_are_no_pipelines(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a pipeline directory: it has no model_index\.json"):
        load(tmp_path)
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="names no pipeline class"):
        load(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "nothing")
