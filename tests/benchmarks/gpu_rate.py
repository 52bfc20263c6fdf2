"""Rate of the exact engines on the first NVIDIA GPU: `python tests/benchmarks/gpu_rate.py [SIZE ...]`.

Operands are host arrays, so transfers are included. Times are medians of single calls after a warm-up; compile time
is the first call's.
"""

import statistics
import sys
import time

import numpy as np

import fpsim

ENGINES = [
    ("hopper/wgmma", "e4m3"),
    ("hopper/wgmma", "bf16"),
    ("hopper/scaled_mm", "e4m3"),
    ("blackwell/tcgen05", "e4m3"),
]


def main(sizes: list[int]) -> None:
    for name, operand in ENGINES:
        spec = fpsim.engine(name, a=operand, b=operand, out="f32")
        for size in sizes:
            rng = np.random.default_rng(0)
            a, b = (fpsim.encode(rng.standard_normal((size, size)), operand) for _ in range(2))
            extra = {"a_scale": np.float32(1), "b_scale": np.float32(1)} if name.endswith("scaled_mm") else {}
            times = []
            for _ in range(6):
                started = time.perf_counter()
                fpsim.matmul(a, b, spec, backend="cuda", **extra)
                times.append(time.perf_counter() - started)
            first, *times = times
            rate = size**3 / statistics.median(times) / 1e12
            print(f"{name:20s} {operand:5s} {size:6d}^3  {rate:8.3f} TMAC/s  first call {first:6.2f} s")


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [1024, 4096])
