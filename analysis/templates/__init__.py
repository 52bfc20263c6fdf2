"""Pages from the templates of this folder: one HTML file each, with style and script inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["page"]


def page(template: str, **values: object) -> str:
    """A template filled in. A name that it uses and is not given is an error, text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment: Any = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return str(environment.get_template(template).render(**values))
