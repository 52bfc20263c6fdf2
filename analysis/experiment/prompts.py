"""Prompts of one's own: a text file with one per line, or a named column of a CSV, TSV or Parquet file.

    prompts = "drawbench.txt"
    prompts = { file = "coco.parquet", column = "caption", seeds = "image_id", first = 512 }
    calibration = { file = "others.csv", first = 64 }

Paths are relative to the experiment file. What is read becomes part of the experiment: a run knows its prompts even
when the file is gone, and another file is another run. Without a file of its own, calibration takes the prompts that
follow the measured ones; where too few follow, it takes measured ones again (with noise of its own), which the page
says.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from analysis.experiment.strict import build, unknown
from analysis.experiment.tables import LARGEST_SAMPLE, Quality
from fpsim._names import printable

COLUMN = "prompt"


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """Where prompts come from.

    column : of a table; by default `prompt`, or the only one there is
    seeds  : a column of whole numbers, the seed of each prompt's noise
    first  : so many of them; None: all
    """

    file: str
    column: str | None = None
    seeds: str | None = None
    first: int | None = None

    def __post_init__(self) -> None:
        if self.first is not None and self.first < 1:
            raise ValueError(f"first must be at least 1, not {self.first}")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a file holds. seeds: one for each, or none at all."""

    captions: tuple[str, ...]
    seeds: tuple[int, ...] = ()


def read(asked: PromptFile, folder: Path = Path()) -> Prompts:
    """All prompts of a file, beyond `first` too.

    Raises ValueError, one line that names the file, for anything that is not there or not what it should be, and
    ModuleNotFoundError for a Parquet file without pyarrow.
    """
    path = folder / asked.file
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"prompts are a number, or in a file ({', '.join(READERS)}), not {asked.file!r}")
    try:
        found = reader(path, asked)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"prompts from {path}: not UTF-8 (byte {error.object[error.start]:#04x} at place {error.start})"
        ) from error
    except FileNotFoundError as error:
        raise ValueError(f"{printable(str(path))}: no such file") from error
    except OSError as error:
        raise ValueError(f"{printable(str(path))}: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{printable(str(path))}: {' '.join(str(error).split())}") from error
    if not found.captions:
        raise ValueError(f"{printable(str(path))}: there are none in it")
    return found


def _text(path: Path, asked: PromptFile) -> Prompts:
    if asked.column is not None or asked.seeds is not None:
        raise ValueError("a text file has no columns; make it a CSV file")
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n"))
    return Prompts(captions=tuple(line for line in lines if line))


def _table(names: Sequence[str], column: Callable[[str], Sequence[Any]], asked: PromptFile) -> Prompts:
    """From the names of a table's columns, and one column by name."""
    name = asked.column or (names[0] if len(names) == 1 else COLUMN)
    for wanted in (name, asked.seeds):
        if wanted is not None and wanted not in names:
            raise ValueError(unknown("column", wanted, names) if names else "there are none in it")
    captions = []
    for number, value in enumerate(column(name), 1):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"row {number} has no text in column {name!r}")
        captions.append(value.strip())
    seeds = (
        ()
        if asked.seeds is None
        else tuple(_seed(value, row, asked.seeds) for row, value in enumerate(column(asked.seeds), 1))
    )
    return Prompts(captions=tuple(captions), seeds=seeds)


def _seed(value: object, row: int, name: str) -> int:
    try:
        if isinstance(value, str | int):
            return int(value)
    except ValueError:
        pass  # said below, with the row
    raise ValueError(f"row {row} has no whole number in column {name!r} but {value!r}")


def _separated(path: Path, asked: PromptFile) -> Prompts:
    text = io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    rows = csv.DictReader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
    names, listed = rows.fieldnames or [], list(rows)
    return _table(names, lambda name: [row[name] for row in listed], asked)


def _parquet(path: Path, asked: PromptFile) -> Prompts:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} is a Parquet file, which needs pyarrow", name="pyarrow") from error
    with path.open("rb") as file:  # opened here, so that a file that is not there is said as of the others
        table = parquet.ParquetFile(file)
        return _table(table.schema_arrow.names, lambda name: table.read(columns=[name])[name].to_pylist(), asked)


READERS: Mapping[str, Callable[[Path, PromptFile], Prompts]] = {
    ".txt": _text,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
}


def with_prompts(table: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """[quality] with the files that `prompts` and `calibration` name read into `captions` and the like."""
    made = dict(table)
    rest: tuple[str, ...] = ()
    if isinstance(made.get("prompts"), str | Mapping):
        found, count = _asked(made["prompts"], folder, f"{where}: prompts")
        rest = found.captions[count:]
        made |= {"prompts": count, "captions": found.captions[:count], "seeds": found.seeds[:count]}
        made["calibration_captions"] = ()
    own = made.get("captions") if isinstance(made.get("captions"), list | tuple) else ()
    if own:
        made.setdefault("prompts", len(own))
    if isinstance(made.get("calibration"), str | Mapping):
        found, count = _asked(made["calibration"], folder, f"{where}: calibration")
        made |= {"calibration": count, "calibration_captions": found.captions[:count]}
    elif own and not made.get("calibration_captions"):
        count = made.get("calibration", Quality.calibration)
        if isinstance(count, int):  # anything else is refused when the table is built
            made["calibration_captions"] = following(rest, own, min(count, LARGEST_SAMPLE))
    return made


def following(rest: Sequence[str], measured: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` prompts to calibrate on: those that nobody measures, then measured ones, over and over."""
    return (*rest[: max(0, count)], *islice(cycle(measured), max(0, count - len(rest))))


def with_other_prompts(quality: Quality, given: int | str) -> Quality:
    """`quality` with other prompts: the first so many of its own, or those of a file.

    Raises ValueError as `read` does, and for more prompts than there are.
    """
    if isinstance(given, str):
        table = {row.name: getattr(quality, row.name) for row in fields(quality)}
        return Quality(**with_prompts({**table, "prompts": given}, Path(), "--prompts"))
    if quality.captions and given > quality.prompts:
        raise ValueError(f"{given} prompts, but the experiment has {quality.prompts} of its own")
    return replace(quality, prompts=given, captions=quality.captions[:given], seeds=quality.seeds[:given])


def _asked(value: str | Mapping[str, Any], folder: Path, where: str) -> tuple[Prompts, int]:
    """What a file holds, and how many of it are asked for."""
    asked = build(PromptFile, {"file": value} if isinstance(value, str) else value, where)
    try:
        found = read(asked, folder)
        count = len(found.captions) if asked.first is None else asked.first
        if count > len(found.captions):
            raise ValueError(f"first is {count}, but {asked.file} has {len(found.captions)} prompts")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return found, count
