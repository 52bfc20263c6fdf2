"""From an exact magnitude to a code: normalise, round once, notice overflow.

    value = magnitude * 2**(exponent - (width - 1)),  exponent = that of the magnitude's first bit

1. Shift left until the first bit is one, but not below the smallest exponent of the format (a subnormal keeps its
   leading zeros). A marker bit that is put where the shift has to stop lets one count of zeros find both.
2. Where the exponent can be below the smallest one, shift right by what is missing; bits that leave are kept as one
   sticky bit.
3. The code of the truncated value is the exponent field next to the mantissa; rounding up adds one to that integer,
   whatever it carries into. A code past the largest is an overflow.
"""

from __future__ import annotations

from fpsim.formats import Format, container

from .product import leading_zeros
from .special import Specials
from .text import Design, Exponent, Module, constant, identifier, padded, part, width_for

#: rounding -> whether the truncated code goes up; IEEE 754 4.3 and the others of `fpsim.rounding`
ROUND_UP = {
    "rne": "guard & (sticky | lower[0])",
    "rna": "guard",
    "rnz": "guard & sticky",
    "rz": "",
    "ru": "~sign & (guard | sticky)",
    "rd": "sign & (guard | sticky)",
    "rodd": "(guard | sticky) & ~lower[0]",
}


def rounder(
    design: Design,
    row: Format,
    rounding: str,
    width: int,
    exponent: Exponent,
    specials: Specials,
    *,
    positive_zero: bool,
    flush: bool = False,
) -> Module:
    """A module (sign, magnitude, exponent) -> code of `row` in its container.

    width : bits of the magnitude. exponent : what the port carries, and its range.
    positive_zero : a result of zero is +0 (steps); otherwise it keeps its sign. flush : subnormal results become zeros.
    """
    held, m, emin = container(row), row.mantissa_bits, row.minimum_exponent
    out = Module(
        f"round_{identifier(row.name)}_{rounding}",
        f"{width} bits to {row.name}, {rounding}{', subnormals to zero' if flush else ''}: first bit of weight "
        f"2**({exponent.base} + exponent), from 2**{exponent.low} to 2**{exponent.high}.",
    )
    out.input("sign")
    out.input("magnitude", width)
    out.input("exponent", exponent.width)
    out.output("code", held.bits)
    wide = max(width, m + 2)
    magnitude = out.wire("wide", wide, padded("magnitude", wide - width)) if wide > width else "magnitude"
    normal, room, shift = _normalise(design, out, magnitude, wide, width, exponent, emin)
    lost = ""
    if exponent.low < emin:
        normal, lost = _denormalise(out, normal, wide, exponent, emin)
    field_bits = width_for(max(exponent.high - emin, 0) + 2)
    first = f"{normal}[{wide - 1}]"
    out.say("The code of the truncated value: a subnormal has no first bit and field 0.")
    out.wire("field", field_bits, f"{first} ? {room} - {shift} + 1'b1 : {constant(0, field_bits)}")
    lower_bits = field_bits + m
    mantissa = f", {part(normal, wide, wide - 2, wide - 1 - m)}" if m else ""
    out.wire("lower", max(lower_bits, 1), f"{{field{mantissa}}}")
    up = ROUND_UP[rounding] if lower_bits > 1 else ROUND_UP[rounding].replace("lower[0]", "lower")
    if up:
        out.wire("guard", 1, f"{normal}[{wide - 2 - m}]")
        rest = [f"|{part(normal, wide, wide - 3 - m, 0)}"] if wide > m + 2 else []
        out.wire("sticky", 1, " | ".join([*rest, *([lost] if lost else [])]) or "1'b0")
    out.wire("rounded", lower_bits, f"lower + ({up})" if up else "lower")
    _assemble(out, row, held, lower_bits, exponent.high, specials, positive_zero, flush)
    return design.add(out)


def _normalise(
    design: Design, out: Module, magnitude: str, wide: int, width: int, exponent: Exponent, emin: int
) -> tuple[str, str, str]:
    """(the shifted magnitude, the wire that says how far it may be shifted, the shift)."""
    room_bits = width_for(max((1 << exponent.width) - 1 + exponent.base - emin, 0))
    offset = exponent.base - emin
    if exponent.low >= emin:
        room = out.wire("room", room_bits, _plus("exponent", offset), "shift at most to the smallest exponent")
    else:
        floor = constant(-offset, max(exponent.width, width_for(-offset)))
        out.wire("below", 1, f"exponent < {floor}", "the first bit is below the smallest exponent")
        room = out.wire("room", room_bits, f"below ? {constant(0, room_bits)} : exponent - {floor}")
    counter = leading_zeros(design, wide)
    bits = counter.port_width("count")
    out.wire("shift", bits)
    counted = magnitude
    if exponent.low - emin < width - 1:
        out.wire("first", wide, constant(1 << (wide - 1), wide))
        counted = out.wire("limited", wide, f"{magnitude} | (first >> {room})", "a marker where the shift stops")
    out.instance(counter.name, "count", {"x": counted, "count": "shift"})
    return out.wire("normal", wide, f"{magnitude} << shift"), room, "shift"


def _denormalise(out: Module, normal: str, wide: int, exponent: Exponent, emin: int) -> tuple[str, str]:
    """Shift right by what the exponent is below the smallest one; (the result, whether a one was lost)."""
    missing_bits = width_for(emin - exponent.base)
    floor = constant(emin - exponent.base, max(exponent.width, missing_bits))
    out.wire("missing", missing_bits, f"below ? {floor} - exponent : {constant(0, missing_bits)}")
    out.wire("kept", wide, f"{{{wide}{{1'b1}}}} << missing", "bits that stay")
    out.wire("lost", 1, f"|({normal} & ~kept)")
    return out.wire("placed", wide, f"{normal} >> missing"), "lost"


def _assemble(
    out: Module,
    row: Format,
    held: Format,
    lower_bits: int,
    highest: int,
    specials: Specials,
    positive_zero: bool,
    flush: bool,
) -> None:
    """The sign, the rounded magnitude, and what takes their place on overflow."""
    digits = row.exponent_bits + row.mantissa_bits
    finite = part("rounded", lower_bits, digits - 1, 0) if lower_bits > digits else "rounded"
    if lower_bits < digits:
        finite = out.wire("digits", digits, "rounded")
    if flush and row.mantissa_bits:
        nonzero = f"|{part('rounded', lower_bits, lower_bits - 1, row.mantissa_bits)}"
        finite = out.wire("flushed", digits, f"{finite} & {{{digits}{{{nonzero}}}}}", "no subnormals")
    sign = "sign"
    if positive_zero or row.nan == "negative-zero":
        sign = out.wire("minus", 1, f"sign & |{finite}", "zero is +0")
    low = f", {row.shift}'b0" if row.shift else ""
    code = f"{{{sign}, {finite}{low}}}"
    largest = (max(highest - row.minimum_exponent, 0) + 2) << row.mantissa_bits  # a carry out of the top mantissa
    if largest > row.max_code:
        limit = constant(row.max_code, max(lower_bits, digits))
        out.wire("too_large", 1, f"rounded > {limit}")
        positive, negative = (constant(x, held.bits) for x in specials.too_large)
        code = f"too_large ? (sign ? {negative} : {positive}) : {code}"
    out.assign("code", code)


def _plus(wire: str, amount: int) -> str:
    """wire + amount, for an amount of either sign (the result is known not to be negative)."""
    if amount == 0:
        return wire
    literal = constant(abs(amount), width_for(abs(amount)))
    return f"{wire} + {literal}" if amount > 0 else f"{wire} - {literal}"
