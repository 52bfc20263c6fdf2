"""Writes the tables of docs/gpu-model.md: errors from the committed measurements, steps, and the trade-off study.

    python -m hwmodels.calibrate        # minutes: fits again, writes gpu_parameters.toml and measurements/ERRORS.md
    python docs/update_gpu_model.py     # the tables of the page, from what is committed

Numbers are computed, never typed: the blocks between markers are replaced.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

import analysis
import hwmodels
from analysis.measure.compare import StepError, step_errors
from analysis.models import MODELS
from hwmodels import errors, gpu
from hwmodels.measured import FOLDER

PAGE = Path(__file__).with_name("gpu-model.md")
DEVICE = "h200-sxm"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def percent(value: float) -> str:
    return f"{value:.1%}"


def left_out() -> dict[str, tuple[float, float]]:
    """What a fit did without -> (mean, median), from ERRORS.md: such fits take a minute each."""
    text = (FOLDER / "ERRORS.md").read_text(encoding="utf-8")
    row = r"\| ([\w-]+) \| ([\w ]+) \| (device|stack|format) left out \| \d+ \| ([\d.]+)% \| ([\d.]+)% \|"
    return {
        device if what == "device" else f"{form}, {what}": (float(mean) / 100, float(median) / 100)
        for device, form, what, mean, median in re.findall(row, text)
    }


def goals() -> str:
    p = gpu.load()
    own = {(e.format, e.split): e for e in errors.own_errors(p)}
    other = {(e.device, e.split): e for e in errors.errors(p)}
    bf16, fp8 = (own[f"gemm {name}", "held out"] for name in ("bf16", "fp8, kernel only"))
    large = own["gemm bf16, at least 256 rows", "held out"]
    h100 = other["h100-sxm", "held-out sites"]
    conv = own["conv2d bf16, diffusion shapes", "held out"]
    attention = own["attention bf16, heads 40-128", "held out"]
    steps = [abs(s.ratio - 1) for s in step_errors(modes=["graph"])]

    def shown(e: errors.Error) -> str:
        return f"mean {percent(e.mean)}, median {percent(e.median)}, {e.within_10:.0%} within 10 % ({e.rows} rows)"

    without = left_out()

    def unseen(*names: str) -> str:
        return "; ".join(f"{name} {percent(without[name][0])}" for name in names)

    rows = [
        ("bf16 GEMM H200, our stack, unseen (n, k)", "mean <= 5 %, median <= 3 %, >= 85 % within 10 %", shown(bf16)),
        ("... of them with at least 256 rows", "", shown(large)),
        ("bf16 GEMM H100, another stack, unseen (n, k)", "mean <= 8 %", shown(h100)),
        ("FP8 GEMM H200, kernel only, unseen (n, k)", "mean <= 7 %", shown(fp8)),
        (
            "bf16 GEMM, the device left out of the fit",
            "mean <= 10 %, L40S <= 20 %",
            f"mean: {unseen('a100-sxm-80gb', 'b200-sxm', 'l40s')}",
        ),
        (
            "Hopper GEMM of one stack, fitted to another's",
            "mean <= 8 %",
            f"mean: {unseen('h100-sxm', 'gemm bf16, stack', 'gemm fp8, stack')}",
        ),
        ("FP8 GEMM H200, the format left out of the fit", "", f"mean: {unseen('gemm fp8, format')}"),
        ("attention H200, heads 40-128, unseen shapes", "median <= 5 %", shown(attention)),
        ("conv2d bf16, diffusion shapes, unseen", "mean <= 10 %", shown(conv)),
        (
            "whole denoise steps, graph, bf16 and FP8 (none fitted)",
            "each within 10 %, mean <= 5 %",
            f"mean {percent(float(np.mean(steps)))}, largest {percent(max(steps))} ({len(steps)} steps)",
        ),
    ]
    return table(("what", "goal", "reached"), rows)


def own() -> str:
    return errors.table(errors.own_errors(gpu.load()))


def parameters() -> str:
    p = gpu.load()
    return table(("parameter", "value"), [(f"`{f.name}`", f"{getattr(p, f.name):.4g}") for f in fields(p)])


def _name(step: StepError) -> str:
    return f"{step.model}{'' if step.part == 'denoiser' else ' ' + step.part}"


def steps() -> str:
    rows = [
        (
            _name(s),
            str(s.rows),
            s.format,
            s.mode,
            f"{s.measured * 1e3:.2f}",
            f"{s.projected * 1e3:.2f}",
            f"{s.ratio - 1:+.0%}",
        )
        for s in step_errors()
    ]
    return table(("model", "rows", "format", "mode", "measured, ms", "projected, ms", "error"), rows)


def gains() -> str:
    """What FP8 and a compiler buy, measured and projected."""
    found = {(s.model, s.part, s.rows, s.format, s.mode): s for s in step_errors(modes=["graph", "compiled"])}
    rows = []
    for (model, part, count, form, mode), s in found.items():
        base = found.get((model, part, count, "bf16", "graph"))
        if base is not None and base is not s:
            cells = (f"{base.measured / s.measured:.2f}", f"{base.projected / s.projected:.2f}")
            rows.append((_name(s), str(count), f"{form}, {mode}", *cells))
    return table(("model", "rows", "against bf16, graph", "measured speedup", "projected speedup"), rows)


BATCHES = (1, 4, 16, 64)
STUDIED = ("dit-xl-2-256", "sd15", "pixart-sigma", "flux1-dev")
SCHEMES = ("w4a16", "w8a16", "fp8", "fp8-dynamic")


def tradeoff() -> str:
    """Time of a step against bf16's, by images per request."""
    rows = []
    for name in STUDIED:
        for images in BATCHES:
            work = analysis.trace(name, batch=images * (2 if MODELS[name].guided else 1))
            base = hwmodels.estimate(work, "bf16", DEVICE, mode="compiled").time_s
            cells = [
                f"{base / hwmodels.estimate(work, scheme, DEVICE, mode='compiled').time_s:.2f}" for scheme in SCHEMES
            ]
            rows.append((name, str(images), f"{base / images * 1e3:.2f}", *cells))
    return table(("model", "images", "bf16, ms per image and step", *SCHEMES), rows)


