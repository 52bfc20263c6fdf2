"""Whole denoise steps of full-size diffusers architectures with random weights, timed on the user's GPU.

One call of a denoiser (or one VAE decode), the rows of one guided image where the model is guided.  Nothing is
downloaded: a configuration from `analysis/models`, weights drawn on the GPU, so values are meaningless and times are
not.  Formats: bf16, or FP8 Linears (`fp8.py`: static or dynamic scales) with everything else in bf16.  Modes:

eager     called from Python, the host's clock around a synchronised call
graph     the same call captured in a CUDA graph and replayed: the kernels without the host
compiled  compiled by torch.compile, then captured likewise

`compile=whole` compiles the module; `compile=blocks` its lists of blocks, each kind of block once (regional
compilation), which takes seconds instead of minutes; the row's note says which.  A kernel profile of the eager call
(names, launches, seconds) is written to steps_profile.csv, for whoever wants to know where a projection went wrong.
"""

from __future__ import annotations

import gc
import inspect
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.measure.run import Progress, failures
from analysis.measure.table import Table, write_toml
from analysis.measure.timer import SAMPLE_COLUMNS, CudaTimer, Sample, summarise

KEY = ("model", "part", "rows", "format", "mode")
COLUMNS = (*KEY, *SAMPLE_COLUMNS, "memory_gb", "note")
PROFILE_COLUMNS = ("model", "part", "rows", "format", "kernel", "launches", "seconds")
STEPS, PROFILE, PROVENANCE = "steps.csv", "steps_profile.csv", "steps.toml"
MODES = ("eager", "graph", "compiled")
FORMATS = ("bf16", "fp8", "fp8-dynamic")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One module built once; every format and mode of it is timed before the next is built.

    compile: "" (do not), "whole" or "blocks".
    """

    model: str
    rows: int
    part: str = "denoiser"
    formats: tuple[str, ...] = ("bf16", "fp8")
    modes: tuple[str, ...] = ("eager", "graph")
    compile: str = ""

    @property
    def identity(self) -> dict[str, object]:
        return {"model": self.model, "part": self.part, "rows": self.rows}


#: in order of importance: what a budget cuts off is the least of it
JOBS = (
    Job(model="sd15", rows=2),
    Job(model="dit-xl-2-256", rows=2),
    Job(model="sdxl-base", rows=2),
    Job(model="pixart-sigma", rows=2),
    Job(model="flux1-dev", rows=1),
    Job(model="sd3-medium", rows=2),
    Job(model="sdxl-base", rows=1, part="vae-decode", formats=("bf16",)),
    Job(model="cogvideox-2b", rows=2),
    Job(model="sd15", rows=1, part="vae-decode", formats=("bf16",)),
    Job(model="dit-xl-2-256", rows=2, modes=("compiled",), compile="blocks"),
    Job(model="pixart-sigma", rows=2, modes=("compiled",), compile="blocks"),
    Job(model="sd3-medium", rows=2, modes=("compiled",), compile="blocks"),
    Job(model="flux1-dev", rows=1, modes=("compiled",), compile="blocks"),
    Job(model="sd15", rows=2, modes=("compiled",), compile="whole"),
    Job(model="dit-xl-2-256", rows=32, modes=("graph",), formats=("bf16", "fp8", "fp8-dynamic")),
    Job(model="sd15", rows=16, modes=("graph",), formats=("bf16", "fp8", "fp8-dynamic")),
    Job(model="pixart-sigma", rows=8, modes=("graph",), formats=("bf16", "fp8", "fp8-dynamic")),
    Job(model="sdxl-base", rows=8, modes=("graph",), formats=("bf16", "fp8", "fp8-dynamic")),
)


def build(job: Job, device: str = "cuda") -> tuple[Any, dict[str, Any]]:
    """(the module in bf16 with normally distributed weights, its inputs) of one call."""
    import torch

    from analysis.models import model

    found = model(job.model)
    part = found.part(job.part)[0]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        module = part.build(device)
    finally:
        torch.set_default_dtype(before)
    module = torch.nn.Module.to(module, torch.bfloat16).requires_grad_(False)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:  # layers that start at zero would hand zeros on
                fan = math.prod(parameter.shape[1:])
                parameter.normal_(0.0, 1 / math.sqrt(fan))
    size = found.size(job.rows, tokens=part.tokens)
    inputs = _tensors(part.example_inputs(size), device)
    if "return_dict" in inspect.signature(getattr(module, part.method)).parameters:
        inputs["return_dict"] = False
    return module, inputs


def _tensors(spec: Any, device: str, name: str = "") -> Any:
    import torch

    from analysis.models import Input

    if isinstance(spec, Input):
        dtype = getattr(torch, spec.dtype) if spec.dtype else torch.bfloat16
        if dtype.is_floating_point:
            return torch.randn(spec.shape, device=device).to(dtype)
        return torch.full(spec.shape, 1 if "mask" in name else 500, dtype=dtype, device=device)
    if isinstance(spec, dict):
        return {key: _tensors(value, device, key) for key, value in spec.items()}
    return spec


def _host(run: Callable[[], Any], timer: CudaTimer) -> Sample:
    """Time of a synchronised call from the host."""
    import torch

    times = []
    run()
    for _ in range(7):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if sum(times) > 3:
            break
    return summarise(times, 1, timer.sensor.latest)


def _replayed(run: Callable[[], Any], timer: CudaTimer) -> Sample:
    """Time of replays of the call as a CUDA graph, back to back."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    repeats = min(max(int(1.0 / (start.elapsed_time(end) * 1e-3)), 4), 15)
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for first, last in pairs:
        first.record()
        graph.replay()
        last.record()
    torch.cuda.synchronize()
    sample = summarise([a.elapsed_time(b) * 1e-3 for a, b in pairs], 1, timer.sensor.latest)
    del graph
    return sample


