"""Quantized pipelines on disk: the same bits and the same images come back, from files that are small."""

import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig, PixArtTransformer2DModel, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_pipelines import dit_pipeline, unet_pipeline

from analysis.runner import Calibration, calibrate, load, quantize, restore, sample, save
from analysis.runner.plugin import FORMAT_VERSION, FpsimConfig
from analysis.runner.recipes import blank, put_blanks
from analysis.scheme import Scheme, scheme
from fpsim.formats import FORMATS, BlockFormat
from fpsim.nn import QuantizedConv2d, QuantizedLayer, QuantizedLinear, Quantizer
from fpsim.nn.layer import BUFFERS, element_format

CAPTIONS, SEEDS = ["a red ring", "two blue"], [1, 2]
MAKERS = {"unet": unet_pipeline, "transformer": dit_pipeline}
CLASSES = {"unet": UNet2DConditionModel, "transformer": PixArtTransformer2DModel}
CODES = "proj_out.weight_codes"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=MAKERS)
def component(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(component: str) -> DiffusionPipeline:
    return MAKERS[component]()


@pytest.fixture(scope="module")
def ready() -> dict[str, tuple[DiffusionPipeline, Calibration]]:
    made = {part: maker() for part, maker in MAKERS.items()}
    return {part: (pipe, calibrate(pipe, CAPTIONS, steps=10)) for part, pipe in made.items()}


def within(name: str, pattern: str) -> Scheme:
    """A preset for some layers: what methods do is the same for each, and takes its time."""
    made = scheme(name)
    return replace(made, rules=tuple(replace(rule, pattern=pattern) for rule in made.rules))


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Everything a module computes with, what is not saved included."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def assert_same_bits(one: torch.nn.Module, other: torch.nn.Module) -> None:
    mine, theirs = tensors(one), tensors(other)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        twin = theirs[name]
        assert (value.dtype, value.shape) == (twin.dtype, twin.shape), name
        assert torch.equal(value.contiguous().view(-1).view(torch.uint8), twin.contiguous().view(-1).view(torch.uint8))


def same_images(one: DiffusionPipeline, other: DiffusionPipeline) -> bool:
    return torch.equal(sample(one, CAPTIONS, SEEDS, steps=2), sample(other, CAPTIONS, SEEDS, steps=2))


# -- one layer --------------------------------------------------------------------------------------------------------

#: Some of the splits that searches choose from.
SPLITS = ("e1m2-finite", "e3m0-finite", "e3m4-finite", "ue2m2-finite", "ue1m5-finite")


def layers_of_every_format() -> list[tuple[str, Quantizer]]:
    """Those that torch layers hold: at most 8 bits, a cast, or a block format with a torch version."""
    found = []
    for name in (*FORMATS, *SPLITS):
        row = FORMATS.get(name)
        grains: list[dict[str, Any]] = [{"granularity": "block"}]
        if not isinstance(row, BlockFormat):
            grains = [{"granularity": "channel"}, {"granularity": "tensor"}, {"granularity": "block", "group": 16}]
        for grain in grains:
            try:
                quantizer = Quantizer(format=name, **grain)
                QuantizedLinear.from_float(torch.nn.Linear(16, 1), weight=quantizer)
            except ValueError:
                continue
            found.append((f"{name} {grain['granularity']}", quantizer))
    return found


EVERY = layers_of_every_format()


def test_the_formats_below_are_nearly_all_there_are() -> None:
    names = {quantizer.format for _, quantizer in EVERY}
    assert {"e4m3", "e2m1", "int4", "uint8", "int3", "mxfp4", "nvfp4", "bf16", "e2m3", *SPLITS} <= names
    assert len(names) >= 55


@pytest.mark.parametrize(("_", "quantizer"), EVERY, ids=[name for name, _ in EVERY])
def test_a_layer_of_any_format_comes_back_and_takes_the_counted_bits(_: str, quantizer: Quantizer) -> None:
    torch.manual_seed(0)
    kinds = ((torch.nn.Linear(104, 33), QuantizedLinear), (torch.nn.Conv2d(40, 9, 3), QuantizedConv2d))
    for source, kind in kinds:
        made = kind.from_float(source, weight=quantizer)
        again = blank(source, json.loads(json.dumps(made.recipe())))
        stored = {name: value for name, value in made.state_dict().items() if name in BUFFERS}
        for name, value in stored.items():
            again.load(name, value)
        again.refresh()
        assert_same_bits(made, again)
        row = element_format(quantizer)
        width = max(row.bits, {"bf16": 16, "f16": 16}.get(row.name, 32)) if quantizer.is_cast else row.bits
        scales = [value for name, value in stored.items() if name != "weight_codes"]
        counted = -(-source.weight.numel() * width // 8) + sum(one.numel() * one.element_size() for one in scales)
        assert sum(one.numel() * one.element_size() for one in stored.values()) == counted
        if not quantizer.is_block:
            assert {one.element_size() for one in scales} <= {4}
        groups = {"tensor": 1, "channel": source.weight.shape[0]}.get(quantizer.granularity)
        if groups is not None and not quantizer.is_cast:
            assert [one.numel() for one in scales] == [groups] * (2 if quantizer.has_zero else 1)


# -- whole pipelines --------------------------------------------------------------------------------------------------

QUICK = {"samples": 4, "steps": 2}  # of learned rounding: what it learns does not matter here


IN_BOTH = [
    ("fp4-w4a8", "rtn", {}),
    ("int8-w8a8+timesteps", "rtn", {}),
    ("int8-w8a8+attention", "rtn", {}),
]
IN_THE_UNET = [("int4-w4a8+asymmetric", "rtn", {"concat": True})]
IN_THE_DIT = [
    ("int4-w4a8+g32", "gptq", {}),
    ("fp4-w4a4+asymmetric", "rtn", {}),
    ("fp8-w8a8+dynamic", "rtn", {}),
    ("fp6-w6a6+per-tensor", "rtn", {}),
    ("nvfp4", "hadamard", {}),
    ("int8-w8a8", "smoothquant", {}),
    ("mxfp4+keep-edges", "low-rank", {"rank": 4}),
    ("fp16", "rtn", {}),
    ("w4a16", "rtn", {}),
]


@pytest.mark.parametrize(
    ("part", "name", "method", "options"),
    [
        *(("unet", *case) for case in (*IN_BOTH, *IN_THE_UNET)),
        *(("transformer", *case) for case in (*IN_BOTH, *IN_THE_DIT)),
    ],
)
def test_saved_and_loaded_pipelines_have_the_same_bits_and_make_the_same_images(
    ready: dict[str, tuple[DiffusionPipeline, Calibration]],
    tmp_path: Path,
    part: str,
    name: str,
    method: str,
    options: dict[str, Any],
) -> None:
    pipe, calibration = ready[part]
    made = quantize(pipe, name, method=method, calibration=calibration, **options)
    made.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert_same_bits(getattr(made, part), getattr(loaded, part))
    assert same_images(made, loaded)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("fp8-w8a8", "fp-search"),
        ("fp4-w4a4+asymmetric", "fp-ptq"),
        ("int4-w4a8", "q-diffusion"),
        ("nvfp4", "adaround"),
        ("mxfp4", "gptaq"),
    ],
)
def test_learned_layers_come_back(
    ready: dict[str, tuple[DiffusionPipeline, Calibration]], tmp_path: Path, name: str, method: str
) -> None:
    pipe, calibration = ready["transformer"]
    some = within(name, "transformer_blocks.0.attn1.*")
    options = {} if method == "fp-search" else QUICK
    made = quantize(pipe, some, method=method, calibration=calibration, **options)
    made.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert_same_bits(made.transformer, loaded.transformer)
    assert same_images(made, loaded)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int4-w4a8", "fp4-w4a4+asymmetric"])
