"""Project the time of one operation, or of a call of a whole model, on a device.

  fpsim estimate gemm 4096 4096 4096 --spec fp8 --device h200-sxm
  fpsim estimate conv2d batch=1 in_channels=320 out_channels=320 height=64 width=64 kernel=3 ...
  fpsim estimate --model sdxl-base --batch 2 --spec fp8 --device h200-sxm --steps 30
  fpsim estimate --model sd15 --device h200-sxm --trace-out sd15.json     # for ui.perfetto.dev

Nothing runs: the time comes from the device's figures (see `fpsim show h200-sxm`)
and the model of GPUs that is fitted to measured kernels.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.commands._text import pairs, paragraph, say, say_json, table
from analysis.commands.trace import call_arguments, workload

HELP = "project the time of an operation or a model on a device"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("operation", nargs="*", help="a kind (gemm, conv2d, attention, ...), then its sizes")
    parser.add_argument("--model", help="a model, a pipeline directory, or a workload (.json; .csv: SCALE-Sim)")
    call_arguments(parser)
    parser.add_argument("--steps", type=int, metavar="N", help="with --model: also a whole image of N denoise steps")
    parser.add_argument("--spec", default="bf16", help="fp8, int8, nvfp4, w8a16, ... or a scheme (default bf16)")
    parser.add_argument("--device", required=True, help="a name that `fpsim list devices` prints, or a TOML file")
    parser.add_argument("--mode", default="graph", choices=("eager", "graph", "compiled"), help="default: graph")
    parser.add_argument("--cache", default="warm", choices=("warm", "cold"), help="are activations in L2? (warm)")
    parser.add_argument("--estimator", default="auto", help="auto (default: the best there is), gpu or roofline")
    parser.add_argument("--top", type=int, default=0, metavar="N", help="print the N layers that take longest")
    parser.add_argument("--trace-out", type=Path, metavar="FILE", help="write the timeline (Chrome, Perfetto)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    import hwmodels
    from analysis.store import write_output

    if bool(options.operation) == bool(options.model):
        raise ValueError("give an operation with its sizes, or --model NAME: fpsim estimate gemm 4096 4096 4096 ...")
    if options.steps is not None and not options.model:
        raise ValueError("--steps makes an image, which takes a model: fpsim estimate --model sd15 --steps 30 ...")
    subject: Any = _model(options) if options.model else parse_operation(options.operation)
    spec = precision(options.spec)
    if not isinstance(spec, str) and not options.model:
        subject = dataclasses.replace(subject, path="layer")  # rules speak of layers; this is one
    how: dict[str, Any] = {"device": options.device, "mode": options.mode, "model": options.estimator}
    estimate = hwmodels.estimate(subject, spec, cache=options.cache, **how)
    image = None if options.steps is None else _image(options, estimate, how)
    if options.trace_out is not None:
        from hwmodels.timeline import to_chrome_trace

        write_output(options.trace_out, to_chrome_trace(estimate))
    if options.json:
        found = {"device": options.device, "spec": options.spec, "mode": options.mode, **estimate.to_dict()}
        say_json(found if image is None else {**found, "image": dataclasses.asdict(image)})
        return
    _print(options, subject, estimate, image)


def _model(options: argparse.Namespace) -> Any:
    """The workload `--model` names: a file, or a call traced now."""
    from hwmodels.topology import load_scalesim
    from hwmodels.workload import Workload

    if options.model.endswith(".json"):
        return Workload.load(options.model)
    return load_scalesim(options.model) if options.model.endswith(".csv") else workload(options)


def _image(options: argparse.Namespace, denoiser: Any, how: dict[str, Any]) -> Any:
    """The cost of a request: text encoder and decoder of the model, in bf16, beside the denoiser's steps."""
    import hwmodels
    from analysis.models import model
    from hwmodels.image import image_cost

    found = model(options.model)
    rows = options.batch // (2 if found.guided and options.batch % 2 == 0 else 1)
    call = argparse.Namespace(**{**vars(options), "batch": rows, "tokens": None})
    others = {
        part: hwmodels.estimate(workload(call, part), "bf16", **how)
        for part in ("vae-decode", "text-encoder")
        if part in found.parts
    }
    return image_cost(denoiser, options.steps, rows, others.get("vae-decode"), others.get("text-encoder"))


