"""An error as one line for a person."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """What went wrong, with the file if it is about one: `No space left on device: runs/x/scores.csv`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split())
