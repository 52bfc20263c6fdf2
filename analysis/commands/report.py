"""Write a run's page again from what the run stored, without measuring anything."""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.commands._text import say, say_json

HELP = "write the page of a finished run again"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, help="a run directory that `fpsim whatif` made")
    parser.add_argument("--json", action="store_true", help="print the stored results as JSON instead")


def run(options: argparse.Namespace) -> None:
    from analysis import report

    if options.json:
        say_json(report.stored_results(options.directory))
    else:
        say(f"page: {report.write_page(options.directory)}")
