"""Learned rounding: each weight goes to the grid point below or above, whichever serves the unit's output.

AdaRound (Nagel et al., arXiv:2004.10568) block by block (BRECQ, arXiv:2102.05426; Q-Diffusion, arXiv:2302.04304), for
any grid. A weight w = v * scale has two neighbours on the element grid, lower and lower + u(v), with u(v) the local
step of the format: constant for integers, 2^(exponent - mantissa bits) for floats, frozen from the weight.

    soft weight   w' = scale * (lower + u(v) * h(a)),  h(a) = clip(1.2 sigmoid(a) - 0.1, 0, 1)
    start         a given rounding, GPTQ's: h = 0.95 or 0.05 on its side
    loss          |f(w', x) - f(w, x)|^2 / (the same for the start) + lambda * mean(1 - |2 h - 1|^beta)
    schedule      no second term for the first fifth, then beta falls from 20 to 2
    end           h = 1 where a >= 0, else 0; the result is checked to be a fixed point of the quantizer

The variable that Adam moves is V = a * s with s the element step relative to the largest of the tensor: without it the
gradient of an element carries s, and weights in low binades hardly move (FP4DiT, arXiv:2503.15465). A unit whose
learned rounding turns out worse than its start on samples that were held back keeps the start.

Inputs are those that `_in_order` gives, activations of the unit are quantized as they will be. With `learn_steps` the
steps of static activations are learned beside the rounding (LSQ, arXiv:1902.08153, see `fpsim.nn.gradient`).

Why it pays behind quantized layers, and only there: what GPTQ leaves over at a layer is all but a minimum, and a unit
that meets full-precision inputs has nothing else to correct. Behind quantized layers the inputs are off, residual
connections carry that past every single layer, and only the unit's output tells how to make up for it. Measured on the
fourth block of the embedded DiT, E2M1 per channel, 2026-11-22; squared error of the block's output on other
trajectories than those learned from, relative to nearest rounding:

    full-precision inputs   GPTQ 0.1845; learned from there 0.1836 at best, mostly worse than its start on held-back
                            samples and so dropped (h 0.95, 0.8, 0.65; rates 0.02, 0.01; 150 and 300 steps)
    quantized inputs        GPTQ 0.405; GPTAQ 0.363; learned from there 0.276 (80 steps, rate 0.02), 0.269 (80, 0.04:
                            budget "short"), 0.266 (150, 0.03), 0.267 (300, 0.02: "long"), 0.278 (600, 0.02: Adam at
                            a constant rate begins to wander); the block in full precision 0.273

Most of the gain at a block is made good by the blocks behind it anyway. At the output of the same denoiser, all weights
E2M1, signal to quantization noise on held-out prompts: nearest 14.6 dB (another sample), GPTQ 19.0, GPTAQ 22.2, learned
22.3 (120 steps, rate 0.02). With activations quantized too (H200, 2,048 prompts, change of prompts obeyed in points):

    fp4-w4a8              nearest 14.7 dB, -0.9     GPTAQ 18.8 dB, -0.05    learned 18.9 dB, -0.1
    mxfp4+keep-edges      nearest 10.9 dB, -13.6    GPTAQ 12.8 dB, -6.2     learned 13.1 dB, -3.9 (scales searched)

So learning is worth its time where activations have 4 bits; with 8, GPTAQ is within noise of it.

Biases of all layers were learned too, for the denoiser's guided output, with all weights where they were. The guided
error on held-back images fell by 2 to 3 dB (MXFP4 and NVFP4 behind GPTAQ and a rotation), the pictures did not follow:
-2.9 points instead of -3.2 for MXFP4, -1.3 instead of -1.1 for NVFP4 (1,024 prompts, so half a point is chance). It is
gone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from analysis.methods._prepare import Part, Prepared, on_grid
from analysis.runner.samples import Call, first, joined
from fpsim.formats import Format
from fpsim.nn import gradient, rounding, scaling

if TYPE_CHECKING:
    from analysis.methods._axes import Axes
    from analysis.methods._in_order import Seen

LEARNED_BITS = 4
LOW, HIGH = -0.1, 1.1  # h reaches 0 and 1 at finite a


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long to learn: steps per unit, samples per step, Adam's step sizes, lambda, h on the side of
    the start, and the share of steps without the second term."""

    steps: int
    rate: float
    batch: int = 8
    scale_rate: float = 1e-3
    strength: float = 5.0
    certainty: float = 0.95
    warm: float = 0.2


#: What the axis `budget` names.
BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {"short": Budget(steps=80, rate=0.04), "long": Budget(steps=300, rate=0.02)}
)


