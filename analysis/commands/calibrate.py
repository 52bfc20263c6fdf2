"""Fit a device to kernels that `fpsim measure` timed on it, and say how far off
the model is on those that took no part in the fit.

  fpsim calibrate measured/kernels.csv --device h200-sxm --out my-h200.toml
  fpsim estimate --model sdxl-base --batch 2 --device my-h200.toml

At most six numbers are fitted, those whose kernels were measured; everything
else stays the global model's.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from analysis.commands._text import paragraph, say, say_json, table

HELP = "fit a device to kernels measured on it"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("csv", type=Path, nargs="+", metavar="CSV", help="kernels.csv files that `fpsim measure` wrote")
    parser.add_argument("--device", required=True, help="the device they were measured on: a name or a TOML file")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the calibrated device (.toml)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    import hwmodels
    from analysis.store import write_output
    from hwmodels import kernel_rows, own_device

    if options.out is not None and options.out.suffix != ".toml":
        raise ValueError(f"--out {options.out}: a device is a .toml file")
    device = hwmodels.device(options.device)
    rows = [row for path in options.csv for row in kernel_rows.read(path)]
    found = own_device.calibrate_device(rows, device)
    if options.out is not None:
        about = kernel_rows.provenance(options.csv[0])
        words = ("name", "driver", "torch", "date", "command")
        source = ", ".join(str(about[name]) for name in words if name in about) or "no provenance beside the CSV"
        text = own_device.device_text(device, found.calibration, source, own_device.base_text(options.device))
        write_output(options.out, text)
    if options.json:
        say_json({key: value for key, value in asdict(found).items() if key != "device"})
        return
    say(table([(n, f"{v:.5g}") for n, v in found.calibration.items()], ("fitted parameter", "value"), right=(1,)))
    say()
    lines = [
        (old.format, old.split, old.rows, f"{old.mean:.1%}", f"{new.mean:.1%}", f"{new.median:.1%}")
        for old, new in zip(found.before, found.after, strict=True)
    ]
    header = ("kernels", "split", "rows", "mean before", "mean after", "median")
    say(table(lines, header, right=(2, 3, 4, 5)))
    say(paragraph("mean and median of |modelled / measured - 1|; held-out rows took no part in the fit"))
    if options.out is not None:
        say(f"device: {options.out} (give it to --device)")
