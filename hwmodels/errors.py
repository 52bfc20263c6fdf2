"""How far off the GPU model is: relative errors on measured kernels, and the tables that show them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from . import gpu
from .device_file import device as find_device
from .kernel_rows import Row, own_measurements
from .kernel_rows import modelled as modelled_rows
from .kernel_rows import seconds as row_seconds
from .measured import (
    Gemms,
    attention_measurements,
    fp8_chain,
    gemm_measurements,
    modelled,
    modelled_attention,
    modelled_quantize,
    quantize_measurements,
)
from .ops import Attention, Gemm
from .roofline import Floats


@dataclass(frozen=True, kw_only=True)
class Error:
    """How far off the model is on one group: relative errors as fractions; bias is the mean of log(model/measured)."""

    device: str
    format: str
    split: str
    rows: int
    mean: float
    median: float
    p90: float
    within_10: float
    bias: float


def error(data: Gemms, split: str, parameters: gpu.Parameters) -> Error:
    """The error on one group of measurements."""
    return summary(data.device, data.format, split, modelled(data, parameters) / data.seconds)


def summary(name: str, what: str, split: str, ratio: Floats) -> Error:
    off = np.abs(ratio - 1)
    return Error(
        device=name,
        format=what,
        split=split,
        rows=len(ratio),
        mean=float(off.mean()),
        median=float(np.median(off)),
        p90=float(np.quantile(off, 0.9)),
        within_10=float((off <= 0.1).mean()),
        bias=float(np.log(ratio).mean()),
    )


def errors(parameters: gpu.Parameters | None = None) -> list[Error]:
    """Errors on the sites that were fitted and on those that were not, per device (bf16)."""
    parameters = parameters or gpu.load()
    out = []
    for data in gemm_measurements():
        if data.format == "bfloat16":
            mask = data.held_out()
            out += [
                error(data.where(mask), "held-out sites", parameters),
                error(data.where(~mask), "fitted", parameters),
            ]
    return out


def other_errors(parameters: gpu.Parameters) -> list[Error]:
    """Errors on others' attention (fitted), quantize kernels (fitted) and FP8 chains (not fitted)."""
    out = [
        summary(d.device, "bfloat16", "attention, fitted", modelled_attention(d, parameters) / d.seconds)
        for d in attention_measurements()
    ]
    for kind, (_, _, measured) in quantize_measurements().items():
        out.append(summary("h200-sxm", kind, "quantize, fitted", modelled_quantize(parameters, kind) / measured))
    for data in gemm_measurements():
        if data.format == "fp8":
            out.append(summary(data.device, "fp8 chain", "not fitted", fp8_chain(data, parameters) / data.seconds))
    return out


#: name -> which of our own rows it gathers, beside those the model has no kernel for
OWN: Mapping[str, Callable[[Row], bool]] = MappingProxyType(
    {
        "gemm bf16": lambda r: r.op.kind == "gemm" and r.format == "bf16",
        "gemm bf16, at least 256 rows": lambda r: r.op.kind == "gemm" and r.format == "bf16" and _rows_of(r) >= 256,
        "gemm fp16": lambda r: r.op.kind == "gemm" and r.format == "fp16",
        "gemm fp8, kernel only": lambda r: r.op.kind == "gemm" and r.format == "fp8",
        "gemm fp8, at least 256 rows": lambda r: r.op.kind == "gemm" and r.format == "fp8" and _rows_of(r) >= 256,
        "conv2d bf16, diffusion shapes": lambda r: r.op.kind == "conv2d" and r.suite == "diffusion",
        "conv2d bf16, other shapes": lambda r: r.op.kind == "conv2d" and r.suite != "diffusion",
        "attention bf16, heads 40-128": lambda r: r.op.kind == "attention" and _head(r) <= 128 and not _mask(r),
        "attention bf16, >= 1024 queries and keys": lambda r: (
            r.op.kind == "attention" and _head(r) <= 128 and not _mask(r) and _length(r) >= 1024
        ),
        "attention bf16, masked or other heads": lambda r: r.op.kind == "attention" and (_head(r) > 128 or _mask(r)),
        "norm": lambda r: r.op.kind == "norm",
        "elementwise": lambda r: r.op.kind == "elementwise",
        "move": lambda r: r.op.kind == "move",
        "quantize": lambda r: r.op.kind == "quantize",
    }
)
#: the ways of running a kernel the model has none for, shown so that nobody takes its time for theirs
UNCOVERED: Mapping[str, Callable[[Row], bool]] = MappingProxyType(
    {
        "gemm fp8, a scale per row": lambda r: r.variant == "rowwise",
        "gemm int8, int32 result": lambda r: r.format == "int8",
        "max-abs in torch": lambda r: r.op.kind == "reduction",
        "group norm of channels-last images": lambda r: r.variant == "channels_last",
    }
)


