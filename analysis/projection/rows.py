"""The rows of a projection: one task per model and batch, as many processes as there are cores, or a cluster's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.cluster import HERE, Where, joined
from analysis.pricing import FALLBACK, NATIVE, NOT_SUPPORTED
from analysis.projection import Projection, arithmetic

if TYPE_CHECKING:
    from hwmodels import Device, Estimate, Workload


@dataclass(frozen=True, kw_only=True)
class ProjectedRow:
    """One combination. Seconds, bytes, joules; None where the device does not support the arithmetic, or unknown.

    latency: until all `batch` images are there; memory: weights and live activations of the denoiser; energy_per_image:
    at most, the board's published power limit times the time; speedup: over the baseline, everything else equal;
    basis: the cost model, in a word.
    """

    model: str
    scheme: str
    device: str
    batch: int
    mode: str
    steps: int
    support: str
    time_per_call: float | None = None
    time_per_image: float | None = None
    latency: float | None = None
    images_per_second: float | None = None
    speedup: float | None = None
    weights: float | None = None
    memory: float | None = None
    fits: bool | None = None
    energy_per_image: float | None = None
    bound: str = ""
    basis: str = ""
    note: str = ""


def project(
    asked: Projection,
    *,
    workers: int | None = None,
    progress: Callable[[str, float, float], None] = lambda *_: None,
    where: Where = HERE,
) -> tuple[ProjectedRow, ...]:
    """Every combination, in the order of the lists. workers: processes, by default one per core.

    Raises ValueError for a name that is not known.
    """
    from analysis.workers import MOST, cores

    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    asked = asked.named()
    tasks = asked.tasks()
    count = min(workers or min(cores(), MOST), len(tasks))
    found: dict[int, tuple[ProjectedRow, ...]] = {}
    progress("projecting", 0, len(tasks))
    for index, rows in _results(asked, tasks, count, where):
        found[index] = rows
        progress("projecting", len(found), len(tasks))
    return tuple(row for index in sorted(found) for row in found[index])


def _results(
    asked: Projection, tasks: list[tuple[str, int]], count: int, where: Where
) -> Iterator[tuple[int, tuple[ProjectedRow, ...]]]:
    if count == 1 and where == HERE:
        for index, task in enumerate(tasks):
            yield index, rows_of(asked, *task)
        return
    import joblib

    with joined(where, count) as parallel:
        work = (joblib.delayed(_indexed)(index, asked, task) for index, task in enumerate(tasks))
        yield from parallel(work)


def _indexed(index: int, asked: Projection, task: tuple[str, int]) -> tuple[int, tuple[ProjectedRow, ...]]:
    from analysis.workers import quiet

    quiet()
    return index, rows_of(asked, *task)


def rows_of(asked: Projection, model: str, batch: int) -> tuple[ProjectedRow, ...]:
    """All rows of one model and batch: traced once, lowered once per scheme and mode."""
    import hwmodels
    from analysis.models import MODELS
    from analysis.registry import workload

    full = MODELS.get(model)
    steps = asked.steps or (EMBEDDED_STEPS if full is None else full.steps)
    guided = full is None or full.guided
    work = workload(model, batch * (2 if guided else 1))
    devices = {name: hwmodels.device(name) for name in asked.devices}
    made = []
    for mode in asked.mode:
        base = {
            name: None if found is None else found.time_s
            for name, device in devices.items()
            for found in [_estimate(work, arithmetic(asked.baseline), device, mode, asked.estimator)]
        }
        for scheme in asked.schemes:
            meant = arithmetic(scheme)
            for name, device in devices.items():
                found = _estimate(work, meant, device, mode, asked.estimator)
                fixed: dict[str, Any] = {"model": model, "scheme": scheme, "device": name, "batch": batch, "mode": mode}
                made.append(_row(fixed | {"steps": steps}, found, base[name]))
    return tuple(made)


EMBEDDED_STEPS = 20  # of pipelines that are no full-size architecture: what experiments take by default


def _estimate(work: Workload, scheme: Any, device: Device, mode: Any, estimator: str) -> Estimate | None:
    """None where the device has neither the format nor a wider one."""
    import hwmodels

    try:
        return hwmodels.estimate(work, scheme, device=device, mode=mode, model=estimator)
    except hwmodels.UnsupportedFormat:
        return None


def _row(fixed: dict[str, Any], found: Estimate | None, base: float | None) -> ProjectedRow:
    if found is None:
        return ProjectedRow(**fixed, support=NOT_SUPPORTED)
    notes = list(dict.fromkeys(one.note for one in found.breakdown.executions if one is not None and one.note))
    latency = found.time_s * fixed["steps"]
    energy = found.energy_j
    return ProjectedRow(
        **fixed,
        support=FALLBACK if notes else NATIVE,
        time_per_call=found.time_s,
        time_per_image=latency / fixed["batch"],
        latency=latency,
        images_per_second=fixed["batch"] / latency,
        speedup=None if base is None else base / found.time_s,
        weights=found.footprint.weights,
        memory=found.footprint.total,
        fits=found.footprint.fits,
        energy_per_image=None if energy is None else energy * fixed["steps"] / fixed["batch"],
        bound=found.bound,
        basis=found.model,
        note="; ".join(notes),
    )
