"""A fused dot product (`FusedDot`): L products and c aligned, truncated, added exactly, rounded once.

T-FDPA of arXiv:2511.10909, Algorithm 7. Significands are aligned to the largest exponent of the terms that are not
zero, with 2 bits before the point (a product is below 4) and F behind it; what is shifted past them is dropped, of the
magnitude. With fraction_bits=None nothing may be dropped: every term is shifted to its place in a fixed-point number
that spans all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from fpsim.accumulators import FusedDot
from fpsim.formats import Format, container, scalar_format

from .adder import rebased
from .operand import Term, decode, port_width
from .product import product
from .rounding import rounder
from .sequential import with_specials
from .special import step_specials
from .text import Design, Exponent, Module, constant, padded, part, width_for


def fused_dot(design: Design, name: str, a: Format, b: Format, kind: FusedDot, scale: Format | None = None) -> Module:
    """The combinational step of `kind`: ports a, b of L codes each (code 0 in the low bits), c -> y.

    scale : format of one power of two per operand and step, on ports a_scale and b_scale.
    """
    count = kind.terms or 1
    row, held = scalar_format(kind.output), container(kind.output)
    out = Module(name, f"y = c + the sum of {count} products {a.name} x {b.name}, in {held.name}, rounded once.")
    widths = {"a": count * port_width(a), "b": count * port_width(b), "c": held.bits}
    if scale is not None:
        widths |= {"a_scale": port_width(scale), "b_scale": port_width(scale)}
    for port, width in widths.items():
        out.input(port, width)
    terms = []
    for k in range(count):
        codes = tuple(
            part(port, widths[port], (k + 1) * port_width(x) - 1, k * port_width(x)) for port, x in (("a", a), ("b", b))
        )
        terms.append(product(design, out, a, b, (codes[0], codes[1]), f"p{k}"))
    if scale is not None:
        terms = _scaled(design, out, terms, scale)
    terms.append(decode(design, out, held, "c", "c"))
    if kind.fraction_bits is None:
        total, exponent = _exact_sum(out, terms)
    else:
        present = [f"(|{term.significand})" for term in terms]
        total, exponent = aligned_sum(out, terms, present, kind.fraction_bits, kind.zero_exponent)
    rounded_total(design, out, total, exponent, row, kind.rounding)
    out.output("y", held.bits)
    out.assign("y", with_specials(out, "rounded", terms, step_specials(row), held))
    return design.add(out)


def rounded_total(
    design: Design, out: Module, total: tuple[str, int], exponent: Exponent, row: Format, rounding: str
) -> None:
    """Wire `rounded`: the code of a two's complement total, rounded once."""
    held, width = container(row), total[1] - 1  # as many terms as there are never make the most negative number
    magnitude(out, *total, width)
    module = rounder(design, row, rounding, width, exponent, step_specials(row), positive_zero=True)
    out.wire("rounded", held.bits)
    out.instance(
        module.name,
        "round_sum",
        {"sign": "negative", "magnitude": "magnitude", "exponent": exponent.wire, "code": "rounded"},
    )


def magnitude(out: Module, total: str, width: int, kept: int, name: str = "magnitude") -> None:
    """Wires `negative` and `name`, the magnitude's low `kept` bits, of a two's complement total of `width` bits."""
    out.wire("negative", 1, f"{total}[{width - 1}]")
    low = part(total, width, kept - 1, 0)
    out.wire(name, kept, f"({low} ^ {{{kept}{{negative}}}}) + negative")


def _scaled(design: Design, out: Module, terms: list[Term], scale: Format) -> list[Term]:
    """Products times two powers of two: their exponents go up; a NaN scale makes them NaN."""
    left, right = (decode(design, out, scale, f"{x}_scale", f"{x}_scale") for x in ("a", "b"))
    e, f = left.exponent, right.exponent
    bits = width_for(2 * ((1 << e.width) - 1))
    out.wire("scale_exponent", bits, f"{e.wire} + {f.wire}")
    if left.nan:
        out.wire("scale_nan", 1, f"{left.nan} | {right.nan}")
    scaled = []
    for k, term in enumerate(terms):
        old = term.exponent
        width = width_for((1 << old.width) + (1 << bits) - 2)
        wire = out.wire(f"p{k}_scaled", width, f"{old.wire} + scale_exponent")
        nan = " | ".join(x for x in (term.nan, "scale_nan" if left.nan else "") if x)
        exponent = Exponent(
            wire=wire,
            width=width,
            base=old.base + e.base + f.base,
            low=old.low + e.low + f.low,
            high=old.high + e.high + f.high,
        )
        scaled.append(
            Term(
                sign=term.sign,
                exponent=exponent,
                significand=term.significand,
                width=term.width,
                top=1,
                leading_zeros=term.leading_zeros,
                nan=f"({nan})" if nan else "",
                infinite=term.infinite,
            )
        )
    return scaled


