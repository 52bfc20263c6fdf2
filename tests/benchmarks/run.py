"""Speed against peers, side by side in one run: `python tests/benchmarks/run.py` prints and writes docs/benchmarks.md.

Each time is the best of several repetitions on all cores this process may use; what counts are the ratios within one
run. First calls (compilation, or loading from the cache) are timed apart.
"""

import argparse
import platform
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

import fpsim
from fpsim import _jit

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def best(run: Callable[[], object], repeat: int = 7) -> float:
    """Seconds of the fastest of `repeat` runs, after one that does not count."""
    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def first_call(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def conversion(x: np.ndarray, copy: float, name: str, torch_type: torch.dtype, ml_type: type) -> list[str]:
    """float32 to codes, into arrays that exist already, next to torch and ml_dtypes."""
    codes, held, tensor = np.empty(x.size, np.uint8), torch.empty(x.size, dtype=torch_type), torch.from_numpy(x)
    ours = best(lambda: fpsim.encode(x, name, codes))
    theirs = best(lambda: held.copy_(tensor), 3)
    slow = best(lambda: x.astype(ml_type), 1)
    peers = f"torch copy_ takes {theirs / ours:.1f}x as long, ml_dtypes {slow / ours:.0f}x"
    return [f"float32 -> {name} codes", f"{ours * 1e3:.1f} ms", f"{ours / copy:.2f}", peers]


def conversions(size: int) -> list[list[str]]:
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    copy_to = np.empty_like(x)
    copy = best(lambda: np.copyto(copy_to, x))
    rows = [["float32 copy", f"{copy * 1e3:.1f} ms", "1", ""]]
    rows.append(conversion(x, copy, "e4m3", torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn))
    rows.append(conversion(x, copy, "e5m2", torch.float8_e5m2, ml_dtypes.float8_e5m2))
    for name in ("mxfp4", "nvfp4"):
        ours = best(partial(fpsim.quantize, x, name), 3)
        rows.append([f"{name} quantize-dequantize", f"{ours * 1e3:.1f} ms", f"{ours / copy:.2f}", ""])
    return rows


def product(label: str, spec: fpsim.MatmulSpec, x: np.ndarray, y: np.ndarray, base: float) -> list[str]:
    """One exact product; `base` is the time of torch's float32 product of the same shape."""
    left, right = (fpsim.encode(v * (30 if spec.a.kind == "int" else 1), spec.a) for v in (x, y))
    first = first_call(lambda: fpsim.matmul(left[:32], right, spec))
    ours = best(lambda: fpsim.matmul(left, right, spec), 3)
    rate = len(x) ** 3 / ours / 1e9
    return [label, f"{ours * 1e3:.1f} ms", f"{rate:.2f}", f"1/{ours / base:.1f}", f"{first:.2f} s"]


def products(n: int) -> list[list[str]]:
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal((n, n)).astype(np.float32) for _ in range(2))
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    base = best(lambda: torch.mm(a, b))
    rows = [["torch float32 mm", f"{base * 1e3:.1f} ms", f"{n**3 / base / 1e9:.1f}", "1", ""]]
    cases = [
        ("hopper/wgmma", "e4m3"),
        ("blackwell/tcgen05", "e4m3"),
        ("hopper/wgmma", "bf16"),
        ("hopper/wgmma", "f16"),
        ("ampere/mma", "f16"),
        ("hopper/scaled_mm", "e4m3"),
        ("generic/fp32", "f32"),
        ("generic/int32", "int8"),
    ]
    rows += [product(f"{name} {operand}", fpsim.engine(name, operand), x, y, base) for name, operand in cases]
    saturating = fpsim.MatmulSpec("int8", "int8", fpsim.IntegerAccumulator(16, "saturate"))
    rows.append(product("int8 into saturating 16 bits", saturating, x, y, base))
    if find_spec("mmasim"):
        rows.append(mmasim_row(n, base))
    return rows


def mmasim_row(n: int, base: float) -> list[str]:
    """MMA-Sim on one k = 32 step of a 64 x 256 tile, as a rate."""
    from mmasim.nv_ptx import WGMMA

    run = WGMMA("Hopper", "m64n256k32.f32.e4m3.e4m3")
    a, b = (torch.randn(shape).to(torch.float8_e4m3fn) for shape in ((64, 32), (32, 256)))
    c = torch.zeros(64, 256)
    rate = 64 * 256 * 32 / best(lambda: run(a, b, c), 3)
    label = f"MMA-Sim {version('mmasim')} hopper/wgmma e4m3"
    return [label, "", f"{rate / 1e9:.4f}", f"1/{n**3 / rate / base:.0f}", ""]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1 << 24, help="values per conversion")
    parser.add_argument("--n", type=int, default=1024, help="side of the matrix products")
    parser.add_argument("--no-docs", action="store_true", help="print only")
    options = parser.parse_args()
    machine = f"{platform.processor() or platform.machine()}, {_jit.threads()} cores"
    text = "\n\n".join(
        [
            "# Benchmarks",
            f"Written by `make bench` on {date.today()}: {machine}; torch {version('torch')}, "
            f"numba {version('numba')}, ml_dtypes {version('ml_dtypes')}. Best of several runs.",
            f"## Conversions, {options.size} values",
            table(["work", "time", "times a float32 copy", "peers"], conversions(options.size)),
            f"## Matrix products, {options.n} x {options.n} x {options.n}, every bit as the engine's",
            table(["engine", "time", "GMAC/s", "of torch float32", "first call"], products(options.n)),
        ]
    )
    print(text)
    if not options.no_docs:
        DOCS.parent.mkdir(exist_ok=True)
        DOCS.write_text(text + "\n")


if __name__ == "__main__":
    main()
