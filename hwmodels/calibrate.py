"""Fits the GPU model's parameters to measured kernels and states its error on kernels it did not see.

The data are the CSV files in `measurements/`, each beside a TOML file that says where, when and how it was measured.
Two splits are reported, because they answer different questions:

* **sites**: a (n, k) pair is held out with all its m (23 of the 59 pairs, chosen by a hash, so the split never moves).
  What the model is worth on a new layer of a device it knows.
* **device**: one GPU is left out of the fit altogether.  What it is worth on a device it has never seen.

The loss is the mean of |log(modelled / measured)|, averaged over devices with the weights of `WEIGHTS`.
`python -m hwmodels.calibrate` fits and rewrites `gpu_parameters.toml`; `errors()` makes the table of the documentation.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from . import gpu
from .device import device
from .roofline import Floats

FOLDER = Path(__file__).parent / "measurements"
HELD_OUT = 0.3

#: devices whose measurements are fitted: the Hopper one counts most, being nearest to the H200 the goals are stated for
WEIGHTS: Mapping[str, float] = MappingProxyType({"h100-sxm": 3.0, "a100-sxm-80gb": 1.0, "b200-sxm": 1.0, "l40s": 1.0})

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

#: parameter -> (start of the search, least, largest): ranges a physical value can have
RANGES: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "fixed": (2.0e-6, 5e-7, 8e-6),
        "efficiency_mma": (0.92, 0.6, 1.0),
        "efficiency_wgmma": (0.92, 0.6, 1.0),
        "efficiency_tcgen05": (0.92, 0.6, 1.0),
        "prologue_mma": (1500.0, 100.0, 8000.0),
        "prologue_wgmma": (600.0, 50.0, 8000.0),
        "prologue_tcgen05": (600.0, 50.0, 8000.0),
        "store_bytes": (32.0, 4.0, 256.0),
        "load_bytes": (80.0, 32.0, 256.0),
        "l2_bytes": (64.0, 16.0, 256.0),
        "l2_share": (0.8, 0.05, 1.0),
        "multicast": (2.0, 1.0, 4.0),
        "hbm": (0.95, 0.6, 1.0),
        "tail": (0.2, 0.0, 1.0),
        "split_traffic": (1.0, 0.1, 4.0),
        "split_fixed": (4.0e-6, 5e-7, 1e-5),
        "throttle": (0.45, 0.0, 1.0),
    }
)
POINTWISE = ("pointwise_fixed", "pointwise_hbm", "amax_fixed", "amax_hbm")
ATTENTION = ("attention_overlap", "attention_efficiency")


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
    return _summary(data.device, data.format, split, modelled(data, parameters) / data.seconds)


def _summary(name: str, what: str, split: str, ratio: Floats) -> Error:
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


def _minimise(loss: Callable[[Floats], float], start: Floats, rounds: int) -> Floats:
    from scipy.optimize import minimize

    x = start
    for _ in range(rounds):
        x = minimize(loss, x, method="Powell", options={"maxiter": 3, "xtol": 1e-2, "ftol": 1e-4}).x
        options = {"maxiter": 40 * len(x), "xatol": 1e-3, "fatol": 1e-5, "adaptive": True}
        x = minimize(loss, x, method="Nelder-Mead", options=options).x
    return np.asarray(x, dtype=np.float64)


def start() -> gpu.Parameters:
    """Where every fit starts: values a textbook would guess."""
    guess = {name: row[0] for name, row in RANGES.items()}
    guess |= {"pointwise_fixed": 1.5e-6, "pointwise_hbm": 0.9, "amax_fixed": 7e-6, "amax_hbm": 0.3}
    guess |= {"attention_overlap": 1.3, "attention_efficiency": 0.9}
    return gpu.Parameters(**guess)


def fit_gemm(data: Sequence[Gemms], guess: gpu.Parameters | None = None, rounds: int = 2) -> gpu.Parameters:
    """Parameters of the products that fit `data` best, searched from textbook values within `RANGES`."""
    begin = guess or start()
    names = list(RANGES)
    low = np.array([RANGES[name][1] for name in names])
    high = np.array([RANGES[name][2] for name in names])

    def inside(x: Floats) -> gpu.Parameters:
        values = low + (high - low) / (1 + np.exp(-x))
        return replace(begin, **dict(zip(names, values.tolist(), strict=True)))

    def loss(x: Floats) -> float:
        parameters = inside(x)
        total = weight = 0.0
        for group in data:
            w = WEIGHTS.get(group.device, 1.0)
            total += w * float(np.abs(np.log(modelled(group, parameters) / group.seconds)).mean())
            weight += w
        return total / weight + 1e-4 * float(np.square(x - origin).mean())

    share = (np.array([getattr(begin, name) for name in names]) - low) / (high - low)
    share = np.clip(share, 1e-3, 1 - 1e-3)
    origin = np.log(share / (1 - share))
    return inside(_minimise(loss, origin, rounds))


def fitted_groups(leave_out: Iterable[str] = (), held_out: bool = False) -> list[Gemms]:
    """bf16 groups for a fit: without the devices left out, and without the held-out sites unless asked for."""
    skip = set(leave_out)
    groups = [g for g in gemm_measurements() if g.format == "bfloat16" and g.device not in skip]
    return groups if held_out else [g.where(~g.held_out()) for g in groups]


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
    return gpu.attention(
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
    return gpu.pointwise(2 * m * k, 4.0 if amax else m * k, m * k, float(amax), mach, parameters, warm=True).total


def _fit_few(names: Sequence[str], begin: gpu.Parameters, misfit: Callable[[gpu.Parameters], float]) -> gpu.Parameters:
    origin = np.log([getattr(begin, name) for name in names])

    def at(x: Floats) -> gpu.Parameters:
        return replace(begin, **dict(zip(names, np.exp(x).tolist(), strict=True)))

    return at(_minimise(lambda x: misfit(at(x)), origin, 2))


def fit_rest(begin: gpu.Parameters) -> gpu.Parameters:
    """Pointwise and attention parameters, with those of the products fixed."""

    def misfit(data: Floats, model: Floats) -> float:
        return float(np.abs(np.log(model / data)).mean())

    quantized = quantize_measurements()
    found = _fit_few(
        POINTWISE, begin, lambda p: sum(misfit(quantized[kind][2], modelled_quantize(p, kind)) for kind in quantized)
    )
    return _fit_few(
        ATTENTION, found, lambda p: sum(misfit(d.seconds, modelled_attention(d, p)) for d in attention_measurements())
    )


def fp8_chain(data: Gemms, parameters: gpu.Parameters) -> Floats:
    """The model's seconds for max-abs, cast and FP8 product, which is what the FP8 measurements include."""
    found = device(data.device)
    mach = gpu.machine(found, parameters)
    rate = gpu.per_clock(found.rates["e4m3", "e4m3", "f32"], mach)
    product = gpu.gemm(data.m, data.n, data.k, rate, mach, parameters, read=1.0, weight=1.0).total
    elements = data.m * data.k
    amax = gpu.pointwise(2 * elements, 4.0, elements, 1.0, mach, parameters, warm=True).total
    cast = gpu.pointwise(2 * elements, elements, elements, 0.0, mach, parameters, warm=True).total
    return product + amax + cast


