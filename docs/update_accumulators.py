"""Writes the tables and the plot of docs/accumulators.md from finished studies.

    fpsim accumulators shapes-sd --prompts 8 --steps 10 --method rtn oaq a2q --bits 14 16 18 20 24
    python docs/update_accumulators.py runs/accumulators-shapes-sd-...

A study in int8-w8a8 makes the first table and the plot, one in fp8-w8a8 the second table. Several run directories of
one pipeline and scheme are put side by side. Numbers are copied, never typed.
"""

import argparse
import re
from pathlib import Path

from analysis.accumulators import Candidate, Found, Row, Study
from analysis.accumulators.cost import costs
from analysis.accumulators.plot import draw
from analysis.accumulators.registers import Register
from analysis.store import read_json

PAGE = Path(__file__).with_name("accumulators.md")
PLOT = Path(__file__).parent / "images" / "accumulators.png"
#: scheme of the studies -> block of the page
BLOCKS = {"int8-w8a8": "registers", "fp8-w8a8": "fp8"}
METHODS = {"rtn": "round to nearest", "oaq": "overflow-aware", "a2q": "A2Q bound, post-training"}


def rows_of(folders: list[Path]) -> list[list[Row]]:
    """Measured candidates, each a list of rows, with costs; by method, then width."""
    found: dict[tuple[str, str], list[Row]] = {}
    for file in sorted(path for folder in folders for path in folder.glob("*.json")):
        rows = [Row(**row) for row in read_json(file).get("rows", ())]
        if rows:
            found[re.sub(r"trained=\S+", "trained", rows[0].method), rows[0].accumulator] = rows
    priced = []
    for rows in found.values():
        unit = costs(_candidate(rows[0].accumulator), rows[0].a, rows[0].b)
        priced.append([unit.added(row) for row in rows])
    order = list(METHODS)
    return sorted(priced, key=lambda rows: (order.index(rows[0].method.split()[0]), rows[0].method.count("trained"),
                                            rows[0].bits or 0, rows[0].accumulator))  # fmt: skip


def _candidate(label: str) -> Candidate:
    """What a row's label says: an accumulator in words, or a register in two levels."""
    tiles = re.fullmatch(r"int(\d+) per (\d+) in int(\d+)", label)
    if not tiles:
        return Candidate(accumulator=label)
    bits, tile, outer = map(int, tiles.groups())
    return Candidate(register=Register(bits=bits, tile=tile, outer=outer))


def line(row: Row) -> str:
    method = METHODS[row.method.split()[0]]
    if "trained=" in row.method:
        method = "A2Q, trained"
    gates = "" if row.gates is None else f"{row.gates:.0f}"
    saved = "" if row.gates_saved is None else f"{row.gates_saved:.0%}"
    energy = "" if row.energy is None else f"{row.energy * 1e3:.3f}"
    needing = "" if row.needing is None or " per " in row.accumulator else f"{row.needing:.3%}"
    overflowed = "" if row.overflowed is None else f"{row.overflowed:.3%}"
    return (
        f"| {method} | {row.accumulator} | {row.weight} | {row.in_order} | {needing} | {overflowed} "
        f"| {row.correct:.0%} | {row.psnr:.1f} ({row.psnr_low:.1f} to {row.psnr_high:.1f}) "
        f"| {gates} | {saved} | {energy} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    groups = rows_of(parser.parse_args().runs)
    head = (
        "| weights | register | weights need | seen in order | would leave it | left it | prompts obeyed | PSNR, dB "
        "| gates | saved | products, mJ |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    table = "\n".join([head, *(line(rows[0]) for rows in groups)])
    first = groups[0][0]
    whole = [row for rows in groups for row in rows]
    kinds = sorted({f"{row.pipeline} in {row.scheme}" for row in whole})
    if len(kinds) != 1 or first.scheme not in BLOCKS:
        raise ValueError(f"runs of {' and '.join(kinds)}; give those of one pipeline and one of {', '.join(BLOCKS)}")
    block = BLOCKS[first.scheme]
    pattern = rf"(<!-- {block} -->\n).*?(<!-- /{block} -->)"
    page, count = re.subn(
        pattern, lambda m: f"{m[1]}{table}\n{m[2]}", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{PAGE.name} has {count} blocks <!-- {block} -->; it needs one")
    PAGE.write_text(page, encoding="utf-8")
    if block != "registers":
        return
    PLOT.write_bytes(draw(Found(study=Study(pipeline=first.pipeline, candidates=()), rows=tuple(whole))))


if __name__ == "__main__":
    main()