def _profile(run: Callable[[], Any]) -> list[dict[str, object]]:
    """Launches and seconds per kernel of one call, by name; one row with the reason where the profiler fails."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    found: dict[str, tuple[int, float]] = {}
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            run()
            torch.cuda.synchronize()
        for event in seen.events() or ():
            if str(event.device_type).endswith("CUDA"):
                name = event.name[:160]
                launches, seconds = found.get(name, (0, 0.0))
                found[name] = (launches + 1, seconds + event.time_range.elapsed_us() * 1e-6)
    except FAILURES as error:
        found[f"(no profile: {_short(error)})"] = (0, 0.0)
    return [
        {"kernel": name, "launches": launches, "seconds": f"{seconds:.6g}"}
        for name, (launches, seconds) in found.items()
    ]


def _compile(module: Any, how: str) -> Any:
    """The module compiled: as a whole, or block by block, each kind of block once."""
    import torch

    torch._dynamo.reset()
    if how == "whole":
        return torch.compile(module, dynamic=False)
    lists = [child for child in module.children() if isinstance(child, torch.nn.ModuleList)]
    for block in (block for blocks in lists for block in blocks):
        block.compile(dynamic=False)
    return module


def measure_steps(
    out: Path,
    models: Iterable[str] = (),
    formats: Iterable[str] = FORMATS,
    modes: Iterable[str] = MODES,
    budget: float = math.inf,
    command: str = "fpsim measure --steps",
    progress: Callable[[str], None] = lambda text: None,
    jobs: Iterable[Job] = JOBS,
) -> Progress:
    """Append rows to out/steps.csv until every job is done or `budget` seconds are over.

    models: only these (none: all).  A step that fails gets a row with its message and no time.
    Raises ValueError for an unknown model, format or mode, or where there is no GPU.
    """
    jobs, wanted = tuple(jobs), tuple(models)
    for given, known in (
        (wanted, sorted({job.model for job in jobs})),
        (formats := tuple(formats), FORMATS),
        (modes := tuple(modes), MODES),
    ):
        for name in given:
            if name not in known:
                raise ValueError(f"unknown name {name!r} (known: {', '.join(known)})")
    timer = CudaTimer()
    started = time.monotonic()
    table = Table(out / STEPS, COLUMNS, KEY)
    profiles = Table(out / PROFILE, PROFILE_COLUMNS, PROFILE_COLUMNS[:5])
    written = failed = left = 0
    try:
        write_toml(
            out / PROVENANCE,
            "Where steps.csv comes from. Columns: see analysis/measure/steps.py.",
            {"run": {**timer.about(), **_versions(), "command": command, "weights": "random, normally distributed"}},
        )
        for job in jobs:
            todo = [
                (form, mode)
                for form in job.formats
                if form in formats
                for mode in job.modes
                if mode in modes and not table.has(**job.identity, format=form, mode=mode)
            ]
            if (wanted and job.model not in wanted) or not todo:
                continue
            if time.monotonic() - started > budget:
                left += len(todo)
                continue
            for row in _run_job(job, todo, timer, profiles):
                table.add(**job.identity, **row)
                written += 1
                if row["seconds"] == "":
                    failed += 1
                    timer.check()
                progress(
                    f"{job.model} {job.part} x{job.rows} {row['format']} {row['mode']}: {row['seconds'] or row['note']}"
                    f" ({time.monotonic() - started:.0f} s)"
                )
    finally:
        timer.close()
    return Progress(written=written, failed=failed, left=left, seconds=time.monotonic() - started)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("diffusers", "transformers", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


#: beside `failures()`: what a model raises that asks for something this machine or library lacks
FAILURES: tuple[type[Exception], ...] = (*failures(), ValueError, TypeError, AttributeError, ImportError)


def _run_job(job: Job, todo: list[tuple[str, str]], timer: CudaTimer, profiles: Table) -> Iterable[dict[str, Any]]:
    """Rows of one job.  Formats share the module: FP8 replaces its Linears, so bf16 comes first."""
    import torch

    from analysis.measure.fp8 import convert
    from analysis.models import model

    empty = dict.fromkeys(SAMPLE_COLUMNS, "")
    method = model(job.model).part(job.part)[0].method
    for form in dict.fromkeys(form for form, _ in todo):
        module = None
        note = f"compile={job.compile}" if job.compile else ""
        try:
            module, inputs = build(job)
            if form != "bf16":
                convert(module, dynamic=form == "fp8-dynamic")
            if job.compile:
                module = _compile(module, job.compile)
        except FAILURES as error:
            for mode in (m for f, m in todo if f == form):
                yield {"format": form, "mode": mode, **empty, "memory_gb": "", "note": _short(error)}
            continue

        def run(module: Any = module, inputs: Any = inputs) -> Any:
            with torch.no_grad():
                return getattr(module, method)(**inputs) if method != "forward" else module(**inputs)

        for mode in (m for f, m in todo if f == form):
            try:
                torch.cuda.reset_peak_memory_stats()
                run()
                sample = _host(run, timer) if mode == "eager" else _replayed(run, timer)
                memory = f"{torch.cuda.max_memory_allocated() / 1e9:.2f}"
                row = {**sample.row(), "memory_gb": memory, "note": note}
            except FAILURES as error:
                row = {**empty, "memory_gb": "", "note": _short(error)}
            yield {"format": form, "mode": mode, **row}
            if mode == "eager" and row["seconds"]:
                for kernel in _profile(run):
                    profiles.add(**job.identity, format=form, **kernel)
        del run, module, inputs
        gc.collect()
        torch.cuda.empty_cache()


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
