"""Text for a terminal of 80 columns, and the one place where results leave as JSON."""

from __future__ import annotations

import json
import re
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
    """Columns as wide as their widest cell, the first and the last wrapped so that lines fit WIDTH.

    right: right-aligned columns. What still does not fit is told in several tables with the first column in common.
    """
    lines = [list(header), *([str(cell) for cell in row] for row in rows)]
    natural = [max(len(line[column]) for line in lines) for column in range(len(header))]
    aligned = set(right)
    shown = []
    for part in _parts(_fitted(natural)):
        widths = _fitted([natural[column] for column in part])
        picked = [[line[column] for column in part] for line in lines]
        shown.append(_table(picked, widths, {index for index, column in enumerate(part) if column in aligned}))
    return "\n\n".join(shown)


READABLE = 24  # columns that a wrapped name or remark should have
NARROWEST = 16


def _fitted(widths: Sequence[int]) -> list[int]:
    """Widths with the last and then the first column narrowed as far as lines need it, at the worst the last again."""
    fitted = list(widths)
    for column, least in ((-1, READABLE), (0, READABLE), (-1, NARROWEST)):
        excess = sum(fitted) + 2 * (len(fitted) - 1) - WIDTH
        if excess > 0:
            fitted[column] = max(fitted[column] - excess, min(fitted[column], least))
    return fitted


def _parts(widths: Sequence[int]) -> list[list[int]]:
    """Columns in groups that fit WIDTH, each with the first."""
    groups: list[list[int]] = [[0]]
    for column in range(1, len(widths)):
        used = sum(widths[other] + 2 for other in groups[-1])
        if len(groups[-1]) > 1 and used + widths[column] > WIDTH:
            groups.append([0])
        groups[-1].append(column)
    return groups


def _table(lines: list[list[str]], widths: list[int], aligned: set[int]) -> str:
    out: list[str] = []
    for line in (lines[0], ["-" * width for width in widths], *lines[1:]):
        hanging = [2 * (column == 0 and len(widths) > 1) for column in range(len(widths))]  # a name, not the next row
        wrapped = [_wrap(*cell) for cell in zip(line, widths, hanging, strict=True)]
        for row in range(max(map(len, wrapped))):
            pieces = [cell[row] if row < len(cell) else "" for cell in wrapped]
            placed = [
                piece.rjust(width) if column in aligned else piece.ljust(width)
                for column, (piece, width) in enumerate(zip(pieces, widths, strict=True))
            ]
            out.append("  ".join(placed).rstrip())
    return "\n".join(out)


def _wrap(text: str, width: int, indent: int = 0) -> list[str]:
    """Lines of at most `width`, all but the first indented; names too long for one break behind their signs."""
    out = [""]
    for word in text.split(" "):
        room = width - indent
        whole = [word] if len(word) <= room or (len(word) <= width and out == [""]) else re.split(r"(?<=[+/=._])", word)
        for index, piece in enumerate(whole):
            glue = " " if index == 0 and out[-1].strip() else ""
            if len(out[-1] + glue + piece) <= width:
                out[-1] += glue + piece
            else:
                parts = [piece[start : start + room] for start in range(0, len(piece), room)]
                out += [" " * indent + part for part in parts]
    return [line for line in out if line] or [""]


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
