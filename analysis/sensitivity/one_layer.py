"""What quantizing one layer does, for every layer: the loop behind `analysis.sensitivity`.

Layers are made by the method as for a pipeline (`analysis.methods`), all of one candidate at a time, and put into a
denoiser in full precision one by one (`analysis.sensitivity.prefix`). Each visit is kept on disk when it is done.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.methods import Request
from analysis.methods import method as method_called
from analysis.runner.calibrate import Calibration, layers_of
from analysis.runner.load import denoiser_name
from analysis.runner.quantize import plan
from analysis.runner.sample import Progress
from analysis.runner.samples import first
from analysis.scheme import Scheme
from analysis.sensitivity.prefix import Prefix
from analysis.sensitivity.visits import Clean, Visit, noise, restructured
from analysis.store import DamagedFile, digest, read_json, write_json

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from torch import Tensor
    from torch.nn import Module

Scores = npt.NDArray[np.float64]

METRICS = ("quality", "content")


class Judge:
    """Answers both questions of `visits` about outputs of one visit; content None leaves the second out."""

    def __init__(self, visit: Visit, reference: "Tensor", clean: Clean | None) -> None:
        self.visit, self.reference, self.clean = visit, reference, clean
        self.pictures = None if clean is None else clean.pictures(visit, reference)

    def __call__(self, output: "Tensor") -> tuple[float, float]:
        """(quality, content), content NaN where it is left out."""
        quality = noise(output, self.reference)
        if self.clean is None or self.pictures is None:
            return quality, float("nan")
        return quality, restructured(self.clean.pictures(self.visit, output), self.pictures)


def candidate(
    pipe: "DiffusionPipeline",
    scheme: Scheme,
    found: Sequence[Visit],
    calibration: Calibration,
    clean: Clean | None,
    method: str = "rtn",
    options: Mapping[str, Any] | None = None,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> Scores:
    """(layers, visits, 2): both scores of each layer of the denoiser, alone in `scheme`; 0 for layers it spares.

    keep     : a folder of finished visits, written and gone on from
    progress : called with (visits done, visits in all)

    Raises ValueError for a scheme that matches no layer or quantizes attention, and as `quantize` does.
    """
    denoiser = getattr(pipe, denoiser_name(pipe))
    if scheme.attention is not None:
        raise ValueError(f"candidate {scheme.name!r} quantizes attention, which no layer stands for; leave that out")
    layers, _, _ = plan(denoiser, scheme)
    rows = {path: i for i, path in enumerate(layers_of(denoiser))}
    scores = np.zeros((len(rows), len(found), len(METRICS)))
    recipe = _recipe(scheme, found, calibration, clean, method, options)
    files = [None if keep is None else keep / f"{digest({**recipe, 'visit': i})}.json" for i in range(len(found))]
    prefix: Prefix | None = None
    modules: Mapping[str, Module] = {}
    for i, (visit, file) in enumerate(zip(found, files, strict=True)):
        known = None if file is None else _kept(file)
        if known is None and layers:
            if prefix is None:
                request = Request(pipe=pipe, layers=layers, calibration=calibration, options=options or {})
                modules = method_called(method).quantize(request)
                prefix = Prefix(denoiser)
                for clock in request.clocks.values():
                    clock.attach(prefix.model)
            known = _visit(prefix, modules, visit, clean)
            if file is not None:
                write_json(file, {"scores": {path: _plain(pair) for path, pair in known.items()}})
        for path, pair in (known or {}).items():
            scores[rows[path], i] = pair
        if progress is not None:
            progress(i + 1, len(found))
    return scores


def judges(pipe: "DiffusionPipeline", found: Sequence[Visit], clean: Clean | None) -> tuple[Judge, ...]:
    """One for each visit, with what the pipeline in full precision answers there."""
    return tuple(Judge(visit, _output(pipe, visit), clean) for visit in found)


def whole(quantized: "DiffusionPipeline", asked: Sequence[Judge]) -> Scores:
    """(visits, 2): both scores of a pipeline that `analysis.quantize` made: what sums over layers are held against."""
    return np.array([judge(_output(quantized, judge.visit)) for judge in asked])


def _output(pipe: "DiffusionPipeline", visit: Visit) -> "Tensor":
    import torch

    with torch.no_grad():
        return first(getattr(pipe, denoiser_name(pipe))(*visit.call.args, **visit.call.kwargs))


def _visit(
    prefix: Prefix, modules: "Mapping[str, Module]", visit: Visit, clean: Clean | None
) -> dict[str, tuple[float, float]]:
    judge = Judge(visit, prefix.record(visit.call), clean)
    return {path: judge(prefix.changed(path, module)) for path, module in modules.items() if prefix.ran(path)}


def _recipe(
    scheme: Scheme,
    found: Sequence[Visit],
    calibration: Calibration,
    clean: Clean | None,
    method: str,
    options: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All that a visit's scores depend on, but for the pipeline itself and our sources."""
    rules = scheme.to_dict()
    del rules["name"]
    return {
        "scheme": rules,
        "method": method,
        "options": {key: repr(value) for key, value in (options or {}).items()},
        "calibration": hashlib.sha256(calibration.to_json().encode()).hexdigest(),
        "visits": [[visit.timestep, visit.call.images] for visit in found],
        "content": clean is not None,
    }


def _plain(pair: tuple[float, float]) -> list[float | None]:
    return [None if value != value else value for value in pair]


def _kept(file: Path) -> dict[str, tuple[float, float]] | None:
    """A finished visit; None for one that is not there or is damaged, which is then done again."""
    try:
        stored = read_json(file)["scores"]
    except (FileNotFoundError, DamagedFile):
        return None
    return {path: (_number(quality), _number(content)) for path, (quality, content) in stored.items()}


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
