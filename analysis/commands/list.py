"""Print the names that can be used: one line each."""

from __future__ import annotations

import argparse

from analysis.commands._text import say, say_json, table

HELP = "list formats, engines, devices, schemes, methods, layouts, models or metrics"
KINDS = ("formats", "engines", "devices", "schemes", "methods", "layouts", "models", "metrics")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=KINDS, metavar="|".join(KINDS))
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    from analysis import registry

    found = registry.KINDS[options.kind]()
    if options.json:
        say_json([{"name": name, "summary": summary} for name, summary in found.items()])
    else:
        say(table(found.items(), (options.kind.removesuffix("s"), "what it is")))