def aligned_sum(
    out: Module, terms: Sequence[Term], present: Sequence[str], fraction_bits: int, zero: int | None
) -> tuple[tuple[str, int], Exponent]:
    """The sum of terms truncated at 2**(largest exponent - F), and the exponent of its first magnitude bit.

    present : per term, an expression that is true where its exponent counts. zero : a floor on the largest exponent.
    """
    lowest, highest = min(t.exponent.low for t in terms), max(t.exponent.high for t in terms)
    floor = zero if zero is not None and zero > lowest else None
    base = min(*(t.exponent.base for t in terms), lowest - 1)
    bits = max(width_for((1 << t.exponent.width) - 1 + t.exponent.base - base) for t in terms)
    out.say(f"Exponents from a common base of {base}; a term that is zero does not count.")
    exponents = []
    for i, term in enumerate(terms):
        wire = rebased(out, term.exponent, base, f"e{i}_based")
        exponents.append(out.wire(f"e{i}", bits, f"{present[i]} ? {wire} : {constant(0, bits)}"))
    if floor is not None:
        out.say(f"The largest exponent is at least {floor}, that of a zero.")
        bits = max(bits, width_for(floor - base))
        exponents.append(out.wire("e_zero", bits, constant(floor - base, bits)))
    elif zero is not None:
        out.say(f"zero_exponent = {zero} is below every exponent ({lowest} and up) and never counts.")
    largest = _largest(out, exponents, bits)
    whole = max(term.top for term in terms) + 1
    window = whole + fraction_bits
    size = window + (len(terms) - 1).bit_length() + 1
    out.say(f"Terms on a grid of {whole} + {fraction_bits} bits, truncated, then negated where they are minus.")
    aligned = []
    for i, (term, exponent) in enumerate(zip(terms, exponents[: len(terms)], strict=True)):
        significand, width = _on_grid(term, whole, fraction_bits)
        out.wire(f"d{i}", bits, f"{largest} - {exponent}")
        full = max(width, window)
        out.wire(f"s{i}", full, f"{significand} >> d{i}")
        kept = part(f"s{i}", full, full - 1, full - window)
        out.wire(f"t{i}", size, f"{{{size - window}'b0, {kept}}} ^ {{{size}{{{term.sign}}}}}")
        aligned.append(f"t{i}")
    total = added(out, aligned, [t.sign for t in terms], size)
    low, high = (lowest, highest) if floor is None else (floor, max(highest, floor))
    # the magnitude's first bit is worth 2**(largest + size - 2 - F)
    first = Exponent(wire=largest, width=bits, base=base, low=low, high=high)
    return (total, size), first.plus(size - 2 - fraction_bits)


def _on_grid(term: Term, whole: int, fraction_bits: int) -> tuple[str, int]:
    """The significand with `whole` integer bits and at least `fraction_bits` fraction bits; its width.

    Bits of c further down are never used: a term is truncated at F bits below its own exponent or higher.
    """
    name, width = term.significand, term.width
    if term.top == 0 and term.fraction_bits > fraction_bits:
        drop = term.fraction_bits - fraction_bits
        name, width = part(name, width, width - 1, drop), width - drop
    zeros = max(fraction_bits - (width - 1 - term.top), 0)
    lead = whole - 1 - term.top
    pieces = [f"{lead}'b0"] if lead else []
    pieces.append(name)
    pieces += [f"{zeros}'b0"] if zeros else []
    return (f"{{{', '.join(pieces)}}}" if len(pieces) > 1 else name), lead + width + zeros


def _largest(out: Module, names: Sequence[str], bits: int) -> str:
    """The largest of several wires, by a tree of comparisons."""
    level, row = 0, list(names)
    while len(row) > 1:
        merged = []
        for i in range(0, len(row) - 1, 2):
            x, y = row[i], row[i + 1]
            merged.append(out.wire(f"max{level}_{i // 2}", bits, f"{x} > {y} ? {x} : {y}"))
        row = merged + row[len(row) - len(row) % 2 :]
        level += 1
    return row[0]


def added(out: Module, terms: Sequence[str], signs: Sequence[str], size: int) -> str:
    """Sum of inverted-or-not terms, plus one for each that is minus: two's complement without a carry per term."""
    out.say("-t = ~t + 1: the ones are added together.")
    ones = width_for(len(signs))
    out.wire("minus_count", ones, " + ".join(signs))
    level, row = 0, list(terms)
    while len(row) > 1:
        merged = []
        for i in range(0, len(row) - 1, 2):
            merged.append(out.wire(f"sum{level}_{i // 2}", size, f"{row[i]} + {row[i + 1]}"))
        row = merged + row[len(row) - len(row) % 2 :]
        level += 1
    return out.wire("total", size, f"{row[0]} + minus_count")


def _exact_sum(out: Module, terms: Sequence[Term]) -> tuple[tuple[str, int], Exponent]:
    """Every term at its place in one fixed-point number, added."""
    unit = min(t.exponent.low - t.fraction_bits for t in terms)
    top = max(t.exponent.high + t.top for t in terms)
    window = top - unit + 1
    size = window + (len(terms) - 1).bit_length() + 1
    out.say(f"Fixed point from 2**{unit} to 2**{top}: every term at its place, nothing dropped.")
    aligned = []
    for i, term in enumerate(terms):
        placed(out, term, unit, window, f"s{i}")
        out.wire(f"t{i}", size, f"{{{size - window}'b0, s{i}}} ^ {{{size}{{{term.sign}}}}}")
        aligned.append(f"t{i}")
    total = added(out, aligned, [t.sign for t in terms], size)
    weight = unit + size - 2
    return (total, size), Exponent(wire="1'b0", width=1, base=weight, low=weight, high=weight)


def placed(out: Module, term: Term, unit: int, window: int, name: str) -> str:
    """A wire of `window` bits whose last one is worth 2**unit: the term's magnitude at its place."""
    lowest = term.exponent.low - term.fraction_bits
    shift = term.exponent.low - term.exponent.base  # the wire of the smallest exponent
    significand = padded(term.significand, max(lowest - unit, 0))
    amount = term.exponent.wire
    if term.exponent.low == term.exponent.high:
        return out.wire(name, window, significand)
    less = f"({amount} - {constant(shift, width_for(shift))})" if shift else amount
    return out.wire(name, window, f"{significand} << {less}")
