"""Tables to frozen dataclasses and back, strictly: an unknown key or a wrong type says where and what is allowed."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from fpsim._names import printable

T = TypeVar("T")


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """`unknown device 'h20'; did you mean 'h200-sxm'? (known: ...)`."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {given!r}; {hint}(known: {', '.join(names)})"


def expand(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table per combination of the values listed in it."""
    choices = [value if isinstance(value, list) else [value] for value in table.values()]
    return [dict(zip(table, combination, strict=True)) for combination in itertools.product(*choices)]


def plain(value: object) -> object:
    """Tables and lists, as JSON and TOML know them."""
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {row.name: plain(getattr(value, row.name)) for row in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain(entry) for entry in value]
    return value


def build(cls: type[T], table: object, where: str) -> T:
    """A frozen dataclass from a table, by its annotations."""
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table, not {kind(table)}")
    annotations = typing.get_type_hints(cls)
    rows = {row.name: row for row in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in rows:
            raise ValueError(f"{where}: {unknown('key', str(key), rows)}")
    for name, row in rows.items():
        required = row.default is dataclasses.MISSING and row.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise ValueError(f"{where}: key {name!r} is missing")
    values = {key: _value(annotations[key], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _value(annotation: Any, value: object, where: str) -> Any:
    """`value` as `annotation` says; only what the classes above use is understood."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        if arguments[-1] is types.NoneType:  # X | None: a table cannot say None, a stored experiment can
            return None if value is None else _value(arguments[0], value, where)
        if type(value) not in arguments or (isinstance(value, float) and not math.isfinite(value)):
            words = " or ".join(_KINDS[one] for one in arguments)
            raise ValueError(f"{where} must be {words}, not {kind(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, not {kind(value)}")
        return tuple(_value(arguments[0], entry, f"{where}[{index}]") for index, entry in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a table, not {kind(value)}")
        return {str(key): _value(arguments[1], entry, f"{where}.{printable(str(key))}") for key, entry in value.items()}
    if dataclasses.is_dataclass(annotation):
        if isinstance(value, typing.cast(type, annotation)):
            return value
        return build(typing.cast(type, annotation), value, where)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else math.inf
    if type(value) is not annotation or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{where} must be {_KINDS[annotation]}, not {kind(value)}")
    return value


_KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def kind(value: object) -> str:
    """How a message names a value that is not what was wanted."""
    return f"{value!r}" if isinstance(value, str | int | float | bool) else "a table or a list"
