"""The exact product of two codes, and a significand shifted until its first bit is one."""

from __future__ import annotations

from dataclasses import replace

from fpsim.formats import Format

from .operand import Term, decode, port_width
from .text import Design, Exponent, Module, identifier, padded, part, width_for


def product(
    design: Design, into: Module, a: Format, b: Format, codes: tuple[str, str], prefix: str, flush: bool = False
) -> Term:
    """The product of two codes inside module `into`: exponents added, significands multiplied, not renormalised."""
    made, x, y = _multiplier(a, b, design, flush)
    wires = {port: f"{prefix}_{port}" for _, port, _ in made.ports if port not in ("a", "b")}
    for port, wire in wires.items():
        into.wire(wire, made.port_width(port))
    into.instance(made.name, f"multiply_{prefix}", {"a": codes[0], "b": codes[1], **wires})
    exponent = Exponent(
        wire=wires["exponent"],
        width=made.port_width("exponent"),
        base=x.exponent.base + y.exponent.base,
        low=x.exponent.low + y.exponent.low,
        high=x.exponent.high + y.exponent.high,
    )
    return Term(
        sign=wires["sign"],
        exponent=exponent,
        significand=wires["significand"],
        width=x.width + y.width,
        top=1,
        leading_zeros=x.leading_zeros + y.leading_zeros + 1,
        nan=wires.get("nan", ""),
        infinite=wires.get("infinite", ""),
    )


def _multiplier(a: Format, b: Format, design: Design, flush: bool) -> tuple[Module, Term, Term]:
    name = f"multiply_{identifier(a.name)}_{identifier(b.name)}{'_flush' if flush else ''}"
    out = Module(name, f"The exact product {a.name} x {b.name}.")
    out.input("a", port_width(a))
    out.input("b", port_width(b))
    x, y = decode(design, out, a, "a", "x", flush), decode(design, out, b, "b", "y", flush)
    out.output("sign")
    out.assign("sign", f"{x.sign} ^ {y.sign}")
    width = width_for((1 << x.exponent.width) - 1 + (1 << y.exponent.width) - 1)
    out.output("exponent", width)
    out.assign("exponent", f"{x.exponent.wire} + {y.exponent.wire}")
    out.output("significand", x.width + y.width)
    out.assign("significand", f"{x.significand} * {y.significand}")
    nans = [t.nan for t in (x, y) if t.nan]
    nans += [f"({t.infinite} & ~|{other.significand})" for t, other in ((x, y), (y, x)) if t.infinite]
    if nans:
        out.output("nan")
        out.assign("nan", " | ".join(nans), "Inf x 0 too" if any("&" in n for n in nans) else "")
    infinite = [t.infinite for t in (x, y) if t.infinite]
    if infinite:
        out.output("infinite")
        out.assign("infinite", " | ".join(infinite))
    return design.add(out), x, y


def leading_zeros(design: Design, width: int) -> Module:
    """A module that counts zeros before the first one: halve, look, keep a half. All ones for an input of zero."""
    steps = width_for(width - 1)
    out = Module(f"leading_zeros_{width}", f"Zeros before the first one of {width} bits.")
    out.input("x", width)
    out.output("count", steps)
    size = 1 << steps
    held = out.wire(f"x{steps}", size, padded("x", size - width))
    for step in range(steps - 1, -1, -1):
        half = 1 << step
        bit = part("count", steps, step, step)
        out.assign(bit, f"~|{part(held, 2 * half, 2 * half - 1, half)}")
        if step:
            held = out.wire(f"x{step}", half, f"{bit} ? {held}[{half - 1}:0] : {held}[{2 * half - 1}:{half}]")
    return design.add(out)


def normalised(design: Design, into: Module, term: Term, prefix: str) -> Term:
    """`term` with its first significand bit at the top, the exponent lowered for it (garbage if it is zero)."""
    counter = leading_zeros(design, term.width)
    bits = counter.port_width("count")
    count = into.wire(f"{prefix}_zeros", bits)
    into.instance(counter.name, f"{prefix}_count", {"x": term.significand, "count": count})
    into.wire(f"{prefix}_normal", term.width, f"{term.significand} << {count}")
    # value - base may fall below zero by the count: the base goes down by the largest count
    drop = (1 << bits) - 1
    old = term.exponent
    high = old.high + term.top
    width = width_for((1 << old.width) - 1 + drop)
    into.wire(f"{prefix}_lowered", width, f"{old.wire} + {{{bits}{{1'b1}}}} - {count}")
    low = old.low + term.top - term.leading_zeros
    exponent = Exponent(wire=f"{prefix}_lowered", width=width, base=old.base + term.top - drop, low=low, high=high)
    return replace(term, significand=f"{prefix}_normal", exponent=exponent, top=0, leading_zeros=0)
