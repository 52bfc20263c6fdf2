"""What is known of one name, as plain values: shown by `fpsim show`, and of devices on pages too."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from analysis.cards.device import device_card as device_card


def format_card(name: str) -> dict[str, Any]:
    import fpsim

    row = fpsim.format(name)
    if isinstance(row, fpsim.BlockFormat):
        return {
            "element": row.element.name,
            "block": row.block,
            "scale": row.scale.name,
            "tensor_scale": row.tensor_scale,
            "scale_rule": row.rule,
            "bits_per_element": row.bits_per_element,
            "source": row.source,
        }
    card: dict[str, Any] = {"type": row.kind, "bits": row.bits}
    if row.kind == "float":
        card |= {"exponent_bits": row.exponent_bits, "mantissa_bits": row.mantissa_bits, "bias": row.bias}
        card |= {"nan": row.nan, "infinities": row.infinities}
    card |= {
        "signed": row.signed,
        "min": row.min,
        "max": row.max,
        "smallest_normal": row.smallest_normal,
        "smallest_subnormal": row.smallest_subnormal,
        "code_dtype": row.code_dtype,
        "source": row.source,
    }
    if row.bits <= 8:
        card["values"] = [code_value(row, code) for code in range(1 << row.bits)]
    return card


def code_value(row: Any, code: int) -> float:
    """The number a code of at most 8 bits means (NaN and infinities included), from the format's own facts."""
    if row.kind == "codebook":
        return float(row.values[code]) if code < len(row.values) else math.nan
    if row.kind == "int":
        top = 1 << (row.bits - 1)
        return math.ldexp(code - 2 * top if row.signed and code >= top else code, -row.bias)
    magnitude = code & (row.sign_bit - 1) if row.sign_bit else code & ((1 << (row.bits - row.pad_bits)) - 1)
    sign = -1.0 if row.sign_bit and code & row.sign_bit else 1.0
    if row.kind == "float":
        if row.nan == "negative-zero" and code == row.nan_code:
            return math.nan
        if magnitude > row.max_code:
            return sign * math.inf if magnitude == row.infinity_code else math.nan
    return float(math.copysign(row.magnitude(magnitude), sign))


def engine_card(name: str) -> dict[str, Any]:
    import fpsim

    row = fpsim.ENGINES[name]
    return {
        "summary": row.summary,
        "architecture": row.architecture,
        "evidence": row.evidence,
        "basis": row.basis,
        "source": row.source,
        "rows": [
            {
                "a": list(entry.a),
                "b": list(entry.b or entry.a),
                "same": entry.b is None,
                "out": entry.output,
                "scale": entry.scale,
                "block": entry.block,
                "accumulator": {"kind": type(entry.accumulator).__name__, **dataclasses.asdict(entry.accumulator)},
                "note": entry.note,
                "k": entry.k,
                "basis": entry.basis or row.basis,
                "seen": [
                    {"a": a, "b": b, **dataclasses.asdict(seen)}
                    for a, b in entry.pairs()
                    for seen in row.seen(entry, a, b)
                ],
            }
            for entry in row.rows
        ],
    }


def scheme_card(name: str) -> dict[str, Any]:
    from analysis.scheme import scheme

    found = scheme(name)
    return {"summary": found.summary, **{key: value for key, value in found.to_dict().items() if key != "name"}}


def method_card(name: str, folder: str = "methods") -> dict[str, Any]:
    import ast

    from analysis.registry import HERE

    path = HERE / folder / f"{name.replace('-', '_')}.py"
    return {"text": ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""}


def layout_card(name: str) -> dict[str, Any]:
    return method_card(name, "exports")


def model_card(name: str) -> dict[str, Any]:
    from analysis import registry

    workload = registry.workload(name)
    totals = {kind: dataclasses.asdict(total) for kind, total in workload.totals().items()}
    return {
        "parameters": workload.parameters,
        "macs": workload.macs,
        "operations": totals,
        "notes": list(workload.notes),
    }


def metric_card(name: str) -> dict[str, Any]:
    from analysis.registry import metrics

    return {"summary": metrics()[name]}


CARDS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "formats": format_card,
    "engines": engine_card,
    "devices": device_card,
    "schemes": scheme_card,
    "methods": method_card,
    "layouts": layout_card,
    "models": model_card,
    "metrics": metric_card,
}
