"""The worker that makes pictures: `python -m analysis.sampler RUN_DIRECTORY`, batches named on stdin.

It keeps the pipeline and the last quantized copy of it, writes each batch into the run directory, and says so.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.experiment import Experiment
from analysis.plan import Batch, Plan, Row, calibration_captions, sources
from analysis.store import RunDirectory
from analysis.workers import quiet, serve

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from analysis.runner import Calibration
    from analysis.store import Images


class Sampler:
    """Pictures of a plan. `tick` is called at every denoising step, with "step" or, in calibration, "calibration"."""

    def __init__(self, plan: Plan, tick: Callable[[str], None] = lambda _: None) -> None:
        self.plan = plan
        self.tick = tick
        self._quantized: tuple[str, DiffusionPipeline] | None = None

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        """The pipeline in full precision. Raises ValueError when it cannot be loaded."""
        from analysis.runner import load

        return load(self.plan.experiment.quality.pipeline)

    @cached_property
    def calibration(self) -> Calibration:
        """Activation ranges of the full-precision pipeline on prompts that are not measured."""
        from analysis.runner import calibrate

        captions = calibration_captions(self.plan.experiment)
        quality = self.plan.experiment.quality
        with self._ticking(self.pipeline, "calibration"):
            return calibrate(self.pipeline, captions, steps=quality.steps, guidance=quality.guidance)

    def quantized(self, row: Row) -> DiffusionPipeline:
        """The pipeline in a row's arithmetic; the last one is kept."""
        if row.role != "configuration":
            return self.pipeline
        if self._quantized is None or self._quantized[0] != row.label:
            from analysis.runner import quantize

            made = quantize(self.pipeline, row.scheme, method=row.configuration.method, calibration=self.calibration)
            self._quantized = (row.label, made)
        return self._quantized[1]

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


def main() -> None:
    import torch

    quiet()
    torch.set_num_threads(1)
    run = RunDirectory.existing(Path(sys.argv[1]))
    manifest = run.manifest()
    if manifest["surroundings"]["sources"] != sources():
        raise ValueError("the package's sources changed after the run began; start it again")
    sampler = Sampler(Plan(Experiment.from_dict(manifest["experiment"]), manifest["surroundings"]))

    def handle(task: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        sampler.tick = lambda word: tell({word: 1})
        batch = Batch(**task)
        run.save(batch.identity, sampler.images(batch))

    serve(handle)


if __name__ == "__main__":
    main()
