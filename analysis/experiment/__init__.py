"""What to run: a frozen tree read strictly from TOML.

    name = "mine"

    [quality]                          # measured: pictures are made and scored
    pipeline = "shapes-sd"             # an embedded pipeline, or a diffusers directory
    prompts = 64                       # scenes; or prompts of your own: "prompts.csv" (text, CSV, TSV, Parquet)

    [[configuration]]                  # one per arithmetic; a list in any of its keys makes one for each value
    scheme = ["fp8-w8a8", "mine"]

    [cost]                             # projected: no weights are needed
    devices = ["h200-sxm", "rtx-4090"]
    models = ["shapes-sd", "sdxl-base"]

    [[sweep]]                          # optional: a run for every combination, each with these configurations
    pipeline = ["shapes-sd", "shapes-dit"]
    seed = [0, 1]

    [[schemes.mine.rules]]             # optional: schemes of your own, ordered rules as in `analysis.scheme`
    pattern = "re:(conv_in|conv_out)"  # neither weight nor activation: full precision
    [[schemes.mine.rules]]
    pattern = "*"
    weight = { format = "e2m1", granularity = "channel" }
    activation = { format = "e4m3" }

A key nobody reads is an error, not a comment: it names what is allowed. So is a pattern that matches no layer.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.experiment.prompts import with_prompts
from analysis.experiment.strict import build, expand, kind, plain
from analysis.experiment.strict import unknown as unknown
from analysis.experiment.tables import LARGEST_SAMPLE as LARGEST_SAMPLE
from analysis.experiment.tables import Configuration as Configuration
from analysis.experiment.tables import Cost as Cost
from analysis.experiment.tables import Quality as Quality
from analysis.experiment.tables import Sweep as Sweep
from analysis.experiment.tables import check_engine as check_engine
from analysis.scheme import Scheme, scheme
from fpsim._names import printable

SHIPPED = Path(__file__).parents[1] / "experiments"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One file. `key()` names its run directory: equal keys, equal results."""

    name: str
    description: str = ""
    quality: Quality = field(default_factory=Quality)
    configuration: tuple[Configuration, ...] = ()
    cost: Cost = field(default_factory=Cost)
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    sweep: tuple[Sweep, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise ValueError(f"name must be letters, digits, '.', '_' or '-' (it names a directory), not {self.name!r}")
        if not self.configuration:
            raise ValueError('no [[configuration]]; add one, for example: [[configuration]] scheme = "fp8-w8a8"')
        labels = [configuration.label for configuration in self.configuration]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"configuration {label!r} is there twice")
        for label in (label for sweep in self.sweep for label in sweep.only):
            if label not in labels:
                raise ValueError(f"sweep: only: {unknown('configuration', label, labels)}")

    def on_pipeline(self, folder: Path) -> Experiment:
        """The same on another pipeline, priced too; without the configurations that emulate every product: those take
        hours on a pipeline of ordinary size. Schemes of the user's own stay out, their patterns name other layers."""
        plain = [row for row in self.configuration if row.engine is None and row.scheme not in self.schemes]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).lstrip("._-")[:64] or "pipeline"
        return dataclasses.replace(
            self.restricted(plain),
            name=name,
            description="",
            quality=dataclasses.replace(self.quality, pipeline=str(folder)),
            cost=dataclasses.replace(self.cost, models=(str(folder),)),
        )

    def cells(self) -> tuple[Experiment, ...]:
        """The runs this file asks for, named after where they stand in the sweep; itself if it has none."""
        if not self.sweep:
            return (self,)
        made: dict[str, Experiment] = {}
        for sweep in self.sweep:
            taken = self.restricted([row for row in self.configuration if not sweep.only or row.label in sweep.only])
            for point in sweep.points():
                name = "-".join([self.name, *(_WORDS[key].format(_word(value)) for key, value in point.items())])
                cell = dataclasses.replace(taken, name=name, quality=dataclasses.replace(self.quality, **point))
                if made.setdefault(name, cell) != cell:
                    raise ValueError(f"two parts of the sweep both make {name!r}, with other configurations")
        return tuple(made.values())

    def restricted(self, configurations: Iterable[Configuration]) -> Experiment:
        """One run of some of the configurations, with the schemes that they use."""
        taken = tuple(configurations)
        used = {row.scheme for row in taken}
        schemes = {key: value for key, value in self.schemes.items() if key in used}
        return dataclasses.replace(self, configuration=taken, schemes=schemes, sweep=())

    def scheme_of(self, configuration: Configuration) -> Scheme:
        """The scheme a configuration names: the experiment's own, or a preset; on its engine if it is exact."""
        own = self.schemes.get(configuration.scheme)
        found = own if own is not None else scheme(configuration.scheme)
        if configuration.engine is None:
            return found
        check_engine(configuration.engine)
        return found.exact(configuration.engine)

    def prompts_of(self, configuration: Configuration) -> int:
        """How many of the experiment's prompts a configuration is measured on."""
        return min(configuration.prompts or self.quality.prompts, self.quality.prompts)

    def key(self, surroundings: Mapping[str, str] | None = None) -> str:
        """SHA-256 over everything that determines results: this tree without its description, and `surroundings`
        (hashes of sources and checkpoints, versions; `analysis.whatif.surroundings`)."""
        from analysis.store import digest

        tree = self.to_dict()
        del tree["description"]
        return digest({"experiment": tree, "surroundings": dict(surroundings or {})})

    def to_dict(self) -> dict[str, Any]:
        """Plain tables and lists, as JSON and TOML know them; `from_dict` reads them back."""
        return {row.name: plain(getattr(self, row.name)) for row in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], where: str = "experiment", folder: Path = Path()) -> Experiment:
        """Build strictly. Raises ValueError, saying where and what is allowed, for an unknown key or a wrong value.

        folder: where files of prompts are looked for
        """
        tree = dict(tree)
        if isinstance(tree.get("quality"), Mapping):
            tree["quality"] = with_prompts(tree["quality"], folder, f"{where}: quality")
        listed = tree.get("configuration", ())
        if isinstance(listed, list | tuple) and all(isinstance(row, dict) for row in listed):
            tree["configuration"] = [row for table in listed for row in expand(table)]
        own = tree.get("schemes", {})
        if isinstance(own, Mapping):
            tree["schemes"] = {
                name: _scheme(name, table, f"{where}: schemes.{printable(str(name))}") for name, table in own.items()
            }
        return build(cls, tree, where)

    @classmethod
    def load(cls, source: str | Path) -> Experiment:
        """Read a TOML file, or one of the shipped experiments by its name (`default`).

        Of a folder with a pipeline of diffusers in it: the default experiment on that pipeline (`on_pipeline`).
        """
        path = Path(source)
        if (path / "model_index.json").is_file():
            return cls.load("default").on_pipeline(path)
        if not path.suffix and not path.exists():
            shipped = sorted(file.stem for file in SHIPPED.glob("*.toml"))
            if str(source) not in shipped:
                raise ValueError(unknown("experiment", str(source), shipped) + "; or give a .toml file")
            path = SHIPPED / f"{source}.toml"
        if path.is_dir():
            raise ValueError(
                f"{path} is a directory; give the experiment's .toml file, or a pipeline's directory (model_index.json)"
            )
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"no experiment file {path}") from error
        except (ValueError, RecursionError) as error:  # RecursionError: arrays in arrays in arrays
            raise ValueError(f"{path} is not TOML: {error}") from error
        tree.setdefault("name", path.stem)
        return cls.from_dict(tree, where=str(path), folder=path.parent)


#: how a value of the sweep reads in a run's name
_WORDS = {"pipeline": "{}", "steps": "{}-steps", "guidance": "guidance-{}", "seed": "seed-{}"}


def _word(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(value).name if isinstance(value, str) else str(value))


def _scheme(name: str, table: object, where: str) -> Scheme:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table with rules, not {kind(table)}")
    try:
        return Scheme.from_dict({"name": name, **table})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
