"""A projected timeline that chrome://tracing and ui.perfetto.dev open: every kernel, and the layers around them.

Kernels run one after another on one stream, which is how the models here price them.  The second row of the picture
groups consecutive kernels by the first two levels of their layer path.
"""

from __future__ import annotations

import json
from typing import Any

from .estimate import Estimate

GROUP_DEPTH = 2


def events(result: Estimate) -> list[dict[str, Any]]:
    """Trace events (Chrome's JSON trace format, "X" events, microseconds); counted kernels are one event."""
    out: list[dict[str, Any]] = []
    start = 0.0
    group, opened = "", 0.0
    for row in result.breakdown.rows():
        name = ".".join(row.path.split(".")[:GROUP_DEPTH])
        if name != group:
            if start > opened:
                out.append(_event(group or result.name, opened, start - opened, 1, {}))
            group, opened = name, start
        details = {
            "shape": row.shape,
            "precision": row.precision,
            "bound": row.bound,
            "bytes": row.bytes,
            "macs": row.macs,
            "count": row.count,
            "path": row.path,
        }
        duration = row.time_s * 1e6
        out.append(_event(f"{row.kind} {row.path}".strip(), start, duration, 2, details))
        start += duration
    if start > opened:
        out.append(_event(group or result.name, opened, start - opened, 1, {}))
    return out


def _event(name: str, start: float, duration: float, track: int, details: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "X", "ts": start, "dur": duration, "pid": 1, "tid": track, "args": details}


def to_chrome_trace(result: Estimate) -> str:
    """The JSON text of a trace file."""
    title = f"{result.name}, {result.precision} on {result.device} ({result.model}, {result.mode})"
    names: list[dict[str, Any]] = [{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": title}}]
    names += [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": track, "args": {"name": text}}
        for track, text in ((1, "layers"), (2, "kernels"))
    ]
    return json.dumps({"traceEvents": names + events(result), "displayTimeUnit": "ms"})
