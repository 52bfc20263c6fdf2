"""Learned rounding: each weight goes to the grid point below or above, whichever serves the block's output.

AdaRound (Nagel et al., arXiv:2004.10568) block by block (BRECQ, arXiv:2102.05426; Q-Diffusion, arXiv:2302.04304), for
any grid. A weight w = v * scale has two neighbours on the element grid, lower and lower + u(v), with u(v) the local
step of the format: constant for integers, 2^(exponent - mantissa bits) for floats, frozen from the weight.

    soft weight   w' = scale * (lower + u(v) * h(a)),  h(a) = clip(1.2 sigmoid(a) - 0.1, 0, 1)
    start         a given rounding, GPTQ's: h = 0.95 or 0.05 on its side; starting undecided, at the full-precision
                  weight, costs the whole budget without getting where GPTQ is at once (see below)
    loss          |f(w', x) - f(w, x)|^2 / (the same for the start) + lambda * mean(1 - |2 h - 1|^beta)
    schedule      no second term for the first fifth, then beta falls from 20 to 2
    end           h = 1 where a >= 0, else 0; the result is checked to be a fixed point of the quantizer

Measured on one transformer block of the embedded DiT at E2M1 per channel, 2026-11-22, output error on held-out samples
relative to nearest rounding: GPTQ 0.128; learned from the full-precision weight 0.65 to 0.98 (200 or 300 steps, lambda
0.1 to 200); learned from GPTQ 0.116 (150 steps).

The variable that Adam moves is V = a * s with s the element step relative to the largest of the tensor: without it the
gradient of an element carries s, and weights in low binades hardly move (FP4DiT, arXiv:2503.15465). A unit whose
learned rounding turns out worse than its start on samples that were held back keeps the start.

Units are residual blocks and transformer blocks; layers outside of any are units of their own. Inputs and targets come
from the full-precision pipeline, activations are not quantized while weights are learned.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.methods import Request
from analysis.runner.calibrate import Calibration
from analysis.runner.load import denoiser_name
from analysis.runner.sample import call

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from fpsim.formats import Format

#: Classes of diffusers that are reconstructed as a whole.
BLOCKS = (
    "ResnetBlock2D",
    "BasicTransformerBlock",
    "JointTransformerBlock",
    "FluxTransformerBlock",
    "FluxSingleTransformerBlock",
)
BATCH = 16
UNITS_PER_PASS = 16
LOW, HIGH = -0.1, 1.1  # h reaches 0 and 1 at finite a


@dataclass(frozen=True, kw_only=True)
class Target:
    """One weight to learn the rounding of.

    values : (as the weight) float32 what is quantized; step : its scales, element by element; row : the element format
    start  : values on the grid to begin with
    rest   : added to the rounded values to give the weight the layer multiplies by (a low-rank branch), or None
    """

    path: str
    values: "Tensor"
    step: "Tensor"
    row: "Format"
    start: "Tensor"
    rest: "Tensor | None" = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to learn: steps per unit, samples kept per unit, samples per step, Adam's step size, lambda,
    and h on the side of the start."""

    steps: int = 300
    samples: int = 160
    batch: int = 8
    rate: float = 0.02
    strength: float = 5.0
    certainty: float = 0.95


def learn(request: Request, calibration: Calibration, targets: Sequence[Target], budget: Budget) -> "dict[str, Tensor]":
    """Path -> weight values on the grid, for every target."""
    denoiser = getattr(request.pipe, denoiser_name(request.pipe))
    units = _units(denoiser, targets)
    made: dict[str, Tensor] = {}
    for start in range(0, len(units), UNITS_PER_PASS):
        group = dict(list(units.items())[start : start + UNITS_PER_PASS])
        for path, samples in _samples(request, calibration, denoiser, list(group), budget.samples):
            made |= _reconstruct(denoiser.get_submodule(path), path, group[path], samples, budget)
    return made


