"""What fake quantization costs at inference, next to the same denoiser in full precision; on a GPU or (--device cpu).

    python tests/benchmarks/fake_quant_gpu.py [--parts bits,kernels,embedded,sdxl] [--write FILE] [--budget SECONDS]

bits     : the kernels' outputs compared with `fpsim.quantize`'s, element by element
kernels  : one activation of an SDXL layer quantized by the kernel, by torch operations, and copied
embedded : both embedded denoisers in float32, captured in a CUDA graph
sdxl     : the full-size SDXL U-Net with random weights, in float16 and bfloat16, eager

A line of JSON per result, as it comes. Ratios are medians of interleaved runs.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fpsim
from analysis.runner import Calibration, calibrate, load, quantize
from analysis.runner.calibrate import layers_of
from analysis.runner.load import denoiser_name
from analysis.runner.sample import call
from analysis.scenes import held_out
from fpsim.nn import fused, scaling
from fpsim.nn.quantizer import Quantizer

SCHEMES = (
    "fp8-w8a8",
    "int8-w8a8",
    "int8-w8a8+asymmetric",
    "fp4-w4a8",
    "fp4-w4a4+asymmetric",
    "mxfp8",
    "mxfp4",
    "nvfp4",
    "fp8-w8a8+dynamic",
)
FORMATS = ("e4m3", "e5m2", "e3m4", "e2m3", "e2m1", "int8", "int4", "uint8", "ue2m2", "mxfp8", "mxfp6", "mxfp4", "nvfp4")
ROUNDS = 15


class Bench:
    """Prints and keeps results; knows the device and when to stop."""

    def __init__(self, device: str, budget: float, file: Path | None) -> None:
        self.device, self.end, self.file = device, time.monotonic() + budget, file
        self.rows: list[dict[str, Any]] = []

    def note(self, **row: Any) -> None:
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        if self.file is not None:
            self.file.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")

    @property
    def late(self) -> bool:
        return time.monotonic() > self.end

    def milliseconds(self, runs: Mapping[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
        """Median time of each, one after the other in every round."""
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            run()
        for _ in range(rounds):
            for name, run in runs.items():
                taken[name].append(self._once(run))
        return {name: statistics.median(times) for name, times in taken.items()}

    def _once(self, run: Callable[[], Any]) -> float:
        if self.device == "cpu":
            start = time.process_time()
            run()
            return 1e3 * (time.process_time() - start)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last)


def cases() -> dict[str, np.ndarray]:
    """Inputs in which every path of the kernels is taken; (4, 96, 6, 5)."""
    rng = np.random.default_rng(0)
    shape = (4, 96, 6, 5)
    broken = rng.standard_normal(shape)
    broken[1, 3, 2, 1], broken[2, 40, 0, 0], broken[3, 95, 5, 4] = np.nan, np.inf, -np.inf
    made = {
        "normal": rng.standard_normal(shape),
        "wide": rng.standard_normal(shape) * np.exp(6 * rng.standard_normal((4, 96, 1, 1))),
        "sparse": np.where(rng.random(shape) < 0.95, -0.0, rng.standard_normal(shape)),
        "broken": broken,
    }
    plain = {name: x.astype(np.float32) for name, x in made.items()}
    plain["bits"] = rng.integers(0, 1 << 32, shape, dtype=np.uint32).view(np.float32)
    plain["subnormal"] = rng.integers(0, 1 << 24, shape, dtype=np.uint32).view(np.float32)
    return plain


def bits(bench: Bench) -> None:
    """Given scale 1 (scalar formats) and the formats' own scales (block formats), against the numpy codec."""
    for name in FORMATS:
        row = fpsim.format(name)
        wrong = compared = 0
        for x in cases().values():
            given = torch.from_numpy(x.copy()).to(bench.device)
            if isinstance(row, fpsim.BlockFormat):
                made = fused.found(given, row, row.block, 1, 1, torch.float32)
                wanted = fpsim.quantize(x, name, axis=1)
            else:
                made = fused.given(given, torch.ones((), device=bench.device), None, row, torch.float32)
                wanted = fpsim.quantize(np.where(np.isnan(x), np.float32(0), x), name)
            if made is None:
                bench.note(part="bits", format=name, kernel=False)
                break
            ours = made.cpu().numpy() + np.float32(0)
            wanted = wanted + np.float32(0)  # neither keeps the sign of zero
            kept = np.ones(x.shape, bool) if isinstance(row, fpsim.BlockFormat) else ~np.isnan(x)
            same = (ours.view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(ours) & np.isnan(wanted))
            wrong += int((~same & kept).sum())
            compared += int(kept.sum())
        else:
            bench.note(part="bits", format=name, compared=compared, different=wrong)


def kernels(bench: Bench) -> None:
    """The input of an SDXL feed-forward layer, (2, 4096, 2560), and of a convolution, (2, 640, 64, 64)."""
    dtype = torch.float32 if bench.device == "cpu" else torch.float16
    for shape, axis in (((2, 4096, 2560), -1), ((2, 640, 64, 64), 1)):
        x = torch.randn(shape, device=bench.device).to(dtype)
        copy = bench.milliseconds({"copy": x.clone})["copy"]
        for name in ("e4m3", "int8", "uint8", "e2m1", "mxfp4", "nvfp4"):
            block = isinstance(fpsim.format(name), fpsim.BlockFormat)
            quantizer = Quantizer(format=name, granularity="block" if block else "tensor", range="dynamic")
            scales = None if block else scaling.find(x, quantizer, axis)

            def ours(q: Quantizer = quantizer, s: Any = scales, x: Any = x, axis: int = axis) -> Any:
                if s is None:
                    return scaling.self_scaled(x, q, axis, 0, x.dtype)
                return scaling.fake_quantize(x, q, s, axis, x.dtype)

            def plain(run: Callable[[], Any] = ours) -> Any:
                return without_kernels(run)

            times = bench.milliseconds({"kernel": ours, "torch": plain})
            bench.note(part="kernels", shape=list(shape), format=name, copy_ms=round(copy, 4), **rounded(times))
            if bench.late:
                return


