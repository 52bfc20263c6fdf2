"""Compare emulators with the machine at hand: random bits, edges, ordinary and cancelling values, huge starts.

`verify` runs every engine whose hardware is here and says of the others why they were not run.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fpsim.codec import encode
from fpsim.engines import engine
from fpsim.formats import Format
from fpsim.gemm import matmul
from fpsim.silicon import cpu, nvidia
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
    probes = [*cpu.PROBES, *nvidia.PROBES]
    wanted = [p for p in probes if engines is None or p in engines or p.partition(" ")[0] in engines]
    results = [_one(name, rounds, seed) for name in wanted]
    known = {p.partition(" ")[0] for p in probes} | set(probes)
    for name in engines or ():
        if name not in known:
            results.append(Verification(engine=name, operands="", skipped="no probe for this engine"))
    return results


def _one(name: str, rounds: int, seed: int) -> Verification:
    rng = np.random.default_rng(seed)
    if name in cpu.PROBES:
        reason, on_cpu = cpu.missing(name), cpu.PROBES[name]
        if reason:
            return Verification(engine=name, operands="", skipped=reason)
        spec = engine(name, on_cpu.a, on_cpu.b)
        return _compare(name, spec, rounds, rng, (ROWS, DEPTH, COLUMNS), lambda a, b, c: cpu.run(name, a, b, c))
    reason, probe = nvidia.missing(name), nvidia.PROBES[name]
    if reason:
        return Verification(engine=probe.engine, operands=probe.operand, skipped=reason)
    tiles = max(1, 4096 // probe.rows)

    def on_gpu(a: Array, b: Array, c: Array) -> Array:
        """One tall product, cut into tiles of the instruction's rows that share b."""
        cut = a.reshape(tiles, probe.rows, probe.k), np.broadcast_to(b, (tiles, *b.shape)), c.reshape(tiles, -1, 8)
        return nvidia.run(name, *cut).reshape(c.shape)

    shape = (tiles * probe.rows, probe.k, 8)
    return _compare(probe.engine, engine(probe.engine, probe.operand, out="f32"), rounds, rng, shape, on_gpu)


def _compare(
    name: str,
    spec: MatmulSpec,
    rounds: int,
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    run: Callable[[Array, Array, Array], Array],
) -> Verification:
    compared, differences, first = 0, 0, None
    canonical = not name.startswith("x86/")  # a CPU hands NaN payloads through, a tensor core has one NaN
    for _ in range(rounds):
        for kind, a, b, c in inputs(spec, rng, shape):
            emulated, silicon = matmul(a, b, spec, c), run(a, b, c)
            bad = _different(emulated, silicon, canonical)
            compared += bad.size
            differences += int(bad.sum())
            if first is None and bad.any():
                first = _describe(kind, a, b, c, emulated, silicon, bad)
    operands = f"{spec.a.name} x {spec.b.name} -> {spec.out}"
    return Verification(engine=name, operands=operands, compared=compared, differences=differences, first=first)


def inputs(
    spec: MatmulSpec, rng: np.random.Generator, shape: tuple[int, int, int] = (ROWS, DEPTH, COLUMNS)
) -> Iterator[tuple[str, Array, Array, Array]]:
    """(class, a, b, c) of every class of inputs, for shape (M, K, N)."""
    rows, depth, columns = shape
    shape_a, shape_b, shape_c = (rows, depth), (depth, columns), (rows, columns)
    integers = spec.a.kind == "int"
    zero = np.zeros(shape_c, np.int32 if integers else np.float32)
    any_c = rng.integers(0, 1 << 32, shape_c, dtype=np.uint32).view(zero.dtype)
    yield "bits", _bits(rng, spec.a, shape_a), _bits(rng, spec.b, shape_b), any_c
    yield "corners", _corners(rng, spec.a, shape_a), _corners(rng, spec.b, shape_b), zero
    a, b = _ordinary(rng, spec.a, shape_a), _ordinary(rng, spec.b, shape_b)
    yield "ordinary", a, b, zero
    half = depth // 2
    a, b = a.copy(), b.copy()  # those above are the caller's now
    b[half:] = b[:half]
    a[:, half:] = a[:, :half] ^ np.array(spec.a.sign_bit << spec.a.shift, a.dtype) if not integers else a[:, :half]
    yield "cancelling", a, b, (rng.standard_normal(shape_c) * 100).astype(zero.dtype)
    top = 2**31 - 1 if integers else 2.0**120
    yield "huge start", a, b, (rng.uniform(-1, 1, shape_c) * top).astype(zero.dtype)


def _bits(rng: np.random.Generator, row: Format, shape: tuple[int, int]) -> Array:
    if row.kind == "int":
        return rng.integers(int(row.min), int(row.max) + 1, shape).astype(row.code_dtype)
    return rng.integers(0, 1 << (row.bits + row.shift), shape, dtype=np.uint64).astype(row.code_dtype)


def _corners(rng: np.random.Generator, row: Format, shape: tuple[int, int]) -> Array:
    if row.kind == "int":
        return rng.choice([int(row.min), 0, 1, int(row.max)], shape).astype(row.code_dtype)
    one = row.mantissa_bits
    magnitudes = np.array([0, 1, (1 << one) - 1, 1 << one, row.bias << one, row.max_code])
    codes = rng.choice(magnitudes, shape) | rng.integers(0, 2, shape) * row.sign_bit
    return (codes << row.shift).astype(row.code_dtype)


def _ordinary(rng: np.random.Generator, row: Format, shape: tuple[int, int]) -> Array:
    return encode(rng.standard_normal(shape) * (row.max / 4 if row.kind == "int" else 1.0), row)


def _different(x: Array, y: Array, canonical: bool) -> Array:
    """Where two results differ in any bit; without a canonical NaN, two NaN agree."""
    different: Array = x.view(f"u{x.itemsize}") != y.view(f"u{y.itemsize}")
    if x.dtype.kind == "f" and not canonical:
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
