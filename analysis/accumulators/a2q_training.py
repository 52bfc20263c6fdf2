"""Trains a denoiser's integer weights for a narrow accumulator, after A2Q (arXiv:2301.13376).

    python -m analysis.accumulators.a2q_training --bits 16 --out DIR                          # shapes-sd, int8-w8a8
    python -m analysis.accumulators.a2q_training --bits 16 --rounding toward-zero --out DIR   # as the paper rounds
    python -m analysis.accumulators.a2q_training --bits 16 --tile 64 --outer 20 --out DIR --device cuda --steps 6000

Weights fit the register for any input at every moment, by the paper's weight normalisation with truncation or by
projection with rounding to nearest, which starts at the solution of the post-training projection and wastes less
(`analysis.accumulators.a2q_weights`). Weights, steps, biases and the inputs' steps are trained.

Differences from the paper: not the task's loss but the squared error to the full-precision denoiser on its own
calibration trajectories, half of it on what guidance makes of both halves, where the difference between them counts
`guidance` times; a start from projected weights with searched steps (the Euclidean initialisation of A2Q+,
arXiv:2401.10432); all quantized layers are constrained, first and last too if the scheme quantizes them; norms stay as
they are; weights are averaged over steps.

`DIR/weights.safetensors` is what `analysis.quantize(pipe, scheme, method="a2q", bits=16, trained=...)` takes. A stopped
training goes on with the same command. `log.jsonl` has the error on other trajectories, in dB, before and after.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from analysis.accumulators.a2q_weights import Constrained, Network, Rows
from analysis.accumulators.partial_sums import ends
from analysis.accumulators.registers import Register
from analysis.methods import Request, _bound, a2q
from analysis.methods._bound import Rounding
from analysis.models.embedded.optimise import Run, optimise
from analysis.runner.calibrate import Calibration, calibrate
from analysis.runner.load import denoiser_name, load
from analysis.runner.quantize import plan, replaced
from analysis.runner.samples import Call, collect, first
from analysis.runner.statistics import as_matrix
from analysis.scheme import Scheme
from analysis.scheme import scheme as scheme_called

#: Weight of the penalty on lengths beyond their cap; the paper's lambda.
PENALTY = 1e-3


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


def network(
    pipe: Any, scheme: Scheme | str, register: Register, calibration: Calibration, rounding: Rounding
) -> Network:
    """The layers in training, started from projected weights.

    Raises ValueError for operands that are no signed integers of one width with static activation scales.
    """
    layers, _, _ = plan(
        getattr(pipe, denoiser_name(pipe)), scheme_called(scheme) if isinstance(scheme, str) else scheme
    )
    request = Request(pipe=pipe, layers=layers, calibration=calibration)
    options = a2q.Options(search=True, rounding="nearest")
    made: dict[str, Constrained] = {}
    parts: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    paths: dict[int, list[str]] = {}
    kinds = set()
    for layer in layers:
        _bound.wanted(layer, register.bits, register.tile, register.outer)
        built = request.build(layer)
        if built.input_step is None or built.input_step.ndim or built.input_zero is not None:
            raise ValueError(f"layer {layer.path}: training takes signed activations with one static scale per tensor")
        start = a2q.project(request, layer, register, options)
        if start.weight_step is None:
            raise ValueError(f"layer {layer.path}: weights {layer.weight} have no steps")
        steps = start.weight_step.expand(len(start.weight_codes), *(1,) * (start.weight_codes.ndim - 1)).flatten(1)
        latent = as_matrix(layer.module.get_parameter("weight").detach().float()) / steps
        if rounding == "toward-zero":  # what was truncated to nothing comes back only slowly from further away
            latent = torch.where(as_matrix(start.weight_codes) == 0, 0.5, 1.0) * latent
        own = dict(layer.module.named_parameters()).get("bias")
        bias = torch.zeros_like(steps[:, 0]) if own is None else own.detach().float()
        made[layer.path] = Constrained(layer, built.input_step)
        row: Any = layer.weight.row
        kinds.add((a2q.input_ends(layer), ends(row)))
        parts.setdefault(latent.shape[1], []).append((latent, steps, bias))
        paths.setdefault(latent.shape[1], []).append(layer.path)
    if len(kinds) > 1:
        raise ValueError(f"layers of {len(kinds)} different operand formats; training takes one, such as int8-w8a8 has")
    inputs, codes = kinds.pop()
    rows = {}
    for depth, found in parts.items():
        v, steps, bias = (torch.cat([entry[i] for entry in found]) for i in (0, 1, 2))
        rows[depth] = Rows(v, steps, bias, register, rounding, inputs, codes)
    return Network(made, rows, paths)


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """Calls of the full-precision denoiser with what it answered.

    pairs : (n, 1 or 2) images that belong together: the half of guidance without the condition, and the one with it
    """

    examples: Examples
    answers: Tensor
    pairs: Tensor
    guidance: float

    def error(self, student: nn.Module, which: Tensor) -> Tensor:
        """Squared error over the answers' power, half of it of what guidance makes of a pair."""
        images = self.pairs[which].T.flatten()
        args, kwargs = self.examples.batch(images)
        wanted = self.answers[images]
        wrong = first(student(*args, **kwargs)) - wanted
        plain = wrong.square().mean()
        if self.pairs.shape[1] == 2:
            without, given = wrong.chunk(2)
            plain = (plain + (without + self.guidance * (given - without)).square().mean()) / 2
        return plain / wanted.square().mean()


