"""Write `gates.csv`, the gate counts that ship: `python -m hwmodels.rtl.table`. Needs Yosys; takes minutes.

Rows whose Verilog has not changed are kept unless `--all` is given.
"""

from __future__ import annotations

import csv
import datetime
import sys
from pathlib import Path

from .counts import CELL_FIELDS, TABLE, count_of, digest, gates, shipped
from .defaults import Row, rows
from .synthesis import SCRIPT, Cells
from .unit import unit
from .yosys import version

PROVENANCE = Path(__file__).with_name("gates.toml")
COLUMNS = ("label", "unit", "part", "hash", "terms", "register_bits", "gates", *CELL_FIELDS)


def lines(row: Row, fresh: bool) -> list[list[object]]:
    """The lines of one unit: its step, and its readout if it has one."""
    found = unit(row.spec)
    held, key = shipped() if TABLE.exists() and not fresh else {}, digest(found)
    count = (
        count_of(found, held[key, "step"], held.get((key, "readout")), "table")
        if (key, "step") in held
        else gates(row.spec, fresh=True)
    )
    parts: dict[str, Cells] = {"step": count.step}
    if count.readout is not None:
        parts["readout"] = count.readout
    return [
        [row.label, found.name, part, key, found.terms, found.state, cells.gates]
        + [getattr(cells, name) for name in CELL_FIELDS]
        for part, cells in parts.items()
    ]


def main(arguments: list[str]) -> None:
    """Count every default unit and write the table and where it is from; what is done is kept if it is stopped."""
    made: list[list[object]] = []
    for row in rows():
        made += lines(row, "--all" in arguments)
        sys.stderr.write(f"{made[-1][1]}: {made[-1][6]} gates\n")
        with TABLE.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(made)
    PROVENANCE.write_text(
        "# Written by `python -m hwmodels.rtl.table`, with gates.csv.\n"
        'title = "Cells of the units that hwmodels.rtl generates"\n'
        f'tool = "{version()}"\n'
        f'date = "{datetime.date.today().isoformat()}"\n'
        f'script = "{SCRIPT.format(top="UNIT")}"\n',
        encoding="utf-8",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
