"""What to run: a frozen tree read strictly from TOML.

    name = "mine"

    [quality]                          # measured: pictures are made and scored
    pipeline = "shapes-sd"             # an embedded pipeline, or a diffusers directory
    prompts = 64

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
import difflib
import itertools
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import fpsim
from analysis.scheme import Scheme, scheme
from fpsim._names import printable

T = TypeVar("T")

SHIPPED = Path(__file__).parent / "experiments"
LARGEST_SAMPLE = 500_000  # prompts; the seeds of the noise floor start there
LARGEST_SEED = 10**12  # every seed of a picture, a multiple of it, stays within 64 bits


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What is measured: pictures of a pipeline small enough to sample here."""

    pipeline: str = "shapes-sd"
    prompts: int = 64
    objects: tuple[int, ...] = (1, 2, 3, 4)  # equally many prompts with each number of objects
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    batch: int = 16  # prompts sampled together; part of the identity of a picture, sums depend on it in the last bit
    calibration: int = 16  # other prompts, from which static activation ranges come
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("prompts", "steps", "batch", "calibration"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
            if getattr(self, name) > LARGEST_SAMPLE:
                raise ValueError(f"{name} must be at most {LARGEST_SAMPLE}, not {getattr(self, name)}")
        if abs(self.seed) > LARGEST_SEED:
            raise ValueError(f"seed must be between -{LARGEST_SEED} and {LARGEST_SEED}, not {self.seed}")
        if not self.objects or not set(self.objects) <= {1, 2, 3, 4}:
            raise ValueError(f"objects must be some of 1, 2, 3, 4, not {list(self.objects)}")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must be between 0.5 and 1, not {self.confidence}")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One arithmetic to measure: a scheme by name, the method that applies it, and perhaps a matrix engine.

    Without an engine values are put on their grids and summed in float32; with one every product and sum is the
    engine's, bit for bit (slow: give such a configuration few prompts). An accumulator in words does in place of an
    engine's name, around products of the scheme's own formats: `engine = "int16-saturate"`, "fixed40", "f16-rz",
    "dot16-f25" (`hwmodels.rtl.accumulator`); the methods a2q and oaq then know the width they quantize for.

    options: settings of the method, as `analysis.quantize` takes them: `options = { transform = "hadamard" }`
    """

    scheme: str
    method: str = "rtn"
    engine: str | None = None
    prompts: int | None = None  # the first so many of the experiment's prompts; None: all
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prompts is not None and self.prompts < 1:
            raise ValueError(f"prompts must be at least 1, not {self.prompts}")

    @property
    def arithmetic(self) -> str:
        return "quantize" if self.engine is None else "exact"

    @property
    def accumulator(self) -> str | None:
        """The accumulator in words, None for none and for an engine."""
        return None if self.engine is None or self.engine in fpsim.ENGINES else self.engine

    @property
    def label(self) -> str:
        """A short name, unique within an experiment: `fp8-w8a8`, `mxfp4 gptaq transform=hadamard`."""
        method = "" if self.method == "rtn" else f" {self.method}"
        options = "".join(f" {key}={str(value).lower()}" for key, value in self.options.items())
        exact = f" exact on {self.engine}" if self.engine else ""
        return f"{self.scheme}{method}{options}{exact}"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What is projected: every configuration on every device, for models at full size too."""

    devices: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    mode: str = "graph"
    estimator: str = "auto"  # how: the best model of each device, or "roofline", a lower bound that knows every one
    baseline: str = "bf16"  # what a speed-up is relative to: the arithmetic people deploy without quantization

    def __post_init__(self) -> None:
        allowed = ("eager", "graph", "compiled")
        if self.mode not in allowed:
            raise ValueError(f"mode must be one of {', '.join(allowed)}, not {self.mode!r}")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs to make of one file: one for every combination of the values listed.

    only: labels of the configurations that take part; empty: all
    """

    pipeline: tuple[str, ...] = ()
    steps: tuple[int, ...] = ()
    guidance: tuple[float, ...] = ()
    seed: tuple[int, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(self.axes.values()):
            raise ValueError(f"a [[sweep]] lists values of at least one of {', '.join(self.axes)}")

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Key of [quality] -> its values."""
        return {row.name: getattr(self, row.name) for row in dataclasses.fields(self) if row.name != "only"}

    def points(self) -> list[dict[str, Any]]:
        """Every combination, as keys of [quality]."""
        listed = {name: values for name, values in self.axes.items() if values}
        return [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One file. `key()` names its run directory: equal keys, equal results."""

    name: str
    description: str = ""
    quality: Quality = Quality()
    configuration: tuple[Configuration, ...] = ()
    cost: Cost = Cost()
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
        return typing.cast(dict[str, Any], _plain(self))

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any], where: str = "experiment") -> Experiment:
        """Build strictly. Raises ValueError, saying where and what is allowed, for an unknown key or a wrong value."""
        tree = dict(tree)
        listed = tree.get("configuration", ())
        if isinstance(listed, list | tuple) and all(isinstance(row, dict) for row in listed):
            tree["configuration"] = [row for table in listed for row in _expand(table)]
        own = tree.get("schemes", {})
        if isinstance(own, Mapping):
            tree["schemes"] = {
                name: _scheme(name, table, f"{where}: schemes.{printable(str(name))}") for name, table in own.items()
            }
        return _build(cls, tree, where)

    @classmethod
    def load(cls, source: str | Path) -> Experiment:
        """Read a TOML file, or one of the shipped experiments by its name (`default`)."""
        path = Path(source)
        if not path.suffix and not path.exists():
            shipped = sorted(file.stem for file in SHIPPED.glob("*.toml"))
            if str(source) not in shipped:
                raise ValueError(unknown("experiment", str(source), shipped) + "; or give a .toml file")
            path = SHIPPED / f"{source}.toml"
        if path.is_dir():
            raise ValueError(f"{path} is a directory; give the experiment's .toml file")
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"no experiment file {path}") from error
        except (ValueError, RecursionError) as error:  # RecursionError: arrays in arrays in arrays
            raise ValueError(f"{path} is not TOML: {error}") from error
        tree.setdefault("name", path.stem)
        return cls.from_dict(tree, where=str(path))


#: how a value of the sweep reads in a run's name
_WORDS = {"pipeline": "{}", "steps": "{}-steps", "guidance": "guidance-{}", "seed": "seed-{}"}


def _word(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(value).name if isinstance(value, str) else str(value))


def check_engine(name: str) -> None:
    """Raise ValueError unless `name` is a matrix engine's, or words that spell an accumulator."""
    if name in fpsim.ENGINES:
        return
    from hwmodels import rtl

    problem = unknown("engine", name, fpsim.ENGINES)
    if "/" in name:
        raise ValueError(problem)
    try:
        rtl.accumulator(name)
    except ValueError as error:
        raise ValueError(f"{problem}; nor is it an accumulator: {error}") from error


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """`unknown device 'h20'; did you mean 'h200-sxm'? (known: ...)`."""
    names = sorted(known)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {given!r}; {hint}(known: {', '.join(names)})"


def _expand(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table per combination of the values listed in it."""
    choices = [value if isinstance(value, list) else [value] for value in table.values()]
    return [dict(zip(table, combination, strict=True)) for combination in itertools.product(*choices)]


def _scheme(name: str, table: object, where: str) -> Scheme:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table with rules, not {_kind(table)}")
    try:
        return Scheme.from_dict({"name": name, **table})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if hasattr(value, "to_dict") and not isinstance(value, Experiment):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {row.name: _plain(getattr(value, row.name)) for row in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value


def _build(cls: type[T], table: object, where: str) -> T:
    """A frozen dataclass from a table, by its annotations."""
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table, not {_kind(table)}")
    annotations = typing.get_type_hints(cls)
    rows = {row.name: row for row in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in table:
        if key not in rows:
            raise ValueError(f"{where}: {unknown('key', str(key), rows)}")
    for name, row in rows.items():
        required = row.default is dataclasses.MISSING and row.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise ValueError(f"{where}: key {name!r} is missing")
    values = {key: _value(annotations[key], value, f"{where}: {key}") for key, value in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _value(annotation: Any, value: object, where: str) -> Any:
    """`value` as `annotation` says; only what the classes above use is understood."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        if arguments[-1] is types.NoneType:  # X | None: a table cannot say None, a stored experiment can
            return None if value is None else _value(arguments[0], value, where)
        if type(value) not in arguments or (isinstance(value, float) and not math.isfinite(value)):
            words = " or ".join(_KINDS[kind] for kind in arguments)
            raise ValueError(f"{where} must be {words}, not {_kind(value)}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{where} must be a list, not {_kind(value)}")
        return tuple(_value(arguments[0], entry, f"{where}[{index}]") for index, entry in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{where} must be a table, not {_kind(value)}")
        return {str(key): _value(arguments[1], entry, f"{where}.{printable(str(key))}") for key, entry in value.items()}
    if dataclasses.is_dataclass(annotation):
        if isinstance(value, typing.cast(type, annotation)):
            return value
        return _build(typing.cast(type, annotation), value, where)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else math.inf
    if type(value) is not annotation or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{where} must be {_KINDS[annotation]}, not {_kind(value)}")
    return value


_KINDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false"}


def _kind(value: object) -> str:
    return f"{value!r}" if isinstance(value, str | int | float | bool) else "a table or a list"
