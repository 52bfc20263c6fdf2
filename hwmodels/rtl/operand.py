"""Taking a code apart: sign, exponent, significand, and whether it is Inf or NaN."""

from __future__ import annotations

from dataclasses import dataclass

from fpsim.formats import Format

from .text import Design, Exponent, Module, constant, identifier, part


@dataclass(frozen=True, kw_only=True)
class Term:
    """Wires of one number: (-1)**sign * significand * 2**(exponent - (width - 1 - top)).

    top : the exponent is that of the significand's bit width - 1 - top (0: of the first bit; 1: a product, in [0, 4)).
    leading_zeros : how many bits in front of the first one a nonzero significand can have.
    nan, infinite : wires, "" where the format has none.
    """

    sign: str
    exponent: Exponent
    significand: str
    width: int
    top: int = 0
    leading_zeros: int = 0
    nan: str = ""
    infinite: str = ""

    @property
    def fraction_bits(self) -> int:
        """Significand bits below the unit 2**exponent."""
        return self.width - 1 - self.top


def port_width(row: Format) -> int:
    """Bits of a code on a port: the low bits that carry nothing (TF32 in a float32) are left out."""
    return row.bits


def decoder(design: Design, row: Format, flush: bool = False) -> Module:
    """The module that takes a code of `row` apart. flush: a subnormal reads as a zero of its sign."""
    return design.add(_integer_decoder(row) if row.kind == "int" else _float_decoder(row, flush))


def _float_decoder(row: Format, flush: bool) -> Module:
    e, m = row.exponent_bits, row.mantissa_bits
    note = f"{row.name}: {int(row.signed)} sign, {e} exponent and {m} mantissa bits, bias {row.bias}."
    name = f"decode_{identifier(row.name)}{'_flush' if flush else ''}"
    out = Module(name, f"{note}{' Subnormals read as zeros.' if flush else ''}")
    code = out.input("code", port_width(row))
    bits = row.bits
    out.output("sign")
    out.output("exponent", max(e, 1))
    out.output("significand", m + 1)
    out.assign("sign", f"{code}[{e + m}]" if row.signed else "1'b0")
    field = out.wire("field", e, part(code, bits, e + m - 1, m))
    if row.zero:
        normal = out.wire("normal", 1, f"|{field}")
        out.assign("exponent", f"{field} | !{normal}", "a subnormal has the exponent of the smallest normal number")
    else:
        normal = "1'b1"
        out.assign("exponent", field)
    mantissa = part(code, bits, m - 1, 0) if m else ""
    if m and flush:
        mantissa = f"{mantissa} & {{{m}{{{normal}}}}}"
    out.assign("significand", f"{{{normal}, {mantissa}}}" if m else normal)
    magnitude = part(code, bits, e + m - 1, 0)
    if _has_nan(row):
        out.output("nan")
        out.assign("nan", _is_nan(row, magnitude))
    if row.infinity_code is not None:
        out.output("infinite")
        out.assign("infinite", f"{magnitude} == {constant(row.infinity_code, e + m)}")
    return out


def _has_nan(row: Format) -> bool:
    return row.nan_code is not None


def _is_nan(row: Format, magnitude: str) -> str:
    e, m = row.exponent_bits, row.mantissa_bits
    if row.nan == "ieee":
        return f"(&field) & (|{part('code', row.bits, m - 1, 0)})" if m else "1'b0"
    if row.nan == "negative-zero":
        return f"code == {constant(1 << (e + m), row.bits)}"
    return f"&{magnitude}"


def _integer_decoder(row: Format) -> Module:
    out = Module(f"decode_{identifier(row.name)}", f"{row.name}: sign and magnitude of an integer.")
    code = out.input("code", port_width(row))
    out.output("sign")
    out.output("exponent")
    out.output("significand", row.bits)
    out.assign("sign", part(code, row.bits, row.bits - 1, row.bits - 1) if row.signed else "1'b0")
    out.assign("exponent", "1'b0")
    out.assign("significand", f"(code ^ {{{row.bits}{{sign}}}}) + sign" if row.signed else code)
    return out


def decode(design: Design, into: Module, row: Format, code: str, prefix: str, flush: bool = False) -> Term:
    """Take `code` apart inside module `into`; its wires are called prefix_sign and so on."""
    module = decoder(design, row, flush)
    wires = {port: f"{prefix}_{port}" for _, port, _ in module.ports if port != "code"}
    for port, wire in wires.items():
        into.wire(wire, module.port_width(port))
    into.instance(module.name, f"decode_{prefix}", {"code": code, **wires})
    width = module.port_width("significand")
    if row.kind == "int":
        base = width - 1 - row.bias
        exponent = Exponent(wire=wires["exponent"], width=1, base=base, low=base, high=base)
        zeros = width - 1
    else:
        top_field = row.max_code >> row.mantissa_bits
        exponent = Exponent(
            wire=wires["exponent"],
            width=module.port_width("exponent"),
            base=-row.bias,
            low=row.minimum_exponent,
            high=max(top_field, int(row.zero)) - row.bias,
        )
        zeros = 0 if flush or not row.zero else row.mantissa_bits
    return Term(
        sign=wires["sign"],
        exponent=exponent,
        significand=wires["significand"],
        width=width,
        leading_zeros=zeros,
        nan=wires.get("nan", ""),
        infinite=wires.get("infinite", ""),
    )
