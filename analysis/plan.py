"""An experiment as units of work: rows of the quality table, and batches of pictures with an identity each.

The identity of a batch is a hash of everything its pictures depend on: captions, seeds, sampler settings, the scheme's
rules, the checkpoint's bytes, the sources that do the arithmetic, and the versions of the libraries under them. Equal
identity, equal pictures: a batch is measured once, whichever experiment asks, and again after a change anywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.experiment import LARGEST_SAMPLE, Configuration, Experiment
from analysis.scheme import Scheme
from analysis.store import check_safetensors, digest, file_digest

if TYPE_CHECKING:
    from analysis.scenes import Scenes

REFERENCE = "fp32"
NOISE_FLOOR = "fp32, another seed"

Role = Literal["reference", "noise floor", "configuration"]

_SOURCES = ("fpsim", "analysis/methods", "analysis/runner", "analysis/scheme", "analysis/models/embedded")
_FILES = (
    "analysis/accumulators/partial_sums.py",
    "analysis/accumulators/registers.py",
    "analysis/plan.py",
    "analysis/sampler.py",
    "analysis/scenes.py",
)
_LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "numba")

#: Time of one picture relative to full precision on a CPU, for the remaining time that a progress bar shows and for
#: the order of work; a measured guess, results do not depend on it.
WEIGHT = {"reference": 1.0, "quantize": 1.2, "exact": 15.0}

#: Time to quantize by a method, in the same unit: pictures of full precision. Rounding to nearest is quicker than
#: reading a file; what is not listed takes `SOME`.
PREPARATION = {"rtn": 0.0, "fp-ptq": 400.0, "adaround": 400.0, "q-diffusion": 400.0, "gptaq": 60.0}
SOME = 30.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the quality table."""

    label: str
    role: Role
    scheme: Scheme
    prompts: int
    configuration: Configuration

    @property
    def weight(self) -> float:
        """Relative time of one picture."""
        return WEIGHT[self.configuration.arithmetic if self.role == "configuration" else "reference"]

    @property
    def preparation(self) -> float:
        """Relative time of quantizing the pipeline, 0 where it is not worth keeping."""
        return PREPARATION.get(self.configuration.method, SOME) if self.role == "configuration" else 0.0


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures `start` to `stop` of one row, made in one go."""

    row: int
    start: int
    stop: int
    identity: str

    def message(self) -> dict[str, Any]:
        """What a worker is told."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """The quantized pipeline of one row, made before its pictures are asked for."""

    row: int

    def message(self) -> dict[str, Any]:
        """What a worker is told."""
        return {"prepare": self.row}


Task = Batch | Preparation


@dataclass(frozen=True)
class Plan:
    """What an experiment comes down to."""

    experiment: Experiment
    surroundings: Mapping[str, str]

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Full precision, the noise floor, then the configurations in the order of the file."""
        quality = self.experiment.quality
        plain = Configuration(scheme=REFERENCE)
        scheme = self.experiment.scheme_of(plain)
        rows = [
            Row(label=label, role=role, scheme=scheme, prompts=quality.prompts, configuration=plain)
            for label, role in _FIXED
        ]
        for configuration in self.experiment.configuration:
            if configuration.label != REFERENCE:
                rows.append(
                    Row(
                        label=configuration.label,
                        role="configuration",
                        scheme=self.experiment.scheme_of(configuration),
                        prompts=self.experiment.prompts_of(configuration),
                        configuration=configuration,
                    )
                )
        return tuple(rows)

    @cached_property
    def scenes(self) -> Scenes | None:
        """What the prompts ask for; None for prompts of one's own of which some is no sentence of the scene grammar.

        Our own are interleaved by number of objects, so that any first few of them are mixed as all of them are.
        """
        quality = self.experiment.quality
        if not quality.captions:
            return held_out(quality.prompts, quality.objects, quality.seed)
        from analysis.scenes import parse

        try:
            return parse(quality.captions)
        except ValueError:
            return None

    @cached_property
    def captions(self) -> list[str]:
        own = self.experiment.quality.captions
        return list(own) if own or self.scenes is None else self.scenes.captions()

    def seeds(self, row: Row) -> list[int]:
        """One per prompt: the same in every row but the noise floor."""
        first = self.experiment.quality.seed * 2 * LARGEST_SAMPLE
        first += LARGEST_SAMPLE if row.role == "noise floor" else 0
        return [first + own for own in (self.experiment.quality.seeds or range(row.prompts))[: row.prompts]]

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """All the work there is, the longest pieces first."""
        made = []
        for index, row in enumerate(self.rows):
            size = self.experiment.quality.batch
            if row.configuration.engine is not None:
                size = max(1, size // 8)  # slow: small pieces, so that workers share them
            made += [
                Batch(row=index, start=start, stop=stop, identity=self._identity(row, start, stop))
                for start in range(0, row.prompts, size)
                for stop in [min(start + size, row.prompts)]
            ]
        return tuple(sorted(made, key=lambda batch: -self.rows[batch.row].weight))

    def work(self, task: Task) -> float:
        """Relative time of a batch or of a preparation."""
        row = self.rows[task.row]
        return row.preparation if isinstance(task, Preparation) else (task.stop - task.start) * row.weight

    @cached_property
    def key(self) -> str:
        """The experiment's key in these surroundings."""
        return self.experiment.key(self.surroundings)

    @property
    def device(self) -> str:
        """The torch device that pictures are made on."""
        return self.surroundings["device"].partition(",")[0]

    def quantization(self, row: Row) -> str:
        """Identity of a row's quantized pipeline."""
        return digest(self._recipe(row))

    def _identity(self, row: Row, start: int, stop: int) -> str:
        needs = self._recipe(row) | {"captions": self.captions[start:stop], "seeds": self.seeds(row)[start:stop]}
        return digest(needs)

    def _recipe(self, row: Row) -> dict[str, Any]:
        quality = self.experiment.quality
        rules = row.scheme.to_dict()
        del rules["name"]
        needs: dict[str, Any] = {
            "steps": quality.steps,
            "guidance": quality.guidance,
            "scheme": rules,
            "method": row.configuration.method,
            "options": dict(row.configuration.options),
            "surroundings": dict(self.surroundings),
        }
        if row.configuration.scheme != REFERENCE:
            own = quality.calibration_captions
            needs["calibration"] = list(own) if own else [quality.calibration, quality.seed]
        return needs | quality.size


_FIXED: tuple[tuple[str, Role], ...] = ((REFERENCE, "reference"), (NOISE_FLOOR, "noise floor"))


def held_out(count: int, objects: Sequence[int], seed: int) -> Scenes:
    """`count` held-out scenes, taking turns between the numbers of objects."""
    import torch

    from analysis import scenes

    if count > LARGEST_SAMPLE:
        raise ValueError(f"at most {LARGEST_SAMPLE} prompts, not {count}")
    share = -(-count // len(objects))
    # A seed per number of objects: with the same one, scenes of two and of three objects would share their first two.
    parts = [scenes.held_out(share, objects=number, seed=10 * seed + number) for number in objects]
    stacked = {
        field.name: torch.stack([getattr(part, field.name) for part in parts], dim=1).flatten(0, 1)[:count]
        for field in dataclasses.fields(scenes.Scenes)
    }
    return scenes.Scenes(**stacked)


def calibration_captions(experiment: Experiment) -> list[str]:
    """Other prompts than the measured ones: their own seed, or those that the experiment says."""
    quality = experiment.quality
    if quality.calibration_captions:
        return list(quality.calibration_captions)
    return held_out(quality.calibration, quality.objects, quality.seed + 1_000_003).captions()


def surroundings(checkpoint: Path, variant: str = "", device: str = "cpu") -> dict[str, str]:
    """What results depend on besides the experiment: the checkpoint's bytes, our sources, the libraries' versions, the
    device.

    variant: what is done to the checkpoint on loading ("" nothing).
    Raises ValueError for a checkpoint that is not there or is cut short, and for a device that is not there.
    """
    if not (checkpoint / "model_index.json").is_file():  # any other folder may be a whole disk to hash
        missing = not checkpoint.is_dir()
        what = (
            f"no pipeline {str(checkpoint)!r}"
            if missing
            else f"{checkpoint} is no pipeline: it has no model_index.json"
        )
        raise ValueError(f"{what}; give an embedded pipeline's name or a diffusers directory")
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for path in files:
        if path.suffix == ".safetensors":
            check_safetensors(path)
    found = {"fpsim": version("fpsim"), "sources": sources(), "device": described(device)}
    hashes = {str(path.relative_to(checkpoint)): file_digest(path) for path in files}
    found["checkpoint"] = digest({"files": hashes, "variant": variant})
    return found | {library: version(library) for library in _LIBRARIES}


def described(device: str) -> str:
    """ "cpu", or a CUDA device with its name: "cuda, NVIDIA H200". ValueError for one that torch does not have here."""
    if device == "cpu":
        return device
    import torch

    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("cpu")
    if found.type != "cuda":
        raise ValueError(f"unknown device {device!r} to make pictures on (known: cpu, cuda, cuda:N)")
    if not torch.cuda.is_available() or (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not here: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA devices; "
            "leave --device out to run on the CPU"
        )
    return f"{device}, {torch.cuda.get_device_name(found)}"


@cache
def sources() -> str:
    """Hash of the source files that pictures depend on, as they were when this process first asked."""
    root = Path(__file__).parent.parent
    paths = [path for folder in _SOURCES for path in (root / folder).rglob("*.py")]
    paths += [root / name for name in _FILES]
    hashes = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return digest(hashes)
