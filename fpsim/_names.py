"""Name lookup with an error that teaches: what was given, what is known, what was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def printable(text: str) -> str:
    """`text` on one line: a character that has no place on one becomes its escape, as `repr` writes it."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def unknown(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The ValueError for a name that is not in a table.

    kind : the noun of the table, "format", "engine", ...
    known : every name the table has; shown whole, in table order.
    """
    names = list(known)
    given = str(name).lower()
    near = get_close_matches(given, names, n=5, cutoff=0.5)
    near.sort(
        key=lambda candidate: abs(len(candidate) - len(given))
    )  # a wrong character is likelier than a missing one
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return ValueError(f"unknown {kind} {name!r}{hint} (known: {', '.join(names)})")
