"""How fast the systolic model is, in CPU seconds: whole denoiser calls on a 128 x 128 array, and layers a second.

    python tests/benchmarks/npu.py [--record tests/benchmarks/npu.json]

"first" prices a workload nobody has asked about before (lowering included), "again" one whose kernels are known: the
next device, array or memory of a sweep.  Tracing is not counted.  Layers are products of random sizes, 1 to 8,100 in
each direction, all at once: folds and tiles of the own model, closed forms of the SCALE-Sim mode.  Least of five runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

import analysis
import hwmodels
from hwmodels.npu import scalesim, systolic
from hwmodels.npu.dataflow import Products, cycles
from hwmodels.npu.tiling import Operands, tile

LAYERS = 20_000


def spent(call: Callable[[], object], runs: int = 5) -> float:
    """Least CPU time of a call."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def calls() -> list[dict[str, object]]:
    """One row per model and mode."""
    rows: list[dict[str, object]] = []
    for model, batch in (("sdxl-base", 2), ("flux1-dev", 1)):
        work = analysis.trace(model, batch=batch)
        for mode in ("graph", "compiled"):

            def price(of: hwmodels.Workload, mode: hwmodels.lower.Mode = mode) -> object:
                return hwmodels.estimate(of, "bf16", "my-npu", mode=mode, model="systolic")

            first = spent(lambda: price(replace(work)))  # noqa: B023
            rows.append(
                {
                    **{"model": f"{model}, batch {batch}", "mode": mode, "operations": len(work.ops)},
                    **{"first": first, "again": spent(lambda: price(work))},  # noqa: B023
                }
            )
    return rows


def layers() -> dict[str, float]:
    """Layers per second."""
    rng = np.random.default_rng(0)
    m, n, k = (np.exp(rng.uniform(0, 9, LAYERS)).round() for _ in range(3))
    one = np.ones(LAYERS)
    work = Products(m=m, n=n, k=k, batch=one, packing=one)
    size = Operands(a=2 * one, b=2 * one, out=2 * one, density=one, halo=0 * one, stored=one)
    array = systolic(hwmodels.device("my-npu"))
    config = scalesim.Config(rows=128, columns=128, ifmap_kb=4096, filter_kb=4096, ofmap_kb=4096, dataflow="ws")
    found = [
        scalesim.topology.gemm_layer("x", *map(int, sizes)) for sizes in zip(m[:2000], n[:2000], k[:2000], strict=True)
    ]
    return {
        "folds": LAYERS / spent(lambda: cycles(work, array)),
        "folds and tiles": LAYERS / spent(lambda: cycles(work, array, np.ceil(m / tile(work, size, array, False).tm))),
        "SCALE-Sim's closed forms, utilisations to the last digit": len(found)
        / spent(lambda: scalesim.closed_forms(found, config)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="write the results to this JSON file (docs/npu.md reads it)")
    options = parser.parse_args()
    rows, rates = calls(), layers()
    for row in rows:
        print(
            "{model:22s} {mode:9s} {operations:5d} operations  first {first:7.4f} s  again {again:7.4f} s".format(**row)
        )
    for name, rate in rates.items():
        print(f"{name}: {rate:,.0f} layers/s")
    if options.record:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        body = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "calls": rows, "layers": rates}
        options.record.write_text(json.dumps(body, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
