"""Further metrics by name: those that packages bring by entry point, and pretrained ones (`pretrained.py`).

A package brings one as a function and says so in its pyproject.toml:

    [project.entry-points."fpsim.metrics"]
    sharpness = "my_package:sharpness"

    def sharpness(images, reference, prompts):
        \"\"\"Mean gradient: the first line is what tables call it.\"\"\"

images: torch float32 (N, 3, H, W) in [0, 1], videos (N, F, 3, H, W); reference: full precision's, same prompts and
seeds, or None when full precision itself is asked about; prompts: N texts. It gives N numbers, or None where it needs
a reference and there is none. Attributes of the function say more, if they are there: `unit` ("dB") and `better` (+1:
more is better, -1: less).

What comes from a package is not trusted to work: whatever goes wrong is one line that names the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fpsim._names import unknown

if TYPE_CHECKING:
    from torch import Tensor

GROUP = "fpsim.metrics"
CHUNK = 16  # images handed to a metric at once

#: What another's code may raise when it is imported or called. Exits and interrupts are not among it.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)

PerImage = Callable[["Tensor", "Tensor | None", Sequence[str]], Any]
Whole = Callable[["Tensor", "Tensor"], float]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: `per_image` (images, reference, prompts) -> N numbers or None, or `whole` (images, reference) -> one.

    package : who brings it; title : what tables call it; better : +1 if more is better, -1 if less, 0 if neither
    """

    name: str
    title: str
    package: str
    unit: str = ""
    better: int = 0
    per_image: PerImage | None = None
    whole: Whole | None = None


def values(
    metric: Metric, images: Tensor, reference: Tensor | None, prompts: Sequence[str]
) -> npt.NDArray[np.float64] | None:
    """float64 (N,): one number per image, or None where the metric needs a reference and there is none.

    Raises ValueError, one line that names the package, for anything else that it gives or raises.
    """
    function = metric.per_image
    if function is None:
        raise ValueError(f"metric {metric.name!r} is one of whole sets, not of single images")
    parts = []
    for start in range(0, len(images), CHUNK):
        part = slice(start, start + CHUNK)
        other = None if reference is None else reference[part]
        given = _called(metric, function, images[part], other, prompts[part])
        if given is None and reference is None:
            return None
        parts.append(_checked(metric, given, len(images[part]), start))
    return np.concatenate(parts)


def one_value(metric: Metric, images: Tensor, reference: Tensor) -> float:
    """The number of a metric of whole sets. Raises ValueError as `values` does."""
    if metric.whole is None:
        raise ValueError(f"metric {metric.name!r} is one of single images, not of whole sets")
    found = _checked(metric, [_called(metric, metric.whole, images, reference)], 1, 0)
    return float(found[0])


def _called(metric: Metric, function: Callable[..., Any], *given: Any) -> Any:
    try:
        return function(*given)
    except FAILURES as error:
        raise ValueError(f"{_blame(metric.name, metric.package)} failed: {_words(error)}") from error


def _checked(metric: Metric, given: Any, count: int, start: int) -> npt.NDArray[np.float64]:
    blame = _blame(metric.name, metric.package)
    if given is None:
        raise ValueError(f"{blame} must give one number per image, not None, where there is a reference")
    try:
        found = np.asarray(given.cpu() if hasattr(given, "cpu") else given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{blame} must give one number per image, not {type(given).__name__}") from error
    if found.shape != (count,):
        raise ValueError(f"{blame} must give {count} numbers for {count} images, not shape {list(found.shape)}")
    if not np.isfinite(found).all():
        place = int(np.flatnonzero(~np.isfinite(found))[0])
        raise ValueError(f"{blame} gave {found[place]} for image {start + place}")
    return found


def find(name: str) -> Metric:
    """A metric by name, ready to use.

    Raises ValueError for an unknown name, for one that two packages bring, for a package whose metric does not load,
    and for a pretrained one without its packages (with what to install) or weights (with where they must lie).
    """
    from analysis.scoring.pretrained import PRETRAINED

    if name in PRETRAINED:
        return PRETRAINED[name].make()
    brought = plugins()
    if name not in brought:
        raise unknown("metric", name, [*PRETRAINED, *brought])
    return _loaded(brought[name])


def plugins() -> Mapping[str, EntryPoint]:
    """Name -> entry point of what packages bring; nothing is imported. ValueError for a name that is there twice."""
    from analysis.scoring.pretrained import PRETRAINED

    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        package = package_of(entry)
        if entry.name in PRETRAINED:
            raise ValueError(f"package {package} brings a metric {entry.name!r}, which is one of fpsim's own names")
        if entry.name in found and entry.value != found[entry.name].value:
            raise ValueError(
                f"packages {package_of(found[entry.name])} and {package} both bring a metric {entry.name!r}"
            )
        found[entry.name] = entry
    return found


def package_of(entry: EntryPoint) -> str:
    """The name of the distribution that an entry point belongs to."""
    return entry.value if entry.dist is None else entry.dist.name


def _loaded(entry: EntryPoint) -> Metric:
    package = package_of(entry)
    try:
        function = entry.load()
    except FAILURES as error:
        raise ValueError(f"{_blame(entry.name, package)} does not load: {_words(error)}") from error
    if not callable(function):
        raise ValueError(f"{_blame(entry.name, package)} is no function but {type(function).__name__} ({entry.value})")
    unit, better = getattr(function, "unit", ""), getattr(function, "better", 0)
    if not isinstance(unit, str) or better not in (-1, 0, 1):
        raise ValueError(f"{_blame(entry.name, package)}: unit must be a text and better -1, 0 or 1")
    title = (getattr(function, "__doc__", None) or entry.name).strip().partition("\n")[0].rstrip(".")
    return Metric(name=entry.name, title=title, package=package, unit=unit, better=better, per_image=function)


def _blame(name: str, package: str) -> str:
    return f"metric {name!r} of package {package}"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
