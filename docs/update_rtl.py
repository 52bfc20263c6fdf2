"""Writes the tables of docs/rtl.md from the shipped gate counts.

    python -m hwmodels.rtl.table   # where circuits have changed
    python docs/update_rtl.py

Numbers are computed, never typed: the blocks between markers are replaced.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from hwmodels import rtl
from hwmodels.npu.energy import gate_counts
from hwmodels.rtl import defaults

PAGE = Path(__file__).with_name("rtl.md")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def page(text: str) -> str:
    """The page with its generated blocks as they should be."""
    for name, block in BLOCKS.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{PAGE.name} has {text.count(start)} blocks <!-- {name} -->; it needs one")
        head, _, rest = text.partition(start)
        text = f"{head}{start}{block()}\n{end}{rest.partition(end)[2]}"
    return text


def gates() -> str:
    """One row per shipped multiply-accumulate, beside the counts of another description of it."""
    other = gate_counts()
    int8 = rtl.gates(rtl.REFERENCE).gates_per_product
    rows = []
    for row in defaults.rows():
        count = rtl.gates(row.spec)
        if count.terms > 1:
            continue
        theirs = other.get(row.label)
        compared = ("-", "-") if theirs is None else (f"{theirs:,.0f}", f"{count.gates / theirs - 1:+.0%}")
        rows.append(
            (row.label, f"{count.gates:,}", *compared, f"{count.depth}", f"{int8 / count.gates_per_product:.2f}")
        )
    return table(("operands/accumulator", "gates", "another's", "ours is", "depth", "per int8/int32"), rows)


def steps() -> str:
    """One row per shipped step of a matrix instruction."""
    rows = []
    for row in defaults.rows():
        count = rtl.gates(row.spec)
        if count.terms > 1:
            rows.append(
                (
                    *(row.label, f"{count.terms}", f"{count.gates:,}", f"{count.gates_per_product:,.0f}"),
                    f"{count.depth}",
                )
            )
    return table(("step", "products", "gates", "per product", "depth"), rows)


BLOCKS = {"gates": gates, "steps": steps}

if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
