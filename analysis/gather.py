"""The pictures of a plan: what is stored, what another run has, and the rest measured now by worker processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from analysis.cluster import HERE, Cluster, Where
from analysis.launch import Launched
from analysis.plan import Batch, Plan, Preparation, Task
from analysis.store import DamagedFile, RunDirectory

if TYPE_CHECKING:
    from analysis.store import Images
    from analysis.workers import Workers

LOG = logging.getLogger(__name__)

#: called with (stage, units done, units in all)
Progress = Callable[[str, float, float], None]


def measure(
    plan: Plan,
    directory: RunDirectory,
    workers: int | None,
    tell: Progress,
    where: Where = HERE,
    each: Callable[[Batch, Images], None] | None = None,
) -> dict[str, Images]:
    """The pictures of every row: those already there and undamaged, those another run has, the rest made now.

    each: called with every batch as soon as its pictures are there
    """
    import numpy as np

    from analysis.workers import MOST, Workers, cores, gpus

    kept: dict[str, Images] = {}
    missing: list[Batch] = []
    for batch in plan.batches:
        images = stored(directory, batch)
        if images is None:
            missing.append(batch)
        else:
            kept[batch.identity] = images
            if each is not None:
                each(batch, images)
    unknown = [Preparation(row=index) for index in layers_missing(plan, directory, missing)]
    if missing or unknown:
        usual = min(cores(), MOST) if plan.device == "cpu" else max(1, len(gpus(plan.device)))
        count = min(workers or usual, len(missing) + len(unknown))
        LOG.info("%d of %d batches to measure, %d workers", len(missing), len(plan.batches), count)
        log = directory.path / "run.log"
        work = [*unknown, *tasks(plan, missing, 1 if where.launched else count)]
        pool: Workers | Cluster | Launched
        if where.launched:
            pool = Launched(directory.path, [plan.work(task) for task in work], plan.device)
        elif where.backend == "local":
            pool = Workers("analysis.sampler", [str(directory.path)], count, log, gpus(plan.device))
        else:
            pool = Cluster(where, count, directory.path)
        with pool:
            for batch in _watch(plan, work, pool, count, tell):
                if each is not None and (images := stored(directory, batch)) is not None:
                    each(batch, images)
        for batch in missing:
            images = stored(directory, batch)
            if images is None:
                raise ValueError(f"{directory.batch_path(batch.identity)} was measured and is gone; run this again")
            kept[batch.identity] = images
    found = {}
    for index, row in enumerate(plan.rows):
        parts = sorted((batch for batch in plan.batches if batch.row == index), key=lambda batch: batch.start)
        found[row.label] = np.concatenate([kept[batch.identity] for batch in parts])
    return found


def layers_missing(plan: Plan, directory: RunDirectory, missing: Sequence[Batch]) -> list[int]:
    """Rows whose pictures are all there, and of which nobody knows what became of the layers: lost, or damaged."""
    being_made = {batch.row for batch in missing}
    return [
        index
        for index, row in enumerate(plan.rows)
        if row.role == "configuration" and index not in being_made and directory.layers(plan.quantization(row)) is None
    ]


def tasks(plan: Plan, missing: Sequence[Batch], workers: int) -> list[Task]:
    """The work in the order it is handed out.

    One worker quantizes and samples row by row. Several begin with the pipelines that take longest to quantize, one
    each, and meanwhile sample the rows that need no such preparation; without that, all batches of one row would come
    together and all workers but one would wait for its pipeline.
    """
    if workers == 1:
        return list(missing)
    rows = sorted({batch.row for batch in missing}, key=lambda row: -plan.rows[row].preparation)
    prepared: list[Task] = [Preparation(row=row) for row in rows if plan.rows[row].preparation]
    return prepared + sorted(missing, key=lambda batch: plan.rows[batch.row].preparation)


def _watch(
    plan: Plan, work: Sequence[Task], pool: Workers | Cluster | Launched, count: int, tell: Progress
) -> Iterator[Batch]:
    """Have `work` done, batch by batch, and tell how far that is: in pictures of full precision, with calibration."""
    steps, calibration = plan.experiment.quality.steps, plan.experiment.quality.calibration
    rest = sum(map(plan.work, work))
    total = max(sum(map(plan.work, plan.batches)), rest) + count * calibration
    done = total - rest - count * calibration
    tell("measuring", done, total)
    counted = [0] * len(work)
    calibrated = 0
    for index, event in pool.run([task.message() for task in work]):
        task, share = work[index], plan.work(work[index]) / steps
        if "calibration" in event and calibrated < count * steps:
            calibrated += 1
            done += calibration / steps
        elif "step" in event and counted[index] < steps:
            counted[index] += 1
            done += share
        elif "done" in event:
            done += share * (steps - counted[index])
            row = plan.rows[task.row].label
            if isinstance(task, Batch):
                LOG.info("measured %s, prompts %d to %d", row, task.start, task.stop)
                yield task
            else:
                LOG.info("quantized %s", row)
        tell("measuring", min(done, total), total)
    tell("measuring", total, total)


def stored(directory: RunDirectory, batch: Batch) -> Images | None:
    """A batch measured before, here or in a run beside this one; None if it has to be measured (again)."""
    try:
        images = directory.load(batch.identity)
    except DamagedFile as error:
        LOG.warning("%s; measuring it again", error)
        directory.batch_path(batch.identity).unlink()
        return None
    if images is None and directory.adopt(batch.identity):
        return directory.load(batch.identity)
    return images
