"""Raw tensor core instructions of the NVIDIA GPU this runs on: `probes.cu`, compiled at run time by NVRTC through cupy.

One launch runs many independent tiles; `run` takes a batch of them. An architecture that is not here is not pretended:
`missing` says so. Each instruction is one step of a GEMM, K as in the table; long K is for the library tests.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim._names import unknown

Array = npt.NDArray[Any]

_SOURCE = Path(__file__).with_name("probes.cu")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One instruction. `capability` is the compute capability (major, minor) whose arithmetic the engine describes."""

    engine: str
    operand: str
    symbol: str
    rows: int
    k: int
    capability: tuple[int, int]

    @property
    def name(self) -> str:
        return f"{self.engine} {self.operand}"


_K = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32}
_ARCHITECTURES = {
    "ampere/mma": ((8, 0), ("f16", "bf16", "tf32")),
    "ada/mma": ((8, 9), ("f16", "bf16", "tf32", "e4m3", "e5m2")),
    "hopper/mma": ((9, 0), ("f16", "bf16", "tf32", "e4m3", "e5m2")),
    "hopper/wgmma": ((9, 0), ("f16", "bf16", "tf32", "e4m3", "e5m2")),
    "blackwell/mma": ((10, 0), ("f16", "bf16", "tf32", "e4m3", "e5m2")),
    "rtx-blackwell/mma": ((12, 0), ("f16", "bf16", "tf32", "e4m3", "e5m2")),
}

#: "engine operand" -> probe
PROBES: dict[str, Probe] = {
    probe.name: probe
    for engine, (capability, operands) in _ARCHITECTURES.items()
    for probe in (
        Probe(
            engine=engine,
            operand=operand,
            symbol=f"{engine.partition('/')[2]}_{operand}",
            rows=64 if engine.endswith("wgmma") else 16,
            k=_K[operand],
            capability=capability,
        )
        for operand in operands
    )
}


@cache
def capability() -> tuple[int, int] | None:
    """Compute capability of the first GPU; None without cupy or a GPU."""
    if find_spec("cupy") is None:
        return None
    import cupy

    try:
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return None
    except cupy.cuda.runtime.CUDARuntimeError:
        return None
    digits = cupy.cuda.Device(0).compute_capability
    return int(digits[:-1]), int(digits[-1])


def missing(name: str) -> str | None:
    """Why probe `name` cannot run here; None if it can."""
    probe = PROBES.get(name)
    if probe is None:
        raise unknown("GPU probe", name, PROBES)
    here = capability()
    if here is None:
        return "no NVIDIA GPU, or no cupy (pip install 'fpsim[cuda]')"
    if here != probe.capability:
        return f"this GPU has compute capability {here[0]}.{here[1]}, {probe.engine} is {probe.capability}"
    return None


def run(name: str, a: Array, b: Array, c: Array) -> Array:
    """c + a @ b of a batch of tiles by the GPU: codes a (T, rows, k), b (T, k, 8), float32 c (T, rows, 8).

    Raises RuntimeError where the instruction is missing, ValueError for other shapes.
    """
    reason = missing(name)
    if reason:
        raise RuntimeError(f"{name} cannot run: {reason}")
    probe = PROBES[name]
    tiles = len(a)
    if a.shape[1:] != (probe.rows, probe.k) or b.shape != (tiles, probe.k, 8) or c.shape != (tiles, probe.rows, 8):
        raise ValueError(f"{name} takes tiles of {probe.rows} x {probe.k} and {probe.k} x 8, got {a.shape}, {b.shape}")
    import cupy

    left = cupy.asarray(np.ascontiguousarray(a).view(np.uint8))
    right = cupy.asarray(np.ascontiguousarray(b.transpose(0, 2, 1)).view(np.uint8))
    start = cupy.asarray(np.ascontiguousarray(c, np.float32))
    out = cupy.empty_like(start)
    threads = 128 if probe.rows == 64 else 32
    _module().get_function(probe.symbol)((tiles,), (threads,), (left, right, start, out))
    result: Array = cupy.asnumpy(out)
    return result


@cache
def _module() -> Any:
    """The probes, compiled for this GPU (with its architecture-specific instructions on Hopper)."""
    import cupy

    major, minor = capability() or (0, 0)
    suffix = "a" if (major, minor) == (9, 0) else ""
    options = ("--std=c++17", f"--gpu-architecture=sm_{major}{minor}{suffix}")
    return cupy.RawModule(code=_SOURCE.read_text(), backend="nvrtc", options=options)
