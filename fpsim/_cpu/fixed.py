"""Fixed-point registers on the CPU."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fpsim._cpu.chains import start_values
from fpsim._cpu.plans import sum_plan
from fpsim._cpu.rows import Scales, rows, words
from fpsim._cpu.steps import exact
from fpsim._kernels import fixed as kernels
from fpsim.accumulators import FixedPoint, FusedDot
from fpsim.codec import Array, decode
from fpsim.formats import Format, scalar_format
from fpsim.spec import MatmulSpec

#: widest register whose sums are computed here when they may leave it
WIDEST = 52


def fixed(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: FixedPoint, scales: Scales | None) -> None:
    del scales
    kind = kind.placed(spec.a, spec.b)
    if plain(a, c, spec, kind):
        exact(a, b, c, spec, exactly(kind))
        return
    made = operands(a, b, c, spec, kind)
    run = kernels.wrapping if made.plan.wrap else kernels.saturating
    total = settled(made)
    rows(lambda i, j: run(made.x, made.y, made.plan, total, i, j), total, a.shape[1])
    given = words(c.copy())
    rows(lambda i, j: kernels.read(total, made.plan, words(c), i, j), total, 16)
    if made.special.any():
        x, y = values(a, spec.a), values(b, spec.b)
        rows(lambda i, j: kernels.specials(x, y, given, made.special, made.plan, words(c), i, j), total, a.shape[1])


def plain(a: Array, c: Array, spec: MatmulSpec, kind: FixedPoint) -> bool:
    """Whether a register too wide for the kernels is one that no sum leaves: an exact sum, from zero."""
    return kind.bits > WIDEST and not c.any() and holds(spec.a, spec.b, a.shape[1], kind)


def exactly(kind: FixedPoint) -> FusedDot:
    """The accumulator without a register."""
    return FusedDot(None, None, kind.rounding, kind.output)


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Finite values x (M, K) and y (K, N) whose products count the register's last bit, and c likewise; float64.

    special : bool (M, N), outputs with an Inf or NaN among their terms, which are zeros here.
    """

    x: Array
    y: Array
    start: Array
    plan: kernels.Fixed
    special: Array


def operands(a: Array, b: Array, c: Array, spec: MatmulSpec, kind: FixedPoint) -> Operands:
    """Operands of the kernels. ValueError for registers and operands that float64 does not emulate.

    kind : with its last bit in numbers.
    """
    check(spec, kind)
    lsb = kind.lsb or 0
    x, y, start = values(a, spec.a), values(b, spec.b), start_values(c, scalar_format(kind.output))
    fine = [np.isfinite(array) for array in (x, y, start)]
    special: Array = ~np.logical_and.outer(fine[0].all(axis=1), fine[1].all(axis=0)) | ~fine[2]
    if special.any():
        x, y, start = (np.where(good, array, 0.0) for good, array in zip(fine, (x, y, start), strict=True))
    with np.errstate(over="ignore"):
        return Operands(x=np.ldexp(x, -lsb), y=y, start=np.ldexp(start, -lsb), plan=plan(kind), special=special)


def check(spec: MatmulSpec, kind: FixedPoint) -> None:
    """ValueError for registers and operands whose sums float64 does not hold."""
    products = f"{spec.a.name} x {spec.b.name}"
    if kind.bits > WIDEST:
        raise ValueError(
            f"sums of {products}, or c, may leave a register of {kind.bits} bits, which is emulated up to {WIDEST} "
            "bits; allowed: those, or on backend='cpu' enough for every sum from c = 0; backend='reference' computes "
            "it slowly"
        )
    if spec.a.precision + spec.b.precision > 53 or abs(kind.lsb or 0) > 600:
        raise ValueError(
            f"products of {products} in units of 2**{kind.lsb} are not computed in 53 bits; allowed: formats of at "
            "most 53 significant bits together, and -600 to 600; backend='reference' computes them slowly"
        )


def values(codes: Array, row: Format) -> Array:
    """Codes as float64, which holds the values of every format whose products it holds."""
    with np.errstate(invalid="ignore"):
        return decode(codes, row).astype(np.float64)


def plan(kind: FixedPoint) -> kernels.Fixed:
    half = 2.0 ** (kind.bits - 1)
    return kernels.Fixed(
        low=-half,
        high=half - 1,
        size=2 * half,
        inverse=0.5 / half,
        lsb=kind.lsb or 0,
        wrap=kind.overflow == "wrap",
        sum=sum_plan(kind.output, kind.rounding),
    )


def settled(made: Operands) -> Array:
    """What registers hold of c."""
    plan, start = made.plan, np.trunc(made.start)
    if not plan.wrap:
        return np.clip(start, plan.low, plan.high)
    # fmod is exact; an Inf was a multiple of every power of two below 2**971, and wraps to zero
    held = np.fmod(np.where(np.isinf(start), 0.0, start), plan.size)
    return held - np.floor((held - plan.low) * plan.inverse) * plan.size


def holds(a: Format, b: Format, depth: int, kind: FixedPoint) -> bool:
    """Whether a register cuts nothing off and holds every sum of `depth` products, from zero, in any order."""
    exact_bit = FixedPoint(kind.bits).placed(a, b).lsb
    if kind.lsb is None or exact_bit is None or kind.lsb > exact_bit:
        return False
    largest = Fraction(max(abs(a.min), a.max)) * Fraction(max(abs(b.min), b.max))
    return largest * depth < Fraction(2) ** (kind.bits - 1 + kind.lsb)
