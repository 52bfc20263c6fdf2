"""The sum of two floating-point numbers as a sign, a magnitude and an exponent: exact, but for one sticky bit.

The term with the smaller exponent is shifted right. Two guard bits and one sticky bit below the wider significand are
enough for one rounding to `precision` bits of the result: more than one leading bit cancels only where the exponents
differ by at most one, and then nothing was shifted out. That takes a larger term whose first bit is a one, up to
`leading_zeros` that widen the window; a c that is subnormal has zeros, but then the last bit that counts is its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from .operand import Term
from .text import Design, Exponent, Module, constant, padded, width_for


@dataclass(frozen=True, kw_only=True)
class Sum:
    """Wires of a sum for `rounding.rounder`; the exponent is that of the magnitude's first bit."""

    sign: str
    magnitude: str
    width: int
    exponent: Exponent


def rebased(into: Module, exponent: Exponent, base: int, name: str) -> str:
    """A wire (or the one there is) that carries the exponent from a base that is not larger."""
    offset = exponent.base - base
    if offset == 0:
        return exponent.wire
    width = width_for((1 << exponent.width) - 1 + offset)
    return into.wire(name, width, f"{exponent.wire} + {constant(offset, width_for(offset))}")


def add(design: Design, into: Module, x: Term, y: Term, precision: int, rounding: str, prefix: str = "sum") -> Sum:
    """x + y inside module `into`; a sum of zero has the sign of IEEE 754, 6.3.

    x may have leading zeros (x.leading_zeros), y only where its exponent is the smallest of the result's format.
    """
    made = _adder(design, x, y, precision, rounding)
    module, width, exponent = made
    wires = {port: f"{prefix}_{port}" for port in ("sign", "magnitude", "exponent")}
    for port, wire in wires.items():
        into.wire(wire, module.port_width(port))
    inputs = {
        f"{port}_{field}": getattr(term, field) if field != "exponent" else term.exponent.wire
        for port, term in (("x", x), ("y", y))
        for field in ("sign", "exponent", "significand")
    }
    into.instance(module.name, f"add_{prefix}", {**inputs, **wires})
    return Sum(
        sign=wires["sign"],
        magnitude=wires["magnitude"],
        width=width,
        exponent=Exponent(
            wire=wires["exponent"],
            width=exponent.width,
            base=exponent.base,
            low=exponent.low,
            high=exponent.high,
        ),
    )


def _adder(design: Design, x: Term, y: Term, precision: int, rounding: str) -> tuple[Module, int, Exponent]:
    size = max(x.width, y.width, precision + x.leading_zeros)
    out = Module("add", f"Sum of significands of {x.width} and {y.width} bits, for a rounding to {precision} bits.")
    for port, term in (("x", x), ("y", y)):
        out.input(f"{port}_sign")
        out.input(f"{port}_exponent", term.exponent.width)
        out.input(f"{port}_significand", term.width)
    # Exponents of the first bits, from one base.
    first_x = _first_bit(x, "x_exponent")
    first_y = _first_bit(y, "y_exponent")
    base = min(first_x.base, first_y.base)
    out.say(f"Exponents of the first bits, from a common base of {base}.")
    based, ey = rebased(out, first_x, base, "x_based"), rebased(out, first_y, base, "y_based")
    bits = max(_width(first_x, base), _width(first_y, base))
    ex = out.wire("x_or_0", bits, f"(|x_significand) ? {based} : {constant(0, bits)}", "a zero never shifts y")
    out.wire("difference", bits + 1, f"{ex} - {ey}")
    out.wire("swap", 1, f"difference[{bits}]", "y has the larger exponent")
    out.wire("distance", bits, f"(difference[{bits - 1}:0] ^ {{{bits}{{swap}}}}) + swap")
    out.wire("mx", size, padded("x_significand", size - x.width))
    out.wire("my", size, padded("y_significand", size - y.width))
    out.wire("large", size, "swap ? my : mx")
    out.wire("small", size + 2, "{swap ? mx : my, 2'b0}", "two guard bits")
    out.wire("shifted", size + 2, "small >> distance")
    out.wire("kept", size + 2, f"{{{size + 2}{{1'b1}}}} << distance")
    out.wire("sticky", 1, "|(small & ~kept)", "a one was shifted out")
    total = size + 5
    out.say("Two's complement: sign, carry, significand, guard bits, sticky bit.")
    out.wire("subtract", 1, "x_sign ^ y_sign")
    out.wire("addend", total, "{2'b0, shifted, sticky}")
    out.wire("total", total, f"{{2'b0, large, 3'b0}} + (addend ^ {{{total}{{subtract}}}}) + subtract")
    out.wire("negative", 1, f"total[{total - 1}]")
    width = total - 1
    out.output("sign")
    out.output("magnitude", width)
    out.assign("magnitude", f"(total[{width - 1}:0] ^ {{{width}{{negative}}}}) + negative")
    zero = "x_sign | y_sign" if rounding == "rd" else "x_sign & y_sign"
    out.wire("zero", 1, "~|magnitude")
    out.assign("sign", f"zero ? {zero} : (swap ? y_sign : x_sign) ^ negative", "x - x is -0 only when rounding down")
    out.output("exponent", bits)
    out.assign("exponent", f"swap ? {ey} : {ex}")
    # the larger exponent is at least y's; x may be a zero below everything
    highest = max(first_x.high, first_y.high)
    exponent = Exponent(wire="exponent", width=bits, base=base, low=first_y.low, high=highest)
    # the magnitude has a carry bit in front of the significand
    return design.add(out), width, exponent.plus(1)


def _first_bit(term: Term, wire: str) -> Exponent:
    found = term.exponent.plus(term.top)
    return Exponent(wire=wire, width=found.width, base=found.base, low=found.low, high=found.high)


def _width(exponent: Exponent, base: int) -> int:
    return width_for((1 << exponent.width) - 1 + exponent.base - base)
