"""From a `MatmulSpec` to a design: which circuit an accumulator is, and what is not generated.

Every unit has a combinational step (operands and the accumulator in, the accumulator out), which is what gate counts
are about, and a clocked module around it: a register, and the way from it to a result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from fpsim.accumulators import (
    Accumulator,
    FixedPoint,
    FusedDot,
    GroupedDot,
    IntegerAccumulator,
    PairwiseTree,
    Promoted,
    SequentialFma,
    SplitK,
    TwoStageDot,
)
from fpsim.formats import Format, container, integer, scalar_format
from fpsim.spec import MatmulSpec

from .fixed import fixed_point, fixed_readout, register
from .fused import fused_dot
from .grouped import grouped_dot
from .integers import integer_readout, integer_step
from .readout import converter
from .sequential import sequential
from .text import WIDTH, Design, Module, identifier, wrapped


class NoCircuit(ValueError):  # noqa: N818 - it reads as what is wrong
    """No Verilog is generated for this arithmetic; the message says why, and what to give instead."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A generated design.

    name, step, readout : its clocked module, the combinational step in it, and the module between the register and the
        result ("" if the register is the result).
    terms : products per step. ports : width of every port of the clocked module but clk and start.
    state : bits of the accumulator register. starts : whether it can start from c (a Kulisch register starts from 0).
    verilog : the whole file.
    """

    name: str
    step: str
    readout: str
    terms: int
    ports: Mapping[str, int]
    state: int
    starts: bool
    verilog: str


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a builder made: the step, what its register holds, the way out of it, and why its widths are so."""

    step: Module
    terms: int
    holds: Format
    why: str
    readout: Module | None = None
    starts: bool = True


#: accumulators without a circuit here, and what to do about it
REFUSED: Mapping[type[Accumulator], str] = {
    TwoStageDot: "two-stage alignment is not generated; a FusedDot is the nearest kind",
    PairwiseTree: "trees of rounded sums are not generated; a SequentialFma has the same operations in a chain",
    Promoted: "a promotion is two units; give the inner accumulator, and the outer sum as a SequentialFma of its own",
    SplitK: "split K runs one unit several times; give its inner accumulator",
}


def unit(spec: MatmulSpec) -> Unit:
    """The multiply-accumulate or dot-product unit of `spec`.

    FusedDot(terms=None, fraction_bits=None), which has no register, gets one of the largest product's width, a sign and
    10 bits more; a sum that leaves it wraps. FixedPoint says its own.
    Raises NoCircuit (a ValueError) for arithmetic there is no circuit for.
    """
    design = Design()
    parts = _parts(design, spec)
    base = parts.step.name.removesuffix("_step")
    chain = _way_out(design, spec, parts)
    readout = _in_series(design, chain, f"{base}_readout") if len(chain) > 1 else next(iter(chain), None)
    top = design.add(_register(base, parts, readout))
    ports = {name: width for _, name, width in top.ports if name not in ("clk", "start")}
    return Unit(
        name=top.name,
        step=parts.step.name,
        readout=readout.name if readout else "",
        terms=parts.terms,
        ports=ports,
        state=parts.step.port_width("y"),
        starts=parts.starts,
        verilog=f"{_header(spec, parts, ports)}\n{design.text()}",
    )


def _parts(design: Design, spec: MatmulSpec) -> _Parts:
    """The step and the readout of an accumulator, added to `design`."""
    _check_operands(spec)
    match spec.accumulator:
        case FixedPoint() as kind:
            return _fixed(design, spec, kind)
        case FusedDot(terms=None, fraction_bits=None) as kind:
            if spec.scale is not None:
                raise NoCircuit(
                    "a fixed-point register over block scales is not generated; give terms and fraction_bits"
                )
            bits = register(spec.a, spec.b).bits
            return _fixed(design, spec, FixedPoint(bits, None, "wrap", kind.rounding, kind.output))
        case IntegerAccumulator() as kind:
            return _integer(design, spec, kind)
        case SequentialFma() as kind:
            return _sequential(design, spec, kind)
        case FusedDot(terms=None) as kind:
            raise NoCircuit(f"{kind} takes all of K in one step, which no circuit of fixed size does; give terms")
        case FusedDot() as kind:
            return _fused(design, spec, kind)
        case GroupedDot() as kind:
            return _grouped(design, spec, kind)
        case kind:
            raise NoCircuit(f"no circuit for {type(kind).__name__}: {REFUSED[type(kind)]}")


def _check_operands(spec: MatmulSpec) -> None:
    if spec.epilogue is not None:
        raise NoCircuit(
            f"{spec.engine or 'this spec'} is a library's product: its scales and bias are applied beside the unit; "
            "give the engine below it, such as hopper/wgmma"
        )
    for port, row in (("a", spec.a), ("b", spec.b)):
        if row.kind == "codebook":
            raise NoCircuit(f"{port} is {row.name!r}, a codebook; give the format its values are looked up in")
        if isinstance(spec.accumulator, IntegerAccumulator) and (row.kind != "int" or row.bias):
            raise NoCircuit(f"an IntegerAccumulator takes integer operands, got {port}={row.name!r}")
        if (
            isinstance(spec.accumulator, FusedDot | GroupedDot)
            and spec.accumulator.fraction_bits
            and row.kind != "float"
        ):
            raise NoCircuit(
                f"a {type(spec.accumulator).__name__} that aligns takes float operands, got {port}={row.name!r}"
            )


