"""The worker that makes pictures: `python -m analysis.sampler RUN_DIRECTORY`, tasks named on stdin.

A task is a batch, `{"row": 3, "start": 0, "stop": 128, "identity": "..."}`, or a pipeline to quantize,
`{"prepare": 3}`, so that what takes long is begun early and by one worker. The worker keeps the pipeline and its last
quantized copy, writes each batch into the run directory, and says so.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.experiment import Experiment
from analysis.plan import Batch, Plan, Row, calibration_captions, sources
from analysis.store import RunDirectory, discard_damaged, is_sealed, seal, write_json
from analysis.workers import quiet, serve

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from analysis.runner import Calibration
    from analysis.runner.quantize import QuantizationReport
    from analysis.store import Images


class Sampler:
    """Pictures of a plan. `tick` is called at every denoising step, with "step" or, in calibration, "calibration".

    folder : where the calibration and quantized denoisers are kept, so that workers share them and a killed run finds
             them again; None keeps nothing
    """

    def __init__(self, plan: Plan, tick: Callable[[str], None] = lambda _: None, folder: Path | None = None) -> None:
        self.plan = plan
        self.tick = tick
        self.folder = folder
        self._quantized: tuple[str, DiffusionPipeline] | None = None

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        """The pipeline in full precision. Raises ValueError when it cannot be loaded."""
        from analysis.runner import load
        from analysis.runner.sample import sized

        quality = self.plan.experiment.quality
        return sized(load(quality.pipeline, device=self.plan.device), **quality.size)

    @cached_property
    def calibration(self) -> Calibration:
        """Activation ranges of the full-precision pipeline on prompts that are not measured."""
        from analysis.runner import calibrate

        captions = calibration_captions(self.plan.experiment)
        quality = self.plan.experiment.quality
        file = None if self.folder is None else self.folder / "calibration.json"
        with self._alone("calibration"), self._ticking(self.pipeline, "calibration"):
            if file is not None:
                discard_damaged(file)
            return calibrate(self.pipeline, captions, steps=quality.steps, guidance=quality.guidance, resume=file)

    def quantized(self, row: Row) -> DiffusionPipeline:
        """The pipeline in a row's arithmetic; the last one is kept."""
        if row.role != "configuration":
            return self.pipeline
        if self._quantized is None or self._quantized[0] != row.label:
            self._quantized = None  # one at a time in memory
            self._quantized = (row.label, self._made(row))
        return self._quantized[1]

    def _made(self, row: Row) -> DiffusionPipeline:
        """A row's quantized pipeline: kept from before, or made now. Rounding to nearest is quicker than reading."""
        from analysis.runner import quantize, report_of, restore, save

        def make() -> DiffusionPipeline:
            method, options = row.configuration.method, dict[str, Any](row.configuration.options)
            made = quantize(self.pipeline, row.scheme, method=method, calibration=self.calibration, **options)
            if run is not None and run.layers(identity) is None:
                write_layers(run, identity, report_of(made))
            return made

        identity = self.plan.quantization(row)
        run = None if self.folder is None else RunDirectory(path=self.folder)
        if self.folder is None or run is None or not row.preparation:
            return make()
        place = self.folder / "quantized" / identity[:16]
        self.calibration  # noqa: B018 - before the lock: it has a lock of its own
        with self._alone(identity[:16]):
            if run.layers(identity) is not None and is_sealed(place):
                return restore(self.pipeline, place)
            made = make()
            save(made, place)
            seal(place)
        return made

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Inside, no other worker of this run does the same."""
        import fcntl

        if self.folder is None:
            yield
            return
        with (self.folder / f".{name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the system lets go of it when the process ends, however it ends
            yield

    def images(self, batch: Batch) -> Images:
        """float32 (stop - start, 3, H, W) in [0, 1]."""
        from analysis.runner import sample

        row, quality = self.plan.rows[batch.row], self.plan.experiment.quality
        pipe = self.quantized(row)
        with self._ticking(pipe, "step"):
            made = sample(
                pipe,
                self.plan.captions[batch.start : batch.stop],
                self.plan.seeds(row)[batch.start : batch.stop],
                steps=quality.steps,
                guidance=quality.guidance,
                batch_size=batch.stop - batch.start,
            )
        images: Images = made.numpy()
        return images

    @contextlib.contextmanager
    def _ticking(self, pipe: DiffusionPipeline, word: str) -> Iterator[None]:
        from analysis.runner.load import denoiser_name

        hook = getattr(pipe, denoiser_name(pipe)).register_forward_hook(lambda *_: self.tick(word))
        try:
            yield
        finally:
            hook.remove()


def write_layers(run: RunDirectory, identity: str, report: QuantizationReport) -> None:
    """Keep what became of each layer, exact zeros among the weights before and after included."""
    layers = [asdict(layer) for layer in report.layers]
    write_json(run.layers_path(identity), {"layers": layers, "skipped": dict(report.skipped)})


class Tasks:
    """Does the tasks of a run directory, in this process.

    Raises ValueError if the package's sources are not those that the run began with.
    """

    def __init__(self, directory: Path) -> None:
        import torch

        quiet()
        torch.set_num_threads(1)
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32, on a GPU too
        self.run = RunDirectory.existing(directory)
        manifest = self.run.manifest()
        if manifest["surroundings"]["sources"] != sources():
            raise ValueError("the package's sources changed after the run began; start it again")
        self.plan = Plan(Experiment.from_dict(manifest["experiment"]), manifest["surroundings"])
        self.sampler = Sampler(self.plan, folder=self.run.path)

    def perform(self, task: Mapping[str, Any], tell: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
        """One task; `tell` hears of every denoising step."""
        self.sampler.tick = lambda word: tell({word: 1})
        if "prepare" in task:
            self.sampler.quantized(self.plan.rows[task["prepare"]])
            return
        batch = Batch(**task)
        self.run.save(batch.identity, self.sampler.images(batch))


if __name__ == "__main__":
    serve(Tasks(Path(sys.argv[1])).perform)
