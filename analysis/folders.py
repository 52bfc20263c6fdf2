"""Folders of PNG files judged like configurations: another tool's pictures, or real ones, against a reference folder.

Files of one name belong together, as prompts and seeds do in a run: what is paired (PSNR, SSIM, LPIPS, changes) is
paired by name. Against pictures that have nothing to do with one another (photographs), `paired=False` leaves only what
compares whole sets. Prompts, if there are any, are found by the number that a file is called after, else by order.

Pictures are read in pieces; only metrics of whole sets hold all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.pictures import Folder
from analysis.scoring.rows import EQUAL_DB, METRICS, QualityRow, Values, numbers
from fpsim._names import printable

if TYPE_CHECKING:
    from analysis.scenes import Scenes
    from analysis.scoring.extra import Metric

PIECE = 16  # pictures in memory at once
ALONE = ("correct", "residual", "flicker")
PAIRED = ("psnr", "ssim", "temporal_psnr")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What pictures were asked to show. scenes: if all prompts are sentences of the scene grammar."""

    captions: Sequence[str] = ()
    scenes: Scenes | None = None

    @classmethod
    def of(cls, source: str) -> Asked:
        """The prompts of an experiment (a .toml file, or a shipped one's name), or of a file of prompts."""
        from analysis.experiment import SHIPPED, Experiment, Quality
        from analysis.experiment.prompts import with_other_prompts
        from analysis.plan import Plan

        shipped = (SHIPPED / f"{source}.toml").is_file()
        if source.endswith(".toml") or shipped:
            plan = Plan(Experiment.load(source), {})
        else:
            quality = with_other_prompts(Quality(), source)
            row = {"scheme": "fp32"}
            plan = Plan(Experiment.from_dict({"name": "x", "configuration": [row], "quality": vars(quality)}), {})
        return cls(captions=plan.captions, scenes=plan.scenes)


def score(
    folders: Sequence[Path],
    against: Path | None = None,
    asked: Asked | None = None,
    metrics: Sequence[str] = (),
    paired: bool = True,
    confidence: float = 0.95,
    progress: Callable[[], None] = lambda: None,
) -> tuple[QualityRow, ...]:
    """One row per folder and metric, the reference's own first; `configuration` is the folder as it was given.

    Raises ValueError, naming the folder or the file, for what is no folder of pictures of one size, for a picture
    without its counterpart or its prompt, and when nothing can be measured.
    """
    from analysis.scoring.extra import find

    asked = asked or Asked()
    extra = [find(name) for name in metrics]
    units = {name: unit for name, (_, unit, _) in METRICS.items()} | {one.name: one.unit for one in extra}
    reference = None if against is None else Folder.open(against)
    base = {} if reference is None else _measured(reference, None, asked, extra)
    rows = [] if reference is None else _rows(reference, base, "reference", units, confidence)
    for folder in map(Folder.open, folders):
        other = reference if paired else None
        values = _measured(folder, other, asked, extra)
        ours = _rows(folder, values, "configuration", units, confidence, other, base)
        for metric in extra:
            if reference is not None and metric.whole is not None:
                number = _of_sets(metric, folder, reference)
                ours.append(_row(folder, "configuration", metric.name, metric.unit, number, against=str(against)))
        if not ours:
            raise ValueError(
                f"nothing to measure about {printable(str(folder.path))}: give a folder --against which its pictures "
                "stand, --prompts that are scenes, or --metrics"
            )
        rows += ours
        progress()
    return tuple(rows)


