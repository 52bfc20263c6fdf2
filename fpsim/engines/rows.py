"""What an engine is: a name, rows of operand types with their accumulator, and how each row is known."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fpsim.accumulators import Accumulator
from fpsim.formats import container
from fpsim.spec import Epilogue

Basis = Literal["published", "documented", "observed", "assumed"]

#: written by `fpsim verify --record`, never by hand
RECORD = Path(__file__).with_name("verified.json")


@dataclass(frozen=True, kw_only=True)
class Row:
    """Operand types an engine takes, and what it does with them. `b` None: the same type as a."""

    a: tuple[str, ...]
    b: tuple[str, ...] | None = None
    accumulator: Accumulator
    out: str = ""  #: result format; "" is the accumulator's
    scale: str | None = None
    block: int | None = None
    epilogue: Epilogue | None = None
    k: int | None = None  #: the instruction's K where two K behave differently; None: any
    basis: Basis | None = None  #: where it is not the engine's
    note: str = ""

    @property
    def output(self) -> str:
        return self.out or container(self.accumulator.output).name

    def pairs(self) -> list[tuple[str, str]]:
        return [(a, b) for a in self.a for b in (self.b or (a,))]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One comparison of an engine's row with the device itself: how many outputs, and how many differed."""

    device: str
    date: str
    shape: str
    outputs: int
    differences: int


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One matrix instruction of one architecture, or one library's GEMM on it.

    basis, source : how the rows were known before any of them was compared with a device here: the vendor's manual
        ("documented"), a model that others compared with the device ("published"), what the device itself returned
        ("observed"), or nothing but a likeness ("assumed"). A row may say otherwise.
    """

    name: str
    summary: str
    rows: tuple[Row, ...]
    basis: Basis
    source: str

    @property
    def architecture(self) -> str:
        return self.name.partition("/")[0]

    def seen(self, row: Row, a: str, b: str) -> tuple[Seen, ...]:
        """Comparisons of this row, for operands a and b, with a device; () if it was never run."""
        return _record().get((self.name, a, b, row.output, row.scale, row.block, row.k), ())

    @property
    def evidence(self) -> str:
        """How the engine is known: "silicon" if all of it was compared with a device without a difference, else the
        bases of its rows, with the share that was compared. A difference that was recorded is never hidden."""
        found = [self.seen(row, a, b) for row in self.rows for a, b in row.pairs()]
        basis = ", ".join(dict.fromkeys(row.basis or self.basis for row in self.rows))
        if any(entry.differences for entries in found for entry in entries):
            return f"{basis}; differs from silicon"
        compared = sum(map(bool, found))
        if compared == len(found):
            return "silicon"
        return f"{basis}; silicon for {compared} of {len(found)} rows" if compared else basis


Key = tuple[str, str, str, str, str | None, int | None, int | None]


@cache
def _record() -> dict[Key, tuple[Seen, ...]]:
    """What was compared with silicon, by engine, operands, result, scales and the row's k."""
    found: dict[Key, tuple[Seen, ...]] = {}
    for run in json.loads(RECORD.read_text(encoding="utf-8"))["runs"]:
        for key, seen in _entries(run):
            found[key] = (*found.get(key, ()), seen)
    return found


def _entries(run: dict[str, Any]) -> Iterator[tuple[Key, Seen]]:
    for row in run["compared"]:
        key = (row["engine"], row["a"], row["b"], row["out"], row["scale"], row["block"], row["k"])
        yield (
            key,
            Seen(
                device=run["device"],
                date=run["date"],
                shape=row["shape"],
                outputs=row["outputs"],
                differences=row["differences"],
            ),
        )
