"""A model as its operations: what the tracer writes and every estimate reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .op import Op, check_size
from .ops import op_from_dict

SCHEMA = "fpsim-workload/1"


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over a group of operations, counts included."""

    operations: int = 0
    macs: int = 0
    flops: int = 0
    parameters: int = 0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Operations in execution order, with what the operations alone do not say.

    parameters: stored numbers of the module (also those no operation reads, such as unused tables).
    live_elements: largest number of activation elements alive at once, in 16-bit units, as traced in eager order.
    notes: what the tracer could not classify, and choices it made.
    """

    name: str
    ops: tuple[Op, ...]
    parameters: int = 0
    live_elements: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ops", tuple(self.ops))
        object.__setattr__(self, "notes", tuple(self.notes))
        wrong = [op for op in self.ops if not isinstance(op, Op)]
        if wrong:
            raise ValueError(f"Workload {self.name!r}: {wrong[0]!r} is no operation of hwmodels.ops")
        check_size("Workload", "parameters", self.parameters, 0)
        check_size("Workload", "live_elements", self.live_elements, 0)

    def __len__(self) -> int:
        return len(self.ops)

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops)

    @cached_property
    def shapes(self) -> tuple[tuple[Op, ...], npt.NDArray[np.int64]]:
        """(one operation per distinct shape, which of them each operation is): what costs the same is priced once."""
        known: dict[tuple[Any, ...], int] = {}
        first: list[Op] = []
        index = np.empty(len(self.ops), dtype=np.int64)
        for i, op in enumerate(self.ops):
            index[i] = known.setdefault(op.shape_key, len(known))
            if len(first) < len(known):
                first.append(op)
        return tuple(first), index

    @cached_property
    def layers(self) -> npt.NDArray[np.int64]:
        """How many different layers there are of each distinct shape (a layer that runs twice is stored once)."""
        kinds, index = self.shapes
        seen = {(op.path or f"#{i}", int(index[i])) for i, op in enumerate(self.ops)}
        return np.bincount([shape for _, shape in seen], minlength=len(kinds))

    @cached_property
    def memo(self) -> dict[object, Any]:
        """What has been derived from this workload, by what it was derived with; not part of its value."""
        return {}

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass."""
        return sum(op.macs * op.count for op in self.ops)

    @cached_property
    def operations(self) -> int:
        """Arithmetic operations of one forward pass, vector work included."""
        return sum(op.ops() * op.count for op in self.ops)

    def totals(self) -> dict[str, Totals]:
        """Sums per kind of operation, largest number of multiply-accumulates first."""
        out: dict[str, Totals] = {}
        for op in self.ops:
            t = out.get(op.kind, Totals())
            out[op.kind] = Totals(
                operations=t.operations + op.count,
                macs=t.macs + op.macs * op.count,
                flops=t.flops + op.flops * op.count,
                parameters=t.parameters + op.parameters,
            )
        return dict(sorted(out.items(), key=lambda item: (-item[1].macs, -item[1].flops)))

    def rows(self) -> list[dict[str, Any]]:
        """One flat record per operation, ready for a table or CSV."""
        return [
            {
                "path": op.path,
                "kind": op.kind,
                "shape": op.describe(),
                "count": op.count,
                "macs": op.macs,
                "flops": op.flops,
                "parameters": op.parameters,
                "reads": op.traffic.reads,
                "writes": op.traffic.writes,
            }
            for op in self.ops
        ]

    def times(self, count: int) -> Workload:
        """The same pass `count` times over (denoising steps), parameters stored once."""
        check_size("Workload.times", "count", count)
        return replace(self, ops=tuple(replace(op, count=op.count * count) for op in self.ops))

    def to_json(self) -> str:
        """A complete description; `Workload.from_json` gives an equal object."""
        body = {
            "schema": SCHEMA,
            "name": self.name,
            "parameters": self.parameters,
            "live_elements": self.live_elements,
            "notes": list(self.notes),
            "ops": [op.to_dict() for op in self.ops],
        }
        return json.dumps(body, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Workload:
        """Raises ValueError naming what is wrong: not JSON, another schema, an unknown operation or field."""
        try:
            body = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a workload: {error.msg} at line {error.lineno}, column {error.colno}") from error
        except RecursionError as error:
            raise ValueError("not a workload: nested too deeply") from error
        if not isinstance(body, Mapping) or body.get("schema") != SCHEMA:
            given = body.get("schema") if isinstance(body, Mapping) else type(body).__name__
            raise ValueError(f"not a workload: schema {given!r}; allowed: {SCHEMA!r} (written by Workload.to_json)")
        missing = [key for key in ("name", "ops") if key not in body]
        if missing:
            raise ValueError(f"not a workload: {', '.join(missing)} missing")
        ops = []
        for number, row in enumerate(body["ops"]):
            if not isinstance(row, Mapping):
                raise ValueError(f"workload {body['name']!r}, op {number}: expected an object, got {row!r}")
            try:
                ops.append(op_from_dict(row))
            except ValueError as error:
                raise ValueError(f"workload {body['name']!r}, op {number}: {error}") from error
        return cls(
            name=body["name"],
            ops=tuple(ops),
            parameters=body.get("parameters", 0),
            live_elements=body.get("live_elements", 0),
            notes=tuple(body.get("notes", ())),
        )

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Workload:
        """Read a file `save` wrote; ValueError names the file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
