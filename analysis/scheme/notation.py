"""Schemes in words, and as plain tables for JSON and TOML: reading is strict."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import MappingProxyType
from typing import Any

from analysis.scheme.rule import LAYER_KINDS, Attention, Rule
from fpsim._names import unknown
from fpsim.nn.quantizer import Quantizer


def describe(rule: Rule) -> str:
    where = "all layers" if rule.pattern == "*" else f"layers {rule.pattern!r}"
    if rule.weight is None:
        return f"{where} in full precision"
    if rule.activation is None:
        return f"{where}: weights {rule.weight}, activations in full precision"
    parts = f" in {rule.activation.steps} parts of the trajectory" if rule.activation.steps > 1 else ""
    how = "" if rule.activation.is_cast else f", {rule.activation.range}{parts}"
    return f"{where}: weights {rule.weight}; activations {rule.activation}{how}"


def plain(row: Rule | Quantizer | Attention) -> dict[str, Any]:
    """A row as a dict without the fields that hold their default; the first field is always written."""
    data: dict[str, Any] = {}
    for index, field in enumerate(fields(row)):
        value = getattr(row, field.name)
        if index and value == field.default:
            continue
        if isinstance(value, tuple):
            value = list(value)
        data[field.name] = plain(value) if isinstance(value, Quantizer) else value
    return data


def toml(value: Any) -> str:
    """One TOML value. JSON strings, numbers and arrays are TOML too; tables are written inline."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def checked(row: type, data: Any, what: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{what} must be a table, got {data!r}")
    known = tuple(field.name for field in fields(row))
    for key in data:
        if key not in known:
            raise unknown(f"key of {what}", key, known)
    for field in fields(row):
        if field.default is MISSING and field.name not in data:
            raise ValueError(f"{what} has no {field.name}")
        if field.name in data and field.name in _TYPES:
            value, (kind, words) = data[field.name], _TYPES[field.name]
            if type(value) is not kind and not (value is None and field.default is None):
                raise ValueError(f"{field.name} of {what} must be {words}, not {value!r}")
    return dict(data)


#: what the fields of the rows above are in a file
_TYPES: Mapping[str, tuple[type, str]] = MappingProxyType(
    dict.fromkeys(("name", "arithmetic", "rest", "pattern", "spec"), (str, "a text"))
    | dict.fromkeys(("format", "granularity", "range", "one_sided", "rule"), (str, "a text"))
    | dict.fromkeys(("group", "steps"), (int, "a whole number"))
)


def rule_from(data: Mapping[str, Any]) -> Rule:
    values = checked(Rule, data, "a rule")
    for role in ("weight", "activation"):
        if values.get(role) is not None:
            values[role] = Quantizer(**checked(Quantizer, values[role], f"{role} quantizer"))
    if "kinds" in values:
        kinds = values["kinds"]
        if not isinstance(kinds, (list, tuple)):
            raise ValueError(f"kinds of a rule must be a list of {', '.join(LAYER_KINDS)}, not {kinds!r}")
        values["kinds"] = tuple(kinds)
    return Rule(**values)
