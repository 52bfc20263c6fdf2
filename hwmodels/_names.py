"""One grammar for unknown names: what was given, the nearest known one, all known ones."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def choose(what: str, name: object, known: Iterable[str]) -> str:
    """`name` if it is one of `known`; otherwise ValueError with the nearest and the whole list."""
    names = sorted(known)
    if isinstance(name, str) and name in names:
        return name
    near = get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {name!r}{hint} (known: {', '.join(names)})")