def _units(denoiser: "Module", targets: Sequence[Target]) -> dict[str, list[Target]]:
    """Unit path -> the targets inside, in the order the denoiser defines them."""
    blocks = [path for path, module in denoiser.named_modules() if type(module).__name__ in BLOCKS]
    units: dict[str, list[Target]] = {}
    for target in targets:
        inside = next((path for path in blocks if target.path.startswith(f"{path}.")), target.path)
        units.setdefault(inside, []).append(target)
    return units


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """One image's part of a unit's call: batch axis of length 1 on every tensor that had one."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: "Tensor"


def _samples(
    request: Request, calibration: Calibration, denoiser: "Module", paths: list[str], count: int
) -> Iterator[tuple[str, list[_Sample]]]:
    """Inputs and outputs of each unit along the calibration trajectories, `count` of them spread over all calls."""
    import torch

    kept: dict[str, list[_Sample]] = {path: [] for path in paths}
    calls = -(-len(calibration.captions) // BATCH) * calibration.steps
    generator = torch.Generator().manual_seed(0)

    def hook(path: str) -> Any:
        def keep(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            size = len(_first(output))
            for index in torch.randperm(size, generator=generator)[: -(-count // calls)].tolist():
                part = lambda value: _cut(value, index, size)  # noqa: B023, E731 - used before the loop goes on
                kept[path].append(
                    _Sample(
                        args=tuple(part(value) for value in args),
                        kwargs={name: part(value) for name, value in kwargs.items()},
                        output=part(_first(output)),
                    )
                )

        return keep

    handles = [denoiser.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in paths]
    try:
        for start in range(0, len(calibration.captions), BATCH):
            part = slice(start, start + BATCH)
            captions, seeds = calibration.captions[part], calibration.seeds[part]
            call(request.pipe, captions, seeds, calibration.steps, calibration.guidance, output="latent")
    finally:
        for handle in handles:
            handle.remove()
    for path in paths:
        if not kept[path]:
            raise ValueError(f"{path} was not called during calibration")
        yield path, kept.pop(path)


def _first(output: Any) -> "Tensor":
    made: Tensor = output[0] if isinstance(output, tuple) else output
    return made


def _cut(value: Any, index: int, size: int) -> Any:
    import torch

    if isinstance(value, torch.Tensor) and value.ndim and len(value) == size:
        return value[index : index + 1].detach().clone()
    return value


def _join(samples: Sequence[_Sample]) -> tuple[tuple[Any, ...], dict[str, Any], "Tensor"]:
    import torch

    def together(values: Sequence[Any]) -> Any:
        if isinstance(values[0], torch.Tensor) and values[0].ndim and len(values[0]) == 1:
            return torch.cat(list(values))
        return values[0]

    args = tuple(together([sample.args[i] for sample in samples]) for i in range(len(samples[0].args)))
    kwargs = {name: together([sample.kwargs[name] for sample in samples]) for name in samples[0].kwargs}
    return args, kwargs, torch.cat([sample.output for sample in samples])


class _Variable:
    """The rounding variable of one weight."""

    def __init__(self, target: Target, inner: str, certainty: float) -> None:
        import torch

        from fpsim.nn import rounding

        self.target = target
        self.name = f"{inner}.weight" if inner else "weight"
        begin, wanted = target.start / target.step, target.values / target.step
        # The pair of neighbours that holds the start, on the side of the full-precision weight.
        aside = torch.where(begin < wanted, 1.0, -1.0) * rounding.neighbours(begin, target.row)[1] / 8
        inside = torch.where((begin - wanted).abs() > aside.abs(), begin + aside, wanted)
        self.lower, self.unit = rounding.neighbours(inside, target.row)
        up = (begin - self.lower - self.unit).abs() < (begin - self.lower).abs()
        h = torch.where(up, certainty, 1 - certainty)
        size = self.unit * target.step
        self.size = (size / size.max().clamp(min=2.0**-126)).clamp(min=2.0**-8)
        self.variable = (torch.log((h - LOW) / (HIGH - h)) * self.size).requires_grad_()

    def soft(self) -> "tuple[Tensor, Tensor]":
        """(weight, h)."""
        import torch

        h = (torch.sigmoid(self.variable / self.size) * (HIGH - LOW) + LOW).clamp(0, 1)
        return self._weight((self.lower + self.unit * h) * self.target.step), h

    def hard(self) -> "Tensor":
        """The values on the grid."""
        return (self.lower + self.unit * (self.variable.detach() >= 0)) * self.target.step

    def _weight(self, values: "Tensor") -> "Tensor":
        return values if self.target.rest is None else values + self.target.rest

    def named(self, values: "Tensor") -> "tuple[str, Tensor]":
        return self.name, self._weight(values)


def _reconstruct(
    unit: "Module", path: str, targets: list[Target], samples: list[_Sample], budget: Budget
) -> "dict[str, Tensor]":
    import torch

    held, used = samples[::5], [sample for i, sample in enumerate(samples) if i % 5] or samples
    variables = [_Variable(t, t.path[len(path) :].removeprefix("."), budget.certainty) for t in targets]
    reference = _error(unit, dict(v.named(v.target.start) for v in variables), held)
    optimizer = torch.optim.Adam([v.variable for v in variables], lr=budget.rate)
    generator = torch.Generator().manual_seed(0)
    warm = budget.steps // 5
    with torch.enable_grad():
        for step in range(budget.steps):
            chosen = torch.randint(len(used), (budget.batch,), generator=generator).tolist()
            args, kwargs, wanted = _join([used[i] for i in chosen])
            softs = [v.soft() for v in variables]
            weights = {v.name: weight for v, (weight, _) in zip(variables, softs, strict=True)}
            output = _first(torch.func.functional_call(unit, weights, args, kwargs))
            loss = (output - wanted).square().mean() / max(reference, 1e-20)
            if step >= warm:
                beta = 20 - 18 * (step - warm) / max(budget.steps - warm, 1)
                total = sum(h.numel() for _, h in softs)
                hard = sum((1 - (2 * h - 1).abs().clamp(min=1e-6) ** beta).sum() for _, h in softs)
                loss = loss + budget.strength * hard / total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    learned = {v.target.path: _legal(v) for v in variables}
    if _error(unit, dict(v.named(learned[v.target.path]) for v in variables), held) < reference:
        return learned
    return {target.path: target.start for target in targets}


def _legal(variable: _Variable) -> "Tensor":
    """The hardened values, which must be legal codes at the layer's scales."""
    import torch

    from fpsim.nn import rounding

    values, target = variable.hard(), variable.target
    scaled = values / target.step
    again = rounding.nearest(scaled, torch.ones_like(scaled), target.row)
    # One multiplication and one division, 2^-24 each; neighbouring codes of a 4-bit grid lie 1e-1 apart.
    if not torch.allclose(again, scaled, rtol=1e-5, atol=0):
        raise ArithmeticError(f"learned rounding of {target.path} left the grid of {target.row.name}")
    return again * target.step


def _error(unit: "Module", weights: "dict[str, Tensor]", samples: list[_Sample]) -> float:
    import torch

    with torch.no_grad():
        total = 0.0
        for start in range(0, len(samples), BATCH):
            args, kwargs, wanted = _join(samples[start : start + BATCH])
            output = _first(torch.func.functional_call(unit, weights, args, kwargs))
            total += float((output - wanted).square().mean()) * len(wanted)
    return total / len(samples)
