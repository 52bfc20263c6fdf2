"""Speed against peers, side by side in one run: `python tests/benchmarks/run.py` prints and writes docs/benchmarks.md.

Each time is the best of several repetitions on all cores this process may use; what counts are the ratios within one
run, so whatever a row is compared with is timed right next to it. Peers are named with their version; those that are
not installed are left out. First calls (compilation, or loading from the cache) are timed in processes of their own.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

import fpsim
from fpsim import _jit, blocks
from fpsim._cpu.fused import FusedProduct
from fpsim._kernels import block as block_kernels
from fpsim._kernels import vector

sys.path.insert(0, str(Path(__file__).parent))
import peers
import sweep

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


# -- conversions --------------------------------------------------------------------------------------------------

#: What the inner loops issue per 16 values, counted in the machine code of an AVX-512 build (numba 0.68, LLVM 20).
INSTRUCTIONS = {
    "e4m3": "62 vector instructions per 64 values: read, round, narrow, write",
    "e5m2": "the same 62",
    "mxfp4": "per 16 values 10 to round, 11 to find the maximum; one pass",
    "nvfp4": "per 16 values 12 to round, one a division, 11 for the maximum; two passes, first the tensor's maximum",
    "nvfp4-4over6": "nvfp4, and two candidates' squared errors in float64",
    "int4-g128": "as nvfp4, without a tensor scale",
}


def reading(x: np.ndarray) -> Callable[[], None]:
    """Only read the array, on all cores: the largest magnitude of each 4096 values."""
    words, out = x.view(np.int32), np.empty(x.size // 4096, np.int32)
    return lambda: _jit.parallel(lambda i, j: block_kernels.block_largest(words, 4096, out, i, j), out.size, 16)


def conversion(x: np.ndarray, name: str, torch_type: torch.dtype, ml_type: type) -> list[str]:
    """float32 to codes, into arrays that exist already, next to torch and ml_dtypes."""
    codes, held, tensor = np.empty(x.size, np.uint8), torch.empty(x.size, dtype=torch_type), torch.from_numpy(x)
    into = np.empty_like(x)
    copy, read = best(lambda: np.copyto(into, x)), best(reading(x))
    ours = best(lambda: fpsim.encode(x, name, codes))
    theirs = best(lambda: held.copy_(tensor), 5)
    slow = best(lambda: x.astype(ml_type), 1)
    others = [f"torch copy_ {theirs / ours:.1f}x", f"ml_dtypes {slow / ours:.0f}x"]
    peer = peers.gfloat_e4m3(x) if name == "e4m3" else None
    if peer:
        others.append(f"gfloat {best(peer, 1) * (x.size / (1 << 18)) / ours:.0f}x")
    limit = f"{ours / read:.1f} times reading the array; {INSTRUCTIONS[name]}"
    return [f"float32 -> {name} codes", f"{ours * 1e3:.1f} ms", f"{ours / copy:.2f}", ", ".join(others), limit]


def in_blocks(x: np.ndarray, name: str) -> list[str]:
    """Quantize-dequantize into an array that exists already; peers make theirs."""
    into, other = np.empty_like(x), np.empty_like(x)
    copy = best(lambda: np.copyto(other, x))
    ours = best(partial(fpsim.quantize, x, name, out=into), 5)
    package, make = peers.BLOCK_PEERS.get(name, ("", lambda _: None))
    peer = make(x)
    theirs = f"{package} {best(peer, 1) / ours:.0f}x" if peer else ""
    limit = f"{ours / copy:.1f} times a copy; {INSTRUCTIONS[name]}"
    return [f"{name} quantize-dequantize", f"{ours * 1e3:.1f} ms", f"{ours / copy:.2f}", theirs, limit]


def conversions(size: int) -> list[list[str]]:
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    into = np.empty_like(x)
    copy, read = best(lambda: np.copyto(into, x)), best(reading(x))
    rows = [
        ["float32 copy (numpy, one thread)", f"{copy * 1e3:.1f} ms", "1", "", ""],
        ["reading it (all cores)", f"{read * 1e3:.1f} ms", f"{read / copy:.2f}", "", f"{4e-9 * size / read:.0f} GB/s"],
        conversion(x, "e4m3", torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
        conversion(x, "e5m2", torch.float8_e5m2, ml_dtypes.float8_e5m2),
    ]
    return rows + [in_blocks(x, name) for name in ("mxfp4", "nvfp4", "nvfp4-4over6", "int4-g128")]


# -- products -----------------------------------------------------------------------------------------------------

#: Where the time goes, per 16 multiply-accumulates, in vector instructions counted in the machine code. torch's float32
#: product is the measure of the machine: one fused multiply-add per 16, near the peak of its multipliers.
CERTIFIED = "1 fused multiply-add; 16 per 16 outputs and step"
_PRODUCTS = "2 multiplications, a conversion, an addition, 3/4 for exponents"
TRUNCATING = f"{_PRODUCTS}, 1/2 for sums past 32 bits; 54 per 16 outputs and step; at best 1/2, by the multiplications"
NARROW = f"{_PRODUCTS}; 34 per 16 outputs and step; at best 1/2, by the multiplications"
PROMOTED = "as hopper/wgmma, and an addition per 128 products"
FMA = "1 fused multiply-add, 2 loads and a store of the running sums"
INTEGER = "a widening load, a multiplication, an addition, load and store of the running sums"
SATURATING = "as int32, and 2 clamps"


def normal(spec: fpsim.MatmulSpec, n: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    factor = 30 if spec.a.kind == "int" else scale
    left, right = (rng.standard_normal((n, n)).astype(np.float32) * np.float32(factor) for _ in range(2))
    return fpsim.encode(left, spec.a), fpsim.encode(right, spec.b)


def share(left: np.ndarray, right: np.ndarray, spec: fpsim.MatmulSpec) -> str:
    """Of the (row, 128 columns, step), how many ran by certificate."""
    product = FusedProduct(left, right, spec, spec.accumulator)
    c = np.zeros((len(left), right.shape[1]), np.int32)
    product.run(c, 0, left.shape[1])
    every = len(left) * -(-right.shape[1] // vector.COLUMNS) * (left.shape[1] // product.terms)
    return f"{100 * product.certified_steps / every:.1f} % of the steps by certificate"


def product(label: str, run: Callable[[], object], n: int, mm: Callable[[], object], limit: str) -> list[str]:
    """One exact product next to torch's float32 product of the same shape."""
    before = best(mm, 5)
    ours = best(run, 3)
    base = min(before, best(mm, 5))
    return [label, f"{ours * 1e3:.1f} ms", f"{n**3 / ours / 1e9:.2f}", f"1/{ours / base:.1f}", limit]