ROWS = (*range(1, 64), *range(64, 512, 8), *range(512, 8193, 64))


def crossover() -> str:
    """For one product: from how many rows on W8A8 beats 4-bit weights, and weights stop mattering."""
    rows = []
    for n, k, what in ((4096, 4096, "4096 x 4096"), (1152, 1152, "1152 x 1152 (DiT-XL)"), (3072, 12288, "FLUX, in")):
        work = hwmodels.Workload(name=what, ops=tuple(hwmodels.Gemm(m=m, n=n, k=k) for m in ROWS))
        four, eight, base = (
            np.array([row.time_s for row in hwmodels.estimate(work, scheme, DEVICE).breakdown.rows() if row.macs])
            for scheme in ("w4a16", "fp8", "bf16")
        )
        first = [
            next((m for m, yes in zip(ROWS, test, strict=True) if yes), None)
            for test in (eight < four, four > 0.97 * base)
        ]
        rows.append((what, *(f"none up to {ROWS[-1]}" if m is None else str(m) for m in first)))
    return table(("product (n x k)", "FP8 beats 4-bit weights from m =", "4-bit weights save under 3 % from m ="), rows)


BLOCKS = {
    "goals": goals,
    "own": own,
    "parameters": parameters,
    "steps": steps,
    "gains": gains,
    "tradeoff": tradeoff,
    "crossover": crossover,
}


def page(text: str, names: Iterable[str] = tuple(BLOCKS)) -> str:
    """The page with its generated blocks as they should be."""
    for name in names:
        marker = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        made = BLOCKS[name]()
        text, count = marker.subn(lambda found, made=made: f"{found[1]}{made}\n{found[2]}", text)
        if count != 1:
            raise ValueError(f"{PAGE.name} has {count} blocks <!-- {name} -->; it needs one")
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
