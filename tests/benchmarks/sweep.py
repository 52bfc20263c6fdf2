"""Ten thousand projections: `python tests/benchmarks/sweep.py --write` measures `fpsim sweep` as a user calls it.

Counted are the seconds on the clock, the seconds of processor time of all its processes, and the largest sum of their
resident memory, looked at ten times a second (memory that processes share is counted in each). The section of
docs/benchmarks.md is replaced.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import psutil

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
HEAD = "## Ten thousand projections"
SCHEMES = ("bf16", "fp8", "fp8-dynamic", "int8-dynamic", "mxfp8", "nvfp4", "w4a16", "fp8-w8a8", "int8-w8a8+dynamic")
DEVICES = ("a100-sxm-80gb", "b200-sxm", "gb200", "h100-sxm", "h200-sxm", "l4", "l40s", "mi300x", "mi355x")
DEVICES += ("rtx-4090", "rtx-5090", "t4", "tpu-v5p", "tpu-v6e", "intel-npu4", "my-npu", "jetson-thor-t5000")
MODELS = ("cogvideox-2b", "dit-xl-2-256", "flux1-dev", "hunyuanvideo", "pixart-sigma", "sd15", "sd3-medium")
MODELS += ("sd35-large", "sdxl-base", "wan21-1.3b", "wan21-14b")


def command(folder: Path, workers: int) -> list[str]:
    words = [sys.executable, "-m", "analysis.cli", "sweep", "--models", *MODELS, "--schemes", *SCHEMES]
    words += ["--devices", *DEVICES, "--batch", "1", "4", "--mode", "eager", "graph", "compiled"]
    return [*words, "--workers", str(workers), "--out", str(folder), "--top", "0", "--quiet"]


def measure(workers: int) -> dict[str, float]:
    """Wall-clock seconds, processor seconds, bytes of resident memory at most, rows."""
    with tempfile.TemporaryDirectory() as folder:
        words = command(Path(folder), workers)
        began = time.perf_counter()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        used: dict[int, float] = {}
        most = 0
        me = psutil.Process(process.pid)
        while process.poll() is None:
            resident = 0
            try:
                for one in (me, *me.children(recursive=True)):
                    times = one.cpu_times()
                    used[one.pid] = times.user + times.system
                    resident += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
            most = max(most, resident)
            time.sleep(0.1)
        wall = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"the sweep ended with exit code {process.returncode}")
        with (Path(folder) / "projections.csv").open() as file:
            rows = sum(1 for _ in file) - 1
        page = (Path(folder) / "index.html").stat().st_size
    return {"wall": wall, "cpu": sum(used.values()), "memory": most, "rows": rows, "page": page}


def section(workers: int) -> str:
    load = os.getloadavg()[0]
    found = measure(workers)
    size = f"{len(MODELS)} models x {len(SCHEMES)} arithmetics x {len(DEVICES)} devices x 2 batches x 3 modes"
    rate = found["rows"] / found["cpu"]
    return "\n\n".join(
        [
            HEAD,
            f"`fpsim sweep` on {date.today()} ({platform.machine()}, {workers} workers, load {load:.1f} at the start): "
            f"{size}, traced, lowered, priced and written. Memory is the sum over processes; "
            "the clock counts what else ran meanwhile (the load), the processor time does not.",
            "| rows | processor time | on the clock | rows per processor second | memory at most | page |\n"
            "|---|---|---|---|---|---|\n"
            f"| {found['rows']:.0f} | {found['cpu']:.0f} s | {found['wall']:.0f} s | {rate:.0f} | "
            f"{found['memory'] / 1e9:.2f} GB | {found['page'] / 1e3:.0f} kB |",
            "```\n" + shlex.join(["fpsim", *command(Path("runs/zoo"), workers)[3:]]) + "\n```",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="replace the section of docs/benchmarks.md")
    options = parser.parse_args()
    text = section(options.workers)
    sys.stdout.write(text + "\n")
    if options.write:
        page = DOCS.read_text(encoding="utf-8")
        before, _, rest = page.partition(HEAD)
        after = rest.partition("\n## ")[2]
        parts = [before.rstrip(), "", text, *(["", "## " + after.rstrip()] if after else [])]
        DOCS.write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
