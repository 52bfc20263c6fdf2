"""The record of what was compared with silicon, `fpsim/engines/verified.json`: engines take their evidence from it."""

import datetime
import json
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from fpsim.silicon import cpu, nvidia
from fpsim.silicon.results import Verification

_ROW = ("engine", "a", "b", "out", "scale", "block", "k", "shape")


def about(command: str, seed: int) -> dict[str, Any]:
    """Where and how a comparison was made: the machine, versions, the date, the command."""
    found: dict[str, Any] = {
        "device": cpu.model(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command,
        "seed": seed,
    }
    if nvidia.capability() is not None:
        import cupy

        found["device"] = nvidia.device_name()
        runtime = cupy.cuda.runtime
        found |= {"cuda": runtime.runtimeGetVersion(), "driver": runtime.driverGetVersion()}
        found |= {"torch": _version("torch"), "cupy": _version("cupy")}
    return found


def merge(path: Path, results: Iterable[Verification], run: dict[str, Any]) -> int:
    """Write what was compared into the record at `path`; gives how many rows.

    A row replaces those of earlier runs on the same device, so that a fixed emulator is not held against its past; the
    record keeps everything else. The results of a CPU and of a GPU are two runs: one device each.
    """
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}
    fresh: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if not result.skipped:
            device = cpu.model() if result.name in cpu.PROBES else run["device"]
            fresh.setdefault(device, []).append(_row(result))
    for device, rows in fresh.items():
        replaced = {_key(row) for row in rows}
        for earlier in record["runs"]:
            if earlier["device"] == device:
                earlier["compared"] = [row for row in earlier["compared"] if _key(row) not in replaced]
        record["runs"].append(run | {"device": device, "compared": rows})
    record["runs"] = [entry for entry in record["runs"] if entry["compared"]]
    path.write_text(_text(record), encoding="utf-8")
    return sum(map(len, fresh.values()))


def _row(result: Verification) -> dict[str, Any]:
    counts = {"outputs": result.compared, "differences": result.differences, "unmatched": list(result.unmatched)}
    return {key: getattr(result, key) for key in _ROW} | counts | ({"note": result.note} if result.note else {})


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in _ROW)


def _text(record: dict[str, Any]) -> str:
    """JSON with one row per line, so that a change of one row is a change of one line."""
    runs = []
    for run in record["runs"]:
        rows = ",\n   ".join(json.dumps(row) for row in run["compared"])
        head = ",\n  ".join(f"{json.dumps(key)}: {json.dumps(run[key])}" for key in run if key != "compared")
        runs.append(f' {{\n  {head},\n  "compared": [\n   {rows}\n  ]\n }}')
    return '{"runs": [\n' + ",\n".join(runs) + "\n]}\n"


def _version(module: str) -> str:
    return str(import_module(module).__version__)
