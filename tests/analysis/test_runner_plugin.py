"""Quantized pipelines on disk: the same images come back, from files that are small."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_pipelines import dit_pipeline, unet_pipeline

from analysis.runner import calibrate, load, quantize, sample
from analysis.runner.plugin import FpsimConfig
from analysis.scheme import Scheme, scheme
from fpsim.nn import QuantizedLayer

CAPTIONS, SEEDS = ["a red ring", "two blue"], [1, 2]
MAKERS = {"unet": unet_pipeline, "transformer": dit_pipeline}


@pytest.fixture(scope="module", params=MAKERS)
def component(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(component: str) -> DiffusionPipeline:
    return MAKERS[component]()


def size(folder: Path, component: str) -> int:
    return (folder / component / "diffusion_pytorch_model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("name", "method", "bits"),
    [
        ("fp4-w4a8", "rtn", 4),
        ("int8-w8a8+timesteps", "rtn", 8),
        ("fp6-w6a6", "rtn", 6),
        ("nvfp4", "hadamard", 4.5),
        ("mxfp4+keep-edges", "low-rank", None),
        ("int4-w4a8+g32", "gptq", 5),
        ("fp16", "rtn", 16),
        ("w4a16", "rtn", 4),
    ],
)
def test_saved_and_loaded_pipelines_make_the_same_images(
    pipe: DiffusionPipeline, component: str, tmp_path: Path, name: str, method: str, bits: float | None
) -> None:
    calibration = calibrate(pipe, CAPTIONS, steps=10)
    made = quantize(pipe, name, method=method, calibration=calibration)
    made.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert torch.equal(sample(loaded, CAPTIONS, SEEDS, steps=3), sample(made, CAPTIONS, SEEDS, steps=3))
    if bits is None:
        return
    layers = [layer for layer in getattr(made, component).modules() if isinstance(layer, QuantizedLayer)]
    weights = sum(layer.weight.numel() for layer in layers)
    kept = sum(p.numel() for p in getattr(made, component).parameters())
    # Codes, float32 parameters and scales per channel; the header and the names of ~100 small layers are the rest.
    assert size(tmp_path, component) < weights * bits / 8 + 4 * kept + 4 * sum(len(x.weight) for x in layers) + 90_000


def test_the_recipe_is_in_config_json(pipe: DiffusionPipeline, component: str, tmp_path: Path) -> None:
    quantize(pipe, "mxfp4").save_pretrained(tmp_path)
    written = json.loads((tmp_path / component / "config.json").read_text())["quantization_config"]
    assert written["quant_method"] == "fpsim"
    assert Scheme.from_dict(written["scheme"]) == scheme("mxfp4")
    assert set(written["layers"]) == {
        path
        for path, m in getattr(pipe, component).named_modules()
        if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
    }
    assert "quantization_config" not in getattr(pipe, component).config


def test_quantizing_while_loading(tmp_path: Path) -> None:
    source = unet_pipeline()
    source.save_pretrained(tmp_path)
    wanted = sample(quantize(source, "fp8-w8a8+dynamic"), CAPTIONS, SEEDS, steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = DiffusionPipeline.from_pretrained(
            tmp_path,
            quantization_config=PipelineQuantizationConfig(quant_mapping={"unet": FpsimConfig("fp8-w8a8+dynamic")}),
            dtype=torch.float32,
        )
        part = UNet2DConditionModel.from_pretrained(
            tmp_path, subfolder="unet", quantization_config=FpsimConfig(scheme="fp8-w8a8+dynamic"), dtype=torch.float32
        )
        assert torch.equal(sample(whole, CAPTIONS, SEEDS, steps=2), wanted)
        source.unet = part
        assert torch.equal(sample(source, CAPTIONS, SEEDS, steps=2), wanted)
        with pytest.raises(ValueError, match="are static: pass calibration="):
            UNet2DConditionModel.from_pretrained(
                tmp_path, subfolder="unet", quantization_config=FpsimConfig("fp8-w8a8"), dtype=torch.float32
            )


@pytest.mark.parametrize("order", ["import analysis, diffusers", "import diffusers, analysis"])
def test_importing_the_package_is_enough_to_load(tmp_path: Path, order: str) -> None:
    made = quantize(unet_pipeline(), "mxfp4")
    made.save_pretrained(tmp_path)
    program = (
        f"{order}, torch; "
        f"pipe = diffusers.DiffusionPipeline.from_pretrained({str(tmp_path)!r}, dtype=torch.float32); "
        "print(type(pipe.unet.conv_in).__name__, float(pipe.unet.conv_in.weight.sum()))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["QuantizedConv2d", str(float(made.unet.conv_in.weight.sum()))]


def test_importing_the_package_imports_neither_torch_nor_diffusers() -> None:
    program = "import analysis, sys; print(sorted({'torch', 'diffusers', 'numba'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_checkpoints_that_do_not_fit_are_one_clear_line(tmp_path: Path) -> None:
    quantize(unet_pipeline(), "fp4-w4a16").save_pretrained(tmp_path)
    config = tmp_path / "unet" / "config.json"
    good = json.loads(config.read_text())
    later = {**good, "quantization_config": {**good["quantization_config"], "version": 99}}
    config.write_text(json.dumps(later))
    with pytest.raises(ValueError, match="saved in layout 99"):
        load(tmp_path)
    other = {**good, "quantization_config": {**good["quantization_config"], "layers": None}}
    config.write_text(json.dumps(other))
    with pytest.raises(ValueError, match="lists no layers"):
        load(tmp_path)
    config.write_text(json.dumps(good))
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "conv_in.weight_codes": tensors["conv_in.weight_codes"][:-1]}, file)
    with pytest.raises(ValueError, match=r"layer conv_in: .* bytes of packed codes"):
        load(tmp_path)


def test_a_config_of_another_method_or_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'fpsim'"):
        FpsimConfig("mxfp4", quant_method="other")
    with pytest.raises(ValueError, match="did you mean 'mxfp4'"):
        FpsimConfig("mxfp44")
