"""Projections alone, by the ten thousand: models x schemes x devices x batches x modes, and no picture.

A file of lists, read strictly, or the same lists on the command line of `fpsim sweep`:

    name = "which-card"
    models = ["sdxl-base", "flux1-dev"]         # names, pipeline directories; * stands for any part of a name
    schemes = ["fp8", "nvfp4", "int8-w8a8+dynamic", "mine.toml"]
    devices = ["rtx-*", "h200-sxm"]             # names, device files
    batch = [1, 4]                              # images made at once
    mode = ["graph", "compiled"]

Every combination is a row. Nothing is measured and nothing needs to be resumed: a model is traced once per batch,
lowered once per scheme and mode, and priced on every device. What quality these arithmetics leave, `fpsim whatif` says.
"""

from __future__ import annotations

import fnmatch
import itertools
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.experiment import unknown

MODES = ("eager", "graph", "compiled")
LARGEST = 1_000_000  # rows


@dataclass(frozen=True, kw_only=True)
class Projection:
    """The question: lists whose every combination is priced.

    models, schemes, devices: names, files, or patterns with `*`; batch: images made at once (guidance doubles the rows
    of a call); steps: denoising steps, None for each model's own; baseline: what a speed-up is relative to, on the same
    model, device, batch and mode.
    """

    models: tuple[str, ...]
    schemes: tuple[str, ...]
    devices: tuple[str, ...]
    batch: tuple[int, ...] = (1,)
    mode: tuple[str, ...] = ("graph",)
    steps: int | None = None
    estimator: str = "auto"
    baseline: str = "bf16"
    name: str = "sweep"
    description: str = ""

    def __post_init__(self) -> None:
        for name in ("models", "schemes", "devices", "batch", "mode"):
            values = tuple(dict.fromkeys(getattr(self, name)))
            if not values:
                raise ValueError(f"{name} must list at least one")
            object.__setattr__(self, name, values)
        for images in self.batch:
            if images < 1:
                raise ValueError(f"batch must be at least 1, not {images}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")
        for mode in self.mode:
            if mode not in MODES:
                raise ValueError(unknown("mode", mode, MODES))

    @classmethod
    def load(cls, path: Path) -> Projection:
        """Read a TOML file. Raises ValueError, saying where, for anything that is not as above."""
        from analysis.experiment.strict import build

        if path.is_dir():
            raise ValueError(f"{path} is a directory; give the sweep's .toml file")
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"no sweep file {path}") from error
        except (ValueError, RecursionError) as error:  # RecursionError: arrays in arrays in arrays
            raise ValueError(f"{path} is not TOML: {error}") from error
        return build(cls, {"name": path.stem, **tree}, str(path))

    def named(self) -> Projection:
        """The same with patterns replaced by what they stand for, and every name looked up.

        Raises ValueError for a name that is not known, a pattern that nothing matches, and more rows than `LARGEST`.
        """
        import dataclasses

        import hwmodels
        from analysis.registry import models
        from analysis.scheme import SCHEMES
        from hwmodels.pricing import MODELS as ESTIMATORS

        made = dataclasses.replace(
            self,
            models=spelled("model", self.models, models()),
            schemes=spelled("scheme", self.schemes, (*hwmodels.SHORTHANDS, *SCHEMES)),
            devices=spelled("device", self.devices, hwmodels.DEVICES),
        )
        if made.size > LARGEST:
            raise ValueError(f"{made.size} configurations are more than {LARGEST}; leave some out")
        if made.estimator not in ESTIMATORS:
            raise ValueError(unknown("estimator", made.estimator, ESTIMATORS))
        for one in (made.baseline, *made.schemes):
            arithmetic(one)
        for one in made.devices:
            hwmodels.device(one)
        for one in made.models:
            if one not in models() and not (Path(one) / "model_index.json").is_file():
                raise ValueError(unknown("model", one, models()))
        return made

    @property
    def size(self) -> int:
        """Rows."""
        total = 1
        for values in (self.models, self.schemes, self.devices, self.batch, self.mode):
            total *= len(values)
        return total

    def tasks(self) -> list[tuple[str, int]]:
        """(model, batch): what is traced once; the pieces that workers take."""
        return list(itertools.product(self.models, self.batch))


def spelled(what: str, given: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Names with patterns replaced by the names they match, each once, in order."""
    names = list(known)
    found: dict[str, None] = {}
    for one in given:
        matched = fnmatch.filter(names, one) if set(one) & set("*?[") else [one]
        if not matched:
            raise ValueError(f"no {what} matches {one!r} (known: {', '.join(sorted(names))})")
        found.update(dict.fromkeys(matched))
    return tuple(found)


def arithmetic(name: str) -> object:
    """What `hwmodels.estimate` takes: a shorthand, a preset with its variants, or the scheme in a .toml file.

    Raises ValueError listing the names there are.
    """
    import hwmodels
    from analysis.scheme import SCHEMES, Scheme, scheme

    if name.endswith(".toml"):
        path = Path(name)
        try:
            return Scheme.from_toml(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if name in hwmodels.SHORTHANDS:
        return name
    if name.partition("+")[0] in SCHEMES:
        return scheme(name)
    raise ValueError(unknown("scheme", name, {*hwmodels.SHORTHANDS, *SCHEMES}))


__all__: Sequence[str] = ("LARGEST", "MODES", "Projection", "arithmetic", "spelled")
