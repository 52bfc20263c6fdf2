"""The dot product instructions of the CPU this runs on, called through a small C file built on first use.

An x86 CPU with AVX512-BF16 or VNNI is a matrix engine that every CI machine has: these probes let each test run compare
the emulator with real silicon. Without a C compiler, or on a CPU without the instruction, `missing` says so.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim._names import unknown
from fpsim.engines import engine
from fpsim.spec import MatmulSpec

Array = npt.NDArray[Any]

_SOURCE = Path(__file__).parent / "probes" / "cpu.c"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One instruction: the engine that emulates it, what the CPU must have, and products per execution."""

    engine: str
    flags: tuple[str, ...]
    a: str
    b: str
    step: int

    @property
    def symbol(self) -> str:
        return self.engine.partition("/")[2]


#: products of one comparison: some executions of every instruction, one after the other
DEPTH = 24

#: engine name -> probe
PROBES: dict[str, Probe] = {
    probe.engine: probe
    for probe in (
        Probe(engine="x86/vdpbf16ps", flags=("avx512_bf16", "avx512vl"), a="bf16", b="bf16", step=2),
        Probe(engine="x86/vpdpbusd", flags=("avx512_vnni", "avx512vl"), a="uint8", b="int8", step=4),
        Probe(engine="x86/vpdpbusds", flags=("avx512_vnni", "avx512vl"), a="uint8", b="int8", step=4),
        Probe(engine="x86/vpdpwssd", flags=("avx512_vnni", "avx512vl"), a="int16", b="int16", step=2),
        Probe(engine="x86/vpdpwssds", flags=("avx512_vnni", "avx512vl"), a="int16", b="int16", step=2),
        Probe(engine="x86/vpmaddubsw", flags=("avx2",), a="uint8", b="int8", step=4),
    )
}


@cache
def cpu_flags() -> frozenset[str]:
    """Feature names of /proc/cpuinfo; empty where there is none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return frozenset()
    lines = [line for line in path.read_text().splitlines() if line.startswith("flags")]
    return frozenset(lines[0].partition(":")[2].split()) if lines else frozenset()


@cache
def model() -> str:
    """What the CPU calls itself: its brand, family and model, which tell the core where the brand does not."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.machine()
    pairs = [line.partition(":") for line in path.read_text().splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    name, family, number = (fields.get(key, "?") for key in ("model name", "cpu family", "model"))
    return f"{name}, family {family} model {number}"


def missing(name: str) -> str | None:
    """Why the instruction behind engine `name` cannot run here; None if it can."""
    probe = PROBES.get(name)
    if probe is None:
        raise unknown("CPU engine", name, PROBES)
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"this CPU is {platform.machine()}, not x86-64"
    absent = [flag for flag in probe.flags if flag not in cpu_flags()]
    if absent:
        return f"this CPU has no {', '.join(absent)}"
    if not _compiler():
        return "no C compiler (cc, gcc or clang) on the path"
    return None


def spec(name: str) -> MatmulSpec:
    """The emulator of engine `name`."""
    probe = PROBES[name]
    return engine(name, probe.a, probe.b)


def run(name: str, a: Array, b: Array, c: Array) -> Array:
    """c + a @ b by the CPU's own instruction: codes a (T, M, K), b (T, K, N), values c (T, M, N).

    Any K: zeros are appended. Raises RuntimeError where the instruction is missing.
    """
    reason = missing(name)
    if reason:
        raise RuntimeError(f"{name} cannot run: {reason}")
    probe, emulator = PROBES[name], spec(name)
    pad = -a.shape[-1] % probe.step
    x = np.ascontiguousarray(np.pad(a, ((0, 0), (0, 0), (0, pad))), dtype=emulator.a.code_dtype)
    y = np.ascontiguousarray(np.pad(b, ((0, 0), (0, pad), (0, 0))).transpose(0, 2, 1), dtype=emulator.b.code_dtype)
    out = np.array(c, order="C")
    function = getattr(_library(), probe.symbol)
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
    function.restype = None
    for left, right, result in zip(x, y, out, strict=True):
        function(left.ctypes.data, right.ctypes.data, result.ctypes.data, *result.shape, x.shape[-1])
    return out


def _compiler() -> str | None:
    return next((path for path in map(shutil.which, ("cc", "gcc", "clang")) if path), None)


@cache
def _library() -> ctypes.CDLL:
    """The compiled probes, kept in the user's cache under a name that says their source."""
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fpsim"
    path = base / f"probes-{digest}.so"
    if not path.exists():
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base) as folder:
            fresh = Path(folder) / "probes.so"
            command = [_compiler() or "cc", "-O1", "-shared", "-fPIC", str(_SOURCE), "-o", str(fresh)]
            subprocess.run(command, check=True, capture_output=True)
            fresh.replace(path)
    return ctypes.CDLL(str(path))