def test_learned_steps_and_split_concatenations_come_back(tmp_path: Path, name: str) -> None:
    pipe = unet_pipeline()
    made = quantize(pipe, name, method="q-diffusion", calibration=calibrate(pipe, CAPTIONS, steps=2), **QUICK)
    made.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert_same_bits(made.unet, loaded.unet)
    assert same_images(made, loaded)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["shapes-sd", "shapes-dit"])
@pytest.mark.parametrize(
    ("name", "method"), [("fp4-w4a8+timesteps", "rtn"), ("nvfp4", "gptq"), ("int4-w4a4+asymmetric", "hadamard")]
)
def test_embedded_pipelines_come_back_small(tmp_path: Path, part: str, name: str, method: str) -> None:
    pipe = load(part)
    made = quantize(pipe, name, method=method, calibration=calibrate(pipe, CAPTIONS, steps=10))
    made.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    component = "unet" if part == "shapes-sd" else "transformer"
    mine = getattr(made, component)
    assert_same_bits(mine, getattr(loaded, component))
    assert same_images(made, loaded)
    layers = [layer for layer in mine.modules() if isinstance(layer, QuantizedLayer)]
    codes = sum(layer.weight.numel() * element_format(layer.weight_quantizer).bits / 8 for layer in layers)
    scales = [v for layer in layers for k, v in layer.state_dict().items() if k in BUFFERS and k != "weight_codes"]
    counted = codes + sum(one.numel() * one.element_size() for one in (*scales, *mine.parameters()))
    assert 1 <= (tmp_path / component / WEIGHTS).stat().st_size / counted < 1.1


