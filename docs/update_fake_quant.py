"""Writes docs/fake-quantization.md from what `tests/benchmarks/fake_quant_gpu.py` printed on a GPU.

make bench-gpu                                                            # prints the lines
python docs/update_fake_quant.py tests/benchmarks/fake-quant-h200.jsonl   # lines of the kept measurement
"""

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

PAGE = Path(__file__).parent / "fake-quantization.md"

HEAD = """# What fake quantization costs at inference

Measured on an {device}, torch {torch} (2026-11-22, `{file}`):
the time of one call of the denoiser with weights and activations rounded to the format, over the same denoiser in full
precision. Medians of interleaved runs; the goal is 1.5 for static ranges. The kernels (Triton, one pass per layer) were
compared with `fpsim.quantize` in the same run: {compared:,} values of {formats} formats, {different} different.

## Embedded pipelines, in a CUDA graph

{embedded}

## Full-size SDXL U-Net, eager

Random weights, two rows at 1024 x 1024, 794 layers. What is added is launches and Python, {added} ms per layer in the
middle; the machine is shared, and so is its host time. Formats of blocks and scales per token read the input twice.
After these lines were measured 20 to 29 microseconds of Python left each static layer (counted on a CPU, the kernel
stubbed out); that is not in the table.

{sdxl}
"""


def main(file: Path) -> None:
    machine, *lines = [json.loads(line) for line in file.read_text().splitlines()]
    frame = pd.DataFrame(lines)
    bits = frame[frame.part == "bits"]
    sdxl = frame[frame.part == "sdxl"]
    static = sdxl[~sdxl.scheme.str.contains("dynamic|mx|nv")]
    page = HEAD.format(
        **{key: machine[key] for key in ("device", "torch")},
        file=file.as_posix(),
        compared=int(bits.compared.sum()),
        formats=len(bits),
        different=int(bits.different.sum()) or "none",
        embedded=table(frame[frame.part == "embedded"], ["model", "rows"]),
        sdxl=table(sdxl, ["dtype"]),
        added=f"{((static.fake_ms - static.full_ms) / 794).median():.2f}",
    )
    PAGE.write_text(page)


def table(frame: pd.DataFrame, columns: list[str]) -> str:
    """Ratios: a row per scheme, a column per combination of `columns`; empty where the run's time was up."""
    wide = frame.pivot(index="scheme", columns=columns, values="ratio").reindex(frame.scheme.unique())
    heads = [_head(key) for key in wide.columns]
    lines = ["| scheme | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for scheme, row in wide.iterrows():
        lines.append(f"| {scheme} | " + " | ".join("" if pd.isna(value) else f"{value:.2f}" for value in row) + " |")
    return "\n".join(lines)


def _head(key: Any) -> str:
    if isinstance(key, str):
        return key
    model, rows = key
    return f"{model}, {int(rows)} rows"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/update_fake_quant.py LINES.jsonl")
    main(Path(sys.argv[1]))
