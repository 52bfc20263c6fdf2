"""Measured kernels and the GPU model's time for each: what fits are made on and errors are stated for.

The data are the CSV files in `measurements/`, beside provenance.toml, which says where, when and how.  A (n, k) site is
held out of every fit with all its m, for all devices: 23 of the 59 sites, chosen by a hash, so the split never moves.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from . import gpu
from .device_file import device
from .gpu_attention import attention
from .gpu_pointwise import pointwise
from .passes import Passes
from .roofline import Floats

FOLDER = Path(__file__).parent / "measurements"
HELD_OUT = 0.3

#: the measurements' names of devices
NAMES: Mapping[str, str] = MappingProxyType(
    {
        "h100_sxm": "h100-sxm",
        "a100_sxm": "a100-sxm-80gb",
        "b200_sxm": "b200-sxm",
        "l40s": "l40s",
        "h200_sxm": "h200-sxm",
    }
)


@dataclass(frozen=True, kw_only=True)
class Gemms:
    """Measured products of one device in one format; seconds."""

    device: str
    format: str
    m: Floats
    n: Floats
    k: Floats
    seconds: Floats

    def __len__(self) -> int:
        return len(self.seconds)

    def where(self, mask: npt.NDArray[np.bool_]) -> Gemms:
        """The rows a mask selects."""
        picked = {name: getattr(self, name)[mask] for name in ("m", "n", "k", "seconds")}
        return replace(self, **picked)

    def held_out(self) -> npt.NDArray[np.bool_]:
        """Rows of the sites that are never fitted."""
        return np.array([is_held_out(int(n), int(k)) for n, k in zip(self.n, self.k, strict=True)])


def is_held_out(n: int, k: int) -> bool:
    """Whether the site (n, k) is held out: decided by a hash of its two numbers, the same for every GPU."""
    digest = hashlib.sha256(f"site n={n} k={k}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT


def _rows(name: str) -> list[dict[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@lru_cache(maxsize=1)
def gemm_measurements() -> tuple[Gemms, ...]:
    """Every (device, format) group of `measurements/gemm.csv`."""
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in _rows("gemm.csv"):
        groups.setdefault((row["gpu"], row["dtype"]), []).append(row)
    return tuple(
        Gemms(
            device=NAMES[name],
            format=dtype,
            m=np.array([float(r["m"]) for r in rows]),
            n=np.array([float(r["n"]) for r in rows]),
            k=np.array([float(r["k"]) for r in rows]),
            seconds=np.array([float(r["latency_ms"]) for r in rows]) * 1e-3,
        )
        for (name, dtype), rows in groups.items()
    )


def modelled(data: Gemms, parameters: gpu.Parameters) -> Floats:
    """The model's seconds for measured bf16 products (weights cold, activations warm, bf16 result)."""
    found = device(data.device)
    mach = gpu.machine(found, parameters)
    rate = gpu.per_clock(found.rates["bf16", "bf16", "f32"], mach)
    return gpu.gemm(data.m, data.n, data.k, rate, mach, parameters).total


@dataclass(frozen=True, kw_only=True)
class Attentions:
    """Measured attention of one device, queries as long as keys; seconds."""

    device: str
    batch: Floats
    length: Floats
    heads: Floats
    head_dim: Floats
    seconds: Floats


@lru_cache(maxsize=1)
def attention_measurements() -> tuple[Attentions, ...]:
    """Every device of `measurements/attention.csv`."""
    groups: dict[str, list[dict[str, str]]] = {}
    for row in _rows("attention.csv"):
        groups.setdefault(row["gpu"], []).append(row)

    def column(rows: list[dict[str, str]], name: str) -> Floats:
        return np.array([float(r[name]) for r in rows])

    return tuple(
        Attentions(
            device=NAMES[name],
            batch=column(rows, "batch_size"),
            length=column(rows, "isl"),
            heads=column(rows, "num_heads"),
            head_dim=column(rows, "head_dim"),
            seconds=column(rows, "latency_ms") * 1e-3,
        )
        for name, rows in groups.items()
    )


def modelled_attention(data: Attentions, parameters: gpu.Parameters) -> Floats:
    """The model's seconds for measured attention in bf16."""
    found = device(data.device)
    mach = gpu.machine(found, parameters)
    rate = gpu.per_clock(found.rates["bf16", "bf16", "f32"], mach)
    size = 4 * data.batch * data.length * data.heads * data.head_dim * 2
    return attention(
        data.batch, data.heads, data.length, data.length, data.head_dim, rate, size, mach, parameters
    ).total


def quantize_measurements() -> dict[str, tuple[Floats, Floats, Floats]]:
    """(rows, columns, seconds) of the H200's max-abs ("amax") and cast ("cast") kernels."""
    names = {"computescale": "amax", "scale_matrix": "cast"}
    rows = _rows("quantize.csv")
    return {
        name: (
            np.array([float(r["m"]) for r in rows if r["op"] == op]),
            np.array([float(r["k"]) for r in rows if r["op"] == op]),
            np.array([float(r["latency"]) for r in rows if r["op"] == op]) * 1e-3,
        )
        for op, name in names.items()
    }


def modelled_quantize(parameters: gpu.Parameters, kind: str) -> Floats:
    """The model's seconds for the H200's quantize kernels (bf16 in, 8 bits out)."""
    m, k, _ = quantize_measurements()[kind]
    mach = gpu.machine(device("h200-sxm"), parameters)
    amax = kind == "amax"
    size = 2 * m * k + (4.0 if amax else m * k)
    return pointwise(size, m * k, [Passes(maximum=amax)] * len(m), mach, parameters, warm=True).total


def fp8_chain(data: Gemms, parameters: gpu.Parameters) -> Floats:
    """The model's seconds for max-abs, cast and FP8 product, which is what the FP8 measurements include."""
    found = device(data.device)
    mach = gpu.machine(found, parameters)
    rate = gpu.per_clock(found.rates["e4m3", "e4m3", "f32"], mach)
    product = gpu.gemm(data.m, data.n, data.k, rate, mach, parameters, read=1.0, weight=1.0).total
    elements = data.m * data.k
    amax, cast = (
        pointwise(size, elements, [Passes(maximum=maximum)] * len(elements), mach, parameters, warm=True).total
        for size, maximum in ((2 * elements + 4, True), (3 * elements, False))
    )
    return product + amax + cast
