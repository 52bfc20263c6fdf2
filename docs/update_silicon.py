"""Writes the tables of docs/silicon.md from the engines and the record of what was compared with silicon.

    fpsim verify --outputs 1e9 --record fpsim/engines/verified.json && python docs/update_silicon.py

Numbers are copied, never typed: the blocks between markers are replaced. A test fails when they are out of date.
"""

import json
import re
from pathlib import Path
from typing import Any

import fpsim
from fpsim.engines.rows import RECORD
from fpsim.silicon.instructions import ARCHITECTURES, instructions

PAGE = Path(__file__).with_name("silicon.md")


def page(text: str) -> str:
    """The page with its generated blocks as they should be."""
    for name, build in BLOCKS.items():
        marker = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text, count = marker.subn(lambda found, build=build: f"{found[1]}{build()}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"{PAGE.name} has {count} blocks <!-- {name} -->; it needs one")
    return text


def runs() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(RECORD.read_text(encoding="utf-8"))["runs"]
    return found


def compared() -> str:
    """One row per engine, result and shape."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs():
        for row in run["compared"]:
            scales = f", {row['scale']} per {row['block']}" if row["scale"] else ""
            groups.setdefault((run["device"], row["engine"], row["out"], row["shape"] + scales), []).append(row)
    lines = []
    for (device, engine, out, shape), rows in groups.items():
        outputs, wrong = (sum(row[key] for row in rows) for key in ("outputs", "differences"))
        unmatched = sum(len(row["unmatched"]) for row in rows)
        verdict = f"{wrong:,}" + (f" and {unmatched} shapes unmatched" if unmatched else "")
        lines.append((device, engine, operands(rows), out, shape, f"{outputs:,}", verdict))
    return table(("device", "engine", "operands", "result", "shape", "outputs compared", "different"), lines)


def operands(rows: list[dict[str, Any]]) -> str:
    """`e4m3, e5m2 (every mix)`, or the pairs one by one."""
    pairs = [(row["a"], row["b"]) for row in rows]
    kinds = list(dict.fromkeys(a for a, _ in pairs))
    if all(a == b for a, b in pairs):
        return ", ".join(kinds)
    if len(pairs) == len(kinds) ** 2:
        return f"{', '.join(kinds)}: every mix"
    return ", ".join(f"{a} x {b}" for a, b in pairs)


def machines() -> str:
    lines = []
    for run in runs():
        software = ", ".join(f"{key} {run[key]}" for key in ("cuda", "driver", "torch", "cupy") if key in run)
        lines.append((run["device"], run["date"], software, f"`{run['command']}`"))
    return table(("device", "date", "software", "command"), lines)


def splits() -> str:
    lines = [
        (row["engine"], f"{row['a']} x {row['b']} -> {row['out']}", row["note"].replace("split K: ", ""))
        for run in runs()
        for row in run["compared"]
        if "split K" in row.get("note", "")
    ]
    return table(("engine", "product", "m x n x k, and the ranges that K was cut into"), lines)


def unseen() -> str:
    """Engines, or rows of them, that no device here could run."""
    lines = []
    for engine in fpsim.ENGINES.values():
        missing = [(row, a, b) for row in engine.rows for a, b in row.pairs() if not engine.seen(row, a, b)]
        if missing:
            total = sum(len(row.pairs()) for row in engine.rows)
            probes = [row for row in instructions().values() if row.engine == engine.name]
            target = ARCHITECTURES[engine.architecture].target if probes else ""
            which = "all" if len(missing) == total else f"{len(missing)} of {total} operand types and results"
            state = f"{len(probes)}, for {target}" if probes else "none"
            lines.append((engine.name, which, engine.basis, engine.source, state))
    return table(("engine", "rows", "known as", "source", "probes that compile"), lines)


def table(heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rows = [heads, tuple("---" for _ in heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


BLOCKS = {"machines": machines, "compared": compared, "splits": splits, "unseen": unseen}

if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
