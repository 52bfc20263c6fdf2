"""The tables of an experiment file as frozen dataclasses; what each refuses, it says."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fpsim
from analysis.experiment.strict import unknown

LARGEST_SAMPLE = 500_000  # prompts; the seeds of the noise floor start there
LARGEST_SEED = 10**12  # every seed of a picture, a multiple of it, stays within 64 bits
LARGEST_SIDE = 16_384  # pixels, and frames


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What is measured: pictures (or videos) of a pipeline small enough to sample here.

    prompts              : how many; scenes of our own grammar, unless `captions` are given
    captions, seeds      : prompts of one's own, `prompts` of them, and perhaps a seed for each; a file says
                           `prompts = "some.csv"` (`analysis.experiment.prompts`), and what it holds stands here
    calibration_captions : likewise for `calibration`
    height, width, frames: of what is made, where it should not be the pipeline's own size
    metrics              : further ones by name (`fpsim list metrics`)
    sensitivity          : judge every layer alone too, as `fpsim sensitivity` does; minutes per configuration
    """

    pipeline: str = "shapes-sd"
    prompts: int = 64
    objects: tuple[int, ...] = (1, 2, 3, 4)  # equally many prompts with each number of objects
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    batch: int = 16  # prompts sampled together; part of the identity of a picture, sums depend on it in the last bit
    calibration: int = 16  # other prompts, from which static activation ranges come
    confidence: float = 0.95
    captions: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    calibration_captions: tuple[str, ...] = ()
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    metrics: tuple[str, ...] = ()
    sensitivity: bool = False

    def __post_init__(self) -> None:
        for name in ("prompts", "steps", "batch", "calibration"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
            if getattr(self, name) > LARGEST_SAMPLE:
                raise ValueError(f"{name} must be at most {LARGEST_SAMPLE}, not {getattr(self, name)}")
        for seed in (self.seed, *self.seeds):
            if abs(seed) > LARGEST_SEED:
                raise ValueError(f"seed must be between -{LARGEST_SEED} and {LARGEST_SEED}, not {seed}")
        if not self.objects or not set(self.objects) <= {1, 2, 3, 4}:
            raise ValueError(f"objects must be some of 1, 2, 3, 4, not {list(self.objects)}")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence must be between 0.5 and 1, not {self.confidence}")
        for name, value in self.size.items():
            if not 1 <= value <= LARGEST_SIDE:
                raise ValueError(f"{name} must be between 1 and {LARGEST_SIDE}, not {value}")
        self._check_captions()

    def _check_captions(self) -> None:
        for name, count, list_name in (
            ("prompts", self.prompts, "captions"),
            ("calibration", self.calibration, "calibration_captions"),
        ):
            listed = getattr(self, list_name)
            if listed and len(listed) != count:
                raise ValueError(f"{name} is {count}, but there are {len(listed)} {list_name}")
            if not all(caption.strip() for caption in listed):
                raise ValueError(f"{list_name} has an empty prompt")
        if self.seeds and len(self.seeds) != len(self.captions):
            raise ValueError(f"{len(self.seeds)} seeds for {len(self.captions)} captions; give one for each")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics has one twice: {', '.join(self.metrics)}")

    @property
    def size(self) -> dict[str, int]:
        """height, width and frames where they are given."""
        given = {name: getattr(self, name) for name in ("height", "width", "frames")}
        return {name: value for name, value in given.items() if value is not None}


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
