"""A fixed-point register: products added to it, rounded only when it is read (`FixedPoint`, `FusedDot` of all K).

The register starts from zero and holds multiples of the smallest product (Kulisch, Computer Arithmetic and Validity,
2013, chapter 8), or of a larger power of two: what a product has below it is cut off its magnitude. It is exact while
the sum stays in its bits; beyond them it wraps or saturates. Inf and NaN have no place in it: they are remembered in
flags beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpsim.accumulators import FixedPoint
from fpsim.formats import Format, container, scalar_format

from .fused import magnitude, placed
from .integers import clamped, signed_to
from .operand import Term, port_width
from .product import product
from .rounding import rounder
from .special import step_specials
from .text import Design, Exponent, Module, constant, part

#: Sums of this many of the largest products fit, where the caller names no width (2**10).
HEADROOM = 10


@dataclass(frozen=True, kw_only=True)
class Register:
    """Layout of the accumulator: `bits` of two's complement in units of 2**unit, flags above them.

    low, high : exponents of the last bit that a product can have, and of the first bit of the largest.
    """

    unit: int
    bits: int
    flags: tuple[str, ...]
    low: int
    high: int

    @property
    def width(self) -> int:
        return self.bits + len(self.flags)


def register(a: Format, b: Format, kind: FixedPoint | None = None) -> Register:
    """The register of `kind` for products of a and b; by default one with 10 bits more than the largest and a sign."""
    term = product(Design(), Module("probe"), a, b, ("a", "b"), "p")
    low, high = term.exponent.low - term.fraction_bits, term.exponent.high + term.top
    flags = (*(["nan"] if term.nan else []), *(["minus", "plus"] if term.infinite else []))
    unit = low if kind is None or kind.lsb is None else kind.lsb
    bits = high - low + 2 + HEADROOM if kind is None else kind.bits
    return Register(unit=unit, bits=bits, flags=flags, low=low, high=high)


def fixed_point(design: Design, name: str, a: Format, b: Format, held: Register, *, saturate: bool) -> Module:
    """The combinational step: ports a, b, c (the register) -> y (its next value)."""
    out = Module(
        name,
        f"y = c + a * b: {a.name} x {b.name} into {held.bits}-bit fixed point, last bit worth 2**{held.unit}"
        f"{', clamped' if saturate else ''}{'; flags above: ' + ', '.join(held.flags) if held.flags else ''}.",
    )
    for port, width in (("a", port_width(a)), ("b", port_width(b)), ("c", held.width)):
        out.input(port, width)
    term = product(design, out, a, b, ("a", "b"), "product")
    if saturate:
        total = _clamped_sum(out, term, held)
    else:
        _on_grid(out, term, held, held.bits, "magnitude")
        out.wire("addend", held.bits, f"magnitude ^ {{{held.bits}{{{term.sign}}}}}")
        total = out.wire("sum", held.bits, f"{part('c', held.width, held.bits - 1, 0)} + addend + {term.sign}")
    out.output("y", held.width)
    raised = [f"c[{held.bits + i}] | {_raises(term, flag)}" for i, flag in enumerate(held.flags)]
    out.assign("y", f"{{{', '.join([*reversed(raised), total])}}}" if raised else total)
    return design.add(out)


def _on_grid(out: Module, term: Term, held: Register, bits: int, name: str) -> str:
    """A wire with the low `bits` of a product's magnitude in units of the register, what lies below them cut off."""
    cut = held.unit - held.low
    if cut <= 0:
        return placed(out, term, held.unit, bits, name)
    placed(out, term, held.low, bits + cut, f"{name}_uncut")
    return out.wire(name, bits, part(f"{name}_uncut", bits + cut, bits + cut - 1, cut))


def _clamped_sum(out: Module, term: Term, held: Register) -> str:
    """c plus the product, clamped. A product of 2**bits or more, which clamps whatever c is, becomes 2**bits - 1."""
    bits, whole = held.bits, max(held.high - held.unit + 1, 1)
    if whole > bits:
        _on_grid(out, term, held, whole, "whole")
        out.wire("large", 1, f"|{part('whole', whole, whole - 1, bits)}", "no c brings it back")
        out.wire("magnitude", bits, f"{part('whole', whole, bits - 1, 0)} | {{{bits}{{large}}}}")
    else:
        _on_grid(out, term, held, bits, "magnitude")
    wide = bits + 2
    out.wire("addend", wide, f"{{2'b0, magnitude}} ^ {{{wide}{{{term.sign}}}}}")
    out.wire("held", bits, part("c", held.width, bits - 1, 0))
    out.wire("sum", wide, f"{signed_to('held', bits, wide)} + addend + {term.sign}")
    return clamped(out, "sum", wide, bits, "sum")


def _raises(term: Term, flag: str) -> str:
    return {
        "nan": term.nan,
        "minus": f"({term.infinite} & {term.sign})",
        "plus": f"({term.infinite} & ~{term.sign})",
    }[flag]


def fixed_readout(design: Design, name: str, output: str, rounding: str, held: Register) -> Module:
    """The register as a code of the format `output`, rounded once: port x -> y."""
    row, result = scalar_format(output), container(output)
    out = Module(name, f"{held.bits}-bit fixed point to {row.name}, {rounding}.")
    out.input("x", held.width)
    out.wire("total", held.bits, part("x", held.width, held.bits - 1, 0))
    magnitude(out, "total", held.bits, held.bits)  # as many bits again: -2**(bits - 1) has all of them
    weight = held.unit + held.bits - 1
    exponent = Exponent(wire="1'b0", width=1, base=weight, low=weight, high=weight)
    specials = step_specials(row)
    module = rounder(design, row, rounding, held.bits, exponent, specials, positive_zero=True)
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
