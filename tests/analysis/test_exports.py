"""Exports: what others read of them is, bit for bit, what the quantized layers multiply."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    BFLQuantizationConfig,
    DiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.quantizers.bfl.utils import BFLFP8RLinear, BFLNVFP4Linear, dequantize_fp8r, dequantize_nvfp4
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_pipelines import dit_pipeline, flux_pipeline, sd3_pipeline, unet_pipeline

import analysis
from analysis import cli
from analysis.exports import LAYOUTS, layout
from analysis.exports._weights import e4m3
from analysis.runner import calibrate, load, quantize, sample
from analysis.scheme import Rule, Scheme, scheme
from fpsim.nn import QuantizedLayer, QuantizedLinear, Quantizer
from fpsim.nn.scaling import Scales

CAPTIONS, SEEDS = ["a red ring", "two blue"], [1, 2]
GOLDEN = Path(__file__).parents[1] / "golden" / "torchao" / "layouts.json"
ROW, TENSOR = Quantizer(format="e4m3", granularity="channel"), Quantizer(format="e4m3")
NVFP4 = Quantizer(format="nvfp4", granularity="block")


def linears(name: str) -> Scheme:
    """A preset that leaves convolutions alone."""
    made = scheme(name)
    return replace(made, rules=tuple(replace(rule, kinds=("Linear",)) for rule in made.rules))


W4A16 = Scheme(name="nvfp4-w4a16", rules=(Rule(weight=NVFP4, kinds=("Linear",)),))


@pytest.fixture(scope="module")
def unet() -> DiffusionPipeline:
    return unet_pipeline()


@pytest.fixture(scope="module")
def dit() -> DiffusionPipeline:
    return dit_pipeline()


# -- a reader written from the layouts' descriptions alone ------------------------------------------------------------


def e4m3_value(code: int) -> float:
    """OCP 8-bit Floating Point Specification 1.0, E4M3: bias 7, S.1111.111 is NaN."""
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if code & 127 == 127:
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


E4M3 = np.array([e4m3_value(code) for code in range(256)], np.float32)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def read_fp8(codes: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    rows = scale.numpy().reshape(-1, 1)
    assert rows.dtype == np.float32
    return E4M3[codes.view(torch.uint8).numpy()] * rows


def read_nvfp4(codes: torch.Tensor, scale: torch.Tensor, tensor: torch.Tensor) -> np.ndarray:
    packed = codes.numpy()
    assert packed.dtype == np.uint8
    both = np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1)
    steps = E4M3[scale.view(torch.uint8).numpy()] * tensor.numpy()
    return E2M1[both] * np.repeat(steps, 16, 1)


def same_bits(mine: torch.Tensor, theirs: np.ndarray) -> bool:
    assert theirs.dtype == np.float32
    return bool(np.array_equal(mine.detach().numpy().view(np.uint32), theirs.view(np.uint32)))


# -- torchao's own files ----------------------------------------------------------------------------------------------

CASES: dict[str, tuple[str, Quantizer, Quantizer | None]] = {
    "fp8 row": ("torchao-fp8", ROW, None),
    "fp8 tensor": ("torchao-fp8", TENSOR, None),
    "fp8 row, inputs": ("torchao-fp8", ROW, Quantizer(format="e4m3", granularity="token", range="dynamic")),
    "fp8 tensor, inputs": ("torchao-fp8", TENSOR, Quantizer(format="e4m3", range="dynamic")),
    "nvfp4": ("torchao-nvfp4", NVFP4, None),
    "nvfp4, inputs": ("torchao-nvfp4", NVFP4, replace(NVFP4, range="dynamic")),
}


def golden_weight() -> torch.Tensor:
    state, values = 1, []
    for _ in range(32 * 48):
        state = (state * 1103515245 + 12345) % 2**31
        values.append(((state >> 16) % 1001 - 500) / 64)
    return torch.tensor(values).view(32, 48)


def array(stored: dict[str, Any], dtype: type) -> np.ndarray:
    return np.frombuffer(base64.b64decode(stored["bytes"]), dtype).reshape(stored["shape"])


@pytest.mark.parametrize("case", CASES)
def test_the_same_weight_is_stored_as_torchao_stores_it(case: str) -> None:
    golden = json.loads(GOLDEN.read_text())["cases"][case]
    name, weight, activation = CASES[case]
    source = torch.nn.Linear(48, 32, bias=False)
    source.weight = torch.nn.Parameter(golden_weight())
    layer = QuantizedLinear.from_float(source, weight=weight, activation=activation)
    chosen = layout(name)
    made = chosen.pack(layer, None)
    tensors = {f"layer.{name}": value for name, value in made.tensors.items()}
    assert tensors.keys() == golden["tensors"].keys()
    for key, value in tensors.items():
        theirs = golden["tensors"][key]
        assert (str(value.dtype), list(value.shape)) == (theirs["dtype"], theirs["shape"]), key
        assert value.contiguous().view(-1).view(torch.uint8).tolist() == list(base64.b64decode(theirs["bytes"])), key
    header = chosen.header({"layer.weight": made.note or {}}, ["layer.weight"])
    assert {key: json.loads(text) for key, text in header.items()} == golden["header"]
    assert same_bits(layer.weight, array(golden["values"], np.float32))
    config = chosen.config([layer])
    assert config is not None
    assert config["quant_method"] == "torchao"
    made_type, theirs = config["quant_type"]["default"], golden["config"]
    assert (made_type["_type"], made_type["_version"]) == (theirs["_type"], theirs["_version"])
    assert made_type["_data"].items() <= theirs["_data"].items()


@pytest.mark.parametrize(
    ("made", "layout_name"),
    [
        (linears("fp8-w8a8+dynamic"), "torchao-fp8"),
        (linears("fp8-w8a16+per-tensor"), "torchao-fp8"),
        (linears("nvfp4"), "torchao-nvfp4"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_torchao_pipeline_is_read_by_its_description(
    dit: DiffusionPipeline, tmp_path: Path, made: Scheme, layout_name: str
) -> None:
    rules = (Rule(pattern="proj_out"), *made.rules)  # whose 16 outputs torchao takes, but someone must stay plain
    quantized = quantize(dit, replace(made, rules=rules))
    done = analysis.export(quantized, tmp_path / "out", layout_name)
    assert done.file == tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors"
    assert done.file.stat().st_size == done.bytes
    stored = load_file(done.file)
    with safe_open(done.file, framework="pt") as file:
        header = file.metadata()
    assert set(json.loads(header["tensor_names"])) == set(dit.transformer.state_dict())
    layers = {p: m for p, m in quantized.transformer.named_modules() if isinstance(m, QuantizedLayer)}
    assert set(done.held) == set(layers)
    assert done.values == ()
    for path, layer in layers.items():
        note = json.loads(header[f"{path}.weight"])
        parts = [stored[f"{path}._weight_{name}"] for name in ("qdata", "scale")]
        if layout_name == "torchao-fp8":
            assert note["_type"] == "Float8Tensor"
            assert same_bits(layer.weight, read_fp8(*parts)), path
        else:
            assert note["_type"] == "NVFP4Tensor"
            assert same_bits(layer.weight, read_nvfp4(*parts, stored[f"{path}._weight_per_tensor_scale"])), path
    rest = dit.transformer.state_dict()
    for name, value in stored.items():
        if "._weight_" not in name:
            assert json.loads(header[name]) == {"_type": "Tensor"}
            assert torch.equal(value, rest[name]), name
    config = json.loads((done.file.parent / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "torchao"
    assert str(tmp_path / "out") in done.loading


# -- BFL's files, read by diffusers itself ----------------------------------------------------------------------------


def assert_loaded(quantized: torch.nn.Module, loaded: torch.nn.Module, held: tuple[str, ...]) -> None:
    for path in held:
        module = loaded.get_submodule(path)
        if isinstance(module, BFLFP8RLinear):
            theirs = dequantize_fp8r(module.weight, module.weight_scale)
            mine = read_fp8(module.weight, module.weight_scale)
        else:
            assert isinstance(module, BFLNVFP4Linear), path
            theirs = dequantize_nvfp4(module.weight, module.weight_scale, module.weight_scale_2)
            mine = read_nvfp4(module.weight, module.weight_scale, module.weight_scale_2)
        weight = quantized.get_submodule(path).weight
        assert same_bits(weight, theirs.numpy()), path
        assert same_bits(weight, mine), path


@pytest.mark.parametrize(
    ("made", "layout_name"),
    [
        (linears("fp8-w8a16"), "bfl-fp8r"),
        (linears("fp8-w8a8+dynamic+per-tensor"), "bfl-fp8r"),
        (W4A16, "bfl-nvfp4"),
        (linears("nvfp4"), "bfl-nvfp4"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_diffusers_reads_bfl_files(unet: DiffusionPipeline, tmp_path: Path, made: Scheme, layout_name: str) -> None:
    ranges = calibrate(unet, CAPTIONS, steps=2)
    quantized = quantize(unet, made)
    done = analysis.export(quantized, tmp_path / "out", layout_name, calibration=ranges)
    loaded = UNet2DConditionModel.from_single_file(
        str(done.file),
        config=str(tmp_path / "out"),
        subfolder="unet",
        quantization_config=BFLQuantizationConfig(compute_dtype=torch.float32),
        dtype=torch.float32,
    )
    assert len(done.held) == sum(isinstance(module, QuantizedLayer) for module in quantized.unet.modules())
    assert_loaded(quantized.unet, loaded, done.held)
    whole = DiffusionPipeline.from_pretrained(tmp_path / "out", unet=loaded, dtype=torch.float32)
    images = sample(whole, CAPTIONS, SEEDS, steps=2)
    if made.rules[0].activation is None:  # diffusers keeps inputs as they are on a CPU
        assert torch.equal(images, sample(quantized, CAPTIONS, SEEDS, steps=2))
    if layout_name == "bfl-nvfp4":
        for path in done.held:
            low, high = ranges.range(path)
            largest = np.float32(max(-low, high))
            assert loaded.get_submodule(path).input_scale.numpy() == largest / np.float32(6 * 448), path
    assert "quantization_config" not in json.loads((done.file.parent / "config.json").read_text())
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model"):  # codes are not taken for weights
        UNet2DConditionModel.from_pretrained(tmp_path / "out", subfolder="unet")


@pytest.mark.parametrize("maker", [flux_pipeline, sd3_pipeline])
def test_diffusers_reads_bfl_files_of_mmdits(maker: Any, tmp_path: Path) -> None:
    pipe = maker()
    quantized = quantize(pipe, linears("fp8-w8a16"))
    done = analysis.export(quantized, tmp_path / "out", "bfl-fp8r")
    loaded = type(pipe.transformer).from_single_file(
        str(done.file),
        config=str(tmp_path / "out"),
        subfolder="transformer",
        quantization_config=BFLQuantizationConfig(compute_dtype=torch.float32),
        dtype=torch.float32,
    )
    assert len(done.held) > 10
    assert_loaded(quantized.transformer, loaded, done.held)


# -- what is not held -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layout_name", "options", "message"),
    [
        (
            "fp8-w8a16",
            "torchao-fp8",
            {},
            "layer pos_embed.proj: .*Linear layers, and this is a convolution; leave",
        ),
        (
            "fp8-w8a8",
            "torchao-fp8",
            {},
            "stored scale; the layout takes e4m3 per token or per tensor with scales at",
        ),
        ("w4a16", "torchao-fp8", {}, "its weight is int4 per output channel; the layout takes e4m3"),
        ("fp8-e5m2-w8a8+dynamic", "torchao-fp8", {}, "its activations are e5m2 per token; the layout takes e4m3"),
        ("fp8-e3m4-w8a8+dynamic", "torchao-fp8", {}, "its activations are e3m4 per token"),
        ("fp8-w8a16+g32", "torchao-fp8", {}, "its weight is e4m3 per block of 32; the layout takes"),
        ("fp8-w8a8+dynamic", "torchao-nvfp4", {}, "its activations are e4m3 per token; the layout takes nvfp4"),
        ("mxfp4", "torchao-nvfp4", {}, "its activations are mxfp4 per block of 32"),
        ("fp4-w4a16", "torchao-nvfp4", {}, "its weight is e2m1 per output channel; the layout takes nvfp4"),
        ("fp8-w8a16", "torchao-fp8", {"method": "hadamard"}, "its inputs are transformed before"),
        ("fp8-w8a16", "torchao-fp8", {"rank": 2}, "it has a side branch in full precision"),
        ("fp8-w8a8+dynamic+attention", "torchao-fp8", {}, "no layout holds quantized attention products"),
        ("fp8-w8a16", "bfl-fp8r", {}, "from_single_file, which PixArtTransformer2DModel does not have"),
    ],
)
def test_what_a_layout_does_not_hold_is_one_line(
    dit: DiffusionPipeline, tmp_path: Path, name: str, layout_name: str, options: dict[str, Any], message: str
) -> None:
    made = scheme(name) if "convolution" in message else linears(name)
    ranges = calibrate(dit, CAPTIONS, steps=2)
    quantized = quantize(dit, made, calibration=ranges, **options)
    with pytest.raises(ValueError, match=message) as caught:
        analysis.export(quantized, tmp_path / "out", layout_name)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    if "transformed" in message or "branch" in message:
        with pytest.raises(ValueError, match=f"not even as values: {message}"):
            analysis.export(quantized, tmp_path / "out", layout_name, rest="values")


def test_a_split_concatenation_is_written_as_values(unet: DiffusionPipeline, tmp_path: Path) -> None:
    ranges = calibrate(unet, CAPTIONS, steps=2)
    quantized = quantize(unet, "fp8-w8a16", calibration=ranges, concat=True)
    cut = [path for path in ranges.splits if hasattr(quantized.unet.get_submodule(path), "halves")]
    assert cut
    with pytest.raises(ValueError, match=r"this is a convolution|cut in two"):
        analysis.export(quantized, tmp_path / "out", "torchao-fp8")
    done = analysis.export(quantized, tmp_path / "out", "torchao-fp8", rest="values")
    assert set(cut) <= set(done.values)
    stored = load_file(done.file)
    for path in done.values:
        assert torch.equal(stored[f"{path}.weight"], quantized.unet.get_submodule(path).weight), path
    biased = [path for path in cut if unet.unet.get_submodule(path).bias is not None]
    assert biased
    for path in biased:
        assert torch.equal(stored[f"{path}.bias"], unet.unet.get_submodule(path).bias), path


def test_codes_that_others_read_as_nan_are_refused() -> None:
    """E4M3 of the search over splits numbers its last code, 480, which is NaN in OCP's."""
    source = torch.nn.Linear(16, 2, bias=False)
    quantizer = Quantizer(format="e4m3-finite", granularity="channel")
    layer = QuantizedLinear.from_float(source, weight=quantizer)
    with pytest.raises(ValueError, match=r"[1-4] of its weights have the code of 480"):
        e4m3(layer)
    largest = source.weight.detach().abs().amax(1, keepdim=True)
    layer = QuantizedLinear.from_float(source, weight=quantizer, scales=Scales(step=largest / 448))
    codes, scale = e4m3(layer)
    assert same_bits(layer.weight, read_fp8(codes, scale))


