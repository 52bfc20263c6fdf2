"""The embedded U-Net with FP8 linears on a Hopper GPU: the emulator returns every output bit of every layer."""

import numpy as np
import pytest
import torch

import fpsim
from analysis.models import embedded
from analysis.scenes import held_out

pytestmark = pytest.mark.gpu
STEPS, PROMPTS = 3, 2


class Fp8Linear(torch.nn.Module):
    """A linear layer through `torch._scaled_mm` with tensor-wise scales, which keeps what went in and came out."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.scale_w = layer.weight.detach().abs().max() / 448
        self.codes_w = (layer.weight.detach() / self.scale_w).to(torch.float8_e4m3fn)
        self.bias = None if layer.bias is None else layer.bias.detach().bfloat16()
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        scale = flat.abs().max() / 448
        codes = (flat / scale).to(torch.float8_e4m3fn)
        out = torch._scaled_mm(
            codes, self.codes_w.t(), scale, self.scale_w, bias=self.bias, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        self.calls.append((codes.view(torch.uint8).cpu(), scale.cpu(), out.view(torch.int16).cpu()))
        return out.to(x.dtype).reshape(*x.shape[:-1], -1)


def test_every_output_bit_of_every_layer() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a Hopper GPU and a CUDA build of torch")
    pipe = embedded.load("shapes-sd", device="cuda")
    layers: dict[str, Fp8Linear] = {}
    for name, module in list(pipe.unet.named_modules()):
        if isinstance(module, torch.nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0:
            layers[name] = Fp8Linear(module)
            pipe.unet.set_submodule(name, layers[name])
    with torch.no_grad():
        pipe(held_out(PROMPTS).captions(), num_inference_steps=STEPS, guidance_scale=3.0, output_type="latent")
    spec = fpsim.engine("hopper/scaled_mm-fast", a="e4m3", b="e4m3", out="bf16")
    outputs, wrong = 0, {}
    for name, layer in layers.items():
        weights = np.ascontiguousarray(layer.codes_w.view(torch.uint8).cpu().numpy().T)
        bias = None if layer.bias is None else layer.bias.float().cpu().numpy()
        for codes, scale, out in layer.calls:
            got = fpsim.matmul(
                codes.numpy(),
                weights,
                spec,
                a_scale=np.float32(scale.item()),
                b_scale=np.float32(layer.scale_w.item()),
                bias=bias,
            )
            bad = int((got.view(np.int16) != out.numpy()).sum())
            outputs += out.numel()
            if bad:
                wrong[f"{name} {tuple(codes.shape)}"] = bad
    print(f"{len(layers)} layers, {STEPS} steps, {outputs:,} outputs, differing: {wrong or 0}")
    assert layers
    assert not wrong
