"""How much each layer minds each arithmetic, at each timestep, by two questions that are asked apart.

One layer at a time is quantized, the rest stays in full precision, and the denoiser is called on stored inputs of the
full-precision trajectory; see `analysis.sensitivity.visits` for the two scores (quality, content) and
`analysis.sensitivity.one_layer` for the loop. Scores of layers nearly add up, which is what `analysis.allocation`
builds on and checks.

    found = sensitivity(pipe, ["bf16", "fp8-w8a8", "nvfp4"], calibration)
    found.table()                        # layer, kind, candidate, timestep, quality, sqnr_db, content
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from analysis.scheme import Scheme, scheme
from fpsim._names import unknown

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import DiffusionPipeline

    from analysis.runner.calibrate import Calibration

LOG = logging.getLogger(__name__)

Metric = Literal["quality", "content"]
Tell = Callable[[str, float, float], None]

#: What scores depend on besides `analysis.plan`'s sources.
_FILES = ("__init__.py", "one_layer.py", "prefix.py", "visits.py")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sensitivity:
    """Scores of every layer in every candidate.

    layers     : path -> kind ("Linear", "Conv2d"), in the order the denoiser defines them
    candidates : name -> scheme; a layer's candidate is what the scheme says of this layer
    timesteps  : one per visit, in the order of the trajectory
    quality    : float64 (layers, candidates, visits), error power over output power; 0: unchanged
    content    : the same for 1 - SSIM of predicted clean pictures, or None
    """

    pipeline: str
    method: str
    layers: Mapping[str, str]
    candidates: Mapping[str, Scheme]
    timesteps: tuple[float, ...]
    quality: npt.NDArray[np.float64]
    content: npt.NDArray[np.float64] | None

    def scores(self, metric: Metric = "quality") -> npt.NDArray[np.float64]:
        """float64 (layers, candidates): mean over the trajectory. ValueError for a metric that was not measured."""
        if metric not in ("quality", "content"):
            raise unknown("metric", metric, ("quality", "content"))
        values = self.quality if metric == "quality" else self.content
        if values is None:
            raise ValueError("content was left out of this sensitivity; measure it again with content")
        return np.asarray(values.mean(axis=2))

    def table(self) -> pd.DataFrame:
        """One row per layer, candidate and timestep; sqnr_db is infinite where nothing changed."""
        import pandas as pd

        index = pd.MultiIndex.from_product(
            [list(self.layers), list(self.candidates), list(self.timesteps)], names=["layer", "candidate", "timestep"]
        )
        frame = pd.DataFrame({"quality": self.quality.ravel()}, index=index).reset_index()
        frame.insert(1, "kind", frame["layer"].map(dict(self.layers)))
        frame["sqnr_db"] = decibel(frame["quality"].to_numpy())
        frame["content"] = float("nan") if self.content is None else self.content.ravel()
        return frame

    def by_timestep(self) -> pd.DataFrame:
        """Sums over layers: candidate, timestep, quality, sqnr_db, content of everything in the candidate."""
        frame = self.table().groupby(["candidate", "timestep"], sort=False)[["quality", "content"]].sum(min_count=1)
        frame = frame.reset_index()
        frame.insert(3, "sqnr_db", decibel(frame["quality"].to_numpy()))
        return frame

    def to_json(self) -> str:
        """JSON text; `from_json` reads it back."""
        data: dict[str, Any] = {row.name: getattr(self, row.name) for row in fields(self)}
        data["layers"] = dict(self.layers)
        data["candidates"] = {name: one.to_dict() for name, one in self.candidates.items()}
        for name in ("quality", "content"):
            data[name] = None if data[name] is None else data[name].tolist()
        return json.dumps(data, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Sensitivity:
        """Read `to_json`'s text. Raises ValueError for anything else."""
        data = json.loads(text)
        keys = [row.name for row in fields(cls)]
        if not isinstance(data, dict) or sorted(data) != sorted(keys):
            raise ValueError(f"not a sensitivity: expected the keys {', '.join(keys)}")
        for name in ("quality", "content"):
            data[name] = None if data[name] is None else np.array(data[name], dtype=np.float64)
        shape = (len(data["layers"]), len(data["candidates"]), len(data["timesteps"]))
        if any(data[name] is not None and data[name].shape != shape for name in ("quality", "content")):
            raise ValueError(
                f"not a sensitivity: scores must be {shape[0]} layers x {shape[1]} candidates x {shape[2]}"
            )
        data["candidates"] = {name: Scheme.from_dict(one) for name, one in data["candidates"].items()}
        return cls(**{**data, "timesteps": tuple(data["timesteps"])})


def decibel(noise: npt.NDArray[np.float64] | float) -> Any:
    """SQNR in dB of error power over signal power; inf for 0."""
    with np.errstate(divide="ignore"):
        return -10 * np.log10(noise)