def precision(name: str) -> Any:
    """A cost shorthand as it is, or the scheme of that name. Raises ValueError listing both kinds."""
    import hwmodels
    from analysis.experiment import unknown
    from analysis.scheme import SCHEMES, scheme

    if name in hwmodels.SHORTHANDS:
        return name
    if name.partition("+")[0] in SCHEMES:
        return scheme(name)
    raise ValueError(unknown("spec", name, {*hwmodels.SHORTHANDS, *SCHEMES}))


def parse_operation(words: Sequence[str]) -> Any:
    """`gemm 4096 4096 4096` or `gemm m=4096 n=4096 k=4096`: sizes in the order of the operation's own fields."""
    from analysis.experiment import unknown
    from hwmodels.ops import OPS, op_from_dict

    kinds = {name.lower(): name for name in OPS}
    if words[0].lower() not in kinds:
        raise ValueError(unknown("operation", words[0], kinds))
    kind = kinds[words[0].lower()]
    required = [
        field.name
        for field in dataclasses.fields(OPS[kind])
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    positional = [word for word in words[1:] if "=" not in word]
    if len(positional) > len(required):
        raise ValueError(f"{words[0]} takes {len(required)} sizes ({', '.join(required)}), got {len(positional)}")
    values: dict[str, Any] = {"op": kind}
    values.update({name: _size(name, word) for name, word in zip(required, positional, strict=False)})
    for word in words[1:]:
        name, equals, text = word.partition("=")
        if equals:
            values[name] = _size(name, text)
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(
            f"{words[0]} takes {' '.join(name.upper() for name in required)}; missing: {', '.join(missing)}"
        )
    return op_from_dict(values)


def _size(name: str, text: str) -> int | str | tuple[int, ...]:
    """An integer, a list of them (3x3x3), or a word for the few fields that take one (layout, variant)."""
    try:
        return tuple(int(part) for part in text.split("x")) if "x" in text else int(text)
    except ValueError as error:
        if text.isidentifier():
            return text
        raise ValueError(f"{name} must be an integer, not {text!r}") from error


def _print(options: argparse.Namespace, subject: Any, estimate: Any, image: Any) -> None:
    from analysis.units import count, digits, seconds, size

    name = f"{options.model}, batch {options.batch}" if options.model else f"{subject.kind} {subject.describe()}"
    say(f"{name} in {options.spec} on {estimate.device} ({options.mode})")
    say()
    lines = {
        "time": f"{seconds(estimate.time_s)} (projected, {estimate.model})",
        "bound by": estimate.bound,
        "operations": f"{count(estimate.operations)}, {count(estimate.operations / estimate.time_s, 'op/s')}",
        "bytes": f"{size(estimate.bytes)}, {count(estimate.bytes / estimate.time_s, 'B/s')}",
    }
    if estimate.energy_j is not None:
        lines["energy"] = f"at most {digits(estimate.energy_j)} J"
    if options.model:
        fits = {None: "", True: " (fits)", False: " (does not fit)"}[estimate.footprint.fits]
        lines["memory"] = f"{size(estimate.footprint.total)}{fits}"
    if image is not None:
        lines["image"] = (
            f"{seconds(image.seconds_per_image)}: {image.steps} steps of {seconds(image.step_s)}, text "
            f"{seconds(image.text_s)}, decoder {seconds(image.decode_s)}; {digits(image.images_per_second)} images/s"
        )
    say(pairs(lines))
    if options.model:
        kinds = estimate.breakdown.by_kind()
        say()
        shares = [(kind, seconds(t), f"{t / estimate.time_s:.1%}") for kind, t in kinds.items()]
        say(table(shares, ("kernels", "time", "share"), right=(1, 2)))
    if options.top > 0:
        rows = sorted(estimate.breakdown.rows(), key=lambda row: -row.time_s)[: options.top]
        say()
        listed = [(seconds(row.time_s), row.bound, f"{row.kind} {row.shape}  {row.path}") for row in rows]
        say(table(listed, ("time", "bound by", "kernel"), right=(0,)))
    for note in estimate.notes:
        say(paragraph(f"note: {note}"))
    if options.trace_out is not None:
        say(f"timeline: {options.trace_out} (open it at ui.perfetto.dev)")