def learn(
    unit: Module, path: str, prepared: Sequence[Prepared], seen: "Seen", axes: "Axes", budget: Budget
) -> list[Prepared]:
    """`prepared` with roundings and activation steps learned within `budget`, where that helps on samples held back."""
    variables = [_Rounding(one, path, budget.certainty) for one in prepared if learnable(one)]
    inputs = [
        _Input(one, path, part, index, axes.learn_steps) for one in prepared for index, part in enumerate(one.parts)
    ]
    inputs = [entry for entry in inputs if entry.matters]
    trained = [one.log_step for one in inputs if one.log_step is not None]
    if not variables and not trained:
        return list(prepared)
    count = len(seen.calls)
    held = list(range(0, count, 5))
    used = [i for i in range(count) if i % 5] or held
    fixed = {_name(one, path): _effective(one, one.rounded) for one in prepared}
    with _quantized_inputs(unit, inputs):
        reference = _error(unit, fixed, seen, held)
        groups = [{"params": [v.variable for v in variables], "lr": budget.rate}] if variables else []
        groups += [{"params": trained, "lr": budget.scale_rate}] if trained else []
        optimizer = torch.optim.Adam(groups)
        generator = torch.Generator().manual_seed(0)
        warm = int(budget.steps * budget.warm)
        with torch.enable_grad():
            for step in range(budget.steps):
                chosen = torch.randint(len(used), (budget.batch,), generator=generator).tolist()
                call, wanted = _batch(seen, [used[i] for i in chosen])
                softs = [v.soft() for v in variables]
                weights = fixed | {v.name: weight for v, (weight, _) in zip(variables, softs, strict=True)}
                output = first(torch.func.functional_call(unit, weights, call.args, dict(call.kwargs)))
                loss = (output - wanted).square().mean() / max(reference, 1e-20)
                if step >= warm and variables:
                    beta = 20 - 18 * (step - warm) / max(budget.steps - warm, 1)
                    total = sum(h.numel() for _, h in softs)
                    hard = sum((1 - (2 * h - 1).abs().clamp(min=1e-6) ** beta).sum() for _, h in softs)
                    loss = loss + budget.strength * hard / total
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        learned = {id(v.one): v.hardened() for v in variables}
        made = [replace(one, rounded=learned.get(id(one), one.rounded)) for one in prepared]
        better = {_name(one, path): _effective(one, one.rounded) for one in made}
        if _error(unit, better, seen, held) >= reference:
            return list(prepared)
    return [replace(one, parts=_parts(one, inputs)) for one in made]


def learnable(one: Prepared) -> bool:
    """Whether a layer's rounding is learned: at most `LEARNED_BITS`, and a start to learn from."""
    return one.rounded is not None and one.row.bits <= LEARNED_BITS


def _name(one: Prepared, unit: str) -> str:
    """The layer's weight, seen from the unit."""
    inner = one.layer.path[len(unit) :].removeprefix(".")
    return f"{inner}.weight" if inner else "weight"


def _effective(one: Prepared, rounded: Tensor | None) -> Tensor:
    """The weight on its grid; a side branch is not in it, its input is another one (`_quantized_inputs`)."""
    if rounded is not None:
        return rounded
    pieces = [
        scaling.fake_quantize(one.values[:, part.start : part.stop], part.weight, part.scales, 1) for part in one.parts
    ]
    return torch.cat(pieces, 1)


class _Rounding:
    """The rounding variable of one weight."""

    def __init__(self, one: Prepared, unit: str, certainty: float) -> None:
        step, zero = one.spread(lambda scales: scales.step), one.spread(lambda scales: scales.zero)
        if step is None or one.rounded is None:
            raise ValueError(f"layer {one.layer.path} has no grid to learn on")
        self.one, self.name, self.step = one, _name(one, unit), step
        self.zero: Any = 0.0 if zero is None else zero
        begin = rounding.nearest(one.rounded / step + self.zero, torch.ones_like(step), one.row)
        wanted = one.values / step + self.zero
        # The pair of neighbours that holds the start, on the side of the full-precision weight.
        aside = torch.where(begin < wanted, 1.0, -1.0) * rounding.neighbours(begin, one.row)[1] / 8
        inside = torch.where((begin - wanted).abs() > aside.abs(), begin + aside, wanted)
        self.lower, self.unit = rounding.neighbours(inside, one.row)
        up = (begin - self.lower - self.unit).abs() < (begin - self.lower).abs()
        h = torch.where(up, certainty, 1 - certainty)
        size = self.unit * step
        self.size = (size / size.max().clamp(min=2.0**-126)).clamp(min=2.0**-8)
        self.variable = (torch.log((h - LOW) / (HIGH - h)) * self.size).requires_grad_()

    def soft(self) -> tuple[Tensor, Tensor]:
        """(weight, h)."""
        h = (torch.sigmoid(self.variable / self.size) * (HIGH - LOW) + LOW).clamp(0, 1)
        return (self.lower + self.unit * h - self.zero) * self.step, h

    def hardened(self) -> Tensor:
        """The values on the grid. ArithmeticError if one is no legal code, which cannot happen."""
        scaled = self.lower + self.unit * (self.variable.detach() >= 0)
        again = rounding.nearest(scaled, torch.ones_like(scaled), self.one.row)
        # Neighbours and units are small multiples of powers of two: sums and comparisons are exact.
        if not torch.equal(again, scaled):
            raise ArithmeticError(f"learned rounding of {self.one.layer.path} left the grid of {self.one.row.name}")
        return (scaled - self.zero) * self.step