def other_errors(parameters: gpu.Parameters) -> list[Error]:
    """Errors on attention (fitted), quantize kernels (fitted) and FP8 chains (not fitted)."""
    out = [
        _summary(d.device, "bfloat16", "attention, fitted", modelled_attention(d, parameters) / d.seconds)
        for d in attention_measurements()
    ]
    for kind, (_, _, measured) in quantize_measurements().items():
        out.append(_summary("h200-sxm", kind, "quantize, fitted", modelled_quantize(parameters, kind) / measured))
    for data in gemm_measurements():
        if data.format == "fp8":
            out.append(_summary(data.device, "fp8 chain", "not fitted", fp8_chain(data, parameters) / data.seconds))
    return out


HEADER = """# How far off the GPU model is

Relative error of modelled against measured time, generated by `python -m hwmodels.calibrate` from the CSV files here
(source and licence: provenance.toml, NOTICE). One set of parameters for all devices; weights cold, activations warm,
kernels replayed in a CUDA graph. The H200 has no products in these tables: the H100 SXM is its nearest neighbour.
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
    """The text of ERRORS.md: products by site, products of devices left out, other kernels."""
    sections = [
        HEADER,
        "## Products, by (n, k) site\n\nHeld-out sites took no part in the fit.\n",
        table(errors(parameters)),
    ]
    left_out = list(unseen)
    if left_out:
        sections += ["\n## Products of a device the fit never saw\n", table(left_out)]
    sections += ["\n## Other kernels\n", table(other_errors(parameters))]
    return "\n".join(sections) + "\n"


def unseen_device(name: str) -> Error:
    """The error on every product of a device after a fit without it."""
    parameters = fit_gemm(fitted_groups(leave_out=(name,), held_out=True))
    (data,) = (g for g in gemm_measurements() if g.device == name and g.format == "bfloat16")
    return error(data, "device left out", parameters)


def save(parameters: gpu.Parameters, path: Path = gpu.PARAMETERS) -> None:
    """Write parameters as TOML, six significant digits."""
    lines = [
        "# Parameters of hwmodels/gpu.py, one set for all devices, fitted by hwmodels/calibrate.py on measurements/.",
        "# Units and meanings: hwmodels/gpu.py, class Parameters. Do not edit: run `python -m hwmodels.calibrate`.",
        *(f"{name} = {value:.6g}" for name, value in parameters.to_dict().items()),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Fit, save the parameters, refit without each device in turn, write ERRORS.md: some minutes on one core."""
    parameters = fit_rest(fit_gemm(fitted_groups()))
    save(parameters)
    unseen = [unseen_device(name) for name in ("a100-sxm-80gb", "b200-sxm", "l40s")]
    (FOLDER / "ERRORS.md").write_text(report(gpu.load(), unseen), encoding="utf-8")


if __name__ == "__main__":
    main()
