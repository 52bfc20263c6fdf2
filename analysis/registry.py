"""The named things of the toolkit, by kind: what `fpsim list` and `fpsim show` walk. Nothing here imports torch."""

from __future__ import annotations

import ast
import difflib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.experiment import unknown

if TYPE_CHECKING:
    from hwmodels import Workload

HERE = Path(__file__).parent


def formats() -> dict[str, str]:
    """Name -> one line."""
    import fpsim
    from analysis.units import digits

    found = {}
    for name, row in fpsim.FORMATS.items():
        if isinstance(row, fpsim.BlockFormat):
            found[name] = row.summary
        elif row.kind == "float":
            found[name] = f"E{row.exponent_bits}M{row.mantissa_bits}, largest {digits(row.max, 4)}"
        else:
            found[name] = f"{digits(row.min, 4)} to {digits(row.max, 4)}"
    return found


def engines() -> dict[str, str]:
    """Name -> one line, with how the engine is known: compared with silicon, or published, documented, observed."""
    import fpsim

    return {name: f"{row.summary} [{row.evidence}]" for name, row in fpsim.ENGINES.items()}


def devices() -> dict[str, str]:
    """Name -> one line."""
    import hwmodels

    return {name: hwmodels.device(name).summary for name in hwmodels.DEVICES}


def schemes() -> dict[str, str]:
    """Name -> one line."""
    from analysis.scheme import SCHEMES

    return {name: row.summary for name, row in SCHEMES.items()}


def methods() -> dict[str, str]:
    """Name -> one line: the files of `analysis/methods`."""
    return _modules(HERE / "methods")


def layouts() -> dict[str, str]:
    """Name -> one line: the files of `analysis/exports`."""
    return _modules(HERE / "exports")


def models() -> dict[str, str]:
    """Name -> one line: the files of `analysis/models` (full size, no weights) and the embedded pipelines."""
    from analysis.models import MODELS, embedded

    full = {name: f"{row.title}, full size, configuration only" for name, row in MODELS.items()}
    return full | {name: f"embedded: {row.description}" for name, row in embedded.PIPELINES.items()}


def metrics() -> dict[str, str]:
    """Name -> one line: what is measured anyway, what `metrics` of an experiment may add, who brings it."""
    from analysis.scoring import METRICS
    from analysis.scoring.extra import package_of, plugins
    from analysis.scoring.pretrained import PRETRAINED

    own = {name: title for name, (title, _, _) in METRICS.items()}
    trained = {name: f"{row.title} [on request; pip install 'fpsim[metrics]']" for name, row in PRETRAINED.items()}
    brought = {name: f"{entry.value} [on request; from {package_of(entry)}]" for name, entry in plugins().items()}
    return own | trained | brought


def place(name: str) -> str | Path:
    """What `analysis.trace` takes for anything `models()` names, or for a pipeline's directory or hub id.

    Raises ValueError for a hub id that cannot be fetched.
    """
    from analysis.models import embedded
    from analysis.runner.load import located

    row = embedded.PIPELINES.get(name)
    if row is not None:
        return row.directory
    return located(name) if "/" in name else name


def workload(name: str, batch: int = 1, size: Mapping[str, int] | None = None) -> Workload:
    """The operations of one denoiser call of anything that `place` knows.

    size: height, width, frames where they are not the model's own. Raises ValueError for another name.
    """
    import analysis

    sides: dict[str, Any] = dict(size or {})
    return analysis.trace(place(name), batch=batch, **sides)


KINDS: Mapping[str, Callable[[], dict[str, str]]] = {
    "formats": formats,
    "engines": engines,
    "devices": devices,
    "schemes": schemes,
    "methods": methods,
    "layouts": layouts,
    "models": models,
    "metrics": metrics,
}


def find(name: str, kind: str | None = None) -> str:
    """The kind `name` is of: the first that has it. Raises ValueError, with the nearest of all names, if none has."""
    if kind is not None and kind not in KINDS:
        raise ValueError(unknown("kind", kind, KINDS))
    known: list[str] = []
    for candidate, entries in KINDS.items():
        if kind in (None, candidate):
            names = entries()
            if name in names:
                return candidate
            known += names
    if kind is not None:
        raise ValueError(unknown(kind.removesuffix("s"), name, known))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ValueError(f"unknown name {name!r}; {hint}(fpsim list {'|'.join(KINDS)} prints all of them)")


def _modules(folder: Path) -> dict[str, str]:
    """Public modules of a folder under their registry names, with the first line of their docstring (not imported)."""
    found = {}
    for row in pkgutil.iter_modules([str(folder)]):
        if not row.name.startswith("_") and not row.ispkg:
            text = ast.get_docstring(ast.parse((folder / f"{row.name}.py").read_text(encoding="utf-8"))) or ""
            found[row.name.replace("_", "-")] = text.partition("\n")[0]
    return found