def sensitivity(
    pipe: DiffusionPipeline,
    candidates: Sequence[Scheme | str],
    calibration: Calibration,
    *,
    images: int = 2,
    steps: int = 10,
    content: bool = True,
    method: str = "rtn",
    keep: Path | None = None,
    progress: Tell | None = None,
    **options: Any,
) -> Sensitivity:
    """Judge every layer alone in every candidate.

    candidates    : schemes or names of them; layers that a scheme spares score 0
    images, steps : the first captions of `calibration`, and how many of its timesteps, evenly spread
    content       : whether pictures are judged too (takes the decoder once per layer, candidate and image)
    method        : what makes the layers, with its `options` (`analysis.methods`)
    keep          : a folder for finished visits; a call with the same arguments and pipeline goes on from it
    progress      : called with (candidate, visits done, visits in all)

    The pipeline is not touched. Raises ValueError for no or equal candidates, and see `visits` and `candidate`.
    """
    from analysis.runner.calibrate import layers_of
    from analysis.runner.load import denoiser_name
    from analysis.sensitivity import one_layer
    from analysis.sensitivity.visits import Clean, visits

    schemes = named(candidates)
    found = visits(pipe, calibration, images, steps)
    clean = Clean(pipe, images, calibration.guidance) if content else None
    tell = progress or (lambda *_: None)
    scores = [
        one_layer.candidate(
            pipe,
            one,
            found,
            calibration,
            clean,
            method,
            options,
            keep,
            lambda done, total, name=name: tell(name, done, total),  # type: ignore[misc]
        )
        for name, one in schemes.items()
    ]
    stacked = np.stack(scores, axis=1)
    layers = layers_of(getattr(pipe, denoiser_name(pipe)))
    return Sensitivity(
        pipeline=type(pipe).__name__,
        method=method,
        layers={path: type(layer).__name__ for path, layer in layers.items()},
        candidates=schemes,
        timesteps=tuple(visit.timestep for visit in found),
        quality=stacked[..., 0],
        content=stacked[..., 1] if content else None,
    )


def named(candidates: Sequence[Scheme | str]) -> dict[str, Scheme]:
    """Name -> scheme. Raises ValueError for none, and for two of one name."""
    if isinstance(candidates, str) or not candidates:
        raise ValueError(f"candidates must be a list of at least one scheme, not {candidates!r}")
    made = [scheme(one) if isinstance(one, str) else one for one in candidates]
    names = [one.name for one in made]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"candidate {name!r} is there twice")
    return dict(zip(names, made, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# From the name of a pipeline, kept in a run directory


@dataclass(frozen=True, kw_only=True)
class Study:
    """What to measure, on which pipeline. captions: of calibration, scenes other than those experiments measure on."""

    pipeline: str
    candidates: tuple[Scheme, ...]
    images: int = 2
    steps: int = 10
    content: bool = True
    method: str = "rtn"
    captions: int = 16
    trajectory: int = 20
    guidance: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        named(self.candidates)
        for name in ("images", "steps", "captions", "trajectory"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Studied:
    """A finished study: its pipeline and calibration at hand for checks; folder: where files lie."""

    study: Study
    sensitivity: Sensitivity
    pipe: Any
    calibration: Calibration
    folder: Path


def run(study: Study, runs: Path = Path("runs"), device: str = "cpu", progress: Tell | None = None) -> Studied:
    """Measure, or go on where a stopped run was; writes sensitivity.json and sensitivity.csv into the run directory.

    Raises ValueError for anything wrong with the input.
    """
    from analysis.models import embedded
    from analysis.plan import held_out, surroundings
    from analysis.runner import calibrate, load
    from analysis.sensitivity.kept import keep
    from analysis.store import RunDirectory, digest, discard_damaged, write_atomic

    row = embedded.PIPELINES.get(study.pipeline)
    folder = Path(study.pipeline) if row is None else row.directory
    around = surroundings(folder, variant=study.pipeline if row is not None and row.outliers else "", device=device)
    settings = {item.name: getattr(study, item.name) for item in fields(study) if item.name != "candidates"}
    # Candidates are no part of the key: a study with one more finds what the others measured.
    own = {name: hashlib.sha256((Path(__file__).parent / name).read_bytes()).hexdigest() for name in _FILES}
    key = digest({"study": settings, "surroundings": around, "sources": own})
    name = f"sensitivity-{folder.name}" if row is None else f"sensitivity-{study.pipeline}"
    directory = RunDirectory.open(runs, name=name, key=key, manifest={"study": settings, "surroundings": around})
    tell = progress or (lambda *_: None)
    with directory.lock():
        pipe = load(study.pipeline, device=device)
        discard_damaged(directory.path / "calibration.json")
        captions = held_out(study.captions, (1, 2, 3, 4), study.seed + 1_000_003).captions()
        calibration = calibrate(
            pipe,
            captions,
            steps=study.trajectory,
            guidance=study.guidance,
            progress=lambda done, total: tell("calibrate", done, total),
            resume=directory.path / "calibration.json",
        )
        found = sensitivity(
            pipe,
            study.candidates,
            calibration,
            images=study.images,
            steps=study.steps,
            content=study.content,
            method=study.method,
            keep=directory.path / "visits",
            progress=tell,
        )
        found = replace(found, pipeline=study.pipeline)
        keep(directory.path, found)
        write_atomic(directory.path / "sensitivity.csv", found.table().to_csv(index=False).encode())
    LOG.info("sensitivity of %s: %s", study.pipeline, directory.path)
    return Studied(study=study, sensitivity=found, pipe=pipe, calibration=calibration, folder=directory.path)
