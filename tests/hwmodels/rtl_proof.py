"""A generated unit against the emulator: the same codes through the simulated circuit and through `fpsim.matmul`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fpsim
from fpsim.accumulators import IntegerAccumulator
from fpsim.formats import Format, container
from fpsim.gemm import result_dtype
from hwmodels.rtl import Simulator, Unit, unit
from tests.strategies import DISTRIBUTIONS, random_codes

Array = npt.NDArray[Any]

#: Set to 1 where the extra `rtl` is left out on purpose; without it a missing tool is a failure, never a skip.
WITHOUT = "FPSIM_WITHOUT_RTL"


def needs_tools() -> None:
    """Skip only where someone said that Yosys is absent."""
    if os.environ.get(WITHOUT) == "1":
        pytest.skip(f"{WITHOUT}=1: circuits are not simulated or synthesized here")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Operands of a grid of sums: a (M, K), b (K, N), c (M, N) or None, block scales or none."""

    name: str
    a: Array
    b: Array
    c: Array | None = None
    scales: tuple[Array, Array] | None = None

    def arguments(self) -> dict[str, Any]:
        scales = {} if self.scales is None else {"a_scale": self.scales[0], "b_scale": self.scales[1]}
        return {"c": self.c, **scales}


def as_words(codes: Array) -> Array:
    """Any array's bits as uint64, not sign-extended."""
    codes = np.ascontiguousarray(codes)
    return codes.view(f"u{codes.dtype.itemsize}").astype(np.uint64)


