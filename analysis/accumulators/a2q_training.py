"""Trains a denoiser's integer weights for a narrow accumulator: A2Q's weight normalisation (arXiv:2301.13376).

    python -m analysis.accumulators.a2q_training --bits 16 --out DIR                          # shapes-sd, int8-w8a8
    python -m analysis.accumulators.a2q_training --bits 16 --tile 64 --outer 20 --out DIR --device cuda --steps 6000

A channel's weight is a direction and a length, w = g * v / |v|_1, and the length in steps of its grid is capped by what
the register holds for any input: g = 2**min(t, d + log2(cap)), s = 2**d the step, q = trunc(w / s) (equations 17 to
23). Truncation cannot raise the norm, so weights fit at every moment of training; gradients pass it straight through.
The penalty on t beyond its cap is the paper's. With tiles, every tile of a channel has a length of its own (AXE,
arXiv:2409.17092).

Differences from the paper: not the task's loss but the squared error to the full-precision denoiser on its own
calibration trajectories; a start from projected weights with searched steps (the Euclidean initialisation of A2Q+,
arXiv:2401.10432) instead of from scaled ones; all quantized layers are constrained, first and last too if the scheme
quantizes them; biases, norms and everything else stay as they are; weights are averaged over steps.

`DIR/weights.safetensors` is what `analysis.quantize(pipe, scheme, method="a2q", bits=16, trained=...)` takes. A stopped
training goes on with the same command.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from analysis.accumulators.partial_sums import ends
from analysis.accumulators.registers import Register
from analysis.methods import Layer, Request, _bound, a2q
from analysis.models.embedded.optimise import Run, optimise
from analysis.runner.calibrate import Calibration, calibrate
from analysis.runner.load import denoiser_name, load
from analysis.runner.quantize import plan, replaced
from analysis.runner.samples import Call, collect, first
from analysis.runner.statistics import as_matrix, as_weight
from analysis.scheme import Scheme
from analysis.scheme import scheme as scheme_called

#: Logarithms move this much faster than weights under one learning rate.
PACE = 10.0
#: Weight of the penalty on lengths beyond their cap; the paper's lambda.
PENALTY = 1e-3


class Constrained(nn.Module):
    """A Linear or Conv2d in training: integer weights under the cap, static integer activations.

    v : (out, K) directions; d : (out, 1) log2 of steps; t : (out, tiles) log2 of lengths; e : log2 of the input's step
    """

    def __init__(self, layer: Layer, register: Register, steps: Tensor, weight: Tensor, input_step: Tensor) -> None:
        super().__init__()
        row: Any = layer.weight.row
        self.source: Any = layer.module
        self.shape = tuple(layer.module.get_parameter("weight").shape)
        self.codes = ends(row)
        self.inputs = a2q.input_ends(layer)
        self.tile = register.tile or weight.shape[1]
        self.cap = ((1 << (register.bits - 1)) - 1) // max(self.inputs[1], -self.inputs[0])
        tiles = self._tiles(weight).abs().sum(-1).clamp(min=1e-12)
        self.v = nn.Parameter(weight.clone())
        self.d = nn.Parameter(steps.log2() / PACE)
        self.t = nn.Parameter(tiles.log2() / PACE)
        self.e = nn.Parameter(input_step.log2() / PACE)

    def _tiles(self, matrix: Tensor) -> Tensor:
        """(out, tiles, products of a tile), filled up with zeros."""
        short = -matrix.shape[1] % self.tile
        return nn.functional.pad(matrix, (0, short)).reshape(len(matrix), -1, self.tile)

    def room(self) -> Tensor:
        """(out, tiles) log2 of the longest a tile may be."""
        return PACE * self.d + math.log2(self.cap)

    def excess(self) -> Tensor:
        """What the penalty is on."""
        return (PACE * self.t - self.room()).clamp(min=0).sum()

    def whole(self) -> Tensor:
        """(out, K) integer weights, with the gradient of what they were truncated from."""
        length = torch.exp2(torch.minimum(PACE * self.t, self.room()))[..., None]
        tiles = self._tiles(self.v)
        w = (length * tiles / tiles.abs().sum(-1, keepdim=True).clamp(min=1e-12)).flatten(1)[:, : self.v.shape[1]]
        steps = w / torch.exp2(PACE * self.d)
        return steps + (steps.trunc().clamp(*self.codes) - steps).detach()

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for inputs on their grid."""
        step = torch.exp2(PACE * self.e)
        near = (x / step).clamp(*self.inputs)
        x = (near + (near.round() - near).detach()) * step
        weight = as_weight(self.whole() * torch.exp2(PACE * self.d), self.shape)
        if len(self.shape) == 2:
            return nn.functional.linear(x, weight, self.source.bias)
        source = self.source
        return nn.functional.conv2d(
            x, weight, source.bias, source.stride, source.padding, source.dilation, source.groups
        )

    def export(self) -> dict[str, Tensor]:
        """codes (int8, in the weight's shape), step per channel, step of the input."""
        out = self.shape[0]
        return {
            "codes": as_weight(self.whole().round().detach(), self.shape).to(torch.int8),
            "step": torch.exp2(PACE * self.d.detach()).reshape(out, *(1,) * (len(self.shape) - 1)),
            "input": torch.exp2(PACE * self.e.detach()),
        }


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Calls of the denoiser as tensors with an axis of n images, timesteps too; arguments without one as they were."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    count: int

    def batch(self, which: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a call with some of the images."""

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor) and value.ndim and len(value) == self.count:
                return value[which]
            return {key: cut(entry) for key, entry in value.items()} if isinstance(value, dict) else value

        return tuple(cut(value) for value in self.args), {key: cut(value) for key, value in self.kwargs.items()}


def examples(calls: Sequence[Call]) -> Examples:
    """Calls joined, each image with its own timestep."""

    def joined(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor):
            whole = [
                value.expand(call.images) if value.ndim == 0 else value
                for value, call in zip(values, calls, strict=True)
            ]
            return torch.cat(whole)
        if isinstance(values[0], dict):
            return {key: joined([value[key] for value in values]) for key in values[0]}
        return values[0]

    args = tuple(joined([call.args[i] for call in calls]) for i in range(len(calls[0].args)))
    kwargs = {key: joined([call.kwargs[key] for call in calls]) for key in calls[0].kwargs}
    return Examples(args=args, kwargs=kwargs, count=sum(call.images for call in calls))


def constrained(
    pipe: Any, scheme: Scheme | str, register: Register, calibration: Calibration
) -> dict[str, Constrained]:
    """Path -> layer in training, started from projected weights.

    Raises ValueError for operands that are no signed integers with static activation scales.
    """
    layers, _, _ = plan(
        getattr(pipe, denoiser_name(pipe)), scheme_called(scheme) if isinstance(scheme, str) else scheme
    )
    request = Request(pipe=pipe, layers=layers, calibration=calibration)
    options = a2q.Options(search=True, rounding="nearest")
    made = {}
    for layer in layers:
        _bound.wanted(layer, register.bits, register.tile, register.outer)
        built = request.build(layer)
        if built.input_step is None or built.input_step.ndim or built.input_zero is not None:
            raise ValueError(f"layer {layer.path}: training takes signed activations with one static scale per tensor")
        start = a2q.project(request, layer, register, options)
        if start.weight_step is None:
            raise ValueError(f"layer {layer.path}: weights {layer.weight} have no steps")
        steps = start.weight_step.expand(len(start.weight_codes), *(1,) * (start.weight_codes.ndim - 1)).flatten(1)
        weight = as_matrix(layer.module.get_parameter("weight").detach().float())
        near = torch.where(as_matrix(start.weight_codes) == 0, 0.5, 1.0) * weight
        made[layer.path] = Constrained(layer, register, steps, near, built.input_step)
    return made


def train(
    pipe: Any, scheme: Scheme | str, register: Register, calibration: Calibration, run: Run, images: int
) -> dict[str, Tensor]:
    """Tensors of the trained layers, as `weights.safetensors` has them."""
    denoiser = getattr(pipe, denoiser_name(pipe))
    denoiser.requires_grad_(False)
    layers = constrained(pipe, scheme, register, calibration)
    student = replaced(denoiser, layers)
    data = examples(collect(pipe, calibration, images, seed=run.seed))
    model = nn.ModuleList([module for module in student.modules() if isinstance(module, Constrained)])
    batch = int(run.config["batch"])

    def loss_of(step: int) -> Tensor:
        which = torch.randint(data.count, (batch,), generator=run.generator(step), device=run.device)
        args, kwargs = data.batch(which)
        with torch.autocast(run.device.type, enabled=False):
            with torch.no_grad():
                wanted = first(denoiser(*args, **kwargs))
            error = (first(student(*args, **kwargs)) - wanted).square().mean() / wanted.square().mean()
            excess = torch.stack([one.excess() for one in model if isinstance(one, Constrained)]).sum()
            return error + PENALTY * excess / len(model)

    before = float(loss_of(0).detach())
    optimise(run, Trained(model), loss_of)
    run.log(before=round(before, 6), after=round(float(loss_of(0).detach()), 6), images=data.count)
    found = {path: student.get_submodule(path) for path in layers}
    return {
        f"{path}/{name}": value.contiguous().cpu()
        for path, layer in found.items()
        if isinstance(layer, Constrained)
        for name, value in layer.export().items()
    }


class Trained(nn.Module):
    """The parameters that are trained: those of the constrained layers, not of the layers they stand for."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        for index, layer in enumerate(layers):
            for name in ("v", "d", "t", "e"):
                self.register_parameter(f"{name}{index}", getattr(layer, name))


def main(arguments: Sequence[str] | None = None) -> int:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m analysis.accumulators.a2q_training", description=about)
    parser.add_argument("--pipeline", default="shapes-sd")
    parser.add_argument("--scheme", default="int8-w8a8", help="signed integers, static activations")
    parser.add_argument("--bits", type=int, required=True, help="width of the accumulator")
    parser.add_argument("--tile", type=int, help="products per tile, the accumulator's width being a tile's")
    parser.add_argument("--outer", type=int, help="width of the register that tiles are added in")
    parser.add_argument("--out", type=Path, required=True, help="directory for checkpoint, log.jsonl and weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--captions", type=int, default=64, help="calibration trajectories")
    parser.add_argument("--images", type=int, default=2560, help="calls of the denoiser to learn from")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float, default=math.inf, help="the schedule ends here at the latest")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="pause after this many steps")
    options = parser.parse_args(arguments)
    from analysis.plan import held_out

    register = Register(bits=options.bits, tile=options.tile, outer=options.outer)
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(
        stage="a2q",
        out=options.out,
        device=torch.device(options.device),
        seed=0,
        config={
            "steps": options.steps,
            "batch": options.batch,
            "learning_rate": options.learning_rate,
            "weight_decay": 0.0,
            "warmup": max(1, min(100, options.steps // 10)),
            "ema": 0.998,
        },
        object_weights=[],
        seconds=options.seconds,
        stop_after=options.stop_after,
        compile=False,
    )
    pipe = load(options.pipeline, device=options.device)
    captions = held_out(options.captions, (1, 2, 3, 4), 2_000_003).captions()
    calibration = calibrate(pipe, captions)
    made = train(pipe, options.scheme, register, calibration, run, options.images)
    save_file(made, options.out / "weights.safetensors", metadata={"register": register.label})
    return 0


if __name__ == "__main__":
    sys.exit(main())
