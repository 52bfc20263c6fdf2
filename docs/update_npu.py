"""Writes the tables of docs/npu.md from the models, the device files and the record of the benchmark.

    python tests/benchmarks/scalesim.py --python ... --fixed --cases 30 --record tests/benchmarks/scalesim.json
    python tests/benchmarks/npu.py --record tests/benchmarks/npu.json
    python docs/update_npu.py

Numbers are computed or copied, never typed: the blocks between markers are replaced.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

import analysis
import hwmodels
from hwmodels.device import Device
from hwmodels.npu import explain, in_equal_area, joules, materialised, scalesim
from hwmodels.npu.array import Systolic
from hwmodels.npu.dataflow import Products, cycles
from hwmodels.npu.energy import energies, nodes
from hwmodels.npu.scalesim.topology import gemm_layer
from hwmodels.roofline import Floats

PAGE = Path(__file__).with_name("npu.md")
RECORD = Path(__file__).parent.parent / "tests" / "benchmarks" / "scalesim.json"
OWN = RECORD.with_name("npu.json")
MLPERF = 1.753  # images/s, SDXL offline on four TPU v5e, MLPerf Inference v4.1 (2024-08)
STEPS = 20
CACHES: tuple[Literal["warm", "cold"], ...] = ("warm", "cold")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def page(text: str, names: Iterable[str] | None = None) -> str:
    """The page with its generated blocks (or those named) as they should be."""
    for name in BLOCKS if names is None else names:
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{PAGE.name} has {text.count(start)} blocks <!-- {name} -->; it needs one")
        head, _, rest = text.partition(start)
        text = f"{head}{start}{BLOCKS[name]()}\n{end}{rest.partition(end)[2]}"
    return text


def speed() -> str:
    """One row per case of the benchmark."""
    found = json.loads(RECORD.read_text(encoding="utf-8"))
    rows = [
        (
            *(row["layer"], row["dataflow"], row["mode"], f"{row['seconds']:.1f} s"),
            *(f"{row['closed']:,.0f} x", f"{row['replay']:,.0f} x", "yes" if row["same"] else "NO"),
        )
        for row in found["rows"]
    ]
    head = ("layer", "dataflow", "bandwidth", "SCALE-Sim", "closed forms", "whole report", "same to the last digit")
    return f"{found['date']}, {found['machine']}.\n\n{table(head, rows)}"


def own() -> str:
    """What the own model takes, from its benchmark."""
    found = json.loads(OWN.read_text(encoding="utf-8"))
    rows = [
        (row["model"], row["mode"], f"{row['operations']:,}", f"{row['first']:.3f} s", f"{row['again']:.3f} s")
        for row in found["calls"]
    ]
    rates = "; ".join(f"{name} {rate:,.0f}" for name, rate in found["layers"].items())
    head = ("one call on 128 x 128", "mode", "operations", "first time", "again, another array or memory")
    return f"CPU time, {found['date']}, {found['machine']}.\n\n{table(head, rows)}\n\nLayers a second: {rates}."


def differ() -> str:
    """SCALE-Sim's cycles and DRAM reads beside ours, 32 x 32 array, 64 kB per operand."""
    array = Systolic(name="32 x 32", rows=32, columns=32, clock=1e9, scratchpad=2**17, bandwidth=1e10)
    rows = []
    for m, n, k in ((256, 128, 256), (1024, 1024, 1024), (1, 1024, 1024)):
        for flow in ("ws", "os", "is"):
            config = scalesim.Config(rows=32, columns=32, ifmap_kb=64, filter_kb=64, ofmap_kb=64, dataflow=flow)
            theirs = scalesim.replay(gemm_layer("x", m, n, k), config)
            reads = theirs.dram[0].count + theirs.dram[1].count
            ours = []
            for overlap in (False, True):
                work = Products(m=_one(m), n=_one(n), k=_one(k), batch=_one(1), packing=_one(1))
                ours.append(cycles(work, replace(array, dataflow=flow, overlap=overlap)).total[0])
            rows.append(
                (
                    *(f"{m} x {n} x {k}", flow, f"{theirs.total_cycles:,}", f"{ours[0]:,.0f}", f"{ours[1]:,.0f}"),
                    *(f"{reads:,}", f"{m * k + k * n:,}"),
                )
            )
    head = ("m x n x k", "dataflow", "SCALE-Sim", "ours", "ours, folds overlap", "its DRAM reads", "distinct words")
    return table(head, rows)


def _one(value: float) -> Floats:
    return np.array([float(value)])


def images_per_second(fused: bool, cache: Literal["warm", "cold"], device: Device) -> float:
    """SDXL on one TPU v5e as submitted: an image at a time, guidance, 20 steps, both text encoders, the decoder.

    The negative prompt was encoded once for all images, so the text encoders see one prompt per image.
    """
    seconds = 0.0
    for part, rows, times in (("denoiser", 2, STEPS), ("text-encoder", 1, 1), ("vae-decode", 1, 1)):
        work = analysis.trace("sdxl-base", part=part, batch=rows)
        work = work if fused else materialised(work)
        found = hwmodels.estimate(work, "bf16", device, mode="compiled", cache=cache, model="systolic")
        seconds += times * found.time_s
    return 1 / seconds