def grid(found: Unit, spec: fpsim.MatmulSpec, case: Case) -> tuple[dict[str, Array], Array | None]:
    """Operands of every sum of a case for the simulator, row by row: ports (M * N, steps, terms), c (M * N,)."""
    rows, k = case.a.shape
    columns, steps = case.b.shape[1], k // found.terms
    i, j = (x.reshape(-1) for x in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    order = np.arange(k)
    if getattr(spec.accumulator, "order", "") == "odd-even":  # within each pair the odd k first; that is fed, not built
        order = np.array([n for start in range(0, k, 2) for n in (start + 1, start) if n < k])
    ports = {
        "a": on_port(case.a, spec.a)[i][:, order].reshape(-1, steps, found.terms),
        "b": on_port(case.b, spec.b).T[j][:, order].reshape(-1, steps, found.terms),
    }
    if case.scales is not None and spec.block is not None:
        each = max(found.terms // spec.block, 1)  # scales that a step reads
        at = np.arange(steps)[:, None] * found.terms // spec.block + np.arange(each)
        ports |= {"a_scale": case.scales[0][i][:, at], "b_scale": case.scales[1].T[j][:, at]}
    return ports, None if case.c is None else as_words(case.c).reshape(-1)


def on_port(codes: Array, row: Format) -> Array:
    """Codes as a port takes them: without the low bits that carry nothing."""
    return as_words(codes) >> np.uint64(row.shift)


def compare(simulator: Simulator, spec: fpsim.MatmulSpec, case: Case) -> int:
    """Every result of a case, bit for bit; the number of results. A sample is compared with the reference as well."""
    found = simulator.unit
    ports, c = grid(found, spec, case)
    got = simulator.sums(ports, c)
    want = fpsim.matmul(case.a, case.b, spec, **case.arguments())
    width = found.ports["y"]
    mask = np.uint64((1 << width) - 1)
    words = as_words(want).reshape(-1) & mask
    bad = np.flatnonzero(got != words)
    if len(bad):
        at = int(bad[0])
        shown = {port: [hex(int(x)) for x in np.ravel(codes[at])[:16]] for port, codes in ports.items()}
        start = None if c is None else hex(int(c[at]))
        raise AssertionError(
            f"{found.name}, {case.name}: {len(bad)} of {got.size} differ; the first: {shown}, c {start}: "
            f"circuit {int(got[at]):#x}, emulator {int(words[at]):#x}"
        )
    few = Case(
        name=case.name,
        a=case.a[:2],
        b=case.b[:, :2],
        c=None if case.c is None else case.c[:2, :2],
        scales=None if case.scales is None else (case.scales[0][:2], case.scales[1][:, :2]),
    )
    truth = as_words(fpsim.matmul(few.a, few.b, spec, backend="reference", **few.arguments())) & mask
    assert (got.reshape(want.shape)[:2, :2] == truth).all(), f"{found.name}, {case.name}: differs from the reference"
    return int(got.size)


def starts(rng: np.random.Generator, spec: fpsim.MatmulSpec, case: Case, kind: str) -> Array:
    """c for a case: any code ("bits"), or the negated sum give or take a few codes, which cancels ("near")."""
    held, accumulator = container(spec.accumulator.output), spec.accumulator
    shape = case.a.shape[0], case.b.shape[1]
    if isinstance(accumulator, IntegerAccumulator):
        low, high = accumulator.low, accumulator.high
        near = rng.choice(np.array([low, low + 1, -1, 0, high - 1, high]), shape)
        return (rng.integers(low, high, shape, endpoint=True) if kind == "bits" else near).astype(held.code_dtype)
    if kind == "bits":
        return random_codes(rng, held, shape).view(result_dtype(held.name))
    plain = fpsim.MatmulSpec(spec.a, spec.b, accumulator, held.name, spec.scale, spec.block)
    words = as_words(fpsim.matmul(case.a, case.b, plain, **case.arguments())) ^ np.uint64(held.sign_bit)
    words = words + rng.integers(-2, 3, shape).astype(np.int64).view(np.uint64)
    words &= np.uint64((1 << held.bits) - 1)
    return words.astype(held.code_dtype).view(result_dtype(held.name))


def random_cases(
    found: Unit, spec: fpsim.MatmulSpec, rng: np.random.Generator, size: int = 16, steps: tuple[int, ...] = (1, 3, 11)
) -> Iterator[Case]:
    """Cases of every named distribution: chains of several lengths, from zero, any code, and what nearly cancels."""
    for name, draw in DISTRIBUTIONS.items():
        for count in steps:
            k = count * found.terms
            a, b, scales = draw(rng, spec.a, (size, k)), draw(rng, spec.b, (k, size)), None
            if spec.scale is not None and spec.block is not None:
                blocks = -(-k // spec.block)
                low, high = (0, 256) if name == "bits" else (100, 151)  # any scale, NaN too; or those that keep a range
                scales = (
                    rng.integers(low, high, (size, blocks)).astype(np.uint8),
                    rng.integers(low, high, (blocks, size)).astype(np.uint8),
                )
            case = Case(name=f"{name}, {count} steps", a=a, b=b, scales=scales)
            yield case
            if found.starts:
                for kind in ("bits", "near"):
                    c = starts(rng, spec, case, kind)
                    yield Case(name=f"{case.name}, c {kind}", a=a, b=b, c=c, scales=scales)


def every_pair(spec: fpsim.MatmulSpec, rng: np.random.Generator, found: Unit) -> Iterator[Case]:
    """All pairs of operand codes (formats of at most 8 bits): from zero, and from four grids of c."""
    a, b = codes_of(spec.a)[:, None], codes_of(spec.b)[None, :]
    plain = Case(name="every pair", a=a, b=b)
    yield plain
    for kind in ("bits", "bits", "near", "near") if found.starts else ():
        yield Case(name=f"every pair, c {kind}", a=a, b=b, c=starts(rng, spec, plain, kind))


def whole_space(spec: fpsim.MatmulSpec) -> Iterator[Case]:
    """Every a, every b and every c of a unit whose three operands have together few bits: a case per a."""
    held = container(spec.accumulator.output)
    a, b = codes_of(spec.a), codes_of(spec.b)
    low = held.bits // 2
    high = held.bits - low
    columns, lower = np.repeat(b, 1 << low), np.tile(np.arange(1 << low), len(b))
    c = ((np.arange(1 << high)[:, None] << low) | lower[None, :]).astype(held.code_dtype)
    for code in a:
        rows = np.full((1 << high, 1), code, a.dtype)
        yield Case(name="every b and c", a=rows, b=columns[None, :], c=c.view(result_dtype(held.name)))


def codes_of(row: Format) -> Array:
    """All codes of a format, as the emulator takes them."""
    low, count = (int(row.min), int(row.max) - int(row.min) + 1) if row.kind == "int" else (0, 1 << row.bits)
    return np.arange(low, low + count).astype(row.code_dtype)


def simulated(spec: fpsim.MatmulSpec) -> Simulator:
    """The unit of a spec, built; skips only where the tools are absent on purpose."""
    needs_tools()
    return Simulator(unit(spec))