def without_kernels(run: Callable[[], Any]) -> Any:
    """`run` with torch operations only."""
    kept, fused._kernels = fused._kernels, lambda *_: None  # type: ignore[assignment]
    try:
        return run()
    finally:
        fused._kernels = kept


def rounded(times: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}_ms": round(value, 4) for name, value in times.items()}


def captured(run: Callable[[], Any], device: str) -> Callable[[], Any]:
    """`run` as a CUDA graph to replay; itself on the CPU."""
    if device == "cpu":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def arguments(pipe: Any, rows: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the pipeline calls its denoiser with, for `rows` rows (half of them without the caption)."""
    seen: list[Any] = []
    denoiser = getattr(pipe, denoiser_name(pipe))
    handle = denoiser.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    call(pipe, held_out(rows // 2).captions(), list(range(rows // 2)), 1, 3.0, output="latent")
    handle.remove()
    args, kwargs = seen[0]
    return tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in args), kwargs


def embedded(bench: Bench) -> None:
    for name in ("shapes-sd", "shapes-dit"):
        pipe = load(name, device=bench.device)
        ranges = calibrate(pipe, held_out(8).captions(), steps=4)
        denoiser = getattr(pipe, denoiser_name(pipe))
        for rows in (2, 32):
            args, kwargs = arguments(pipe, rows)

            def made(module: Any, args: Any = args, kwargs: Any = kwargs) -> Callable[[], Any]:
                return captured(lambda: module(*args, **kwargs), bench.device)

            full = made(denoiser)
            for scheme in SCHEMES:
                quantized = getattr(quantize(pipe, scheme, calibration=ranges), denoiser_name(pipe))
                times = bench.milliseconds({"full": full, "fake": made(quantized)}, 7 if bench.device == "cpu" else 30)
                ratio = round(times["fake"] / times["full"], 3)
                bench.note(part="embedded", model=name, rows=rows, scheme=scheme, ratio=ratio, **rounded(times))
                if bench.late:
                    return


def one_call(denoiser: Any, run: Callable[[], Any]) -> Calibration:
    """Input ranges of every layer in one call."""
    seen: dict[str, Any] = {}
    handles = []
    for path, layer in layers_of(denoiser).items():

        def hook(_: Any, args: tuple[Any, ...], path: str = path) -> None:
            seen[path] = torch.aminmax(args[0])

        handles.append(layer.register_forward_pre_hook(hook))
    run()
    for handle in handles:
        handle.remove()
    ranges = {path: ((float(low), float(high)),) for path, (low, high) in seen.items()}
    return Calibration(timesteps=(500.0,), ranges=ranges, captions=("",), seeds=(0,), steps=1, guidance=1.0)


def sdxl(bench: Bench) -> None:
    from types import SimpleNamespace

    from analysis.measure.steps import Job, build

    module, inputs = build(Job(model="sdxl-base", rows=2, modes=("eager",), formats=("bf16",)), bench.device)
    for dtype in (torch.float16, torch.bfloat16):
        module.to(dtype)
        given = _cast(inputs, dtype)

        def full(module: Any = module, given: Any = given) -> Any:
            return module(**given)

        ranges = one_call(module, full)
        for scheme in SCHEMES:
            start = time.perf_counter()
            made = quantize(SimpleNamespace(unet=module), scheme, calibration=ranges).unet

            def fake(made: Any = made, given: Any = given) -> Any:
                return made(**given)

            wanted, got = full()[0].float(), fake()[0].float()
            seconds = time.perf_counter() - start
            noise = 10 * torch.log10(wanted.square().mean() / (got - wanted).square().mean())
            times = bench.milliseconds({"full": full, "fake": fake}, 7)
            bench.note(
                part="sdxl", dtype=str(dtype).removeprefix("torch."), scheme=scheme,
                ratio=round(times["fake"] / times["full"], 3), **rounded(times),
                quantize_s=round(seconds, 1), sqnr_db=round(float(noise), 1),
                peak_gb=round(torch.cuda.max_memory_allocated() / 1e9, 1) if bench.device != "cpu" else None,
            )  # fmt: skip
            del made, fake
            if bench.late:
                return


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {name: _cast(entry, dtype) for name, entry in value.items()}
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


PARTS: Mapping[str, Callable[[Bench], None]] = {"bits": bits, "kernels": kernels, "embedded": embedded, "sdxl": sdxl}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="some of " + ", ".join(PARTS))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--budget", type=float, default=330, help="seconds after which no new row is begun")
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the rows go, as JSON")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    if options.device == "cpu":
        torch.set_num_threads(1)
    bench = Bench(options.device, options.budget, options.write)
    about = torch.cuda.get_device_name() if options.device == "cuda" else "CPU, one thread, CPU time"
    bench.note(
        device=about, torch=torch.__version__, kernels=fused._kernels(torch.zeros(1, device=options.device)) is not None
    )
    with torch.no_grad():
        for part in options.parts.split(","):
            PARTS[part](bench)


if __name__ == "__main__":
    main()
