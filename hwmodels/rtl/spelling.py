"""Accumulators as words, for a command line: int32, int16-saturate, fixed40, f32, f16-rz, dot16-f25-rz, ...

| words | accumulator |
|---|---|
| `int32`, `int16-saturate` | `IntegerAccumulator` of that many bits; wraps unless it says otherwise |
| `fixed40`, `fixed24-q4-saturate` | `FixedPoint` of that many bits, with so many fraction bits; wraps; read as f32 |
| `fixed20-lsb4` | the same with a last bit worth 2**4 |
| `fixed`, `fixed-rz-f16` | without a register: `FusedDot(None, None, "rne")` |
| `f32`, `f16-rz`, `bf16-unfused-flush` | `SequentialFma` into a float format; a rounding; unfused; flushing |
| `dot16-f25`, `dot32-f13-e8m13`, `dot4-exact-rne` | `FusedDot`: terms, fraction bits; an output, a rounding (rz) |
| `Kind:field=value,...` | any kind by its fields: `FusedDot:terms=16,fraction_bits=25,zero_exponent=-133` |
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from fpsim.accumulators import (
    Accumulator,
    FixedPoint,
    FusedDot,
    GroupedDot,
    IntegerAccumulator,
    PairwiseTree,
    SequentialFma,
    TwoStageDot,
)
from fpsim.formats import scalar_format

from .._names import choose
from .rounding import ROUND_UP

EXAMPLES = "int32, int16-saturate, fixed40, fixed24-q10-saturate, f32, f16-rz, dot16-f25-rz"

KINDS: Mapping[str, Any] = {
    kind.__name__: kind
    for kind in (FixedPoint, FusedDot, GroupedDot, IntegerAccumulator, PairwiseTree, SequentialFma, TwoStageDot)
}


def accumulator(text: str) -> Accumulator:
    """The accumulator that `text` spells.

    Raises ValueError naming what is not understood.
    """
    if ":" in text:
        return _by_fields(text)
    words = text.lower().split("-")
    head = words[0]
    if match := re.fullmatch(r"int(\d+)", head):
        return _integer(text, int(match[1]), words[1:])
    if match := re.fullmatch(r"fixed(\d*)", head):
        return _fixed(text, int(match[1]) if match[1] else None, words[1:])
    if match := re.fullmatch(r"dot(\d+)", head):
        return _dot(text, int(match[1]), words[1:])
    try:
        row = scalar_format(head)
    except ValueError as error:
        raise ValueError(f"accumulator {text!r}: {error}; examples: {EXAMPLES}") from error
    flags: dict[str, bool] = {"unfused": False, "flush": False}
    rounding, other = _rest(text, words[1:], flags, "rne")
    if other:
        raise ValueError(f"accumulator {text!r} names two formats, {head!r} and {other!r}; examples: {EXAMPLES}")
    return SequentialFma(row.name, rounding, fused=not flags["unfused"], flush=flags["flush"])


def _integer(text: str, bits: int, words: list[str]) -> IntegerAccumulator:
    if words not in ([], ["wrap"], ["saturate"]):
        raise ValueError(f"accumulator {text!r}; allowed after int{bits}: -wrap, -saturate")
    return IntegerAccumulator(bits, "saturate" if words == ["saturate"] else "wrap")


def _fixed(text: str, bits: int | None, words: list[str]) -> Accumulator:
    flags = {"saturate": False, "wrap": False}
    found = re.fullmatch(r"(q|lsb)(\d+)", words[0]) if words else None
    rounding, output = _rest(text, words[1:] if found else words, flags, "rne")
    output = output or "f32"
    if bits is not None:
        lsb = (-int(found[2]) if found[1] == "q" else int(found[2])) if found else None
        return FixedPoint(bits, lsb, "saturate" if flags["saturate"] else "wrap", rounding, output)
    if found or any(flags.values()):
        raise ValueError(f"accumulator {text!r} has no width to leave or to count from; say fixed32, for example")
    return FusedDot(None, None, rounding, output)


def _dot(text: str, terms: int, words: list[str]) -> FusedDot:
    found = re.fullmatch(r"f(\d+)", words[0]) if words else None
    if not words or (found is None and words[0] != "exact"):
        raise ValueError(
            f"accumulator {text!r}; after dot{terms} come its fraction bits, such as dot{terms}-f25, or -exact"
        )
    rounding, output = _rest(text, words[1:], {}, "rz")
    return FusedDot(terms, int(found[1]) if found else None, rounding, output or "f32")


def _rest(text: str, words: list[str], flags: dict[str, bool], rounding: str) -> tuple[str, str]:
    """A rounding, an output format and flags, in any order."""
    output = ""
    for word in words:
        if word in ROUND_UP:
            rounding = word
        elif word in flags:
            flags[word] = True
        else:
            try:
                output = scalar_format(word).name
            except ValueError as error:
                allowed = ", ".join([*ROUND_UP, *flags])
                raise ValueError(f"accumulator {text!r}: {word!r} is none of {allowed}, nor a format") from error
    return rounding, output


def _by_fields(text: str) -> Accumulator:
    name, _, rest = text.partition(":")
    kind = KINDS[choose("kind of accumulator", name, KINDS)]
    known = {field.name for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        choose(f"field of {name}", key.strip(), known)
        if not equals:
            raise ValueError(f"accumulator {text!r}: {item!r} is no field=value")
        values[key.strip()] = _value(value.strip())
    try:
        made: Accumulator = kind(**values)
    except TypeError as error:
        raise ValueError(f"accumulator {text!r}: {str(error).replace(f'{name}.__init__()', name)}") from error
    return made


def _value(text: str) -> int | str | bool | None:
    words: dict[str, bool | None] = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    return int(text) if re.fullmatch(r"-?\d+", text) else text