def _measured(folder: Folder, other: Folder | None, asked: Asked, extra: Sequence[Metric]) -> dict[str, Values]:
    """Values of single pictures by metric, in the order of the folder's names."""
    import torch

    from analysis.metrics import SCENE_SIDE, evaluate
    from analysis.scoring.extra import values

    names = _names(folder, other)
    places = _places(names, asked)
    parts: dict[str, list[Values]] = {}
    for start in range(0, len(names), PIECE):
        some, where = names[start : start + PIECE], places[start : start + PIECE]
        images = torch.from_numpy(folder.read(some))
        reference = None if other is None else torch.from_numpy(other.read(some))
        if other is not None and reference is not None and reference.shape != images.shape:
            raise ValueError(
                f"{some[0]} is {_size(images)} in {printable(str(folder.path))} and {_size(reference)} in "
                f"{printable(str(other.path))}; pictures that belong together must have one size"
            )
        drawn = images.ndim == 4 and images.shape[-2:] == (SCENE_SIDE, SCENE_SIDE)
        scenes = asked.scenes[torch.tensor(where)] if asked.scenes is not None and drawn else None
        quality = evaluate(images, scenes, reference=reference)
        given = {name: getattr(quality, name) for name in (*ALONE, *PAIRED)}
        captions = [asked.captions[place] for place in where] if asked.captions else [""] * len(some)
        given |= {one.name: values(one, images, reference, captions) for one in extra if one.per_image is not None}
        for name, found in given.items():
            if found is not None:
                parts.setdefault(name, []).append(numbers(found))
    return {name: np.concatenate(part) for name, part in parts.items()}


def _names(folder: Folder, reference: Folder | None) -> list[str]:
    """The pictures of a folder; each must have its counterpart."""
    names = list(folder.files)
    if reference is not None:
        lacking = [name for name in names if name not in reference.files]
        if lacking:
            raise ValueError(
                f"{printable(str(reference.path))} has no counterpart of {len(lacking)} of the {len(names)} pictures "
                f"in {printable(str(folder.path))}, for example {printable(lacking[0])}; pictures that do not belong "
                "together by name are compared as sets with --unpaired"
            )
    return names


def _places(names: Sequence[str], asked: Asked) -> list[int]:
    """Which prompt each picture was asked with."""
    places = [int(name) for name in names] if all(name.isdecimal() for name in names) else list(range(len(names)))
    if asked.captions and max(places) >= len(asked.captions):
        name = printable(names[places.index(max(places))])
        raise ValueError(f"picture {name} has no prompt: there are {len(asked.captions)}, the first is number 0")
    return places


def _of_sets(metric: Metric, folder: Folder, reference: Folder) -> float:
    import torch

    from analysis.scoring.extra import one_value

    ours, theirs = (torch.from_numpy(one.read(list(one.files))) for one in (folder, reference))
    return one_value(metric, ours, theirs)


def _rows(
    folder: Folder,
    values: Mapping[str, Values],
    role: str,
    units: Mapping[str, str],
    confidence: float,
    other: Folder | None = None,
    base: Mapping[str, Values] | None = None,
) -> list[QualityRow]:
    """Means with their intervals, and changes against `other`, whose own values are `base`."""
    from analysis.metrics import bootstrap

    order = {} if other is None else {name: place for place, name in enumerate(other.files)}
    found = []
    for metric, every in values.items():
        against = "" if other is None else str(other.path)
        theirs = None if other is None or base is None else base.get(metric)
        finite = np.minimum(every, EQUAL_DB) if "psnr" in metric else every
        shown = [(metric, finite, against if metric in PAIRED or (other is not None and theirs is None) else "")]
        if theirs is not None:
            shown.append((f"{metric}_change", every - theirs[[order[name] for name in folder.files]], against))
        for name, per_picture, basis in shown:
            made = bootstrap(per_picture, confidence=confidence)
            low, high = float(made.low), float(made.high)
            found.append(_row(folder, role, name, units[metric], float(made.estimate), low, high, basis))
    return found


def _row(
    folder: Folder,
    role: str,
    metric: str,
    unit: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    against: str = "",
) -> QualityRow:
    return QualityRow(
        configuration=str(folder.path),
        role=role,
        scheme="",
        method="",
        engine="",
        metric=metric,
        unit=unit,
        against=against,
        value=value,
        low=low,
        high=high,
        prompts=len(folder.files),
    )


def _size(images: Any) -> str:
    """`64 x 48` pixels, width first."""
    return f"{images.shape[-1]} x {images.shape[-2]}"
