"""What each layer costs in each candidate, on a device: the other half of an allocation.

A layer's arithmetic changes the kernels between the layer before it and itself, and no others: its own product, the
quantize work in front, and with `mode="compiled"` the pointwise kernel that this work is merged into. So one estimate
of the whole model per candidate is enough. It is cut after every layer's product, and the piece that ends with a layer
is that layer's cost in this candidate; what follows the last layer is the same in all. Pieces add up to the estimate
of any mixture, exactly.

    latency  seconds of one call. With mode="eager" the slower of the device and of the host that issues the kernels.
    energy   joules: GPUs, the published limit of the board times the time; NPUs, `hwmodels.npu.joules` at a node
    memory   bytes of weights, scales included
    bitops   multiply-accumulates x bits of weight x bits of activation, what papers count where they have no device
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.scheme import KINDS, Rule, Scheme
from fpsim._names import unknown

if TYPE_CHECKING:
    from hwmodels import Workload
    from hwmodels.device import Device
    from hwmodels.estimate import Estimate

Values = npt.NDArray[np.float64]

UNITS: Mapping[str, str] = MappingProxyType({"latency": "s", "energy": "J", "memory": "B", "bitops": ""})


@dataclass(frozen=True, kw_only=True, eq=False)
class Costs:
    """The cost of every layer in every candidate; the total is the largest of a few sums.

    what      : "latency", "energy", "memory" or "bitops"; unit: SI
    about     : device, mode and model that it was priced for, for tables
    layers, candidates : names of the axes of `values`
    values    : float64 (sums, layers, candidates); one sum, but for eager latency: time of the device, of the host
    rest      : float64 (sums,) what no layer changes
    unquantized : the total with no layer quantized
    notes     : of the estimates: fallbacks, what bounds them
    """

    what: str
    unit: str
    about: str
    layers: tuple[str, ...]
    candidates: tuple[str, ...]
    values: Values
    rest: Values
    unquantized: float
    notes: tuple[str, ...] = ()

    def total(self, choice: Mapping[str, str]) -> float:
        """Cost of the whole model with each layer in the candidate that `choice` names."""
        columns = [self.candidates.index(choice[path]) for path in self.layers]
        return float((self.values[:, np.arange(len(columns)), columns].sum(axis=1) + self.rest).max())

    def uniform(self, candidate: str) -> float:
        """Cost with every layer in one candidate."""
        return self.total(dict.fromkeys(self.layers, candidate))


def costs(
    work: Workload,
    layers: Sequence[str],
    candidates: Mapping[str, Scheme],
    device: str | Device,
    what: str = "latency",
    mode: str = "graph",
    model: str = "auto",
    node: str | None = None,
    rest: str = "bf16",
) -> Costs:
    """Price every layer of `work` in every candidate with `hwmodels.estimate`.

    layers : paths, as in `Sensitivity.layers`; one that no operation names costs nothing
    device, mode, model : as in `hwmodels.estimate`; node : technology node, for the energy of an NPU
    rest   : format that everything unquantized is priced in

    Raises ValueError for unknown names, UnsupportedFormat for a candidate that the device cannot run, and where the
    energy of a device is not known.
    """
    if what not in UNITS:
        raise unknown("cost", what, tuple(UNITS))
    from hwmodels import device as find_device
    from hwmodels import estimate

    dev = find_device(device)
    plain = Scheme(name=f"unquantized ({rest})", rules=(Rule(),), rest=rest)
    schemes = [replace(one, rest=rest, attention=None) for one in candidates.values()]
    estimates = [estimate(work, one, device=dev, mode=mode, model=model) for one in (plain, *schemes)]  # type: ignore[arg-type]
    measure = _MEASURES[what]
    tables = [
        measure(found, one, tuple(layers), dev, node) for found, one in zip(estimates, (plain, *schemes), strict=True)
    ]
    values = np.stack([pieces for pieces, _ in tables[1:]], axis=2)
    others = tables[0][1]
    notes = dict.fromkeys(note for found in estimates[1:] for note in found.notes)
    about = f"{work.name} on {dev.name}, {mode}, {estimates[0].model}"
    return Costs(
        what=what,
        unit=UNITS[what],
        about=about if what in ("latency", "energy") else work.name,
        layers=tuple(layers),
        candidates=tuple(candidates),
        values=values,
        rest=others,
        unquantized=float((tables[0][0].sum(axis=1) + others).max()),
        notes=tuple(notes) if what in ("latency", "energy") else (),
    )


Pieces = tuple[Values, Values]  # (sums, layers), (sums,)


def _pieces(estimate: Estimate, layers: Sequence[str], amounts: Sequence[Values]) -> Pieces:
    """Amounts per distinct kernel, summed over the launches from one layer's product to the next."""
    index = {path: i for i, path in enumerate(layers)}
    run = estimate.breakdown.program
    pieces, pending = np.zeros((len(amounts), len(layers))), np.zeros(len(amounts))
    each = np.stack(amounts, axis=1)[run.which] * run.count[:, None]
    for amount, which, owner in zip(each, run.which.tolist(), run.owner.tolist(), strict=True):
        pending = pending + amount
        if type(run.distinct[which].op).__name__ in KINDS and run.ops[owner].path in index:
            pieces[:, index[run.ops[owner].path]] += pending
            pending = np.zeros(len(amounts))
    return pieces, pending


