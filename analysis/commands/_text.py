"""Text for a terminal of 80 columns, and the one place where results leave as JSON."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence

WIDTH = 80


def say(text: str = "") -> None:
    """Print one piece of a command's answer."""
    sys.stdout.write(text + "\n")


def say_json(value: object) -> None:
    """Print `value` as indented JSON; a NaN or an infinity would not be JSON, so it is an error."""
    say(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def table(rows: Iterable[Sequence[object]], header: Sequence[str], right: Iterable[int] = ()) -> str:
    """Columns as wide as their widest cell, the last one wrapped so that lines fit WIDTH. `right`: right-aligned."""
    cells = [[str(cell) for cell in row] for row in rows]
    lines = [list(header), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = set(right)
    head = sum(widths[:-1]) + 2 * (len(widths) - 1)
    widths[-1] = min(widths[-1], max(WIDTH - head, 16))
    out: list[str] = []
    for line in (lines[0], ["-" * width for width in widths], *lines[1:]):
        last = textwrap.wrap(line[-1], widths[-1], break_on_hyphens=False) or [""]
        start = [
            cell.rjust(width) if column in aligned else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line[:-1], widths, strict=False))
        ]
        first = last[0].rjust(widths[-1]) if len(widths) - 1 in aligned else last[0]
        out.append("  ".join([*start, first]).rstrip())
        out += [" " * head + more for more in last[1:]]
    return "\n".join(out)


def columns(names: Iterable[str]) -> str:
    """Names side by side, read down the columns."""
    words = list(names)
    if not words:
        return ""
    width = max(map(len, words)) + 2
    across = max(WIDTH // width, 1)
    down = -(-len(words) // across)
    return "\n".join("".join(word.ljust(width) for word in words[row::down]).rstrip() for row in range(down))


def paragraph(text: str, indent: str = "") -> str:
    """Wrapped prose."""
    return textwrap.fill(" ".join(text.split()), WIDTH, initial_indent=indent, subsequent_indent=indent)


def pairs(values: Mapping[str, object]) -> str:
    """`name  value` lines, long values wrapped under themselves."""
    width = max(map(len, values), default=0) + 2
    out = []
    for name, value in values.items():
        wrapped = textwrap.wrap(str(value), WIDTH - width, break_on_hyphens=False) or [""]
        out.append(name.ljust(width) + wrapped[0])
        out += [" " * width + more for more in wrapped[1:]]
    return "\n".join(out)


def first_line(text: str | None) -> str:
    """The first sentence-like line of a docstring."""
    return (text or "").strip().partition("\n")[0]