class _Input:
    """The quantizer of the input channels of one part of a layer, with a step to learn or not."""

    def __init__(self, one: Prepared, unit: str, part: Part, index: int, learn_steps: bool) -> None:
        self.one, self.part, self.index = one, part, index
        self.inner = _name(one, unit).removesuffix("weight").removesuffix(".")
        self.log_step: Tensor | None = None
        scales = part.input_scales
        if learn_steps and scales is not None and scales.step.ndim == 0 and part.activation is not None:
            self.log_step = scales.step.log().requires_grad_()

    @property
    def matters(self) -> bool:
        """Whether the layer does anything but multiply its input by its weight."""
        return self.part.activation is not None or self.one.transform is not None or self.one.branch is not None

    def __call__(self, x: Tensor) -> Tensor:
        quantizer = self.part.activation
        if quantizer is None:
            return x
        axis = -1 if self.one.layer.kind == "Linear" else 1
        scales = self.part.input_scales
        values = x
        if self.log_step is not None and scales is not None and isinstance(quantizer.row, Format):
            return gradient.rounded(values, self.log_step.exp(), scales.zero, quantizer.row)
        with torch.no_grad():
            rounded = on_grid(self.part, values, axis)
        return values + (rounded - values).detach()

    def scales(self) -> Any:
        """The part's input scales with the step that was learned."""
        scales = self.part.input_scales
        if self.log_step is None or scales is None:
            return scales
        return replace(scales, step=self.log_step.detach().exp())


def _parts(one: Prepared, inputs: Sequence[_Input]) -> tuple[Part, ...]:
    mine = {entry.index: entry for entry in inputs if entry.one.layer.path == one.layer.path}
    return tuple(
        replace(part, input_scales=mine[i].scales()) if i in mine else part for i, part in enumerate(one.parts)
    )


@contextmanager
def _quantized_inputs(unit: Module, inputs: Sequence[_Input]) -> Iterator[None]:
    """The unit's layers see quantized inputs while inside; side branches are added, which see them as they were."""
    by_layer: dict[str, list[_Input]] = {}
    plain: dict[Module, Tensor] = {}
    for entry in inputs:
        by_layer.setdefault(entry.inner, []).append(entry)

    def hook(entries: list[_Input]) -> Any:
        def quantize(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            transform = entries[0].one.transform
            x = args[0] if transform is None else transform(args[0])
            if entries[0].one.branch is not None:
                plain[module] = x
            if len(entries) == 1 and len(entries[0].one.parts) == 1:
                return (entries[0](x), *args[1:])
            axis = -1 if entries[0].one.layer.kind == "Linear" else 1
            pieces = [entry(x.narrow(axis, entry.part.start, entry.part.stop - entry.part.start)) for entry in entries]
            return (torch.cat(pieces, axis), *args[1:])

        return quantize

    def beside(branch: Module) -> Any:
        def add(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
            return output + branch(plain.pop(module))

        return add

    handles = []
    for inner, entries in by_layer.items():
        layer, branch = unit.get_submodule(inner), entries[0].one.branch
        handles.append(layer.register_forward_pre_hook(hook(entries)))
        if branch is not None:
            handles.append(layer.register_forward_hook(beside(branch)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batch(seen: "Seen", chosen: Sequence[int]) -> tuple[Call, Tensor]:
    return joined([seen.calls[i] for i in chosen]), torch.cat([seen.outputs[i] for i in chosen])


def _error(unit: Module, weights: dict[str, Tensor], seen: "Seen", chosen: Sequence[int]) -> float:
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(chosen), 16):
            call, wanted = _batch(seen, chosen[start : start + 16])
            output = first(torch.func.functional_call(unit, weights, call.args, dict(call.kwargs)))
            total += float((output - wanted).square().mean()) * min(16, len(chosen) - start)
    return total / len(chosen)