@pytest.mark.parametrize("name", ["fp4-w4a8+dynamic", "int8-w8a8+dynamic", "nvfp4", "fp16"])
def test_a_file_is_as_big_as_its_bits(tmp_path: Path, name: str) -> None:
    pipe = unet_pipeline(channels=(128, 160))
    made = quantize(pipe, name)
    made.unet.save_pretrained(tmp_path)
    layers = [layer for layer in made.unet.modules() if isinstance(layer, QuantizedLayer)]
    bits = FORMATS[layers[0].weight_quantizer.format].bits_per_element
    counted = sum(layer.weight.numel() for layer in layers) * bits / 8
    scales = 0 if name in ("nvfp4", "fp16") else 4 * sum(len(layer.weight) for layer in layers)
    rest = 4 * sum(parameter.numel() for parameter in made.unet.parameters())  # norms and biases
    size = (tmp_path / WEIGHTS).stat().st_size
    assert 1 <= size / (counted + scales + rest) < 1.1


def test_the_recipe_is_in_config_json(pipe: DiffusionPipeline, component: str, tmp_path: Path) -> None:
    quantize(pipe, "mxfp4").save_pretrained(tmp_path)
    written = json.loads((tmp_path / component / "config.json").read_text())["quantization_config"]
    assert written["quant_method"] == "fpsim"
    assert written["version"] == FORMAT_VERSION
    assert Scheme.from_dict(written["scheme"]) == scheme("mxfp4")
    assert set(written["layers"]) == {
        path
        for path, m in getattr(pipe, component).named_modules()
        if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
    }
    assert "quantization_config" not in getattr(pipe, component).config
    assert sorted(file.suffix for file in (tmp_path / component).iterdir()) == [".json", ".safetensors"]


def test_a_loaded_pipeline_is_saved_and_loaded_again(tmp_path: Path) -> None:
    made = quantize(dit_pipeline(), "mxfp4")
    made.save_pretrained(tmp_path / "once")
    load(tmp_path / "once").save_pretrained(tmp_path / "twice")
    assert_same_bits(load(tmp_path / "twice").transformer, made.transformer)