def test_other_mistakes(dit: DiffusionPipeline, tmp_path: Path) -> None:
    quantized = quantize(dit, linears("nvfp4"))
    with pytest.raises(ValueError, match="did you mean 'torchao-fp8'"):
        analysis.export(quantized, tmp_path / "out", "torchao-fp9")
    with pytest.raises(ValueError, match="unknown rest 'drop'"):
        analysis.export(quantized, tmp_path / "out", "torchao-nvfp4", rest="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the transformer of this PixArtSigmaPipeline is not quantized"):
        analysis.export(dit, tmp_path / "out", "torchao-nvfp4")
    with pytest.raises(ValueError, match="torchao-fp8 holds none of the 26 quantized layers"):
        analysis.export(quantized, tmp_path / "out", "torchao-fp8", rest="values")
    unet = quantize(unet_pipeline(), W4A16)
    with pytest.raises(ValueError, match=r"layer .*: bfl-nvfp4 does not hold it: .*pass calibration="):
        analysis.export(unet, tmp_path / "out", "bfl-nvfp4")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_what_was_there(
    dit: DiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = quantize(dit, linears("fp8-w8a16"))
    before = analysis.export(quantized, tmp_path / "out", "torchao-fp8").file.read_bytes()

    def stop(tensors: Any, file: Any, metadata: Any = None) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", stop)
    for place in ("out", "new"):
        with pytest.raises(KeyboardInterrupt):
            analysis.export(quantized, tmp_path / place, "torchao-fp8")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes() == before


def test_layouts_are_the_files_of_the_folder() -> None:
    folder = Path(__file__).parents[2] / "analysis" / "exports"
    assert set(LAYOUTS) == {file.stem.replace("_", "-") for file in folder.glob("[!_]*.py")}
    text = (folder / "__init__.py").read_text()
    for name in LAYOUTS:
        assert f"\n{name} " in text, "the table at the top of the package"
        assert layout(name).FILE.endswith(".safetensors")


def test_the_command_line(dit: DiffusionPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quantize(dit, linears("fp8-w8a16")).save_pretrained(tmp_path / "quantized")
    asked = ["export", str(tmp_path / "quantized"), "--out", str(tmp_path / "out"), "--layout"]
    assert cli.main([*asked, "torchao-fp8", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["file"]).stat().st_size == said["bytes"]
    assert len(said["held"]) == 26
    assert said["values"] == []
    assert cli.main([*asked, "torchao-nvfp4"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the layout takes nvfp4" in error
    assert cli.main([*asked, "torchao-fp9"]) == 2
    dit.save_pretrained(tmp_path / "plain")
    asked = ["export", str(tmp_path / "plain"), "--out", str(tmp_path / "out"), "--scheme", "nvfp4"]
    asked += ["--calibration", "2", "--steps", "1", "--rest", "values"]
    assert cli.main([*asked, "--layout", "torchao-nvfp4"]) == 0
    assert "bytes, 26 layers as codes, 1 as values\n" in capsys.readouterr().out
    assert load(tmp_path / "quantized").transformer.is_quantized
