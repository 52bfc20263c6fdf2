"""Fits the GPU model's parameters to measured kernels and states its error on kernels it did not see.

Two collections are fitted together: other people's products and attention on an H100, A100, B200 and L40S, and our own
kernels of every kind on an H200 (`fpsim measure`).  Three splits are reported, because they answer different questions:

* **sites**: a (n, k) pair is held out with all its m, on every device (chosen by a hash, so the split never moves);
  another kernel by its shape.  What the model is worth on a new layer of a device it knows.
* **left out**: one GPU, or all of our own kernels (another stack's), or one format is left out of the fit altogether.
  What the model is worth where nothing was measured.
* **steps**: whole denoise steps, none of which is ever fitted (docs/gpu-model.md).

The loss is the mean of |log(modelled / measured)|, averaged over devices with the weights of `WEIGHTS`.
`python -m hwmodels.calibrate` does all of it: gpu_parameters.toml and measurements/ERRORS.md come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from . import gpu
from .device_file import device
from .errors import Error, error, report, summary
from .kernel_rows import Row, own_measurements, seconds
from .kernel_rows import modelled as modelled_rows
from .measured import (
    FOLDER,
    Gemms,
    attention_measurements,
    gemm_measurements,
    modelled,
    modelled_attention,
    modelled_quantize,
    quantize_measurements,
)
from .parameters import PARAMETERS
from .roofline import Floats

#: devices whose measurements are fitted: the Hopper one counts most, being nearest to the H200 the goals are stated for
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"h200-sxm": 3.0, "h100-sxm": 3.0, "a100-sxm-80gb": 1.0, "b200-sxm": 1.0, "l40s": 1.0}
)

#: parameter -> (start of the search, least, largest): ranges a physical value can have
RANGES: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "fixed": (2.0e-6, 5e-7, 8e-6),
        "efficiency_mma": (0.9, 0.6, 1.0),
        "efficiency_wgmma": (0.9, 0.6, 1.0),
        "efficiency_tcgen05": (0.9, 0.6, 1.0),
        "prologue_mma": (3000.0, 100.0, 8000.0),
        "prologue_wgmma": (1500.0, 50.0, 8000.0),
        "fill_window": (100e3, 16e3, 228e3),
        "fill_bytes": (100.0, 30.0, 300.0),
        "store_bytes": (40.0, 4.0, 256.0),
        "load_bytes": (70.0, 32.0, 256.0),
        "l2_bytes": (150.0, 16.0, 400.0),
        "l2_share": (0.3, 0.05, 1.0),
        "hbm": (0.88, 0.6, 1.0),
        "tail": (0.3, 0.0, 1.0),
        "split_fixed": (3.0e-6, 5e-7, 1e-5),
        "throttle": (0.45, 0.0, 1.0),
    }
)
POINTWISE = ("pointwise_fixed", "pointwise_hbm", "scalar_rate", "math_rate", "latency")
AMAX = ("amax_fixed", "amax_bytes")
#: an engine that a fit saw nothing of works as the one before it
NEAREST: Mapping[str, str] = MappingProxyType({"tcgen05": "wgmma", "wgmma": "mma"})
THIN = 2  #: of the rows, a fit that leaves something out takes one
ATTENTION = ("attention_overlap", "attention_efficiency")


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
    guess |= {"pointwise_fixed": 1.5e-6, "pointwise_hbm": 0.9, "amax_fixed": 7e-6, "amax_bytes": 6.0}
    guess |= {"scalar_rate": 1.6, "math_rate": 4.0, "latency": 700.0}
    guess |= {"attention_overlap": 1.3, "attention_efficiency": 0.9}
    return gpu.Parameters(**guess)


def fit_gemm(
    data: Sequence[Gemms],
    rows: Mapping[str, Sequence[Row]] = MappingProxyType({}),
    guess: gpu.Parameters | None = None,
    rounds: int = 2,
) -> gpu.Parameters:
    """Parameters of the products that fit `data` and `rows` (by device) best, searched within `RANGES`."""
    begin = guess or start()
    names = list(RANGES)
    low = np.array([RANGES[name][1] for name in names])
    high = np.array([RANGES[name][2] for name in names])
    times = {name: seconds(group) for name, group in rows.items()}

    def inside(x: Floats) -> gpu.Parameters:
        values = low + (high - low) / (1 + np.exp(-x))
        return replace(begin, **dict(zip(names, values.tolist(), strict=True)))

    def loss(x: Floats) -> float:
        p = inside(x)
        misses = [(group.device, modelled(group, p) / group.seconds) for group in data]
        misses += [(name, modelled_rows(group, device(name), p) / times[name]) for name, group in rows.items()]
        weights = [WEIGHTS.get(name, 1.0) for name, _ in misses]
        total = sum(w * float(np.abs(np.log(ratio)).mean()) for w, (_, ratio) in zip(weights, misses, strict=True))
        return total / sum(weights) + 1e-4 * float(np.square(x - origin).mean())

    share = (np.array([getattr(begin, name) for name in names]) - low) / (high - low)
    share = np.clip(share, 1e-3, 1 - 1e-3)
    origin = np.log(share / (1 - share))
    return inside(_minimise(loss, origin, rounds))


def own_rows(kinds: Iterable[str], held_out: bool = False) -> dict[str, list[Row]]:
    """Our own measured rows of some kinds that the model has a kernel for, by device; replayed in graphs."""
    wanted = set(kinds)
    return {
        name: [
            row
            for row in found
            if row.op.kind in wanted and row.mode == "graph" and row.covered and row.held_out is held_out
        ]
        for name, found in own_measurements().items()
    }


def fitted_groups(leave_out: Iterable[str] = (), held_out: bool = False) -> list[Gemms]:
    """bf16 groups for a fit: without the devices left out, and without the held-out sites unless asked for."""
    skip = set(leave_out)
    groups = [g for g in gemm_measurements() if g.format == "bfloat16" and g.device not in skip]
    return groups if held_out else [g.where(~g.held_out()) for g in groups]


def _fit_few(names: Sequence[str], begin: gpu.Parameters, misfit: Callable[[gpu.Parameters], float]) -> gpu.Parameters:
    origin = np.log([getattr(begin, name) for name in names])

    def at(x: Floats) -> gpu.Parameters:
        return replace(begin, **dict(zip(names, np.exp(x).tolist(), strict=True)))

    return at(_minimise(lambda x: misfit(at(x)), origin, 2))


def fit_rest(begin: gpu.Parameters) -> gpu.Parameters:
    """Parameters of pointwise kernels, max-abs and attention, with those of the products fixed."""

    def misfit(data: Floats, model: Floats) -> float:
        return float(np.abs(np.log(model / data)).mean())

    def own(rows: Mapping[str, Sequence[Row]], p: gpu.Parameters) -> float:
        return sum(misfit(seconds(group), modelled_rows(group, device(name), p)) for name, group in rows.items())

    quantized = quantize_measurements()
    plain = own_rows(("elementwise", "move", "norm", "quantize", "softmax"))
    found = _fit_few(
        POINTWISE, begin, lambda p: 2 * own(plain, p) + misfit(quantized["cast"][2], modelled_quantize(p, "cast"))
    )
    found = _fit_few(AMAX, found, lambda p: misfit(quantized["amax"][2], modelled_quantize(p, "amax")))
    attended = own_rows(("attention",))
    return _fit_few(
        ATTENTION,
        found,
        lambda p: own(attended, p) + sum(misfit(d.seconds, modelled_attention(d, p)) for d in attention_measurements()),
    )


def without_device(name: str) -> Error:
    """The error on every product of a device after a fit without it; its engine works as the nearest one fitted."""
    groups = fitted_groups(leave_out=(name,), held_out=True)
    parameters = _refit(groups, {k: v for k, v in own_rows(("gemm",)).items() if k != name})
    engines = {gpu.machine(device(g.device), parameters).engine for g in groups}
    engine = gpu.machine(device(name), parameters).engine
    if engine not in engines:
        near = getattr(parameters, f"efficiency_{NEAREST[engine]}")
        parameters = replace(parameters, **{f"efficiency_{engine}": near})
    (data,) = (g for g in gemm_measurements() if g.device == name and g.format == "bfloat16")
    return error(data, "device left out", parameters)


def _refit(groups: Iterable[Gemms], rows: Mapping[str, Sequence[Row]]) -> gpu.Parameters:
    """A fit to every second row: what is asked of these fits is coarser than what half of the rows leaves open."""
    thin = [g.where(np.arange(len(g)) % THIN == 0) for g in groups]
    return fit_gemm(thin, {name: found[::THIN] for name, found in rows.items()}, rounds=1)


def without_ours(name: str = "h200-sxm") -> list[Error]:
    """The errors on our own products, by format, after a fit to the other project's only: another stack's kernels."""
    parameters = _refit(fitted_groups(held_out=True), {})
    return [_own(name, form, "stack left out", parameters) for form in ("bf16", "fp8")]


def without_format(form: str = "fp8", name: str = "h200-sxm") -> Error:
    """The error on our own products of one format after a fit to all others."""
    others = {k: [r for r in v if r.format != form] for k, v in own_rows(("gemm",)).items()}
    return _own(name, form, "format left out", _refit(fitted_groups(), others))


def _own(name: str, form: str, split: str, parameters: gpu.Parameters) -> Error:
    rows = [r for r in own_measurements()[name] if _plain(r, form)]
    ratio = modelled_rows(rows, device(name), parameters) / seconds(rows)
    return summary(name, f"gemm {form}", split, ratio)


def _plain(row: Row, form: str) -> bool:
    """A product in a format as most are run: in a graph, activations warm."""
    kind = (row.op.kind, row.format, row.mode, row.cache)
    return row.covered and kind == ("gemm", form, "graph", "warm")


def unseen() -> list[Error]:
    """Errors of fits that left out a device, a stack, a format: what the model is worth where nothing was measured."""
    devices = [without_device(name) for name in ("a100-sxm-80gb", "b200-sxm", "l40s", "h100-sxm")]
    return [*devices, *without_ours(), without_format()]


def save(parameters: gpu.Parameters, path: Path = PARAMETERS) -> None:
    """Write parameters as TOML, six significant digits."""
    lines = [
        "# Parameters of hwmodels/gpu.py, one set for all devices, fitted by hwmodels/calibrate.py on measurements/.",
        "# Units and meanings: hwmodels/gpu.py, class Parameters. Do not edit: run `python -m hwmodels.calibrate`.",
        *(f"{name} = {value:.6g}" for name, value in parameters.to_dict().items()),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Fit, save the parameters, refit without a device, a stack, a format, write ERRORS.md: five minutes of a core."""
    parameters = fit_rest(fit_gemm(fitted_groups(), own_rows(("gemm", "conv2d")), rounds=1))
    save(parameters)
    (FOLDER / "ERRORS.md").write_text(report(gpu.load(), unseen()), encoding="utf-8")


if __name__ == "__main__":
    main()