def test_quantizing_while_loading(pipe: DiffusionPipeline, component: str, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    made = quantize(pipe, "fp8-w8a8+dynamic")
    config = PipelineQuantizationConfig(quant_mapping={component: FpsimConfig("fp8-w8a8+dynamic")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = DiffusionPipeline.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
        assert_same_bits(getattr(whole, component), getattr(made, component))
        assert same_images(whole, made)
        whole.save_pretrained(tmp_path / "saved")
        assert_same_bits(getattr(load(tmp_path / "saved"), component), getattr(made, component))
        part = CLASSES[component].from_pretrained(
            tmp_path, subfolder=component, quantization_config=FpsimConfig(scheme="mxfp4"), dtype=torch.float32
        )
        assert_same_bits(part, getattr(quantize(pipe, "mxfp4"), component))
        with pytest.raises(ValueError, match="are static: pass calibration="):
            CLASSES[component].from_pretrained(
                tmp_path, subfolder=component, quantization_config=FpsimConfig("fp8-w8a8"), dtype=torch.float32
            )


@pytest.mark.parametrize(
    ("part", "name", "method"),
    [
        ("unet", "fp4-w4a8", "rtn"),
        ("transformer", "int8-w8a8", "smoothquant"),
        ("transformer", "mxfp4", "low-rank"),
        ("transformer", "nvfp4", "rtn"),
    ],
)
def test_codes_and_scales_keep_their_bits_in_a_half_precision_model(
    ready: dict[str, tuple[DiffusionPipeline, Calibration]], tmp_path: Path, part: str, name: str, method: str
) -> None:
    pipe, calibration = ready[part]
    made = quantize(pipe, name, method=method, calibration=calibration)
    made.save_pretrained(tmp_path)
    half = getattr(load(tmp_path, dtype=torch.bfloat16), part)
    assert half.dtype == torch.bfloat16
    stored = getattr(made, part).state_dict()
    for path, layer in half.named_modules():
        if isinstance(layer, QuantizedLayer):
            assert layer.weight.dtype == torch.bfloat16
            for key, value in layer.state_dict(prefix=f"{path}.").items():
                if not key.endswith(".bias"):
                    assert value.dtype == stored[key].dtype, key
                    assert torch.equal(value, stored[key]), key
    with pytest.raises(ValueError, match="Casting a quantized model"):
        getattr(made, part).to(torch.float16)


def test_a_half_precision_pipeline_comes_back(tmp_path: Path) -> None:
    dit_pipeline().save_pretrained(tmp_path / "full")
    pipe = load(tmp_path / "full", dtype=torch.bfloat16)
    made = quantize(pipe, "nvfp4", method="low-rank", calibration=calibrate(pipe, CAPTIONS, steps=2))
    made.save_pretrained(tmp_path / "quantized")
    loaded = load(tmp_path / "quantized", dtype=torch.bfloat16)
    assert_same_bits(made.transformer, loaded.transformer)
    assert same_images(made, loaded)
    save(made, tmp_path / "denoiser")
    assert same_images(made, restore(pipe, tmp_path / "denoiser"))


# -- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placed", ["cpu", {"": "cpu"}, "auto"])
def test_one_device_can_be_named_while_loading(tmp_path: Path, placed: Any) -> None:
    made = quantize(dit_pipeline(), "int8-w8a8+dynamic")
    made.save_pretrained(tmp_path)
    loaded = PixArtTransformer2DModel.from_pretrained(
        tmp_path, subfolder="transformer", device_map=placed, dtype=torch.float32
    )
    assert_same_bits(loaded, made.transformer)


def test_several_devices_are_refused(tmp_path: Path) -> None:
    quantize(dit_pipeline(), "mxfp4").save_pretrained(tmp_path)
    placed = {"pos_embed": "cpu", "transformer_blocks": "disk", "": "cpu"}
    with pytest.raises(ValueError, match="spreads the denoiser over cpu, disk; fpsim's layers live on one device"):
        PixArtTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer", device_map=placed)


def test_moving_a_quantized_pipeline_moves_all_of_it() -> None:
    """The meta device stands for any other: nothing of a layer may stay behind."""
    pipe = dit_pipeline()
    made = quantize(pipe, "fp4-w4a8", method="low-rank", calibration=calibrate(pipe, CAPTIONS, steps=2))
    before = {name: value.dtype for name, value in tensors(made.transformer).items()}
    made.to("meta")
    assert {value.device.type for value in tensors(made.transformer).values()} == {"meta"}
    assert {name: value.dtype for name, value in tensors(made.transformer).items()} == before


# -- imports ----------------------------------------------------------------------------------------------------------


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


# -- checkpoints that are not what they should be ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    quantize(dit_pipeline(), "fp4-w4a16").save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(saved: Path, tmp_path: Path) -> Any:
    """Writes a copy of the checkpoint, changed, and loads it. The digest goes too, or it would be all one sees."""
    from shutil import copytree

    def write(change: Any = None, keep: Any = None) -> DiffusionPipeline:
        folder = Path(copytree(saved, tmp_path / "copy", dirs_exist_ok=True))
        file, config = folder / "transformer" / WEIGHTS, folder / "transformer" / "config.json"
        stored = load_file(saved / "transformer" / WEIGHTS)
        save_file(stored if keep is None else keep(dict(stored)), file)
        data = json.loads((saved / "transformer" / "config.json").read_text())
        if change is not None:
            change(data["quantization_config"])
        config.write_text(json.dumps(data))
        return load(folder)

    return write


def test_an_unchanged_copy_loads(damaged: Any) -> None:
    assert damaged().transformer.proj_out.weight_quantizer.format == "e2m1"


def recipe(config: dict[str, Any], **changes: Any) -> None:
    config["layers"]["proj_out"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=1), r"saved in layout 1 of the fpsim quantization, this version reads layout 2"),
        (lambda c: c.update(version=99, later="key"), "saved in layout 99"),
        (lambda c: c.pop("version"), "saved in layout None"),
        (lambda c: c.update(hook="os.system"), "unknown key of quantization_config 'hook'"),
        (lambda c: c.pop("scheme"), "names no scheme"),
        (lambda c: c.update(layers=None), "lists no layers"),
        (lambda c: c.update(layers=["proj_out"]), "lists no layers"),
        (lambda c: c["layers"].update({"a.b": {}}), "quantizes layer a.b, which this PixArtTransformer2DModel does"),
        (lambda c: c["layers"].update({"": {}}), "layer : its recipe"),
        (lambda c: c["layers"].update({"pos_embed": c["layers"]["proj_out"]}), "layer pos_embed: .* a PatchEmbed is"),
        (lambda c: c["layers"].update({"proj_out.__class__": {}}), "quantizes layer proj_out.__class__"),
        (lambda c: recipe(c, weight={"format": "e2m11"}), "layer proj_out: .*unknown format 'e2m11'"),
        (lambda c: recipe(c, weight={"format": "e2m1", "call": 1}), "layer proj_out: .*'call'"),
        (lambda c: recipe(c, weight=None), "layer proj_out: "),
        (lambda c: recipe(c, init="exec"), "layer proj_out: .*unknown key 'init'"),
        (lambda c: recipe(c, buffers=["weight_codes", "forward"]), "layer proj_out: .*unknown buffer 'forward'"),
        (lambda c: recipe(c, buffers=[]), "layer proj_out: .*no weight_codes"),
        (lambda c: recipe(c, spec={"name": "os.system", "a": "e4m3"}), "layer proj_out: .*unknown engine 'os.system'"),
        (lambda c: recipe(c, rank=10**9), r"layer proj_out: .*rank=1000000000 must be a whole number from 1 to 16"),
        (lambda c: recipe(c, transform=[2**40]), "layer proj_out: .*transform=1099511627776 must be"),
        (lambda c: recipe(c, clock=["now"]), "layer proj_out: .*clock bound 'now'"),
        (lambda c: c["layers"].update(proj_out={"parts": []}), "layer proj_out: .*0 input channels, the layer has 32"),
        (
            lambda c: c["layers"].update(proj_out={"parts": [{"channels": -4, **c["layers"]["proj_out"]}]}),
            "layer proj_out: .*channels=-4 must be",
        ),
    ],
)
def test_a_config_that_is_not_ours_is_one_line(damaged: Any, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        damaged(change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (
            lambda s: s | {"proj_out.weight_codes": s["proj_out.weight_codes"][:-1]},
            "layer proj_out: .* bytes of packed",
        ),
        (lambda s: s | {"proj_out.weight_codes": s["proj_out.weight_codes"].float()}, "layer proj_out: .*float32"),
        (lambda s: s | {"proj_out.weight_step": torch.ones(7, 1)}, "layer proj_out: codes and scales do not fit"),
        (lambda s: without(s, "proj_out.weight_step"), "no weight_step for layer proj_out"),
        (lambda s: without(s, "proj_out.weight_codes"), "no weight_codes for layer proj_out"),
        (lambda s: without(s, "proj_out.bias"), "no bias for layer proj_out"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(damaged: Any, keep: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        damaged(keep=keep)
    assert "\n" not in str(caught.value)


def without(stored: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in stored.items() if key != name}


def test_files_of_two_checkpoints_do_not_mix(tmp_path: Path) -> None:
    """What is left when saving over an older checkpoint stops half way: int8 and e4m3 codes have the same shapes."""
    pipe = dit_pipeline()
    quantize(pipe, "w8a16").save_pretrained(tmp_path)
    older = (tmp_path / "transformer" / WEIGHTS).read_bytes()
    quantize(pipe, "fp8-w8a16").save_pretrained(tmp_path)
    (tmp_path / "transformer" / WEIGHTS).write_bytes(older)
    with pytest.raises(ValueError, match=r"does not belong to the config\.json beside it: saving was interrupted"):
        load(tmp_path)


def test_pickles_are_neither_written_nor_read(tmp_path: Path) -> None:
    made = quantize(dit_pipeline(), "mxfp4")
    with pytest.raises(ValueError, match="safetensors only"):
        made.transformer.save_pretrained(tmp_path, safe_serialization=False)
    made.save_pretrained(tmp_path)
    file = tmp_path / "transformer" / WEIGHTS
    torch.save(load_file(file), file.with_name("diffusion_pytorch_model.bin"))
    file.unlink()
    with pytest.raises(ValueError, match="no safetensors file; quantized weights are read from nothing else"):
        PixArtTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer", use_safetensors=False)


def test_saving_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = dit_pipeline()
    save(quantize(pipe, "mxfp4"), tmp_path / "denoiser")
    save(made := quantize(pipe, "nvfp4"), tmp_path / "denoiser")  # in the place of the one before
    assert same_images(made, restore(pipe, tmp_path / "denoiser"))

    def stop(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", stop)
    for place in ("denoiser", "new"):
        with pytest.raises(KeyboardInterrupt):
            save(quantize(pipe, "mxfp4"), tmp_path / place)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["denoiser"]
    assert same_images(made, restore(pipe, tmp_path / "denoiser"))


def test_an_interrupted_save_of_a_pipeline_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    made = quantize(dit_pipeline(), "mxfp4")
    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", stop)
        with pytest.raises(KeyboardInterrupt):
            made.transformer.save_pretrained(tmp_path / "transformer")
    with pytest.raises(OSError, match="no file named"):
        PixArtTransformer2DModel.from_pretrained(tmp_path, subfolder="transformer")


def test_a_config_of_another_method_or_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'fpsim'"):
        FpsimConfig("mxfp4", quant_method="other")
    with pytest.raises(ValueError, match="did you mean 'mxfp4'"):
        FpsimConfig("mxfp44")


def test_what_quantizing_while_loading_refuses_is_one_line(tmp_path: Path) -> None:
    pipe = dit_pipeline()
    pipe.save_pretrained(tmp_path / "good")
    with torch.no_grad():
        pipe.transformer.proj_out.weight[0, 0] = float("nan")
    pipe.save_pretrained(tmp_path / "bad")
    nothing = {"name": "mine", "rules": [{"pattern": "up_blocks.*", "weight": {"format": "int8"}}]}
    for folder, given, message in (
        ("good", FpsimConfig(nothing), r"scheme 'mine' matches no layer: patterns 'up_blocks\.\*'"),
        ("bad", FpsimConfig("mxfp4"), "layer proj_out: the weight has NaN or Inf"),
    ):
        config = PipelineQuantizationConfig(quant_mapping={"transformer": given})
        with pytest.raises(ValueError, match=message) as caught:
            DiffusionPipeline.from_pretrained(tmp_path / folder, quantization_config=config, dtype=torch.float32)
        assert "\n" not in str(caught.value)


def test_rules_that_decide_nothing_are_warned_about_while_loading(tmp_path: Path) -> None:
    dit_pipeline().save_pretrained(tmp_path)
    data = scheme("mxfp4").to_dict()
    data["rules"].insert(0, {"pattern": "nothing.*"})
    with pytest.warns(UserWarning, match=r"rule 'nothing\.\*' decides no layer"):
        PixArtTransformer2DModel.from_pretrained(
            tmp_path, subfolder="transformer", quantization_config=FpsimConfig(data), dtype=torch.float32
        )


def test_the_digest_is_in_the_header(saved: Path) -> None:
    with safe_open(saved / "transformer" / WEIGHTS, framework="pt") as file:
        digest = file.metadata()["fpsim"]
    config = json.loads((saved / "transformer" / "config.json").read_text())["quantization_config"]
    assert digest == FpsimConfig.from_dict(config).digest
    config["layers"]["proj_out"]["weight"]["format"] = "int4"
    assert digest != FpsimConfig.from_dict(config).digest


def test_blanks_name_the_layer() -> None:
    with pytest.raises(ValueError, match="layer 0: its recipe"):
        put_blanks(torch.nn.Sequential(torch.nn.ReLU()), {"0": {}})
    assert math.prod(blank(torch.nn.Linear(4, 2), _plain()).shape) == 8


def _plain() -> dict[str, Any]:
    return QuantizedLinear.from_float(torch.nn.Linear(4, 2), weight=Quantizer(format="int8")).recipe()