def products(n: int) -> list[list[str]]:
    rng = np.random.default_rng(1)
    x, y = (rng.standard_normal((n, n)).astype(np.float32) for _ in range(2))
    a, b = torch.from_numpy(x), torch.from_numpy(y)
    mm = partial(torch.mm, a, b)
    base = best(mm)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = best(mm)
    torch.set_num_threads(threads)
    note = f"1 fused multiply-add; one thread alone {n**3 / alone / 1e9:.1f} GMAC/s"
    rows = [["torch float32 mm", f"{base * 1e3:.1f} ms", f"{n**3 / base / 1e9:.1f}", "1", note]]
    cases = [
        ("hopper/wgmma", "e4m3", 1.0, "", NARROW),
        ("blackwell/tcgen05", "e4m3", 1.0, "", CERTIFIED),
        ("blackwell/tcgen05", "e4m3", 100.0, ", scaled to 448", TRUNCATING),
        ("blackwell/tcgen05", "e5m2", 1.0, "", TRUNCATING),
        ("blackwell/tcgen05", "e2m1", 1.0, "", CERTIFIED),
        ("hopper/wgmma", "bf16", 1.0, "", TRUNCATING),
        ("hopper/wgmma", "f16", 1.0, "", TRUNCATING),
        ("ampere/mma", "f16", 1.0, "", TRUNCATING),
        ("hopper/scaled_mm", "e4m3", 1.0, "", PROMOTED),
        ("generic/fp32", "f32", 1.0, "", FMA),
        ("generic/int32", "int8", 1.0, "", INTEGER),
    ]
    for name, operand, scale, note, limit in cases:
        spec = fpsim.engine(name, operand)
        left, right = normal(spec, n, scale)
        used = f"{share(left, right, spec)}; " if name == "blackwell/tcgen05" else ""
        run = partial(fpsim.matmul, left, right, spec)
        rows.append(product(f"{name} {operand}{note}", run, n, mm, used + limit))
    saturating = fpsim.MatmulSpec("int8", "int8", fpsim.IntegerAccumulator(16, "saturate"))
    left, right = normal(saturating, n, 1)
    run = partial(fpsim.matmul, left, right, saturating)
    rows.append(product("int8 into saturating 16 bits", run, n, mm, SATURATING))
    rows += [block_scaled(name, x, y, mm) for name in ("nvfp4", "mxfp4", "mxfp8")]
    if peers.installed("mmasim"):
        rows.append(mmasim_row(n, base))
    return rows


