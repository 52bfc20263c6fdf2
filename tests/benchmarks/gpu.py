"""Benchmarks on the first NVIDIA GPU: rates of the exact engines, and one full-size SDXL denoise step through one.

    python tests/benchmarks/gpu.py [--size N ...] [--write FILE]

Operands and results stay on the GPU. `make bench-gpu` writes docs/benchmarks-gpu.md.
"""

import argparse
import datetime
import statistics
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fpsim
from analysis.models import model
from analysis.runner import quantize
from analysis.scheme import scheme
from fpsim.nn.layer import QuantizedLayer

ENGINES = [
    ("hopper/wgmma", "e4m3"),
    ("hopper/scaled_mm", "e4m3"),
    ("blackwell/tcgen05", "e4m3"),
    ("hopper/wgmma", "bf16"),
    ("hopper/wgmma", "f16"),
    ("cdna3/mfma", "f16"),
    ("generic/fp32", "f32"),
    ("generic/int32", "int8"),
]
STEP_ENGINE = "hopper/wgmma"  #: of the SDXL step
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


def rates(sizes: list[int]) -> list[list[str]]:
    """Rows of engine, operands, size, median of five calls, rate, and the first call, which compiles."""
    rows = []
    for name, operand in ENGINES:
        spec = fpsim.engine(name, a=operand)
        for size in sizes:
            rng = np.random.default_rng(0)
            scale = 30 if spec.a.kind == "int" else 1
            values = (rng.standard_normal((size, size)) * scale for _ in range(2))
            a, b = (torch.from_numpy(fpsim.encode(x, operand)).cuda() for x in values)
            first, *times = [seconds(partial(fpsim.matmul, a, b, spec))[0] for _ in range(6)]
            took = statistics.median(times)
            rate = f"{size**3 / took / 1e12:.2f}"
            rows.append([name, operand, str(size), f"{took * 1e3:.1f} ms", rate, f"{first:.1f} s"])
            print(*rows[-1], flush=True)
    return rows


def step() -> list[str]:
    """Lines about one SDXL step: its time, its memory, and how it compares with float32 and with the CPU backend."""
    torch.manual_seed(0)
    (part,) = model("sdxl-base").part("denoiser")
    size = model("sdxl-base").size(batch=2)
    unet = part.build("cuda")
    pipe = quantize(types.SimpleNamespace(unet=unet), scheme("fp8-w8a8+dynamic").exact(STEP_ENGINE))
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
        took, exact = seconds(lambda: pipe.unet(**given).sample)
        free, total = torch.cuda.mem_get_info()
        whole, wanted = seconds(lambda: unet(**given).sample)
    noise = 10 * torch.log10(wanted.square().mean() / (exact - wanted).square().mean())
    lines = [
        f"{pipe._quantization_report}.",
        f"One step of two rows, 1024 x 1024, every Linear and Conv2d through {STEP_ENGINE} (E4M3): **{took:.1f} s** "
        f"(the first, with compiling, {first:.1f} s; torch float32 {whole:.2f} s); {(total - free) / 1e9:.0f} GB of "
        f"the device in use. SQNR of the output against float32 {noise:.1f} dB (random weights).",
    ]
    for name, (layer, x) in kept.items():
        equal, count = reproduced(layer, x)
        lines.append(f"`{name}`: {equal:,} of {count:,} outputs are the CPU backend's, bit for bit.")
    print(*lines, sep="\n", flush=True)
    return lines


ABOUT = """Operands and results stay on the GPU. In the register tiles of a fused dot product the machine code has, per
product, one fused add-and-maximum, two multiplications, one conversion to integer, one addition and a quarter of a
16-byte load from shared memory: 5.25 instructions, of which a multiprocessor issues 4 x 32 lanes per clock. CDNA3 and
the sequential engines run one thread per output."""


def report(rows: list[list[str]], lines: list[str]) -> str:
    head = ["engine", "operands", "size", "time", "TMAC/s", "first call"]
    table = [head, ["---"] * len(head), *rows]
    about = torch.cuda.get_device_properties(0)
    return "\n".join(
        [
            "# Benchmarks on a GPU",
            "",
            f"Written by `make bench-gpu` on {datetime.date.today()}: {about.name}, {about.multi_processor_count} "
            f"multiprocessors; torch {torch.__version__}.",
            "",
            ABOUT,
            "",
            *("| " + " | ".join(row) + " |" for row in table),
            "",
            "## One SDXL denoise step",
            "",
            *(f"- {line}" for line in lines),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[1024, 4096], help="of the square products")
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the report goes (default: print it)")
    options = parser.parse_args()
    text = report(rates(options.size), step())
    if options.write is None:
        print(text)
    else:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
