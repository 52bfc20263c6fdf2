"""A multiply-add whose every operation rounds as IEEE 754 does (`SequentialFma`): y = round(a * b + c).

Fused, or with a product that is exact in the format it is rounded to, the product goes to the adder as it is; otherwise
it is rounded to a code first, and taken apart again.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from fpsim.accumulators import SequentialFma
from fpsim.formats import Format, container, scalar_format

from .adder import add
from .operand import Term, decode, port_width
from .product import normalised, product
from .rounding import rounder
from .special import Specials, chain_specials
from .text import Design, Module, constant


def sequential(design: Design, name: str, a: Format, b: Format, kind: SequentialFma) -> Module:
    """The combinational multiply-add of `kind`: ports a, b, c -> y, all codes."""
    row, held = scalar_format(kind.output), container(kind.output)
    out = Module(name, f"y = a * b + c: {a.name} x {b.name} + {held.name}, one multiply-add.")
    for port, width in (("a", port_width(a)), ("b", port_width(b)), ("c", held.bits)):
        out.input(port, width)
    term = product(design, out, a, b, ("a", "b"), "product", kind.flush)
    rounds = None if kind.fused else scalar_format(kind.product or kind.output)
    if rounds is not None and exact_in(a, b, rounds, kind):
        out.say(f"Every product of these formats is exact in {rounds.name}: rounding it first would change nothing.")
    elif rounds is not None:
        term = _rounded(design, out, term, rounds, kind)
    c = decode(design, out, held, "c", "c", kind.flush)
    if term.leading_zeros > 1:
        out.say("The product, shifted until its first bit is a one.")
        term = normalised(design, out, term, "product")
    total = add(design, out, term, c, row.mantissa_bits + 1, kind.rounding)
    specials = chain_specials(row, kind.rounding, kind.overflow)
    module = rounder(
        design, row, kind.rounding, total.width, total.exponent, specials, positive_zero=False, flush=kind.flush
    )
    out.wire("rounded", held.bits)
    out.instance(
        module.name,
        "round_sum",
        {"sign": total.sign, "magnitude": total.magnitude, "exponent": total.exponent.wire, "code": "rounded"},
    )
    out.output("y", held.bits)
    out.assign("y", with_specials(out, "rounded", [term, c], specials, held))
    return design.add(out)


def exact_in(a: Format, b: Format, row: Format, kind: SequentialFma) -> bool:
    """Whether rounding a product of a and b to `row` never changes it, zeros, Inf and NaN included."""
    least = _least(a, kind.flush) * _least(b, kind.flush)
    spacing = _spacing(a) * _spacing(b)
    if _significand_bits(a) + _significand_bits(b) > row.mantissa_bits + 1:
        return False
    if spacing < _spacing(row) or _largest(a) * _largest(b) > Fraction(row.max):
        return False
    if kind.flush and least < Fraction(row.smallest_normal):
        return False
    infinite = any(x.infinity_code is not None for x in (a, b))
    if infinite and (row.infinity_code is None or kind.overflow in ("saturate", "nan")):
        return False
    if (infinite or any(x.nan_code is not None for x in (a, b))) and container(row).nan_code is None:
        return False
    return row.nan != "negative-zero"


def with_specials(into: Module, code: str, terms: list[Term], specials: Specials, held: Format) -> str:
    """The result: NaN if a term is, or if Inf meets -Inf; Inf if a term is; else `code`."""
    nans = [t.nan for t in terms if t.nan]
    infinite = [t for t in terms if t.infinite]
    if infinite:
        plus = into.wire("plus_infinity", 1, " | ".join(f"({t.infinite} & ~{t.sign})" for t in infinite))
        minus = into.wire("minus_infinity", 1, " | ".join(f"({t.infinite} & {t.sign})" for t in infinite))
        positive, negative = (constant(x, held.bits) for x in specials.infinite)
        code = f"{minus} ? {negative} : {plus} ? {positive} : {code}"
        if len(infinite) > 1:
            nans.append(f"({plus} & {minus})")
    if nans:
        into.wire("nan", 1, " | ".join(nans))
        code = f"nan ? {constant(specials.nan, held.bits)} : {code}"
    return code


def _rounded(design: Design, out: Module, term: Term, row: Format, kind: SequentialFma) -> Term:
    """The product as a code of `row`, taken apart again."""
    held = container(row)
    specials = chain_specials(row, kind.rounding, kind.overflow)
    out.say(f"The product, rounded to {row.name}.")
    module = rounder(
        design,
        row,
        kind.rounding,
        term.width,
        term.exponent.plus(term.top),
        specials,
        positive_zero=False,
        flush=kind.flush,
    )
    out.wire("product_rounded", held.bits)
    out.instance(
        module.name,
        "round_product",
        {
            "sign": term.sign,
            "magnitude": term.significand,
            "exponent": term.exponent.wire,
            "code": "product_rounded",
        },
    )
    code = "product_rounded"
    if term.infinite:
        positive, negative = (constant(x, held.bits) for x in specials.infinite)
        code = f"{term.infinite} ? ({term.sign} ? {negative} : {positive}) : {code}"
    if term.nan:
        code = f"{term.nan} ? {constant(specials.nan, held.bits)} : {code}"
    out.wire("product_code", held.bits, code)
    found = decode(design, out, held, "product_code", "addend")
    # A subnormal that no exponent of the sum's format is below needs no shift: it never is the larger one alone.
    lowest = row.minimum_exponent <= scalar_format(kind.output).minimum_exponent
    return replace(found, leading_zeros=0) if lowest else found


def _significand_bits(row: Format) -> int:
    return row.mantissa_bits + 1 if row.kind == "float" else row.bits - int(row.signed)


def _spacing(row: Format) -> Fraction:
    """The unit that every value is a multiple of."""
    if row.kind == "int":
        return Fraction(2) ** -row.bias
    return Fraction(2) ** (row.minimum_exponent - row.mantissa_bits)


def _least(row: Format, flush: bool) -> Fraction:
    if row.kind == "int":
        return Fraction(2) ** -row.bias
    return Fraction(2) ** row.minimum_exponent if flush else _spacing(row)


def _largest(row: Format) -> Fraction:
    return max(Fraction(row.max), -Fraction(row.min))
