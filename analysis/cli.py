"""The command line: argparse -> one call -> print. One file per command in `analysis/commands`.

Mistakes of the user (every ValueError and OSError raised on purpose) are one line on stderr and exit code 2; Ctrl-C is
exit code 130; a bug is one line too, exit code 1. `--debug` shows the traceback of any of them.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import NoReturn

from analysis import commands
from analysis.errors import one_line
from analysis.extras import install
from fpsim._names import printable

DESCRIPTION = """\
Which low-bit arithmetic can a diffusion model run on? Quantize it bit for bit,
look at its images, and read what the same arithmetic would cost on real devices.
"""


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage before an error; one line is enough."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{message} (see {self.prog} --help)")
        sys.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Walk `analysis/commands`: each module has HELP, `arguments(parser)` and `run(options)`."""
    parser = _Parser(prog="fpsim", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    shared = _Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=_Parser)
    for found in sorted(pkgutil.iter_modules(commands.__path__), key=lambda row: row.name):
        if found.name.startswith("_"):
            continue
        module = importlib.import_module(f"analysis.commands.{found.name}")
        subparser = subparsers.add_parser(
            found.name,
            help=module.HELP,
            description=module.__doc__,
            parents=[shared],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    return _run(arguments) if debug else _guarded(arguments)


def _run(arguments: Sequence[str] | None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.version:
        from importlib.metadata import version

        sys.stdout.write(f"fpsim {version('fpsim')}\n")
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    return int(options.run(options) or 0)


def _guarded(arguments: Sequence[str] | None) -> int:
    """The same; whatever goes wrong is one line and an exit code, from the first import on."""
    sys.excepthook = _bug
    threading.excepthook = _bug_aside
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader of our output (`head`) is gone; keep the interpreter from failing again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as interrupt:
        _complain(f"stopped{'; ' if interrupt.args else ''}{one_line(interrupt)}")
        return 130
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("fpsim", "hwmodels", "analysis"):
            raise
        _complain(f"the package {error.name!r} is missing; install it: {install(error.name)}")
        return 2
    except (ValueError, OSError) as error:
        _complain(one_line(error))
        return 2


def _complain(text: str) -> None:
    sys.stderr.write(f"fpsim: {printable(text)}\n")


def _bug(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """What nobody foresaw: one line, exit code 1."""
    _complain(f"internal error, {kind.__name__}: {one_line(error)} (--debug shows where)")


def _bug_aside(found: threading.ExceptHookArgs) -> None:
    """The same in another thread, but for joblib's own, which stumbles over tasks that Ctrl-C took away."""
    if found.exc_value is not None and getattr(found.thread, "name", "") != "ExecutorManagerThread":
        _bug(found.exc_type, found.exc_value, found.exc_traceback)


if __name__ == "__main__":
    sys.exit(main())