def lessons(pipe: Any, calibration: Calibration, images: int, seed: int) -> Lessons:
    """Calls along the trajectories of `calibration`, about so many images."""
    denoiser = getattr(pipe, denoiser_name(pipe))
    calls = collect(pipe, calibration, images, seed=seed)
    with torch.no_grad():
        answers = torch.cat([first(denoiser(*call.args, **call.kwargs)) for call in calls])
    pairs, at = [], 0
    for call in calls:
        pairs.append(torch.arange(at, at + call.images, device=answers.device).reshape(call.halves, -1).T)
        at += call.images
    return Lessons(
        examples=examples(calls), answers=answers, pairs=torch.cat(pairs), guidance=float(calibration.guidance)
    )


def decibels(student: nn.Module, lessons: Lessons, batch: int = 32) -> float:
    """How far below the answers the error is, over all lessons."""
    with torch.no_grad():
        parts = torch.arange(len(lessons.pairs), device=lessons.pairs.device).split(batch)
        total = sum(float(lessons.error(student, part)) * len(part) for part in parts)
    return -10 * math.log10(max(total / len(lessons.pairs), 1e-30))


def train(
    pipe: Any,
    scheme: Scheme | str,
    register: Register,
    calibration: Calibration,
    run: Run,
    images: int,
    rounding: Rounding = "nearest",
    held_out: Calibration | None = None,
) -> dict[str, Tensor]:
    """Tensors of the trained layers, as `weights.safetensors` has them.

    held_out : trajectories that are not learnt from, to judge on; None: the ones that are
    """
    denoiser = getattr(pipe, denoiser_name(pipe))
    denoiser.requires_grad_(False)
    model = network(pipe, scheme, register, calibration, rounding)
    student = replaced(denoiser, model.layers)
    data = lessons(pipe, calibration, images, run.seed)
    other = data if held_out is None else lessons(pipe, held_out, max(images // 8, 16), run.seed + 1)
    batch = int(run.config["batch"])
    # Products of integers below 2**11 are exact in the 11 bits of TF32, and sums stay in float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def loss_of(step: int) -> Tensor:
        which = torch.randint(len(data.pairs), (batch,), generator=run.generator(step), device=run.device)
        with torch.autocast(run.device.type, enabled=False):
            excess = model.settle()
            return data.error(student, which) + PENALTY * excess

    def judged() -> float:
        with torch.no_grad():
            model.settle()
        return round(decibels(student, other), 3)

    run.log(before=judged(), images=len(data.answers), pairs=len(data.pairs))
    optimise(run, model, loss_of)
    run.log(after=judged())
    return model.export()


def main(arguments: Sequence[str] | None = None) -> int:
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m analysis.accumulators.a2q_training", description=about)
    parser.add_argument("--pipeline", default="shapes-sd")
    parser.add_argument("--scheme", default="int8-w8a8", help="signed integers, static activations")
    parser.add_argument("--bits", type=int, required=True, help="width of the accumulator")
    parser.add_argument("--tile", type=int, help="products per tile, the accumulator's width being a tile's")
    parser.add_argument(
        "--rounding", choices=get_args(Rounding), default="nearest", help="toward-zero: the paper's quantizer"
    )
    parser.add_argument("--outer", type=int, help="width of the register that tiles are added in")
    parser.add_argument("--out", type=Path, required=True, help="directory for checkpoint, log.jsonl and weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--captions", type=int, default=64, help="calibration trajectories")
    parser.add_argument("--images", type=int, default=2560, help="calls of the denoiser to learn from")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=0.01, help="in steps of a weight")
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
    others = calibrate(pipe, held_out(max(options.captions // 8, 4), (1, 2, 3, 4), 3_000_003).captions())
    made = train(pipe, options.scheme, register, calibration, run, options.images, options.rounding, others)
    save_file(made, options.out / "weights.safetensors", metadata={"register": register.label})
    return 0


if __name__ == "__main__":
    sys.exit(main())
