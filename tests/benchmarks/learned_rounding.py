"""What learned rounding gains over GPTQ and nearest rounding, by budget, and how long each takes.

    python tests/benchmarks/learned_rounding.py [--pipeline shapes-sd] [--device cpu] [--write FILE]

A line of JSON per rounding, as it ends: seconds and CPU seconds of quantizing, squared error at the denoiser's output
relative to the output (of calls that calibration did not see), and for the learned ones what share of the long budget's
gain over nearest rounding they have. Captions are calibrated with beforehand, outside of the seconds.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from analysis.models import embedded
from analysis.runner import calibrate, quantize
from analysis.runner.load import denoiser_name
from analysis.runner.samples import Call, collect, first
from analysis.scenes import held_out

ROUNDINGS: dict[str, dict[str, Any]] = {
    "nearest": {"rounding": "nearest"},
    "gptq": {"rounding": "gptq"},
    "long": {"budget": "long"},
    "short": {"budget": "short"},
}
HELD_OUT = 16  # captions whose calls are judged


def relative_error(made: Any, pipe: Any, calls: tuple[Call, ...]) -> float:
    """Squared error of the denoiser's outputs over their energy."""
    name = denoiser_name(pipe)
    error = energy = 0.0
    with torch.no_grad():
        for call in calls:
            wanted, output = (first(getattr(one, name)(*call.args, **call.kwargs)) for one in (pipe, made))
            error += float((output - wanted).square().sum())
            energy += float(wanted.square().sum())
    return error / energy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", default="shapes-sd", choices=embedded.NAMES)
    parser.add_argument("--scheme", default="fp4-w4a8")
    parser.add_argument("--method", default="fp-ptq")
    parser.add_argument("--captions", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="of sampling")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", type=Path, metavar="FILE")
    given = parser.parse_args()
    pipe = embedded.load(given.pipeline, device=given.device)
    seen = calibrate(pipe, held_out(given.captions, seed=1).captions(), steps=given.steps)
    others = calibrate(pipe, held_out(HELD_OUT, seed=2).captions(), range(HELD_OUT), steps=given.steps)
    calls = collect(pipe, others, 8 * given.steps, seed=5)
    rows: list[dict[str, Any]] = []
    for name, options in ROUNDINGS.items():
        start, used = time.perf_counter(), time.process_time()
        made = quantize(pipe, given.scheme, method=given.method, calibration=seen, **options)
        if given.device != "cpu":
            torch.cuda.synchronize()
        row = {"rounding": name, "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
        row["error"] = relative_error(made, pipe, calls)
        if name == "short":
            nearest, long = rows[0]["error"], rows[2]["error"]
            row["share_of_long"] = (nearest - row["error"]) / (nearest - long)
        rows.append({"pipeline": given.pipeline, "scheme": given.scheme, "method": given.method} | row)
        print(json.dumps(rows[-1]), flush=True)
    if given.write is not None:
        given.write.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
