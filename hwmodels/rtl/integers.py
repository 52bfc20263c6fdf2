"""An integer multiply-accumulate or dot product (`IntegerAccumulator`), in two's complement."""

from __future__ import annotations

from fpsim.accumulators import IntegerAccumulator
from fpsim.formats import Format

from .operand import port_width
from .text import Design, Module, constant, part


def integer_step(design: Design, name: str, a: Format, b: Format, kind: IntegerAccumulator) -> Module:
    """The combinational step: ports a, b of `step` codes each, c -> y, both of `bits` bits."""
    count = kind.step
    out = Module(
        name,
        f"y = c + the sum of {count} products {a.name} x {b.name}; {kind.bits}-bit two's complement, {kind.overflow}."
        if count > 1
        else f"y = c + a * b: {a.name} x {b.name}, {kind.bits}-bit two's complement, {kind.overflow}.",
    )
    widths = {"a": count * port_width(a), "b": count * port_width(b), "c": kind.bits}
    for port, width in widths.items():
        out.input(port, width)
    out.output("y", kind.bits)
    bits = a.bits + b.bits + int(not a.signed and not b.signed)  # any product, with its sign
    products = []
    for k in range(count):
        x, y = (_operand(port, widths[port], row, k, a.signed or b.signed) for port, row in (("a", a), ("b", b)))
        products.append(out.wire(f"p{k}", bits, f"{x} * {y}"))
    if kind.order == "pairwise":
        products = [settled(out, p, bits, kind, f"{p}_held") for p in products]
        bits = kind.bits
        total = _tree(out, products, kind)
    else:
        total, bits = _sum(out, products, bits)
    if kind.step_bits is not None:
        total, bits = clamped(out, total, bits, kind.step_bits, "step"), kind.step_bits
    out.assign("y", _accumulated(out, total, bits, kind))
    return design.add(out)


def signed_to(name: str, width: int, wanted: int) -> str:
    """A two's complement wire with its sign repeated up to `wanted` bits, or its low bits."""
    if wanted <= width:
        return part(name, width, wanted - 1, 0)
    return f"{{{{{wanted - width}{{{part(name, width, width - 1, width - 1)}}}}}, {name}}}"


def clamped(out: Module, name: str, width: int, bits: int, prefix: str) -> str:
    """A wire with a two's complement number clamped to `bits`; the wire itself where it fits."""
    if width <= bits:
        return name if width == bits else out.wire(f"{prefix}_wide", bits, signed_to(name, width, bits))
    high = part(name, width, width - 1, bits - 1)
    out.wire(f"{prefix}_fits", 1, f"(&{high}) | ~(|{high})", "the bits above are all the sign")
    limit = f"{{{name}[{width - 1}], {{{bits - 1}{{~{name}[{width - 1}]}}}}}}"
    return out.wire(f"{prefix}_clamped", bits, f"{prefix}_fits ? {part(name, width, bits - 1, 0)} : {limit}")


def settled(out: Module, name: str, width: int, kind: IntegerAccumulator, wire: str) -> str:
    """A sum after the accumulator has looked at overflow, in `kind.bits` bits."""
    if kind.overflow == "saturate":
        return clamped(out, name, width, kind.bits, wire)
    return out.wire(wire, kind.bits, signed_to(name, width, kind.bits))


def _operand(port: str, total: int, row: Format, k: int, signed: bool) -> str:
    """Operand k of a port, as Verilog's signed numbers where one of the two has a sign."""
    bits = part(port, total, (k + 1) * row.bits - 1, k * row.bits)
    if not signed:
        return bits
    return f"$signed({bits})" if row.signed else f"$signed({{1'b0, {bits}}})"


def _sum(out: Module, terms: list[str], bits: int) -> tuple[str, int]:
    """Exact sum of several two's complement wires, by a tree that grows a bit per level."""
    level, row = 0, list(terms)
    while len(row) > 1:
        merged = []
        for i in range(0, len(row), 2):
            pair = [signed_to(x, bits, bits + 1) for x in row[i : i + 2]]
            merged.append(out.wire(f"sum{level}_{i // 2}", bits + 1, " + ".join(pair)))
        row, level, bits = merged, level + 1, bits + 1
    return row[0], bits


def _tree(out: Module, terms: list[str], kind: IntegerAccumulator) -> str:
    """Pairwise sums that each look at overflow."""
    level, row, bits = 0, list(terms), kind.bits
    while len(row) > 1:
        merged = []
        for i in range(0, len(row), 2):
            wide = out.wire(
                f"sum{level}_{i // 2}_exact",
                bits + 1,
                " + ".join(signed_to(x, bits, bits + 1) for x in row[i : i + 2]),
            )
            merged.append(settled(out, wide, bits + 1, kind, f"sum{level}_{i // 2}"))
        row, level = merged, level + 1
    return row[0]


def _accumulated(out: Module, total: str, bits: int, kind: IntegerAccumulator) -> str:
    """c + total under the accumulator's rule."""
    if kind.overflow == "wrap":
        return f"c + {signed_to(total, bits, kind.bits)}"
    wide = max(bits, kind.bits) + 1
    operands = f"{signed_to('c', kind.bits, wide)} + {signed_to(total, bits, wide)}"
    out.wire("accumulated", wide, operands)
    return clamped(out, "accumulated", wide, kind.bits, "y")


def integer_readout(design: Design, name: str, bits: int, row: Format) -> Module:
    """A two's complement accumulator clamped to an integer format: port x -> y."""
    out = Module(name, f"{bits}-bit two's complement to {row.name}, clamped.")
    out.input("x", bits)
    out.output("y", row.bits)
    if row.signed:
        out.assign("y", clamped(out, "x", bits, row.bits, "x"))
        return design.add(out)
    high = part("x", bits, bits - 2, row.bits) if bits - 1 > row.bits else ""
    out.wire("negative", 1, part("x", bits, bits - 1, bits - 1))
    low = part("x", bits, min(row.bits, bits) - 1, 0)
    top = f"(|{high}) ? {constant(row.max_code, row.bits)} : " if high else ""
    out.assign("y", f"negative ? {constant(0, row.bits)} : {top}{low}")
    return design.add(out)
