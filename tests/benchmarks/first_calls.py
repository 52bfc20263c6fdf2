"""Seconds of the first call of each kernel in a fresh process, as JSON: compilation, or loading from the cache.

Run by `run.py` twice with an empty cache folder. Calls are small, so that what is timed is not the work.
"""

import json
import time
from collections.abc import Callable
from functools import partial

import numpy as np

import fpsim
from fpsim import blocks

X = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)


def product(engine: str, a: str, **options: object) -> object:
    spec = fpsim.engine(engine, a, **options)  # type: ignore[arg-type]
    left, right = fpsim.encode(X * 9, spec.a), fpsim.encode(X.T * 9, spec.b)
    if spec.scale is None:
        return fpsim.matmul(left, right, spec)
    ones = fpsim.encode(np.ones((16, -(-64 // int(spec.block or 1)))), spec.scale)
    return fpsim.matmul(left, right, spec, a_scale=ones, b_scale=ones.T)


SATURATING = fpsim.MatmulSpec("int8", "int8", fpsim.IntegerAccumulator(16, "saturate"))
ALTERNATING = np.where(np.arange(64) % 2, 100, -100).astype(np.int8)[None].repeat(16, 0)

CALLS: dict[str, Callable[[], object]] = {
    "encode e4m3": partial(fpsim.encode, X, "e4m3"),
    "encode bf16": partial(fpsim.encode, X, "bf16"),
    "encode ue4m3 (any rounding, any format)": partial(fpsim.encode, X, "ue4m3"),
    "encode int8": partial(fpsim.encode, X, "int8"),
    "decode e4m3": partial(fpsim.decode, np.arange(256, dtype=np.uint8), "e4m3"),
    "random words": partial(fpsim.encode, X, "e4m3", rounding="sra", random=1),
    "quantize mxfp4": partial(fpsim.quantize, X, "mxfp4"),
    "quantize nvfp4": partial(fpsim.quantize, X, "nvfp4"),
    "quantize nvfp4-4over6": partial(fpsim.quantize, X, "nvfp4-4over6"),
    "mxfp4 by squared error": lambda: blocks.encode(X, "mxfp4", rule="mse"),
    "hopper/wgmma e4m3": partial(product, "hopper/wgmma", "e4m3"),
    "hopper/wgmma bf16": partial(product, "hopper/wgmma", "bf16"),
    "blackwell/tcgen05 e4m3": partial(product, "blackwell/tcgen05", "e4m3"),
    "mxf4nvf4 ue4m3": partial(product, "rtx-blackwell/mma-mxf4nvf4", "e2m1", scale="ue4m3", block=16),
    "mxf8f6f4 e4m3": partial(product, "rtx-blackwell/mma-mxf8f6f4", "e4m3", scale="e8m0", block=32),
    "cdna3/mfma f16": partial(product, "cdna3/mfma", "f16"),
    "cdna2/mfma f16": partial(product, "cdna2/mfma", "f16"),
    "generic/fp32": partial(product, "generic/fp32", "f32"),
    "int8 into int32": partial(product, "generic/int32", "int8"),
    "int8 into saturating 16 bits": lambda: fpsim.matmul(ALTERNATING, ALTERNATING.T, SATURATING),
}


def main() -> None:
    times = {}
    for name, call in CALLS.items():
        start = time.perf_counter()
        call()
        times[name] = time.perf_counter() - start
    print(json.dumps(times))


if __name__ == "__main__":
    main()
