"""One full-size SDXL denoise step on one NVIDIA GPU, every Linear and Conv2d through an exact engine.

    python tests/benchmarks/gpu_sdxl.py [ENGINE]

Random weights, two rows (the two halves of classifier-free guidance), 1024 x 1024. Prints the time of a step after a
warm-up, the peak of memory, and how many of the outputs of a few layers the CPU backend reproduces bit for bit.
"""

import sys
import time
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from analysis.models import model
from analysis.runner import quantize
from analysis.scheme import scheme
from fpsim.nn.layer import QuantizedLayer

CHECKED = 4  #: layers whose outputs are recomputed on the CPU, spread over the network
ROWS = 64  #: rows of those outputs


def inputs(part: Any, size: Any) -> dict[str, Any]:
    """Normal values (and a timestep) in the shapes the denoiser takes."""
    generator = torch.Generator("cuda").manual_seed(0)

    def made(spec: Any) -> Any:
        if isinstance(spec, dict):
            return {name: made(value) for name, value in spec.items()}
        if spec.dtype == "int64":
            return torch.full(spec.shape, 500, device="cuda")
        return torch.randn(spec.shape, generator=generator, device="cuda")

    return {name: made(spec) for name, spec in part.example_inputs(size).items()}


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = run()
    torch.cuda.synchronize()
    return time.perf_counter() - start, result


def keep(kept: dict[str, Any], name: str, layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
    """A hook that keeps a layer and a copy of its first input."""
    kept.setdefault(name, (layer, given[0].detach().clone()))


def reproduced(layer: QuantizedLayer, x: torch.Tensor) -> tuple[int, int]:
    """(equal, compared) outputs of a Linear for some rows of its input: the GPU's against the CPU backend's."""
    rows = x.reshape(-1, x.shape[-1])[:ROWS]
    with torch.no_grad():
        here = layer(rows).cpu()
        there = layer.cpu()(rows.cpu())
        layer.cuda()
    return int((here.view(torch.int32) == there.view(torch.int32)).sum()), here.numel()


def main(engine: str) -> None:
    torch.manual_seed(0)
    (part,) = model("sdxl-base").part("denoiser")
    size = model("sdxl-base").size(batch=2)
    took, unet = seconds(lambda: part.build("cuda"))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; built in {took:.1f} s", flush=True)
    took, pipe = seconds(
        lambda: quantize(types.SimpleNamespace(unet=unet), scheme("fp8-w8a8+dynamic").exact(engine))  # type: ignore[arg-type]
    )
    print(f"{pipe._quantization_report} in {took:.1f} s", flush=True)
    given = inputs(part, size)
    kept: dict[str, Any] = {}
    linear = [(n, m) for n, m in pipe.unet.named_modules() if type(m).__name__ == "QuantizedLinear"]
    hooks = [
        layer.register_forward_pre_hook(partial(keep, kept, name))
        for name, layer in linear[:: len(linear) // CHECKED][:CHECKED]
    ]
    with torch.no_grad():
        first, _ = seconds(lambda: pipe.unet(**given).sample)
        for hook in hooks:
            hook.remove()
        torch.cuda.reset_peak_memory_stats()
        took, exact = seconds(lambda: pipe.unet(**given).sample)
        peak = torch.cuda.max_memory_allocated() / 1e9
        _, reserved = torch.cuda.mem_get_info()
        used = (reserved - torch.cuda.mem_get_info()[0]) / 1e9
        whole, wanted = seconds(lambda: unet(**given).sample)
    noise = 10 * torch.log10(wanted.square().mean() / (exact - wanted).square().mean())
    print(f"one step through {engine}: {took:.1f} s (first call {first:.1f} s); float32 {whole:.2f} s")
    print(f"memory: torch's peak {peak:.1f} GB, whole device in use {used:.1f} GB; SQNR of the output {noise:.1f} dB")
    for name, (layer, x) in kept.items():
        equal, count = reproduced(layer, x)
        print(f"{name}: {equal:,} of {count:,} outputs equal the CPU backend's bits", flush=True)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["hopper/wgmma"]))
