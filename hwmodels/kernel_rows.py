"""Rows of `fpsim measure` (kernels.csv) beside the time the GPU model gives each of them.

A row is one kernel on one device: an operation, a format, a way of running it, and the condition it was timed in.  The
model's time comes from the very function that prices a workload, so what is tested here is what users get.

Held out of every fit: a product by its (n, k), as in `measured.py`; every other kernel by a hash of its shape, layout
and bias aside, so that a shape is either seen in all its variants or in none.
"""

from __future__ import annotations

import csv
import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import gpu
from .device import Device
from .lower import single
from .measured import FOLDER, HELD_OUT, is_held_out
from .op import Op
from .ops import Attention, Conv, Elementwise, Gemm, Move
from .precision import SHORTHANDS, Precision, kernel_precision
from .pricing import executions_of, isolated, price_gpu
from .roofline import Floats
from .shape import from_words, to_words

#: folder of measurements -> device
DEVICES_OF: Mapping[str, str] = MappingProxyType({"h200": "h200-sxm"})

COLUMNS = ("kind", "shape", "format", "variant", "mode", "cache", "seconds")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured kernel; seconds: median of one call in the condition (mode, cache)."""

    op: Op
    format: str
    variant: str
    mode: str
    cache: str
    seconds: float
    suite: str = ""

    @property
    def covered(self) -> bool:
        """Whether the model has a kernel for it: not for those chosen by hand, nor for torch's slow paths.

        Left out: attention of a named backend, products with a scale per row or int32 sums, several kernels in a row
        (a cast in eager torch), group norms of channels-last images (copied first), torch's own maximum.
        """
        chosen = self.variant in ("cudnn", "flash", "rowwise", "eager", "channels_last")
        return not (chosen or self.format == "int8" or self.op.kind == "reduction")

    @property
    def held_out(self) -> bool:
        """Whether no fit sees this row."""
        if isinstance(self.op, Gemm):
            return is_held_out(self.op.n, self.op.k)
        bare = replace(self.op, layout="channels_last", bias=False) if isinstance(self.op, Conv) else self.op
        digest = hashlib.sha256(f"{self.op.kind} {to_words(bare)}".encode()).digest()
        return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT


def read(path: Path) -> tuple[Row, ...]:
    """The rows of a kernels.csv that have a time.  ValueError names the file, the line and what is wrong."""
    out = []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}; `fpsim measure` writes such files")
        for number, row in enumerate(reader, start=2):
            if not row["seconds"]:
                continue
            try:
                out.append(_row(row))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return tuple(out)


def _row(row: Mapping[str, Any]) -> Row:
    seconds = float(row["seconds"])
    if not 0 < seconds < 1e4:
        raise ValueError(f"seconds={row['seconds']}; allowed: above 0, below 10,000")
    if row["format"] not in SHORTHANDS:
        raise ValueError(f"unknown format {row['format']!r} (known: {', '.join(SHORTHANDS)})")
    return Row(
        op=from_words(row["kind"], row["shape"]),
        format=row["format"],
        variant=row["variant"],
        mode=row["mode"],
        cache=row["cache"],
        seconds=seconds,
        suite=row.get("suite") or "",
    )


@lru_cache(maxsize=4096)
def _lowered(op: Op, form: str, variant: str) -> tuple[Any, ...]:
    precision: Precision = kernel_precision(form, op)
    if isinstance(op, Elementwise) and variant in ("strided", "broadcast"):
        op = replace(op, layout="strided")
    if isinstance(op, Move) and op.function in ("transpose", "upsample"):
        op = replace(op, layout="transposed" if op.function == "transpose" else "strided")
    if isinstance(op, Attention):  # whatever was measured, torch ran it
        op = replace(op, library="torch")
    if form == "int8" and isinstance(op, Gemm):  # the library's product leaves its int32 sums
        op = replace(op, out_dtype="int32")
    return single(op, precision).distinct


def modelled(rows: Sequence[Row], device: Device, parameters: gpu.Parameters) -> Floats:
    """Seconds the model gives each row."""
    kernels = [kernel for row in rows for kernel in _lowered(row.op, row.format, row.variant)]
    executions = executions_of(kernels, device)
    mach = gpu.machine(device, parameters)
    out = np.zeros(len(rows))
    conditions = np.array([f"{row.mode}/{row.cache}" for row in rows])
    for condition in dict.fromkeys(conditions.tolist()):
        where = np.flatnonzero(conditions == condition)
        times = price_gpu(
            [kernels[i] for i in where],
            tuple(executions[i] for i in where),
            mach,
            parameters,
            warm=condition.endswith("warm"),
            mode="eager" if condition.startswith("eager") else "graph",
        )
        out[where] = (isolated(times) if condition.startswith("eager") else times).total
    return out


def seconds(rows: Iterable[Row]) -> Floats:
    """Their measured times."""
    return np.array([row.seconds for row in rows])


def held_out(rows: Iterable[Row]) -> npt.NDArray[np.bool_]:
    """Which rows no fit sees."""
    return np.array([row.held_out for row in rows])


@lru_cache(maxsize=1)
def own_measurements() -> Mapping[str, tuple[Row, ...]]:
    """The kernels.csv of every device in `measurements/`, by device."""
    return {DEVICES_OF[path.parent.name]: read(path) for path in sorted(FOLDER.glob("*/kernels.csv"))}


def provenance(path: Path) -> dict[str, Any]:
    """The [run] table beside a kernels.csv; empty where there is none."""
    beside = path.with_suffix(".toml")
    if not beside.is_file():
        return {}
    with beside.open("rb") as file:
        return dict(tomllib.load(file).get("run", {}))
