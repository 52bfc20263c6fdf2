"""Print everything known about one name: a format's codes, an engine's operand
types and arithmetic, a device's figures with their sources, a scheme's rules,
a model's size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from typing import Any

from analysis.cards import CARDS
from analysis.commands._text import WIDTH, pairs, paragraph, say, say_json, table

HELP = "show one format, engine, device, scheme, method, layout, model or metric"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="any name that `fpsim list` prints")
    parser.add_argument("--kind", help="where to look, when a name is in two lists")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    import fpsim
    from analysis import registry

    name = fpsim.formats.ALIASES.get(options.name, options.name)
    kind = registry.find(name, options.kind)
    card = CARDS[kind](name)
    if options.json:
        say_json({"name": name, "kind": kind.removesuffix("s"), **_finite(card)})
    else:
        PRINTERS.get(kind, _print)(name, card)


# --- the same for a terminal -----------------------------------------------------------------------------------------


def _print(name: str, card: Mapping[str, Any]) -> None:
    say(pairs({"name": name, **{key.replace("_", " "): value for key, value in card.items() if value not in ("", [])}}))


def _print_format(name: str, card: Mapping[str, Any]) -> None:
    values = card.get("values")
    _print(name, {key: value for key, value in card.items() if key != "values"})
    if values is None:
        return
    say()
    half = len(values) // 2
    mirrored = card["type"] == "float" and card["signed"] and all(map(_opposite, values[1:half], values[half + 1 :]))
    cells = [_number(value) for value in values[: half if mirrored else None]]
    across = 8 if (max(map(len, cells)) + 2) * 8 + 4 <= WIDTH else 4
    rows = [(f"0x{start:02x}", *cells[start : start + across]) for start in range(0, len(cells), across)]
    say(table(rows, ("code", *(f"+{step}" for step in range(across))), right=range(1, across + 1)))
    if mirrored:
        say(f"0x{half:02x} is {_number(values[half])}; codes above it are the negatives of those from 0x01")


def _opposite(a: float, b: float) -> bool:
    return b == -a or (math.isnan(a) and math.isnan(b))


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"
    if value == 0:
        return "-0" if math.copysign(1, value) < 0 else "0"
    short = f"{value:.4g}"
    return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e+") if len(short) > 7 else short


def _print_engine(name: str, card: Mapping[str, Any]) -> None:
    say(pairs({"engine": name, **{key: card[key] for key in ("summary", "evidence", "source")}}))
    for row in card["rows"]:
        say()
        operands = "|".join(row["a"]) + (" (both)" if row["same"] else f" x {'|'.join(row['b'])}")
        limits = f", {row['scale']} scale per {row['block']}" if row["scale"] else ""
        limits += f", k = {row['k']}" if row["k"] else ""
        say(paragraph(f"{operands} -> {row['out']}{limits}"))
        accumulator = ", ".join(
            f"{value}" if key == "kind" else f"{key}={value}" for key, value in row["accumulator"].items()
        )
        say(paragraph(accumulator + (f"; {row['note']}" if row["note"] else ""), indent="    "))
        say(paragraph(_seen(row), indent="    "))


def _seen(row: Mapping[str, Any]) -> str:
    """How a row is known: what was compared with which device, or what it was published as."""
    if not row["seen"]:
        return f"{row['basis']}, not compared with a device"
    pairs = len(row["a"]) * (1 if row["same"] else len(row["b"]))
    compared = len({(seen["a"], seen["b"]) for seen in row["seen"]})
    devices = ", ".join(dict.fromkeys(f"{seen['device']} ({seen['date']})" for seen in row["seen"]))
    outputs, differences = (sum(seen[key] for seen in row["seen"]) for key in ("outputs", "differences"))
    which = "" if compared == pairs else f"{compared} of {pairs} operand pairs "
    shapes = ", ".join(dict.fromkeys(seen["shape"] for seen in row["seen"]))
    verdict = f"{differences:,} differ" if differences else "no difference"
    return f"silicon: {which}on {devices}, {shapes}: {outputs:,} outputs, {verdict}"


def _print_device(name: str, card: Mapping[str, Any]) -> None:
    say(f"{name}: {card['title']} ({card['vendor']}, {card['architecture']})")
    say()
    rows = [(row["name"], row["text"], f"{row['status']}, {row['source']}") for row in card["figures"]]
    say(table(rows, ("figure", "value", "status, source"), right=(1,)))
    say()
    rates = [
        (row["accumulator"], row["text"], f"{row['status']}, {row['source']}", ", ".join(row["operands"]))
        for row in card["rates"]
    ]
    say(table(rates, ("adds in", "dense rate", "status, source", "operands"), right=(1,)))
    say()
    for row in card["sources"]:
        say(paragraph(f"{row['key']}: {row['title']} ({row['date']}) {row['url']}"))
    for note in card["decisions"]:
        say(paragraph(f"- {note}"))


def _print_layout(name: str, card: Mapping[str, Any]) -> None:
    _print_method(name, card, "layout")


def _print_method(name: str, card: Mapping[str, Any], kind: str = "method") -> None:
    say(f"{kind} {name}")
    for text in card["text"].split("\n\n"):
        say()
        say(text if text.startswith(" ") else paragraph(text))


def _print_scheme(name: str, card: Mapping[str, Any]) -> None:
    say(pairs({"scheme": name, "in words": card["summary"], "arithmetic": card["arithmetic"], "rest": card["rest"]}))
    say()
    rows = [
        (row.get("pattern", "*"), _operand(row.get("weight")), _operand(row.get("activation"))) for row in card["rules"]
    ]
    say(table(rows, ("layers", "weight", "activation")))


def _operand(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "full precision"
    return " ".join(str(value) for value in entry.values())


def _print_model(name: str, card: Mapping[str, Any]) -> None:
    from analysis.units import count

    say(pairs({"model": name, "parameters": count(card["parameters"]), "one call": count(card["macs"], "MAC")}))
    say()
    rows = [
        (kind, total["operations"], count(total["macs"]), count(total["parameters"]))
        for kind, total in card["operations"].items()
    ]
    say(table(rows, ("operation", "count", "MAC", "parameters"), right=(1, 2, 3)))
    for note in card["notes"]:
        say(paragraph(f"note: {note}"))


PRINTERS: Mapping[str, Callable[[str, Mapping[str, Any]], None]] = {
    "formats": _print_format,
    "engines": _print_engine,
    "devices": _print_device,
    "schemes": _print_scheme,
    "methods": _print_method,
    "layouts": _print_layout,
    "models": _print_model,
}


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not a number becomes its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return _number(value)
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value
