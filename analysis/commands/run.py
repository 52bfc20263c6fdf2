"""Run an experiment file: measure quality, project cost, write the report.

The same as `fpsim whatif EXPERIMENT`, for scripts that always name their file.
Stop it whenever you like: the same command goes on where it was.
"""

from __future__ import annotations

import argparse

from analysis.commands import whatif

HELP = "run an experiment file"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help=whatif.WHAT)
    whatif.shared_arguments(parser)


def run(options: argparse.Namespace) -> None:
    whatif.run(options)