def block_scaled(name: str, x: np.ndarray, y: np.ndarray, mm: Callable[[], object]) -> list[str]:
    """Block-scaled operands of an RTX Blackwell, quantized from normal values."""
    row = blocks.block_format(name)
    kind = "mma-mxf4nvf4" if row.element.name == "e2m1" else "mma-mxf8f6f4"
    element, scale = row.element.name, row.scale.name
    spec = fpsim.engine(f"rtx-blackwell/{kind}", element, element, "f32", scale=scale, block=row.block)
    left, right = blocks.encode(x, row), blocks.encode(y, row, axis=0)
    run = partial(fpsim.matmul, left.codes, right.codes, spec, a_scale=left.scales, b_scale=right.scales)
    return product(f"rtx-blackwell/{kind} {name}", run, len(x), mm, TRUNCATING if name == "mxfp8" else CERTIFIED)


def mmasim_row(n: int, base: float) -> list[str]:
    """MMA-Sim on one k = 32 step of a 64 x 256 tile, as a rate."""
    from mmasim.nv_ptx import WGMMA

    run = WGMMA("Hopper", "m64n256k32.f32.e4m3.e4m3")
    a, b = (torch.randn(shape).to(torch.float8_e4m3fn) for shape in ((64, 32), (32, 256)))
    c = torch.zeros(64, 256)
    rate = 64 * 256 * 32 / best(lambda: run(a, b, c), 3)
    label = f"MMA-Sim {peers.installed('mmasim')} hopper/wgmma e4m3"
    return [label, "", f"{rate / 1e9:.4f}", f"1/{n**3 / rate / base:.0f}", ""]


# -- first calls --------------------------------------------------------------------------------------------------


def first_calls() -> list[list[str]]:
    """Each kernel's first call with an empty cache, and in a second process."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": folder, "FPSIM_CACHE": "1", "CI": ""}
        script = str(Path(__file__).with_name("first_calls.py"))
        cold, warm = (
            json.loads(
                subprocess.run([sys.executable, script], env=environment, check=True, capture_output=True).stdout
            )
            for _ in range(2)
        )
    return [[name, f"{seconds:.1f} s", f"{warm[name]:.2f} s"] for name, seconds in cold.items()]


# -- the page -----------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def processor() -> str:
    """The processor's name where the system says it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1 << 24, help="values per conversion, a multiple of 4096")
    parser.add_argument("--n", type=int, default=1024, help="side of the matrix products")
    parser.add_argument("--no-docs", action="store_true", help="print only")
    options = parser.parse_args()
    packages = ("torch", "numba", "ml_dtypes", "gfloat", "torchao", "mmasim")
    versions = ", ".join(f"{package} {peers.installed(package)}" for package in packages if peers.installed(package))
    load = os.getloadavg()[0]
    text = "\n\n".join(
        [
            "# Benchmarks",
            f"Written by `make bench` on {date.today()}: {processor()}, {_jit.threads()} cores, load {load:.1f} at the "
            f"start; {versions}. Best of several runs; factors in `peers` are how much longer they take.",
            f"## Conversions, {options.size} values",
            table(["work", "time", "times a copy", "peers", "where the time goes"], conversions(options.size)),
            f"## Matrix products, {options.n} x {options.n} x {options.n}, every bit as the engine's",
            "Operands are standard normal values (times 30 for int8). The last column counts vector instructions per "
            "16 multiply-accumulates. torch's float32 product, one fused multiply-add each and close to what the "
            "multipliers can do, is the measure of the machine.",
            table(["engine", "time", "GMAC/s", "of torch float32", "where the time goes"], products(options.n)),
            "## First calls",
            "Compilation with an empty cache, and the first call of a later process. What a kernel has in common with "
            "a row above is compiled there.",
            table(["kernel", "cold", "warm"], first_calls()),
            sweep.section(min(2, _jit.threads())),
        ]
    )
    print(text)
    if not options.no_docs:
        DOCS.parent.mkdir(exist_ok=True)
        DOCS.write_text(text + "\n")


if __name__ == "__main__":
    main()
