"""A Kulisch accumulator: products added to a fixed-point register, rounded only when it is read (`FusedDot` of all K).

The register starts from zero and holds multiples of the smallest product. It is exact while the sum stays in its bits,
and wraps beyond them. Inf and NaN have no place in it: they are remembered in flags beside it.
Kulisch, Computer Arithmetic and Validity (2013), chapter 8.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpsim.accumulators import FusedDot
from fpsim.formats import Format, container, scalar_format

from .fused import magnitude, placed
from .operand import Term, port_width
from .product import product
from .rounding import rounder
from .special import step_specials
from .text import Design, Exponent, Module, constant, part

#: Sums of this many of the largest products fit, where the caller names no width (2**10).
HEADROOM = 10


@dataclass(frozen=True, kw_only=True)
class Register:
    """Layout of the accumulator: `bits` of two's complement in units of 2**unit, flags above them."""

    unit: int
    bits: int
    flags: tuple[str, ...]

    @property
    def width(self) -> int:
        return self.bits + len(self.flags)


def register(a: Format, b: Format, bits: int | None = None) -> Register:
    """The register for products of a and b. bits: its width without flags; by default the largest product's + 10."""
    term = product(Design(), Module("probe"), a, b, ("a", "b"), "p")
    unit = term.exponent.low - term.fraction_bits
    whole = term.exponent.high + term.top - unit + 1
    flags = (*(["nan"] if term.nan else []), *(["minus", "plus"] if term.infinite else []))
    return Register(unit=unit, bits=bits or whole + 1 + HEADROOM, flags=flags)


def fixed_point(design: Design, name: str, a: Format, b: Format, held: Register) -> Module:
    """The combinational step: ports a, b, c (the register) -> y (its next value)."""
    out = Module(
        name,
        f"y = c + a * b: {a.name} x {b.name} into {held.bits}-bit fixed point, last bit worth 2**{held.unit}"
        f"{'; flags above: ' + ', '.join(held.flags) if held.flags else ''}.",
    )
    for port, width in (("a", port_width(a)), ("b", port_width(b)), ("c", held.width)):
        out.input(port, width)
    term = product(design, out, a, b, ("a", "b"), "product")
    placed(out, term, held.unit, held.bits, "magnitude")
    out.wire("addend", held.bits, f"magnitude ^ {{{held.bits}{{{term.sign}}}}}")
    out.wire("sum", held.bits, f"{part('c', held.width, held.bits - 1, 0)} + addend + {term.sign}")
    out.output("y", held.width)
    raised = [f"c[{held.bits + i}] | {_raises(term, flag)}" for i, flag in enumerate(held.flags)]
    out.assign("y", f"{{{', '.join([*reversed(raised), 'sum'])}}}" if raised else "sum")
    return design.add(out)


def _raises(term: Term, flag: str) -> str:
    return {
        "nan": term.nan,
        "minus": f"({term.infinite} & {term.sign})",
        "plus": f"({term.infinite} & ~{term.sign})",
    }[flag]


def fixed_readout(design: Design, name: str, kind: FusedDot, held: Register) -> Module:
    """The register as a code of the accumulator's format, rounded once: port x -> y."""
    row, result = scalar_format(kind.output), container(kind.output)
    out = Module(name, f"{held.bits}-bit fixed point to {row.name}, {kind.rounding}.")
    out.input("x", held.width)
    out.wire("total", held.bits, part("x", held.width, held.bits - 1, 0))
    magnitude(out, "total", held.bits, held.bits)  # as many bits again: -2**(bits - 1) has all of them
    weight = held.unit + held.bits - 1
    exponent = Exponent(wire="1'b0", width=1, base=weight, low=weight, high=weight)
    specials = step_specials(row)
    module = rounder(design, row, kind.rounding, held.bits, exponent, specials, positive_zero=True)
    out.wire("rounded", result.bits)
    out.instance(
        module.name,
        "round_sum",
        {"sign": "negative", "magnitude": "magnitude", "exponent": "1'b0", "code": "rounded"},
    )
    code = "rounded"
    flags = {flag: f"x[{held.bits + i}]" for i, flag in enumerate(held.flags)}
    if "plus" in flags:
        positive, negative = (constant(x, result.bits) for x in specials.infinite)
        code = f"{flags['minus']} ? {negative} : {flags['plus']} ? {positive} : {code}"
        out.wire("nan", 1, f"{flags['nan']} | ({flags['minus']} & {flags['plus']})")
    elif "nan" in flags:
        out.wire("nan", 1, flags["nan"])
    if "nan" in flags:
        code = f"nan ? {constant(specials.nan, result.bits)} : {code}"
    out.output("y", result.bits)
    out.assign("y", code)
    return design.add(out)
