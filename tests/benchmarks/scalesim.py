"""SCALE-Sim 3.0.0 and its reproduction, side by side: are the reports the same, and how much faster are they made?

    python -m venv /tmp/scalesim && /tmp/scalesim/bin/pip install scalesim==3.0.0 'numpy<2.3' pandas matplotlib
    python tests/benchmarks/scalesim.py --python /tmp/scalesim/bin/python --cases 40 [--seed 0] [--fixed]

Each case is one layer on one configuration: drawn at random (small arrays, small memories, so that buffers overflow),
or, with --fixed, sizes people run.  SCALE-Sim runs in an environment of its own, without traces; its imports are not
timed.  The two take turns on the same machine and CPU time is taken, which other work disturbs less; ours is the median
of repeated runs.  "closed" is cycles, SRAM accesses and utilisations; "replay" is the whole report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hwmodels.npu import scalesim

CFG = """[general]
run_name = case
[architecture_presets]
ArrayHeight: {rows}
ArrayWidth: {columns}
IfmapSramSzkB: {ifmap}
FilterSramSzkB: {filter}
OfmapSramSzkB: {ofmap}
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Bandwidth : {bandwidth}
Dataflow : {dataflow}
ReadRequestBuffer: 64
WriteRequestBuffer: 64
[layout]
IfmapCustomLayout: False
IfmapSRAMBankBandwidth: {ifmap_bandwidth}
IfmapSRAMBankNum: 1
IfmapSRAMBankPort: 2
FilterCustomLayout: False
FilterSRAMBankBandwidth: {filter_bandwidth}
FilterSRAMBankNum: 1
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport : false
[run_presets]
InterfaceBandwidth: {mode}
UseRamulatorTrace: False
"""

DRIVER = """
import sys, time
from scalesim.scale_sim import scalesim
folder, form = sys.argv[1:]
s = scalesim(save_disk_space=True, verbose=False, config=folder + "/c.cfg", topology=folder + "/t.csv",
             layout=folder + "/l.csv", input_type_gemm=form == "gemm")
start = time.process_time()
s.run_scale(top_path=folder)
print("seconds", time.process_time() - start)
"""

#: sizes people run: (form, topology line, configuration)
_BIG = {"rows": 32, "columns": 32, "ifmap": 256, "filter": 256, "ofmap": 256, "bandwidth": 10}
_BIG |= {"ifmap_bandwidth": 10, "filter_bandwidth": 10}
FIXED = [
    (form, line, _BIG | {"dataflow": flow, "mode": mode})
    for form, line in (
        ("gemm", "ViT-S projection, 196, 384, 384"),
        ("gemm", "attention scores, 256, 256, 64"),
        ("conv", "ResNet-18 stage 3, 30, 30, 3, 3, 64, 64, 1"),
        ("conv", "ResNet-18 stem, 118, 118, 7, 7, 3, 64, 2"),
        ("conv", "ResNet-18 downsampling, 30, 30, 3, 3, 128, 256, 2"),
    )
    for flow in ("ws", "os", "is")
    for mode in ("CALC", "USER")
]


def draw(rng: random.Random) -> tuple[str, str, dict[str, object]]:
    """(form, topology line, configuration) at random."""
    config: dict[str, object] = {
        "rows": rng.choice([1, 3, 4, 8, 16, 20]),
        "columns": rng.choice([1, 2, 4, 8, 16, 24]),
        "ifmap": rng.choice([1, 2, 4, 16]),
        "filter": rng.choice([1, 2, 4, 16]),
        "ofmap": rng.choice([1, 2, 4, 16]),
        "bandwidth": rng.choice([1, 3, 10, 40]),
        "ifmap_bandwidth": rng.choice([1, 7, 10, 64]),
        "filter_bandwidth": rng.choice([1, 7, 10, 64]),
        "dataflow": rng.choice(["ws", "os", "is"]),
        "mode": rng.choice(["CALC", "USER"]),
    }
    if rng.random() < 0.5:
        return "gemm", "g, " + ", ".join(str(rng.randint(1, 90)) for _ in range(3)), config
    kernel, across = rng.randint(1, 4), rng.randint(1, 4)
    sizes: tuple[int, ...] = (rng.randint(kernel, 22), rng.randint(across, 22), kernel, across)
    return (
        "conv",
        "c, " + ", ".join(map(str, (*sizes, rng.randint(1, 12), rng.randint(1, 40), rng.randint(1, 3)))),
        config,
    )


def theirs(python: str, folder: Path, form: str) -> tuple[float | None, str]:
    """(seconds, the last line of its complaint if it failed)."""
    done = subprocess.run(
        [python, "-c", DRIVER, str(folder), form], capture_output=True, text=True, cwd=folder, check=False
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if not found:
        return None, (done.stderr.strip().splitlines() or ["no output"])[-1]
    return float(found[-1].split()[1]), ""


def median(call: Callable[[], object], seconds: float = 0.05) -> float:
    """Median CPU time of a call repeated for a while, the first one left out."""
    call()
    times, until = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter of the environment SCALE-Sim is in")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fixed", action="store_true", help="sizes people run instead of random ones")
    parser.add_argument("--record", type=Path, help="write the results to this JSON file (docs/npu.md reads it)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    cases = FIXED[: options.cases] if options.fixed else [draw(rng) for _ in range(options.cases)]
    same = differ = failed = 0
    ratios: dict[str, list[float]] = {}
    rows: list[dict[str, object]] = []
    for form, line, values in cases:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "c.cfg").write_text(CFG.format(**values))
            (folder / "t.csv").write_text(f"header,\n{line},\n")
            (folder / "l.csv").write_text("header,\n")
            seconds, complaint = theirs(options.python, folder, form)
            config = scalesim.load_config(folder / "c.cfg")
            layers = scalesim.load_topology(folder / "t.csv", form)
            shown = f"{line:34s} {values['dataflow']} {values['mode']}"
            if seconds is None:
                failed += 1
                print(f"{shown} SCALE-Sim fails: {complaint}")
                continue
            ours = scalesim.write_reports(config, layers, folder / "ours")
            wrong = [r.name for r in ours.iterdir() if r.read_text() != (folder / "case" / r.name).read_text()]
            same, differ = same + (not wrong), differ + bool(wrong)
            closed = seconds / median(lambda: scalesim.closed_forms(layers, config))  # noqa: B023
            replay = seconds / median(lambda: scalesim.replay(layers[0], config))  # noqa: B023
            ratios.setdefault("closed", []).append(closed)
            ratios.setdefault(f"replay {values['mode']}", []).append(replay)
            case = {"layer": line, "dataflow": values["dataflow"], "mode": values["mode"], "same": not wrong}
            rows.append(case | {"seconds": seconds, "closed": closed, "replay": replay})
            mark = "same" if not wrong else f"DIFFERENT {wrong} {values}"
            print(f"{shown} {seconds:8.2f} s  closed {closed:10,.0f} x  replay {replay:8,.0f} x  {mark}", flush=True)
    print(f"{same} reports the same, {differ} different, {failed} where SCALE-Sim fails")
    for name, values in ratios.items():
        print(f"{name}: median {statistics.median(values):,.0f} x, least {min(values):,.0f} x")
    if options.record:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        body = {"date": time.strftime("%Y-%m-%d"), "machine": machine, "rows": rows}
        options.record.write_text(json.dumps(body, indent=1) + "\n")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
