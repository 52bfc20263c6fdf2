"""The three reports of SCALE-Sim 3.0.0, character for character."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .cfg import Config
from .replay import LayerResult, replay
from .topology import Layer

COMPUTE = (
    "Total Cycles (incl. prefetch)",
    "Total Cycles",
    "Stall Cycles",
    "Overall Util %",
    "Mapping Efficiency %",
    "Compute Util %",
)
BANDWIDTH = tuple(f"Avg {name} {memory} BW" for memory in ("SRAM", "DRAM") for name in ("IFMAP", "FILTER", "OFMAP"))
DETAIL = tuple(
    f"{memory} {name} {what}"
    for memory in ("SRAM", "DRAM")
    for name, access in (("IFMAP", "Reads"), ("Filter", "Reads"), ("OFMAP", "Writes"))
    for what in ("Start Cycle", "Stop Cycle", access)
)
REPORTS = {"COMPUTE_REPORT.csv": COMPUTE, "BANDWIDTH_REPORT.csv": BANDWIDTH, "DETAILED_ACCESS_REPORT.csv": DETAIL}


def layer_rows(result: LayerResult) -> dict[str, tuple[int | float, ...]]:
    """The numbers of one layer, by report.  Cycles of accesses are floats there, so they print as 1.0."""
    compute = (
        *(result.with_prefetch, result.total_cycles, result.stall_cycles),
        *(result.overall, result.mapping, result.compute),
    )
    sram = tuple(traffic.count / result.total_cycles for traffic in result.sram)
    dram = tuple(traffic.bandwidth for traffic in result.dram)
    detail: list[int | float] = []
    for traffic in (*result.sram, *result.dram):
        detail += [float(traffic.start), float(traffic.stop), traffic.count]
    return dict(zip(REPORTS, (compute, sram + dram, tuple(detail)), strict=True))


def run(config: Config, layers: Sequence[Layer]) -> list[LayerResult]:
    """Results of all layers; each distinct shape is computed once."""
    known: dict[tuple[int, ...], LayerResult] = {}
    for layer in layers:
        if layer.shape not in known:
            known[layer.shape] = replay(layer, config)
    return [known[layer.shape] for layer in layers]


def write_reports(
    config: Config, layers: Sequence[Layer], folder: str | Path, results: Sequence[LayerResult] = ()
) -> Path:
    """Write the three reports to folder/run_name, as SCALE-Sim does; the folder they are in.  results: if known."""
    out = Path(folder) / config.run_name
    out.mkdir(parents=True, exist_ok=True)
    rows = [layer_rows(result) for result in results or run(config, layers)]
    for name, columns in REPORTS.items():
        lines = ["LayerID, " + ", ".join(columns) + ",\n"]
        lines += [f"{i}, " + ", ".join(str(value) for value in row[name]) + ",\n" for i, row in enumerate(rows)]
        (out / name).write_text("".join(lines), encoding="utf-8")
    return out
