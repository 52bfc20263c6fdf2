"""Measured rows on disk: a CSV that grows row by row, and the TOML that says where it comes from."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path


class Table:
    """A CSV file with fixed columns; `key` names the columns that identify a row.

    Raises ValueError if the file on disk has other columns.
    """

    def __init__(self, path: Path, columns: Iterable[str], key: Iterable[str]) -> None:
        self.path, self.columns, self.key = path, tuple(columns), tuple(key)
        self.done: set[tuple[str, ...]] = set()
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                if tuple(reader.fieldnames or ()) != self.columns:
                    raise ValueError(
                        f"{path} has the columns {', '.join(reader.fieldnames or ())}, not {', '.join(self.columns)}; "
                        "give another --out, or delete it"
                    )
                self.done = {self._identity(row) for row in reader}

    def _identity(self, row: Mapping[str, object]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.key)

    def has(self, **identity: object) -> bool:
        """Whether a row with these key columns is already there."""
        return self._identity(identity) in self.done

    def add(self, **row: object) -> None:
        """Append one row and flush it: what is measured stays measured, whatever happens next."""
        new = not self.path.is_file()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.done.add(self._identity(row))


def write_toml(path: Path, title: str, sections: Mapping[str, Mapping[str, object]]) -> None:
    """Tables of strings and numbers as TOML."""
    lines = [f"# {title}"]
    for name, values in sections.items():
        lines.append(f"[{name}]")
        for key, value in values.items():
            lines.append(f"{key} = {value if isinstance(value, int | float) else _quoted(str(value))}")
        lines.append("")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines), encoding="utf-8")


def _quoted(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
