"""Block-scaled FP4 (`GroupedDot`): exact sums of groups, times their two scales, as terms of a fused dot product.

GST-FDPA of arXiv:2511.10909. The sum of a group is not renormalised: its exponent is that of the two scales, and counts
if any product of the group is not zero, even where they cancel. Elements have neither Inf nor NaN; a scale may be NaN.
"""

from __future__ import annotations

from fpsim.accumulators import GroupedDot
from fpsim.formats import Format, container, scalar_format

from .fused import added, aligned_sum, magnitude, placed, rounded_total
from .operand import Term, decode, port_width
from .product import product
from .special import step_specials
from .text import Design, Exponent, Module, constant, part, width_for


def grouped_dot(design: Design, name: str, a: Format, b: Format, kind: GroupedDot, scale: Format, block: int) -> Module:
    """The combinational step of `kind`: ports a, b of group * groups codes, a_scale, b_scale one per block, c -> y."""
    row, held = scalar_format(kind.output), container(kind.output)
    count = kind.group * kind.groups
    out = Module(name, f"y = c + {kind.groups} sums of {kind.group} products {a.name} x {b.name} with scales.")
    scales = count // block
    widths = {"a": count * port_width(a), "b": count * port_width(b)}
    widths |= {"a_scale": scales * port_width(scale), "b_scale": scales * port_width(scale), "c": held.bits}
    for port, width in widths.items():
        out.input(port, width)

    def code(port: str, row: Format, k: int) -> str:
        return part(port, widths[port], (k + 1) * port_width(row) - 1, k * port_width(row))

    pairs = [
        tuple(decode(design, out, scale, code(f"{x}_scale", scale, i), f"{x}_scale{i}") for x in ("a", "b"))
        for i in range(scales)
    ]
    sums = _group_sums(design, a, b, kind.group)
    size = sums.port_width("magnitude")
    terms, present = [], []
    for g in range(kind.groups):
        wires = {port: f"g{g}_{port}" for port in ("sign", "magnitude", "any")}
        for port, wire in wires.items():
            out.wire(wire, sums.port_width(port))
        inputs = {
            port: part(port, widths[port], (g + 1) * sums.port_width(port) - 1, g * sums.port_width(port))
            for port in ("a", "b")
        }
        out.instance(sums.name, f"sum_g{g}", {**inputs, **wires})
        x, y = pairs[g * kind.group // block]
        term = _scaled_term(out, g, size, _unit(a) + _unit(b), x, y)
        terms.append(term)
        present.append(f"(g{g}_any & (|{x.significand}) & (|{y.significand}))")
    c = decode(design, out, held, "c", "c")
    terms.append(c)
    present.append(f"(|{c.significand})")
    total, exponent = aligned_sum(out, terms, present, kind.fraction_bits, kind.zero_exponent)
    rounded_total(design, out, total, exponent, row, kind.rounding)
    nans = [t.nan for pair in pairs for t in pair if t.nan] + ([c.nan] if c.nan else [])
    result = f"{c.infinite} ? c : rounded" if c.infinite else "rounded"
    if nans:
        out.wire("nan", 1, " | ".join(nans))
        result = f"nan ? {constant(step_specials(row).nan, held.bits)} : {result}"
    out.output("y", held.bits)
    out.assign("y", result)
    return design.add(out)


def _unit(row: Format) -> int:
    """Exponent of the unit that every value of a format is a multiple of."""
    return row.minimum_exponent - row.mantissa_bits


def _group_sums(design: Design, a: Format, b: Format, count: int) -> Module:
    """A module: the exact sum of `count` products as sign and magnitude, and whether any product is not zero."""
    out = Module(f"sum_of_{count}", f"The exact sum of {count} products, in units of 2**{_unit(a) + _unit(b)}.")
    for port, row in (("a", a), ("b", b)):
        out.input(port, count * port_width(row))
    terms = []
    for k in range(count):
        codes = [
            part(port, count * port_width(row), (k + 1) * port_width(row) - 1, k * port_width(row))
            for port, row in (("a", a), ("b", b))
        ]
        terms.append(product(design, out, a, b, (codes[0], codes[1]), f"p{k}"))
    unit = _unit(a) + _unit(b)
    window = terms[0].exponent.high + terms[0].top - unit + 1
    size = window + (count - 1).bit_length() + 1
    for k, term in enumerate(terms):
        placed(out, term, unit, window, f"s{k}")
        out.wire(f"t{k}", size, f"{{{size - window}'b0, s{k}}} ^ {{{size}{{{term.sign}}}}}")
    added(out, [f"t{k}" for k in range(count)], [term.sign for term in terms], size)
    out.output("sign")
    out.output("any")
    magnitude(out, "total", size, size - 1, "absolute")
    out.output("magnitude", size - 1)
    out.assign("magnitude", "absolute")
    out.assign("sign", "negative")
    out.assign("any", " | ".join(f"(|{term.significand})" for term in terms), "they may cancel, and count all the same")
    return design.add(out)


def _scaled_term(out: Module, g: int, size: int, unit: int, x: Term, y: Term) -> Term:
    """A group's sum times its scales: one term whose exponent is that of the scales."""
    width, significand = size, f"g{g}_magnitude"
    if x.width > 1:  # not a power of two
        width = size + x.width + y.width
        factor = out.wire(f"g{g}_factor", x.width + y.width, f"{x.significand} * {y.significand}")
        significand = out.wire(f"g{g}_product", width, f"{significand} * {factor}")
    e, f = x.exponent, y.exponent
    bits = width_for(2 * ((1 << e.width) - 1))
    out.wire(f"g{g}_exponent", bits, f"{e.wire} + {f.wire}")
    exponent = Exponent(
        wire=f"g{g}_exponent", width=bits, base=e.base + f.base, low=e.low + f.low, high=e.high + f.high
    )
    fraction_bits = x.fraction_bits + y.fraction_bits - unit
    top = width - 1 - fraction_bits
    return Term(sign=f"g{g}_sign", exponent=exponent, significand=significand, width=width, top=top)
