"""What a sweep of projections leaves behind: every row as CSV (and Parquet), and a page that stays light.

Ten thousand rows in a table freeze a browser and nobody reads them. The page has, of every model, the rows that nobody
beats on any of the axes it offers and the fastest few; its plot the same for each device too, so the fronts it draws
are whole. The files have all. A lower bound of the time is not compared with an estimate: it would win whatever the
device is like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.artifacts import comma_separated
from analysis.extras import install
from analysis.pareto import front
from analysis.pricing import FALLBACK, NOT_SUPPORTED
from analysis.projection import Projection
from analysis.projection.rows import ProjectedRow
from analysis.store import write_atomic
from analysis.templates import page
from analysis.units import digits, seconds, size

if TYPE_CHECKING:
    import pandas as pd

CSV, PARQUET, PAGE = "projections.csv", "projections.parquet", "index.html"
FASTEST = 12  # rows per model beside those on a front
MOST_ROWS = 1000  # on a page, all models together

#: what the plot offers across, against the time of an image: field -> (name, (unit, SI units in one) where values are
#: at least a tenth of one, and for smaller ones)
AXES: Mapping[str, tuple[str, tuple[str, float], tuple[str, float]]] = {
    "memory": ("memory of the denoiser", ("GiB", 2.0**30), ("MiB", 2.0**20)),
    "latency": ("time until all images are there", ("s", 1.0), ("ms", 1e-3)),
    "energy_per_image": ("energy of an image, at most", ("J", 1.0), ("mJ", 1e-3)),
}


@dataclass(frozen=True, kw_only=True)
class Written:
    """Where the results are."""

    csv: Path
    page: Path
    parquet: Path | None


def table(rows: Sequence[ProjectedRow]) -> pd.DataFrame:
    """One tidy frame, a row per combination."""
    import pandas as pd

    return pd.DataFrame([asdict(row) for row in rows])


def write(
    folder: Path, asked: Projection, rows: Sequence[ProjectedRow], command: str, *, parquet: bool = False
) -> Written:
    """Write all of it. Raises ValueError, naming what to install, where Parquet was asked for and cannot be written."""
    made = Written(csv=folder / CSV, page=folder / PAGE, parquet=folder / PARQUET if parquet else None)
    if made.parquet is not None:
        write_atomic(made.parquet, parquet_bytes(table(rows)))
    write_atomic(made.csv, comma_separated([asdict(row) for row in rows]))
    write_atomic(made.page, render(asked, rows, command).encode())
    return made


def check_parquet() -> None:
    """Raise ValueError, naming what to install, where Parquet cannot be written."""
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(f"Parquet files need the package 'pyarrow', which is missing; {install('pyarrow')}")


def parquet_bytes(frame: pd.DataFrame) -> bytes:
    """The frame as a Parquet file. Raises ValueError without pyarrow."""
    import io

    check_parquet()
    out = io.BytesIO()
    frame.to_parquet(out, engine="pyarrow", index=False)
    return out.getvalue()


def usable(rows: Iterable[ProjectedRow]) -> list[ProjectedRow]:
    """Those that the device supports and has the memory for, as far as is known."""
    return [row for row in rows if row.support != NOT_SUPPORTED and row.fits is not False]


def worth_showing(rows: Sequence[ProjectedRow], most: int = MOST_ROWS) -> list[ProjectedRow]:
    """Of every model the rows that nobody beats on one of the axes, and the fastest; the quickest first.

    At most about `most`: of many models, each gets its share, the front first.
    """
    models = list(dict.fromkeys(row.model for row in rows))
    share = max(1, most // max(1, len(models)))
    found: list[ProjectedRow] = []
    for model in models:
        ours = usable(row for row in rows if row.model == model)
        chosen: dict[int, ProjectedRow] = {}
        for bounds in (False, True):
            group = [row for row in ours if is_bound(row) == bounds]
            best = [group[index] for axis in AXES for index in on_front(group, axis)]
            chosen |= {id(row): row for row in (*best, *fastest(group, FASTEST))}
        found += sorted(list(chosen.values())[:share], key=_time)
    return found


def fastest(rows: Iterable[ProjectedRow], most: int) -> list[ProjectedRow]:
    """The usable rows with the least time per image."""
    return sorted(usable(rows), key=_time)[:most]


def is_bound(row: ProjectedRow) -> bool:
    """Whether its time is a lower bound, from peak rates alone."""
    return row.basis == "roofline"


def on_some_front(rows: Sequence[ProjectedRow]) -> list[ProjectedRow]:
    """The rows that no other of the same model and device beats on one of the axes: what nobody beats is among them."""
    groups: dict[tuple[str, str, bool], list[ProjectedRow]] = {}
    for row in usable(rows):
        groups.setdefault((row.model, row.device, is_bound(row)), []).append(row)
    found: dict[int, ProjectedRow] = {}
    for group in groups.values():
        for axis in AXES:
            found |= {id(group[index]): group[index] for index in on_front(group, axis)}
    return list(found.values())


def on_front(rows: Sequence[ProjectedRow], axis: str) -> list[int]:
    """Indices of the rows that no other beats in both the time of an image and `axis`."""
    known = [index for index, row in enumerate(rows) if getattr(row, axis) is not None]
    return [known[index] for index in front([(getattr(rows[index], axis), -_time(rows[index])) for index in known])]


def _at_least(row: ProjectedRow) -> str:
    return "≥ " if is_bound(row) else ""


def _time(row: ProjectedRow) -> float:
    return row.time_per_image or 0.0


def render(asked: Projection, rows: Sequence[ProjectedRow], command: str) -> str:
    """The page as text."""
    import datetime
    import json

    chosen = worth_showing(rows)
    models = list(dict.fromkeys(row.model for row in rows))
    points = [
        {
            **{name: getattr(row, name) for name in ("model", "scheme", "device", "batch", "mode", "speedup", "note")},
            "time": row.time_per_image,
            "bounds": is_bound(row),
            **{axis: getattr(row, axis) for axis in AXES},
        }
        for row in on_some_front(rows)
    ]
    axes = {key: {"name": name, "units": [large, small]} for key, (name, large, small) in AXES.items()}
    return page(
        "projection.html.j2",
        asked=asked,
        command=command,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        total=len(rows),
        counts=counts(rows),
        models=models,
        devices=list(dict.fromkeys(row.device for row in usable(rows))),
        lines=[_line(row) for row in chosen],
        best=fastest_of_each(rows, models),
        axes=[(key, name) for key, (name, *_) in AXES.items()],
        data=json.loads(json.dumps({"points": points, "axes": axes, "baseline": asked.baseline})),
        files=CSV,
    )


def counts(rows: Sequence[ProjectedRow]) -> dict[str, int]:
    """What became of all combinations."""
    return {
        "priced": sum(row.support != NOT_SUPPORTED for row in rows),
        "fallback": sum(row.support == FALLBACK for row in rows),
        "unsupported": sum(row.support == NOT_SUPPORTED for row in rows),
        "too_large": sum(row.fits is False for row in rows),
    }


def _line(row: ProjectedRow) -> dict[str, Any]:
    """Cells of one row, (text, number to sort by)."""

    def cell(value: float | None, form: Callable[[float], str]) -> tuple[str, float | str]:
        return ("—", "") if value is None else (form(value), value)

    return {
        "row": row,
        "cells": [
            cell(row.time_per_image, lambda value: f"{_at_least(row)}{seconds(value)}"),
            cell(row.speedup, lambda value: f"{value:.2f}×"),
            cell(row.latency, seconds),
            cell(row.images_per_second, digits),
            cell(row.memory, size),
            cell(row.energy_per_image, lambda value: f"{digits(value)} J"),
        ],
    }


def fastest_of_each(rows: Sequence[ProjectedRow], models: Sequence[str]) -> list[dict[str, Any]]:
    """A line per device, a cell per model: the combination with the least time per image that fits."""
    best: dict[tuple[str, str], ProjectedRow] = {}
    for one in usable(rows):
        key = (one.device, one.model)
        if key not in best or _time(one) < _time(best[key]):
            best[key] = one
    devices = dict.fromkeys(row.device for row in rows)
    found = []
    for device in devices:
        cells: list[dict[str, Any]] = []
        for model in models:
            row = best.get((device, model))
            if row is None:
                cells.append({"main": "—", "how": "nothing supported fits", "value": ""})
            else:
                how = f"{row.scheme}, batch {row.batch}, {row.mode}"
                cells.append({"main": f"{_at_least(row)}{seconds(_time(row))}", "how": how, "value": _time(row)})
        found.append({"device": device, "cells": cells})
    return found
