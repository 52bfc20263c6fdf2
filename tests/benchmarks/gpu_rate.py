"""Rate of the exact engines on the first NVIDIA GPU: `python tests/benchmarks/gpu_rate.py [SIZE ...]`.

Operands and results stay on the GPU, as tensors. Times are medians after a warm-up; the first call includes compiling.
"""

import statistics
import sys
import time

import numpy as np
import torch

import fpsim

ENGINES = [
    ("hopper/wgmma", "e4m3"),
    ("hopper/scaled_mm", "e4m3"),
    ("blackwell/tcgen05", "e4m3"),
    ("hopper/wgmma", "bf16"),
    ("hopper/wgmma", "f16"),
    ("cdna3/mfma", "f16"),
    ("generic/fp32", "f32"),
]


def on_device(codes: np.ndarray) -> torch.Tensor:
    """Codes as a tensor of the same width on the GPU."""
    return torch.from_numpy(codes).cuda()


def main(sizes: list[int]) -> None:
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for name, operand in ENGINES:
        spec = fpsim.engine(name, a=operand, b=operand, out="f32")
        for size in sizes:
            rng = np.random.default_rng(0)
            a, b = (on_device(fpsim.encode(rng.standard_normal((size, size)), operand)) for _ in range(2))
            times = []
            for _ in range(6):
                torch.cuda.synchronize()
                started = time.perf_counter()
                fpsim.matmul(a, b, spec)
                torch.cuda.synchronize()
                times.append(time.perf_counter() - started)
            first, *times = times
            rate = size**3 / statistics.median(times) / 1e12
            print(f"{name:20s} {operand:5s} {size:6d}^3  {rate:8.3f} TMAC/s  first call {first:6.2f} s", flush=True)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or [1024, 4096])
