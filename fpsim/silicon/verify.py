"""Compare emulators with the machine at hand: random bits, edges, ordinary and cancelling values, huge starts.

`verify` runs every engine whose hardware is here and says of the others why they were not run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim.codec import encode
from fpsim.engines import engine
from fpsim.formats import Format
from fpsim.gemm import matmul
from fpsim.silicon import cpu
from fpsim.spec import MatmulSpec

Array = npt.NDArray[Any]

#: shape of one comparison: many short dot products show more than a few long ones
ROWS, DEPTH, COLUMNS = 64, 24, 64


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first output on which emulator and silicon disagree. Codes and results in hex."""

    inputs: str
    a: tuple[str, ...]
    b: tuple[str, ...]
    c: str
    emulated: str
    silicon: str
    ulps: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What comparing one engine with this machine showed. `skipped` says why nothing was compared."""

    engine: str
    operands: str
    compared: int = 0
    differences: int = 0
    first: Difference | None = None
    skipped: str | None = None


def verify(engines: Sequence[str] | None = None, rounds: int = 8, seed: int = 0) -> list[Verification]:
    """Compare each engine (by default all that have a probe) on `rounds` draws of every class of inputs."""
    results = []
    for name in engines or list(cpu.PROBES):
        probe = cpu.PROBES.get(name)
        reason = "no probe for this engine" if probe is None else cpu.missing(name)
        if probe is None or reason:
            results.append(Verification(engine=name, operands="", skipped=reason))
            continue
        spec = engine(name, probe.a, probe.b)
        results.append(_compare(name, spec, rounds, np.random.default_rng(seed)))
    return results


def _compare(name: str, spec: MatmulSpec, rounds: int, rng: np.random.Generator) -> Verification:
    compared, differences, first = 0, 0, None
    for _ in range(rounds):
        for kind, a, b, c in inputs(spec, rng):
            emulated, silicon = matmul(a, b, spec, c), cpu.run(name, a, b, c)
            bad = _different(emulated, silicon)
            compared += bad.size
            differences += int(bad.sum())
            if first is None and bad.any():
                first = _describe(kind, a, b, c, emulated, silicon, bad)
    operands = f"{spec.a.name} x {spec.b.name} -> {spec.out}"
    return Verification(engine=name, operands=operands, compared=compared, differences=differences, first=first)


def inputs(spec: MatmulSpec, rng: np.random.Generator) -> Iterator[tuple[str, Array, Array, Array]]:
    """(class, a, b, c) of every class of inputs."""
    shape_a, shape_b, shape_c = (ROWS, DEPTH), (DEPTH, COLUMNS), (ROWS, COLUMNS)
    integers = spec.a.kind == "int"
    zero = np.zeros(shape_c, np.int32 if integers else np.float32)
    any_c = rng.integers(0, 1 << 32, shape_c, dtype=np.uint32).view(zero.dtype)
    yield "bits", _bits(rng, spec.a, shape_a), _bits(rng, spec.b, shape_b), any_c
    yield "corners", _corners(rng, spec.a, shape_a), _corners(rng, spec.b, shape_b), zero
    a, b = _ordinary(rng, spec.a, shape_a), _ordinary(rng, spec.b, shape_b)
    yield "ordinary", a, b, zero
    half = DEPTH // 2
    b[half:] = b[:half]
    a[:, half:] = a[:, :half] ^ np.array(spec.a.sign_bit, a.dtype) if not integers else a[:, :half]
    yield "cancelling", a, b, (rng.standard_normal(shape_c) * 100).astype(zero.dtype)
    top = 2**31 - 1 if integers else 2.0**120
    yield "huge start", a, b, (rng.uniform(-1, 1, shape_c) * top).astype(zero.dtype)


def _bits(rng: np.random.Generator, row: Format, shape: tuple[int, int]) -> Array:
    if row.kind == "int":
        return rng.integers(int(row.min), int(row.max) + 1, shape).astype(row.code_dtype)
    return rng.integers(0, 1 << row.bits, shape).astype(row.code_dtype)


def _corners(rng: np.random.Generator, row: Format, shape: tuple[int, int]) -> Array:
    if row.kind == "int":
        return rng.choice([int(row.min), 0, 1, int(row.max)], shape).astype(row.code_dtype)
    one = row.mantissa_bits
    magnitudes = np.array([0, 1, (1 << one) - 1, 1 << one, row.bias << one, row.max_code])
    return (rng.choice(magnitudes, shape) | rng.integers(0, 2, shape) * row.sign_bit).astype(row.code_dtype)


def _ordinary(rng: np.random.Generator, row: Format, shape: tuple[int, int]) -> Array:
    return encode(rng.standard_normal(shape) * (row.max / 4 if row.kind == "int" else 1.0), row)


def _different(x: Array, y: Array) -> Array:
    """Where two results differ in any bit; two NaN agree (a CPU hands NaN payloads through, an engine has one NaN)."""
    different: Array = x.view(f"u{x.itemsize}") != y.view(f"u{y.itemsize}")
    if x.dtype.kind == "f":
        different &= ~(np.isnan(x) & np.isnan(y))
    return different


def _describe(kind: str, a: Array, b: Array, c: Array, emulated: Array, silicon: Array, bad: Array) -> Difference:
    i, j = (int(v) for v in np.argwhere(bad)[0])
    words = [x.view(f"u{x.itemsize}") for x in (c, emulated, silicon)]
    steps = [int(w) if w < 1 << 31 else (1 << 31) - int(w) for w in (int(words[1][i, j]), int(words[2][i, j]))]
    unsigned = [x.view(f"u{x.itemsize}") for x in (np.ascontiguousarray(a[i]), np.ascontiguousarray(b[:, j]))]
    return Difference(
        inputs=kind,
        a=tuple(hex(int(v)) for v in unsigned[0]),
        b=tuple(hex(int(v)) for v in unsigned[1]),
        c=hex(int(words[0][i, j])),
        emulated=hex(int(words[1][i, j])),
        silicon=hex(int(words[2][i, j])),
        ulps=abs(steps[0] - steps[1]),
    )