def _rows_of(row: Row) -> int:
    return row.op.m if isinstance(row.op, Gemm) else 0


def _head(row: Row) -> int:
    return row.op.head_dim if isinstance(row.op, Attention) else 0


def _mask(row: Row) -> bool:
    return isinstance(row.op, Attention) and row.op.mask


def _length(row: Row) -> int:
    return min(row.op.queries, row.op.keys) if isinstance(row.op, Attention) else 0


def own_errors(parameters: gpu.Parameters, mode: str = "graph", cache: str = "warm") -> list[Error]:
    """Errors on our own kernels in one condition: by kind and split, then those the model has no kernel for."""
    out = []
    for name, found in own_measurements().items():
        rows = [row for row in found if (row.mode, row.cache) == (mode, cache)]
        ratio = modelled_rows(rows, find_device(name), parameters) / row_seconds(rows)
        for what, chosen in OWN.items():
            for split, held in (("held out", True), ("fitted", False)):
                where = [i for i, r in enumerate(rows) if r.covered and r.held_out is held and chosen(r)]
                if where:
                    seen = split if mode == "graph" or held else "shapes fitted, not in this condition"
                    out.append(summary(name, what, seen, ratio[where]))
        for what, chosen in UNCOVERED.items():
            where = [i for i, r in enumerate(rows) if chosen(r)]
            if where:
                out.append(summary(name, what, "no kernel of ours", ratio[where]))
    return out


HEADER = """# How far off the GPU model is

Relative error of modelled against measured time, generated by `python -m hwmodels.calibrate` from the CSV files here:
our own measurements of an H200 (h200/kernels.toml) and another project's tables of an H100, A100, B200 and L40S (source
and licence: provenance.toml, NOTICE). One set of parameters for all devices. Unless a heading says otherwise: weights
cold, activations warm, kernels replayed in a CUDA graph.
"""


def table(rows: Iterable[Error]) -> str:
    """A markdown table of errors."""
    lines = [
        "| device | what | split | rows | mean | median | 90 % below | within 10 % | bias |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        cells = (f"{r.mean:.1%}", f"{r.median:.1%}", f"{r.p90:.1%}", f"{r.within_10:.0%}", f"{r.bias:+.1%}")
        lines.append(f"| {r.device} | {r.format} | {r.split} | {r.rows} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(parameters: gpu.Parameters, unseen: Iterable[Error] = ()) -> str:
    """The text of ERRORS.md: our own kernels, products by site, products of devices left out, other kernels."""
    sections = [
        HEADER,
        "## The H200, every kind of kernel\n\nHeld-out rows took no part in the fit.\n",
        table(own_errors(parameters)),
        "\n## The same kernels, everything cold\n",
        table(own_errors(parameters, "graph", "cold")),
        "\n## The same kernels, one isolated call, everything cold\n",
        table(own_errors(parameters, "eager", "cold")),
        "\n## Products another project measured, by (n, k) site\n\nHeld-out sites took no part in the fit.\n",
        table(errors(parameters)),
    ]
    left_out = list(unseen)
    if left_out:
        sections += ["\n## Products of a device, a stack or a format the fit never saw\n", table(left_out)]
    sections += ["\n## Other kernels another project measured\n", table(other_errors(parameters))]
    return "\n".join(sections) + "\n"
