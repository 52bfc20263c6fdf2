"""Experiments: which arithmetic a diffusion model runs on, what that does to its images, and what it costs.

The public names load on first use, so that `import analysis` (and with it the command line) needs neither torch nor
pandas. Some of them share their name with the module they live in: `analysis.trace` is the function, whether or not
the module `analysis.trace` was imported before; `from analysis.trace import ...` reaches the module as always.

Importing this package is enough for diffusers to load quantized pipelines that it saved, see `analysis.backend`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from analysis.backend import announce

if TYPE_CHECKING:
    from analysis.experiment import Experiment as Experiment
    from analysis.exports import export as export
    from analysis.runner.quantize import quantize as quantize
    from analysis.runner.sample import sample as sample
    from analysis.trace import trace as trace
    from analysis.whatif import whatif as whatif

__all__ = ["Experiment", "export", "quantize", "sample", "trace", "whatif"]

_HOME = {
    "Experiment": "analysis.experiment",
    "export": "analysis.exports",
    "quantize": "analysis.runner",
    "sample": "analysis.runner",
    "trace": "analysis.trace",
    "whatif": "analysis.whatif",
}


class _Package(ModuleType):
    """A package whose functions are not shadowed by the submodules of the same name.

    After importing `analysis.trace` the import system sets the attribute `trace` of the package to the module; that
    one assignment is left out for the names above.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'analysis' has no attribute {name!r} (public: {', '.join(__all__)})")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


announce()


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
