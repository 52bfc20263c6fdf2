"""Docstrings write arguments as lines `name : what it is`; on the site they become a list."""

import re
from typing import Any

from griffe import Extension, Object

_FIELD = re.compile(r"^([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*) ?: (?=\S)")


class Fields(Extension):
    """Rewrites the docstring of everything that is shown."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """`text` with runs of field lines, and the indented lines that go on with them, as Markdown lists."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        field = _FIELD.match(line)
        if field is not None and field[1] != "Raises":
            if not inside and lines and lines[-1].strip():
                lines.append("")
            lines.append(f"- `{field[1]}`: {line[field.end() :]}")
            inside = True
        elif inside and line.strip():
            lines.append(f"    {line.strip()}")
        else:
            inside = False
            lines.append(line)
    return "\n".join(lines)