def _integer(design: Design, spec: MatmulSpec, kind: IntegerAccumulator) -> _Parts:
    if kind.overflow == "error":
        raise NoCircuit("no circuit for overflow='error': hardware wraps or saturates; say which")
    if kind.bits > 54 and scalar_format(spec.out).kind != "int":
        raise NoCircuit(f"a {kind.bits}-bit sum does not round to {spec.out!r} exactly; take out='int64'")
    saturate = "" if kind.overflow == "wrap" else "_saturate"
    step = integer_step(design, f"{_stem(spec, kind.step)}_int{kind.bits}{saturate}_step", spec.a, spec.b, kind)
    holds = scalar_format(kind.output)
    if kind.bits != holds.bits:
        holds = dataclasses.replace(integer(32), name=f"int{kind.bits}", mantissa_bits=kind.bits - 1)
    rule = "wraps" if kind.overflow == "wrap" else "saturates after every addition"
    why = f"products are exact; the sum {rule} at {kind.bits} bits"
    return _Parts(step=step, terms=kind.step, holds=holds, why=why)


def _sequential(design: Design, spec: MatmulSpec, kind: SequentialFma) -> _Parts:
    words = [kind.output, "" if kind.rounding == "rne" else kind.rounding, "" if kind.fused else "unfused"]
    words += [kind.product, "flush" if kind.flush else "", "" if kind.overflow == "infinity" else kind.overflow]
    name = "_".join(identifier(word) for word in (_stem(spec, 1), *words, "step") if word)
    step = sequential(design, name, spec.a, spec.b, kind)
    why = (
        "the product is exact; the adder keeps two guard bits and a sticky bit below the wider significand, which is "
        "all one rounding needs"
    )
    if kind.order != "ascending":
        why += f"; k comes in {kind.order} order, which is the caller's to feed"
    return _Parts(step=step, terms=1, holds=container(kind.output), why=why)


def _fused(design: Design, spec: MatmulSpec, kind: FusedDot) -> _Parts:
    terms, scale = kind.terms or 1, None
    if spec.scale is not None:
        scale = scalar_format(spec.scale)
        if scale.mantissa_bits or scale.zero:
            raise NoCircuit(f"scale={scale.name!r} is no power of two; a FusedDot circuit takes scale='e8m0'")
        if spec.block is None or spec.block % terms:
            raise NoCircuit(f"steps of {terms} products do not divide blocks of {spec.block}: one scale per step")
    words = [kind.output, kind.rounding, "exact" if kind.fraction_bits is None else f"f{kind.fraction_bits}"]
    words += ["" if scale is None else scale.name]
    name = "_".join(identifier(word) for word in (_stem(spec, terms), *words, "step") if word)
    step = fused_dot(design, name, spec.a, spec.b, kind, scale)
    window = (
        f"aligned terms have 2 integer bits (a product is below 4) and F = {kind.fraction_bits} fraction bits"
        if kind.fraction_bits is not None
        else "nothing is dropped, so the sum spans every product and every c"
    )
    why = f"{window}; {(terms).bit_length()} more bits hold the sum of {terms + 1} terms, one its sign"
    return _Parts(step=step, terms=terms, holds=container(kind.output), why=why)


def _grouped(design: Design, spec: MatmulSpec, kind: GroupedDot) -> _Parts:
    scale, block, terms = scalar_format(spec.scale or ""), spec.block or kind.group, kind.group * kind.groups
    if any(row.nan_code is not None or row.infinity_code is not None for row in (spec.a, spec.b)) or scale.signed:
        raise NoCircuit(
            f"a GroupedDot circuit takes elements without Inf and NaN and scales without a sign, got {spec}"
        )
    if block % kind.group or terms % block:
        raise NoCircuit(f"blocks of {block} and groups of {kind.group} in steps of {terms} do not divide each other")
    words = [kind.output, kind.rounding, f"f{kind.fraction_bits}", scale.name, f"b{block}"]
    name = "_".join(identifier(word) for word in (_stem(spec, terms), *words, "step"))
    step = grouped_dot(design, name, spec.a, spec.b, kind, scale, block)
    why = f"sums of {kind.group} products are exact; aligned terms have F = {kind.fraction_bits} fraction bits"
    return _Parts(step=step, terms=terms, holds=container(kind.output), why=why)


