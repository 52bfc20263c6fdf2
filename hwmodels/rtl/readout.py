"""The last conversion: an accumulator's code in another output format, to nearest even (`MatmulSpec.out`)."""

from __future__ import annotations

from fpsim.formats import Format, container, scalar_format

from .operand import decode, port_width
from .rounding import rounder
from .special import ENGINE_NAN, Specials
from .text import Design, Module, constant, identifier


def converter(design: Design, source: Format, target: Format) -> Module:
    """A module x (a code of `source`) -> y (a code of `target`), Inf beyond the range where the format has it."""
    held = container(target)
    out = Module(
        f"convert_{identifier(source.name)}_{identifier(target.name)}",
        f"{source.name} to {target.name}, to nearest even; NaN has the engine's one code.",
    )
    out.input("x", port_width(source))
    term = decode(design, out, source, "x", "x")
    specials = conversion_specials(target)
    module = rounder(
        design, target, "rne", term.width, term.exponent.plus(term.top), specials, positive_zero=source.kind == "int"
    )
    out.wire("rounded", held.bits)
    out.instance(
        module.name,
        "round_x",
        {"sign": term.sign, "magnitude": term.significand, "exponent": term.exponent.wire, "code": "rounded"},
    )
    code = "rounded"
    if term.infinite:
        positive, negative = (constant(x, held.bits) for x in specials.infinite)
        code = f"{term.infinite} ? ({term.sign} ? {negative} : {positive}) : {code}"
    if term.nan:
        code = f"{term.nan} ? {constant(specials.nan, held.bits)} : {code}"
    out.output("y", held.bits)
    out.assign("y", code)
    return design.add(out)


def conversion_specials(target: Format) -> Specials:
    """The "ocp-nonsat" conversion: beyond the range Inf, else a NaN with the sign, else the largest value.

    A NaN that comes in is the engine's where it has one for the format, else the format's own.
    """
    row = scalar_format(target)
    own = row.max_code if row.nan_code is None else row.nan_code
    beyond = own if row.infinity_code is None else row.infinity_code
    minus = 0 if beyond == row.nan_code and row.nan == "negative-zero" else row.sign_bit
    infinite = beyond << row.shift, (beyond | minus) << row.shift
    return Specials(nan=ENGINE_NAN.get(row.name, own << row.shift), infinite=infinite, too_large=infinite)