def _latency(estimate: Estimate, scheme: Scheme, layers: Sequence[str], device: Device, node: str | None) -> Pieces:
    from hwmodels.pricing import host_time

    amounts = [estimate.breakdown.times.total]
    if estimate.mode == "eager" and estimate.model == "gpu":
        amounts.append(host_time(estimate.breakdown.program.distinct))
    return _pieces(estimate, layers, amounts)


def _energy(estimate: Estimate, scheme: Scheme, layers: Sequence[str], device: Device, node: str | None) -> Pieces:
    if estimate.model == "systolic":
        return _joules(estimate, layers, device, node)
    if estimate.energy_j is None or device.power is None:
        raise ValueError(
            f"{device.name}: no energy is known (a lower bound of the time, or no published power limit); "
            "take latency, memory or bitops"
        )
    pieces, others = _latency(estimate, scheme, layers, device, node)
    return pieces * device.power.value, others * device.power.value


def _joules(estimate: Estimate, layers: Sequence[str], device: Device, node: str | None) -> Pieces:
    """Joules are linear in what kernels do: each distinct kernel is asked about alone."""
    from hwmodels.npu.energy import joules, nodes

    if node is None:
        raise ValueError(f"the energy of {device.name} needs a technology node (known: {', '.join(nodes())})")
    run, each = estimate.breakdown.program, []
    for which in range(len(run.distinct)):
        alone = replace(
            run,
            which=np.array([which]),
            owner=np.zeros(1, dtype=np.int64),
            count=np.ones(1),
        )
        part = replace(
            estimate,
            time_s=float(estimate.breakdown.times.total[which]),
            breakdown=replace(estimate.breakdown, program=alone),
        )
        each.append(joules(part, node, device).total)
    return _pieces(estimate, layers, [np.array(each)])


def _memory(estimate: Estimate, scheme: Scheme, layers: Sequence[str], device: Device, node: str | None) -> Pieces:
    index = {path: i for i, path in enumerate(layers)}
    pieces = np.zeros((1, len(layers)))
    for op in _products(estimate, index):
        traffic = op.traffic
        size = traffic.weights * scheme.precision_for(op).widths(op)[0] / 8 + 2 * traffic.wide
        pieces[0, index[op.path]] = size  # a layer that runs twice is stored once
    return pieces, np.array([estimate.footprint.weights - pieces.sum()])


def _bitops(estimate: Estimate, scheme: Scheme, layers: Sequence[str], device: Device, node: str | None) -> Pieces:
    index = {path: i for i, path in enumerate(layers)}
    pieces, others = np.zeros((1, len(layers))), 0.0
    for op in estimate.breakdown.program.ops:
        weight, activation, _ = scheme.precision_for(op).widths(op)
        if type(op).__name__ in KINDS and op.path in index:
            pieces[0, index[op.path]] += op.macs * op.count * weight * activation
        else:
            others += op.macs * op.count * activation * activation
    return pieces, np.array([others])


def _products(estimate: Estimate, index: Mapping[str, int]) -> Iterator[Any]:
    return (op for op in estimate.breakdown.program.ops if type(op).__name__ in KINDS and op.path in index)


_MEASURES: Mapping[str, Callable[[Any, Scheme, Sequence[str], Any, str | None], Pieces]] = MappingProxyType(
    {"latency": _latency, "energy": _energy, "memory": _memory, "bitops": _bitops}
)