def _fixed(design: Design, spec: MatmulSpec, kind: FixedPoint) -> _Parts:
    held, saturate = register(spec.a, spec.b, kind), kind.overflow == "saturate"
    cut = held.unit != held.low
    words = [f"fixed{held.bits}", f"lsb_{held.unit}".replace("-", "m") if cut else "", "saturate" if saturate else ""]
    base = "_".join([_stem(spec, 1), *filter(None, words)])
    step = fixed_point(design, f"{base}_step", spec.a, spec.b, held, saturate=saturate)
    readout = fixed_readout(
        design, f"{base}_to_{identifier(kind.output)}_{kind.rounding}", kind.output, kind.rounding, held
    )
    whole = held.high - held.unit + 1
    room = held.bits - 1 - whole
    why = (
        (f"the smallest product is a multiple of 2**{held.low}, " if cut else "")
        + f"the last bit is 2**{held.unit}, in which the largest product has {max(whole, 0)} bits; with a sign, "
        f"{held.bits} bits hold "
        + (f"2**{room} of them" if room >= 0 else "smaller sums")
        + f", and {'saturate' if saturate else 'wrap'} beyond"
    )
    return _Parts(step=step, terms=1, holds=container(kind.output), why=why, readout=readout, starts=False)


def _stem(spec: MatmulSpec, terms: int) -> str:
    return identifier(f"{'mac' if terms == 1 else f'dot{terms}'}_{spec.a.name}_{spec.b.name}")


# -- around the step ----------------------------------------------------------------------------------------------


def _way_out(design: Design, spec: MatmulSpec, parts: _Parts) -> list[Module]:
    """Modules from the register to a result in spec.out, in order."""
    chain = [parts.readout] if parts.readout else []
    wanted, holds = scalar_format(spec.out), parts.holds
    own = container(spec.accumulator.output)
    if wanted == own:
        return chain
    if wanted.kind == "int":
        if holds.kind != "int" or wanted.bias:
            raise NoCircuit(f"no circuit from {holds.name} to out={wanted.name!r}; give a float format, or leave out")
        bits = parts.step.port_width("y")
        return [*chain, integer_readout(design, f"clamp_int{bits}_{identifier(wanted.name)}", bits, wanted)]
    if wanted.kind == "codebook" or not wanted.signed or not wanted.zero:
        raise NoCircuit(f"no circuit to out={wanted.name!r}; allowed: signed floats and integers")
    return [*chain, converter(design, holds, wanted)]


def _in_series(design: Design, chain: list[Module], name: str) -> Module:
    out = Module(name, " then ".join(module.name for module in chain) + ".")
    wire = out.input("x", chain[0].port_width("x"))
    for module in chain:
        after = out.wire(f"{module.name}_y", module.port_width("y"))
        out.instance(module.name, f"do_{module.name}", {"x": wire, "y": after})
        wire = after
    out.output("y", chain[-1].port_width("y"))
    out.assign("y", wire)
    return design.add(out)


def _register(name: str, parts: _Parts, readout: Module | None) -> Module:
    """The clocked module: a register around the step."""
    state = parts.step.port_width("y")
    out = Module(
        name,
        "One step per clock; `start` begins a new sum "
        + ("from c." if parts.starts else "from zero.")
        + " The result y is that of the steps so far.",
    )
    out.input("clk")
    out.input("start")
    inputs = {port: width for kind, port, width in parts.step.ports if kind == "input" and port != "c"}
    for port, width in inputs.items():
        out.input(port, width)
    if parts.starts:
        out.input("c", state)
    span = f"[{state - 1}:0]"
    out.raw(f"reg {span} held;")
    out.wire("next", state)
    out.wire("before", state, "start ? c : held" if parts.starts else f"held & {{{state}{{~start}}}}")
    out.instance(parts.step.name, "step", {**{port: port for port in inputs}, "c": "before", "y": "next"})
    out.raw("always @(posedge clk) held <= next;")
    out.output("y", readout.port_width("y") if readout else state)
    if readout:
        out.instance(readout.name, "readout", {"x": "held", "y": "y"})
    else:
        out.assign("y", "held")
    return out


def _header(spec: MatmulSpec, parts: _Parts, ports: Mapping[str, int]) -> str:
    """Comments that say what the file computes and why its widths are what they are."""
    widths = ", ".join(f"{name} {width}" for name, width in ports.items())
    scale = f", scale={spec.scale}, block={spec.block}" if spec.scale else ""
    lines = [
        f"{spec.a.name} x {spec.b.name} into {spec.accumulator}, out={spec.out}{scale}",
        "",
        f"Operands: {_described(spec.a)}; {_described(spec.b)}.",
        f"Products per step: {parts.terms}. Ports: {widths} bits.",
        f"Widths: {parts.why}.",
        "Generated by fpsim, whose emulator computes the same bits. Verilog-2005.",
    ]
    return "\n".join(wrapped(line, "// ", WIDTH) if line else "//" for line in lines) + "\n"


def _described(row: Format) -> str:
    if row.kind == "int":
        return f"{row.name}, {row.bits} bits {'signed' if row.signed else 'unsigned'}"
    special = " and ".join(
        word for word, there in (("Inf", row.infinity_code is not None), ("NaN", row.nan_code is not None)) if there
    )
    return (
        f"{row.name}, {int(row.signed)} + {row.exponent_bits} + {row.mantissa_bits} bits, bias {row.bias}, "
        f"{special or 'every code a number'}"
    )