def sanity() -> str:
    """Four TPU v5e against what was measured."""
    rows = []
    device = hwmodels.device("tpu-v5e")
    pad = device.caches["vmem"]
    assert pad.capacity is not None
    for fused, kernels in ((False, "three, as submitted"), (True, "one")):
        for size in (128, 48):
            capacity = replace(pad.capacity, value=size * 2.0**20)
            smaller = replace(device, caches={"vmem": replace(pad, capacity=capacity)})
            for cache in CACHES if size == 128 else CACHES[:1]:
                ours = 4 * images_per_second(fused, cache, smaller)
                error = f"{ours / MLPERF - 1:+.0%}"
                rows.append((kernels, cache, f"{size} MiB", f"{ours:.3f}", f"{MLPERF:.3f}", error))
    return table(("attention", "activations", "on chip", "modelled, images/s", "measured", "error"), rows)


def steps() -> str:
    """Where the time of one denoiser call goes on the template device."""
    rows = []
    for model, batch in (("sdxl-base", 2), ("flux1-dev", 1)):
        work = analysis.trace(model, batch=batch)
        for spec in ("bf16", "fp8", "nvfp4"):
            found = hwmodels.estimate(work, spec, "my-npu", mode="compiled", model="systolic")
            shares = [f"{share:.1%}" for share in explain(found).shares().values()]
            rows.append((f"{model}, batch {batch}", spec, f"{found.time_s:.3f} s", *shares))
    return table(("model", "scheme", "one call", "ideal", "mapping", "fill/drain", "bandwidth", "vector unit"), rows)


def energy() -> str:
    """Joules of one SDXL image on the template device."""
    rows = []
    work = analysis.trace("sdxl-base", batch=2)
    for spec in ("bf16", "int8", "fp8", "nvfp4"):
        found = hwmodels.estimate(work, spec, "my-npu", mode="compiled", model="systolic")
        got = joules(found, "7nm")
        leaked = "not known" if got.leakage is None else f"{STEPS * got.leakage:.2g}"
        parts = [f"{STEPS * value:.0f}" for value in (got.compute, got.vector, got.sram, got.dram)]
        parts += [leaked, f"{STEPS * got.total:.0f}"]
        rows.append((spec, *parts, f"{got.movement:.0%}"))
    head = ("scheme", "array", "vector unit", "SRAM", "DRAM", "leakage, array alone", "J per image", "data movement")
    return table(head, rows)


def area() -> str:
    """How many units fit where one INT8 multiply-accumulate into 32 bits does."""
    units = [("int4", "int4", "int16"), ("int4", "int4", "int32"), ("e2m1", "e2m1", "fixed16")]
    units += [("e4m3", "e4m3", "fixed32"), ("e4m3", "e4m3", "f16"), ("e2m1", "e2m1", "f32"), ("e4m3", "e4m3", "f32")]
    units += [("bf16", "bf16", "f32")]
    found = in_equal_area(("int8", "int8", "int32"), units)
    return table(("operands", "accumulator", "units"), [(a, acc, f"{n:.2f}") for (a, _, acc), n in found.items()])


def constants() -> str:
    """Every energy with its source."""
    rows = []
    for node in nodes():
        e = energies(node)
        named = [(f"add {k}", v) for k, v in e.add.items()] + [(f"multiply {k}", v) for k, v in e.multiply.items()]
        named += [(f"SRAM {size.value / 1024:.0f} KiB", access) for size, access in e.sram]
        named += [(f"main memory {k}", v) for k, v in e.dram.items()]
        leaks = (("leakage of a NAND2", e.leakage.gate), ("leakage of a byte of SRAM", e.leakage.sram))
        named += [(k, v) for k, v in leaks if v is not None]
        scale = {"pJ": 1e12, "pJ/64bit": 8e12, "pW": 1e12, "nW": 1e9, "nW/byte": 1e9}
        for name, q in named:
            value = f"{q.value * scale[q.unit]:.4g} {q.unit}"
            rows.append((node, name, value, q.status + (f": {q.note}" if q.note else ""), e.sources[q.source].title))
        rows += [(node, k, "not known", "-", "-") for k, v in leaks if v is None]
    return table(("node", "what", "value", "status", "source"), rows)


QUICK = ("speed", "own", "differ", "area", "constants")
BLOCKS: dict[str, Callable[[], str]] = {
    "speed": speed,
    "own": own,
    "differ": differ,
    "sanity": sanity,
    "steps": steps,
    "energy": energy,
    "area": area,
    "constants": constants,
}

if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
