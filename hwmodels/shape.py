"""The shape of an operation as words, `m=4096 n=4096 k=4096`: what CSV cells hold and the command line takes."""

from __future__ import annotations

from dataclasses import fields

from .op import Op
from .ops import OPS, op_from_dict

_NOT_SHAPE = ("op", "path", "count")
_KINDS = {name.lower(): name for name in OPS}


def to_words(op: Op) -> str:
    """The fields that are not at their defaults, path and count aside; `from_words(op.kind, ...)` reads them back."""
    return " ".join(f"{name}={_word(value)}" for name, value in op.to_dict().items() if name not in _NOT_SHAPE)


def _word(value: object) -> str:
    if isinstance(value, list):
        return "x".join(map(str, value))
    return str(int(value) if isinstance(value, bool) else value)


def from_words(kind: str, text: str) -> Op:
    """The operation `to_words` wrote; ValueError for an unknown kind, field or value."""
    values: dict[str, object] = {"op": _KINDS.get(kind, kind)}
    flags = {f.name for f in fields(OPS[str(values["op"])]) if f.type == "bool"} if kind in _KINDS else set()
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{kind} {text!r}: {word!r} is no name=value")
        values[name] = value == "1" if name in flags and value in "01" else _value(value)
    return op_from_dict(values)


def _value(text: str) -> object:
    parts = text.split("x")
    if all(part.isdecimal() for part in parts):
        numbers = [int(part) for part in parts]
        return numbers[0] if len(numbers) == 1 else numbers
    return text
