"""The training loop of every stage: AdamW, cosine decay, weight averaging, and checkpoints that lose nothing."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from analysis import scenes


@dataclass(frozen=True)
class Run:
    """What every stage needs to know."""

    stage: str
    out: Path
    device: torch.device
    seed: int
    config: dict[str, Any]
    object_weights: list[float]
    seconds: float
    stop_after: float
    compile: bool

    def generator(self, step: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)

    def draw(self, count: int, step: int) -> scenes.Scenes:
        return scenes.training_scenes(count, self.generator(step), self.object_weights)

    def log(self, **record: object) -> None:
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"stage": self.stage, **record}) + "\n")
        sys.stderr.write(f"{self.stage}: {record}\n")


def optimise(run: Run, model: nn.Module, loss_of: Callable[[int], Tensor]) -> nn.Module:
    """AdamW with warm-up and cosine decay of `loss_of(step)`; returns the model holding the EMA of its weights."""
    config, started = run.config, time.monotonic()
    parameters = dict(model.named_parameters())
    average = {name: p.detach().clone() for name, p in parameters.items()}
    optimiser = torch.optim.AdamW(
        parameters.values(),
        lr=config["learning_rate"],
        betas=(0.9, 0.99),
        weight_decay=config["weight_decay"],
        fused=run.device.type == "cuda",
    )
    checkpoint = run.out / f"{run.stage}.checkpoint.safetensors"
    first = _restore(checkpoint, parameters, average, optimiser) if checkpoint.is_file() else 0
    begun: float | None = None
    p0, saved, step = first / config["steps"], started, first
    while step < min(config["steps"], first + run.stop_after):
        timed = 0.0 if begun is None else (time.monotonic() - begun) / max(run.seconds - (begun - started), 1)
        progress = max(step / config["steps"], p0 + (1 - p0) * timed)
        if progress >= 1:
            break
        rate = (
            config["learning_rate"] * min(1, (step + 1) / config["warmup"]) * 0.5 * (1 + math.cos(math.pi * progress))
        )
        optimiser.param_groups[0]["lr"] = rate
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.device.type == "cuda"):
            loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        decay = min(config["ema"], (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
        step += 1
        if begun is None:
            float(loss.detach())  # the first step compiles; the clock of the schedule starts after it
            begun = time.monotonic()
        if step % 200 == 0 or step == config["steps"]:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise ValueError(f"{run.stage}: the loss is {value} at step {step}; lower its learning_rate")
            run.log(step=step, loss=round(value, 6), lr=round(rate, 7), seconds=round(time.monotonic() - started, 1))
        if time.monotonic() - saved > 120:
            _save(checkpoint, step, parameters, average, optimiser)
            saved = time.monotonic()
    _save(checkpoint, step, parameters, average, optimiser)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(average[name])
    run.log(step=step, finished=True, seconds=round(time.monotonic() - started, 1))
    return model


def _save(
    path: Path, step: int, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], optimiser: Any
) -> None:
    state: dict[str, Tensor] = {"step": torch.tensor(step)}
    for name, parameter in parameters.items():
        moments = optimiser.state[parameter]
        state |= {f"weight/{name}": parameter.detach(), f"average/{name}": average[name]}
        state |= {f"{key}/{name}": value for key, value in moments.items()}
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in state.items()}, partial)
    partial.replace(path)


def _restore(path: Path, parameters: dict[str, nn.Parameter], average: dict[str, Tensor], optimiser: Any) -> int:
    state = load_file(path)
    for name, parameter in parameters.items():
        parameter.data.copy_(state[f"weight/{name}"])
        average[name].copy_(state[f"average/{name}"])
        moments = {key: state[f"{key}/{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
        optimiser.state[parameter] = {"step": state[f"step/{name}"].to(parameter.device), **moments}
    return int(state["step"])
