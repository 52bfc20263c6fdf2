"""Project the time of one operation or of a whole model on a device.

  fpsim estimate gemm 4096 4096 4096 --spec fp8 --device h200-sxm
  fpsim estimate conv2d batch=1 in_channels=320 out_channels=320 height=64 width=64 kernel=3 ...
  fpsim estimate --model sdxl-base --spec fp8-w8a8 --device h200-sxm

Nothing runs: the time comes from the device's figures (see `fpsim show h200-sxm`).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from analysis.commands._text import pairs, paragraph, say, say_json

HELP = "project the time of an operation or a model on a device"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("operation", nargs="*", help="a kind (gemm, conv2d, attention, ...), then its sizes")
    parser.add_argument("--model", help="price a whole denoiser call instead of one operation")
    parser.add_argument("--batch", type=int, default=1, help="rows per call, with --model (default 1)")
    parser.add_argument("--spec", default="bf16", help="fp8, int8, nvfp4, w8a16, ... or a scheme (default bf16)")
    parser.add_argument("--device", required=True, help="a name that `fpsim list devices` prints")
    parser.add_argument("--mode", default="graph", choices=("eager", "graph", "compiled"), help="default: graph")
    parser.add_argument("--estimator", default="roofline", help="roofline (default), or auto: the best there is")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace) -> None:
    import hwmodels

    if bool(options.operation) == bool(options.model):
        raise ValueError("give an operation with its sizes, or --model NAME: fpsim estimate gemm 4096 4096 4096 ...")
    subject: Any
    if options.model:
        from analysis import registry

        if options.batch < 1:
            raise ValueError(f"--batch must be at least 1, not {options.batch}")
        subject = registry.workload(options.model, options.batch)
    else:
        subject = parse_operation(options.operation)
    spec = precision(options.spec)
    if not isinstance(spec, str) and not options.model:
        subject = dataclasses.replace(subject, path="layer")  # rules speak of layers; this is one
    estimate = hwmodels.estimate(subject, spec, device=options.device, mode=options.mode, model=options.estimator)
    if options.json:
        say_json({"device": options.device, "spec": options.spec, "mode": options.mode, **estimate.to_dict()})
        return
    _print(options, subject, estimate)


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


def _print(options: argparse.Namespace, subject: Any, estimate: Any) -> None:
    from analysis.units import count, seconds, size

    name = f"{options.model}, batch {options.batch}" if options.model else f"{subject.kind} {subject.describe()}"
    say(f"{name} in {options.spec} on {options.device} ({options.mode})")
    say()
    say(
        pairs(
            {
                "time": f"{seconds(estimate.time_s)} (projected, {estimate.model})",
                "bound by": estimate.bound,
                "operations": f"{count(estimate.operations)}, {count(estimate.operations / estimate.time_s, 'op/s')}",
                "bytes": f"{size(estimate.bytes)}, {count(estimate.bytes / estimate.time_s, 'B/s')}",
            }
        )
    )
    for note in estimate.notes:
        say(paragraph(f"note: {note}"))
