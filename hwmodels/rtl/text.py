"""Verilog as text: modules of named wires, and a design that holds each module once.

Everything generated is unsigned Verilog-2005 with every width written out, so that what a line means does not depend
on Verilog's rules for signs. Signed quantities are a sign and a magnitude, or two's complement with its sign bit copied
by hand (products of integers alone are `$signed`); exponents are offsets from a base that is known here (`Exponent`).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

WIDTH = 116


def identifier(name: str) -> str:
    """`name` as a Verilog identifier: e4m3-ieee -> e4m3_ieee."""
    return re.sub(r"\W", "_", name)


def width_for(largest: int) -> int:
    """Bits that hold 0 .. largest (at least one)."""
    return max(largest.bit_length(), 1)


def constant(value: int, width: int) -> str:
    """A sized literal: 8'd12; hexadecimal from 17 bits on."""
    if not 0 <= value < 1 << width:
        raise ValueError(f"{value} does not fit in {width} bits")
    return f"{width}'d{value}" if width <= 16 else f"{width}'h{value:x}"


def part(name: str, width: int, high: int, low: int) -> str:
    """Bits high..low of a wire of `width` bits; the bare name where that is all of it (a scalar has no part)."""
    if (high, low) == (width - 1, 0):
        return name
    return f"{name}[{high}]" if high == low else f"{name}[{high}:{low}]"


def padded(name: str, zeros: int) -> str:
    """`name` with zeros appended below its last bit."""
    return name if zeros == 0 else f"{{{name}, {zeros}'b0}}"


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """A wire that carries an exponent as value - base. low .. high: what the value can be."""

    wire: str
    width: int
    base: int
    low: int
    high: int

    def plus(self, amount: int) -> Exponent:
        """The exponent `amount` larger: the same wire from another base."""
        return Exponent(
            wire=self.wire, width=self.width, base=self.base + amount, low=self.low + amount, high=self.high + amount
        )


@dataclass
class Module:
    """One Verilog module under construction: ports and lines in the order they are asked for."""

    name: str
    note: str = ""
    ports: list[tuple[str, str, int]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def input(self, name: str, width: int = 1) -> str:
        self.ports.append(("input", name, width))
        return name

    def output(self, name: str, width: int = 1) -> str:
        self.ports.append(("output", name, width))
        return name

    def say(self, comment: str) -> None:
        """A comment line between statements."""
        self.lines += [f"  // {line}" for line in textwrap.wrap(comment, WIDTH - 5)]

    def wire(self, name: str, width: int, expression: str = "", comment: str = "") -> str:
        value = f" = {expression}" if expression else ""
        self.lines += _statement(f"wire {_range(width)}{name}{value};", comment)
        return name

    def assign(self, name: str, expression: str, comment: str = "") -> None:
        self.lines += _statement(f"assign {name} = {expression};", comment)

    def raw(self, text: str) -> None:
        """Statements as they are (a clocked block)."""
        self.lines += ["  " + line if line else "" for line in text.splitlines()]

    def instance(self, module: str, name: str, connections: Mapping[str, str]) -> None:
        joined = ", ".join(f".{port}({wire})" for port, wire in connections.items())
        self.lines += _statement(f"{module} {name} ({joined});")

    def port_width(self, name: str) -> int:
        return next(width for _, port, width in self.ports if port == name)

    def text(self) -> str:
        note = _paragraphs(self.note)
        ports = [f"  {direction.ljust(6)} wire {_range(width)}{name}" for direction, name, width in self.ports]
        return "\n".join([*note, f"module {self.name} (", ",\n".join(ports), ");", *self.lines, "endmodule"]) + "\n"


class Design:
    """Modules in the order they were added, each once."""

    def __init__(self) -> None:
        self._modules: dict[str, Module] = {}

    def add(self, module: Module) -> Module:
        """Keep a module; one that is here already is returned, one that differs under the same name is renamed."""
        name, tries = module.name, 1
        while module.name in self._modules:
            held = self._modules[module.name]
            if held.text() == module.text():
                return held
            tries += 1
            module.name = f"{name}_{tries}"
        self._modules[module.name] = module
        return module

    def text(self) -> str:
        return "\n".join(module.text() for module in self._modules.values())


def _range(width: int) -> str:
    return f"[{width - 1}:0] " if width > 1 else ""


def _statement(text: str, comment: str = "") -> list[str]:
    """One statement in lines that fit; its comment behind it, or above it where it is long."""
    line = f"  {text}{f'  // {comment}' if comment else ''}"
    if len(line) <= WIDTH:
        return [line]
    wrapped_text = textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )
    return [*([f"  // {comment}"] if comment else []), *wrapped_text]


def wrapped(text: str, prefix: str, width: int = WIDTH) -> str:
    """One paragraph as comment lines."""
    return textwrap.fill(text, width, initial_indent=prefix, subsequent_indent=prefix + "  ", break_on_hyphens=False)


def _paragraphs(text: str) -> list[str]:
    return [wrapped(line, "// ") for line in text.strip().splitlines()]
