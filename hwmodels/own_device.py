"""A calibrated device from a user's own measurements: a few numbers, and the error on rows that did not set them.

The global parameters hold for all devices; a card, its cooling and its software stack still differ by some per cent.
`calibrate_device` fits at most the parameters of `SETS` whose kernels were measured, each within a factor of two of the
global value, on the rows that are not held out (`kernel_rows.Row.held_out`), and states the error before and after on
those that are.  The result is the device's TOML with a `[calibration]` table, which every estimate takes as a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from . import gpu
from .device import Device
from .device_file import FOLDER, parse_device
from .errors import Error, summary
from .kernel_rows import Row, modelled, seconds
from .roofline import Floats

#: kinds of kernels -> the parameters they set (an engine's own is meant by {engine}), in the order they are fitted
SETS: Mapping[tuple[str, ...], tuple[str, ...]] = MappingProxyType(
    {
        ("gemm", "conv2d", "convnd"): ("fixed", "efficiency_{engine}", "hbm"),
        ("elementwise", "move", "norm", "quantize", "softmax"): ("pointwise_fixed", "pointwise_hbm"),
        ("attention",): ("attention_efficiency",),
    }
)
FACTOR = 2.0
LEAST_ROWS = 8  #: fewer rows of a kind say nothing worth storing


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A device with its fitted parameters, and errors by kind and split, before and after."""

    device: Device
    calibration: Mapping[str, float]
    before: tuple[Error, ...]
    after: tuple[Error, ...]


def calibrate_device(rows: Sequence[Row], device: Device) -> Calibrated:
    """Fit `device` to the rows a model exists for.

    Raises ValueError where there are too few of them, or the device is none the GPU model covers.
    """
    usable = [row for row in rows if row.covered and row.mode in ("graph", "eager")]
    fitted = [row for row in usable if not row.held_out]
    begin = replace(gpu.load(), **device.calibration)
    engine = gpu.machine(device, begin).engine
    found = begin
    names: list[str] = []
    for kinds, parameters in SETS.items():
        group = [row for row in fitted if row.op.kind in kinds]
        if len(group) >= LEAST_ROWS:
            chosen = [name.format(engine=engine) for name in parameters]
            found = _fit(group, device, found, chosen)
            names += chosen
    if not names:
        raise ValueError(
            f"{len(fitted)} rows to fit, too few of every kind; allowed: at least {LEAST_ROWS} that are not held out"
        )
    return Calibrated(
        device=device,
        calibration={name: float(f"{getattr(found, name):.6g}") for name in names},
        before=tuple(table(usable, device, begin)),
        after=tuple(table(usable, device, found)),
    )


def _fit(rows: Sequence[Row], device: Device, begin: gpu.Parameters, names: Sequence[str]) -> gpu.Parameters:
    from scipy.optimize import minimize

    measured = seconds(rows)
    centre = np.array([getattr(begin, name) for name in names])

    def at(x: Floats) -> gpu.Parameters:
        values = centre * FACTOR ** np.tanh(x)
        return replace(begin, **dict(zip(names, values.tolist(), strict=True)))

    def loss(x: Floats) -> float:
        return float(np.abs(np.log(modelled(rows, device, at(x)) / measured)).mean()) + 1e-4 * float(x @ x)

    options = {"maxiter": 60 * len(names), "xatol": 1e-3, "fatol": 1e-5}
    x = np.zeros(len(names))
    for _ in range(2):  # a simplex can collapse on the kinks of a sum of magnitudes; a new one gets off them
        x = minimize(loss, x, method="Nelder-Mead", options=options).x
    return at(x)


def table(rows: Sequence[Row], device: Device, parameters: gpu.Parameters) -> list[Error]:
    """Errors by kind, format, condition and split."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(rows):
        what = f"{row.op.kind} {row.format}, {row.mode}, {row.cache}"
        groups.setdefault((what, "held out" if row.held_out else "fitted"), []).append(i)
    if not rows:
        return []
    ratio = modelled(rows, device, parameters) / seconds(rows)
    return [summary(device.name, what, split, ratio[where]) for (what, split), where in sorted(groups.items())]


def device_text(device: Device, calibration: Mapping[str, float], source: str, text: str = "") -> str:
    """The TOML of a calibrated device: `text`, or the shipped file of the device, with a `[calibration]` table.

    source: one line that says what was measured, written as a comment.
    """
    text = text or (FOLDER / f"{device.name}.toml").read_text(encoding="utf-8")
    lines = [text.partition("\n[calibration]")[0].rstrip(), "", "[calibration]"]
    lines += [f"# fitted by `fpsim calibrate`: {' '.join(source.split())}"]
    lines += [f"{name} = {value!r}" for name, value in calibration.items()]
    made = "\n".join(lines) + "\n"
    parse_device(made, device.name)
    return made


def base_text(device: str) -> str:
    """The TOML a device name or file stands for; "" for a name, whose shipped file is meant."""
    return Path(device).read_text(encoding="utf-8") if device.endswith(".toml") else ""
