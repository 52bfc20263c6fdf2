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
from fpsim.formats import scalar_format
from fpsim.silicon.instructions import ARCHITECTURES, instructions

SOFTWARE = {"cuda": "CUDA runtime", "driver": "driver API", "torch": "torch", "cupy": "CuPy"}

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


def version(value: int | str) -> str:
    """CUDA writes 13.2 as 13020."""
    return f"{value // 1000}.{value % 1000 // 10}" if isinstance(value, int) else value


def compared() -> str:
    """One row per engine, result and shape."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs():
        for row in run["compared"]:
            scales = f", {row['scale']} per {row['block']}" if row["scale"] else ""
            width = str(scalar_format(row["a"]).bits)  # mixes are of one width
            key = (run["device"], row["engine"], row["out"], row["shape"] + scales, width)
            groups.setdefault(key, []).append(row)
    lines = []
    for (device, engine, out, shape, _), rows in groups.items():
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
    if len(pairs) == len(kinds) ** 2 > 1:
        return f"{', '.join(kinds)}: every mix"
    return ", ".join(f"{a} x {b}" for a, b in pairs)


def machines() -> str:
    lines = []
    for run in runs():
        software = ", ".join(f"{title} {version(run[key])}" for key, title in SOFTWARE.items() if key in run)
        lines.append((run["device"], run["date"], software, f"`{run['command']}`"))
    return table(("device", "date", "software", "command"), lines)


def splits() -> str:
    """One row per engine and set of shapes that were split alike."""
    groups: dict[tuple[str, str], list[str]] = {}
    for run in runs():
        for row in run["compared"]:
            found = re.findall(r"split K: ([^;]+)", row.get("note", ""))
            if found:
                product = f"{row['a']} x {row['b']} -> {row['out']}"
                groups.setdefault((row["engine"], ", ".join(found)), []).append(product)
    lines = [(engine, ", ".join(products), found) for (engine, found), products in groups.items()]
    return table(("engine", "products", "m x n x k, and the number of ranges"), lines)


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
            known = ", ".join(dict.fromkeys(row.basis or engine.basis for row, _, _ in missing))
            lines.append((engine.name, which, known, engine.source, state))
    return table(("engine", "rows", "known as", "source", "probes that compile"), lines)


def table(heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rows = [heads, tuple("---" for _ in heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


BLOCKS = {"machines": machines, "compared": compared, "splits": splits, "unseen": unseen}

if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
