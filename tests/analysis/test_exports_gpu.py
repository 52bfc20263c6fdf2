"""An FP8 export on a Hopper GPU: what diffusers' kernels make of it, the emulator makes too, bit for bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import BFLQuantizationConfig, DiffusionPipeline, UNet2DConditionModel
from diffusers.quantizers.bfl.utils import BFLFP8RLinear

import analysis
import fpsim
from analysis.models import embedded
from analysis.runner import quantize, sample
from analysis.scenes import held_out
from analysis.scheme import scheme
from fpsim.nn import QuantizedLayer

pytestmark = pytest.mark.gpu
STEPS, PROMPTS = 2, 2


def emulated(layer: Any, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """bfloat16 (rows, out): the library's row-wise scaled FP8 product of the loader's codes and our weights, then bias.

    The loader divides each row's extreme by 448 with a Python number, which a GPU turns into a product with the rounded
    reciprocal; our layers divide. So the last bit of a scale can differ, and the scale is made here as the loader does.
    """
    values = x.float().numpy()
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True) * (np.float32(1) / np.float32(448)), np.float32(1e-12))
    made = fpsim.matmul(
        fpsim.encode(np.clip(values / scale, -448, 448), "e4m3"),
        np.ascontiguousarray(layer.weight_codes.cpu().numpy().T),
        fpsim.engine("hopper/scaled_mm-fast", a="e4m3", b="e4m3", out="bf16"),
        a_scale=scale,
        b_scale=layer.weight_step.cpu().numpy().T.copy(),
    )
    y = torch.from_numpy(made.view(np.int16)).view(torch.bfloat16)
    return y if bias is None else y + bias.cpu()


def test_the_loaders_kernels_compute_what_the_layers_emulate(tmp_path: Path) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU and a CUDA build of torch")
    made = scheme("fp8-w8a8+dynamic")
    linears = replace(made, rules=tuple(replace(rule, kinds=("Linear",)) for rule in made.rules))
    quantized = quantize(embedded.load("shapes-sd"), linears)
    done = analysis.export(quantized, tmp_path / "out", "bfl-fp8r")
    unet = UNet2DConditionModel.from_single_file(
        str(done.file),
        config=str(tmp_path / "out"),
        subfolder="unet",
        quantization_config=BFLQuantizationConfig(compute_dtype=torch.bfloat16),
        dtype=torch.bfloat16,
    )
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "out", unet=unet, dtype=torch.bfloat16).to("cuda")
    calls: list[tuple[str, torch.Tensor, torch.Tensor]] = []

    def keep(path: str) -> Any:
        return lambda module, args, output: calls.append((path, args[0].cpu(), output.cpu()))

    loaded = {path: module for path, module in unet.named_modules() if isinstance(module, BFLFP8RLinear)}
    assert set(loaded) == set(done.held)
    fast = {p: m for p, m in loaded.items() if m.in_features % 16 == 0 and m.out_features % 16 == 0}
    for path, module in fast.items():
        module.register_forward_hook(keep(path))
    with torch.no_grad():
        pipe(held_out(PROMPTS).captions(), num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent")
    outputs, wrong = 0, {}
    for path, x, y in calls:
        flat = x.reshape(-1, x.shape[-1])
        got = emulated(quantized.unet.get_submodule(path), flat, loaded[path].bias)
        bad = int((got.view(torch.int16) != y.reshape(got.shape).view(torch.int16)).sum())
        outputs += y.numel()
        if bad:
            wrong[f"{path} {tuple(flat.shape)}"] = bad
    print(f"{len(fast)} layers, {STEPS} steps, {outputs:,} outputs, differing: {wrong or 0}")
    assert calls
    assert not wrong


@pytest.mark.parametrize("name", ["fp4-w4a8+dynamic", "nvfp4", "int8-w8a8+dynamic+attention"])
def test_a_quantized_pipeline_goes_to_the_gpu_and_back(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU and a CUDA build of torch")
    captions, seeds = held_out(PROMPTS).captions(), list(range(PROMPTS))
    made = quantize(embedded.load("shapes-dit"), name, method="low-rank" if name == "nvfp4" else "rtn", **_more(name))
    before = {key: value.clone() for key, value in made.transformer.state_dict().items()}
    on_cpu = sample(made, captions, seeds, steps=STEPS)
    made.to("cuda")
    layers = [layer for layer in made.transformer.modules() if isinstance(layer, QuantizedLayer)]
    assert {value.device.type for layer in layers for value in layer.buffers()} == {"cuda"}
    on_gpu = sample(made, captions, seeds, steps=STEPS)
    # A sum in another order now and then moves a value across a rounding boundary; pictures stay close on average.
    assert (on_gpu - on_cpu).abs().mean() < 0.02
    made.to("cpu")
    for key, value in made.transformer.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(sample(made, captions, seeds, steps=STEPS), on_cpu)


def _more(name: str) -> dict[str, Any]:
    return {"calibration": held_out(2, seed=5).captions()} if name == "nvfp4" else {}
