"""SCALE-Sim 3.0.0's reports of a topology, to the last digit, without its simulation.

  fpsim scalesim -c google.cfg -t resnet18.csv -o results
  fpsim scalesim -c google.cfg -t vit.csv -i gemm -o results

Writes COMPUTE_REPORT.csv, BANDWIDTH_REPORT.csv and DETAILED_ACCESS_REPORT.csv to <-o>/<run_name>. Where SCALE-Sim is
wrong, so are these; docs/npu.md says where, and `fpsim estimate --estimator systolic` is what hardware would do.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.commands._text import paragraph, say, say_json

HELP = "write SCALE-Sim's reports for its .cfg and topology files"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", required=True, help="a .cfg file of SCALE-Sim")
    parser.add_argument("-t", "--topology", required=True, help="a topology CSV of SCALE-Sim")
    parser.add_argument("-i", "--input", default="conv", choices=("conv", "gemm"), help="its form (default conv)")
    parser.add_argument("-l", "--layout", help="accepted as SCALE-Sim does; not read, as custom layouts are refused")
    parser.add_argument("-o", "-p", "--output", default="results", help="folder of the reports (default results)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    from hwmodels.npu import scalesim

    config = scalesim.load_config(options.config)
    layers = scalesim.load_topology(options.topology, options.input)
    if options.layout and not Path(options.layout).is_file():
        raise ValueError(f"no layout file {options.layout}")
    results = scalesim.run(config, layers)
    folder = scalesim.write_reports(config, layers, options.output, results)
    cycles = sum(result.total_cycles for result in results)
    stalls = sum(result.stall_cycles for result in results)
    if options.json:
        say_json({"folder": str(folder), "layers": len(layers), "cycles": cycles, "stalls": stalls})
        return
    say(f"{len(layers)} layers, {cycles:,} cycles, {stalls:,} of them stalls; reports in {folder}")
    if config.assumed:
        say(paragraph(f"note: not in the file and taken as SCALE-Sim's own defaults: {'; '.join(config.assumed)}"))
