"""How narrow the accumulator of a quantized model may be: what each layer's sums
need, how often a narrow register overflows, what the pictures are like then, and
what it saves in gates and joules.

  fpsim accumulators shapes-sd --bits 16 18 20
  fpsim accumulators shapes-sd --bits 16 --method rtn a2q oaq
  fpsim accumulators shapes-sd --bits 16 --tile 64 --method a2q
  fpsim accumulators shapes-sd --scheme fp8-w8a8 --accumulator f16 fixed48 dot16-f13
  fpsim accumulators sdxl-base --scheme int8-w8a8        # bounds of the data types

Stop it whenever you like: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from analysis.commands._text import paragraph, say, say_json, table

HELP = "how narrow the accumulator of a quantized model may be"

DEFAULT_BITS = (16, 18, 20, 24)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="an embedded pipeline, a pipeline directory, or a model without weights")
    parser.add_argument("--scheme", default="int8-w8a8", help="number formats (default int8-w8a8)")
    parser.add_argument("--bits", type=int, nargs="+", help="widths of integer registers (default 16 18 20 24)")
    parser.add_argument("--overflow", nargs="+", default=["wrap", "saturate"], choices=("wrap", "saturate"))
    parser.add_argument("--method", nargs="+", default=["rtn"], help="what makes the weights: rtn, a2q, oaq, ...")
    parser.add_argument("--tile", type=int, metavar="T", help="two-level registers: products per tile of --bits")
    parser.add_argument("--outer", type=int, metavar="P", help="with --tile: bits of the outer register (8 more)")
    parser.add_argument(
        "--trained", metavar="FILE", help="weights that analysis.accumulators.a2q_training made, for one width"
    )
    parser.add_argument("--accumulator", nargs="+", default=[], help="others, as words: f16-rz, dot16-f25, fixed40")
    parser.add_argument("--prompts", type=int, default=8, help="pictures per candidate (default 8)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default 20)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where run directories go (default: runs)")
    parser.add_argument("--device", default="cpu", help="what runs the model: cpu (default), cuda")
    parser.add_argument("--json", action="store_true", help="print the table over all layers as JSON")


def run(options: argparse.Namespace) -> None:
    from analysis.models import MODELS

    if options.model in MODELS:
        bounds(options)
        return
    from analysis.accumulators import Study, study
    from analysis.workers import quiet

    asked = Study(
        pipeline=options.model,
        scheme=options.scheme,
        candidates=candidates(options),
        prompts=options.prompts,
        steps=options.steps,
    )
    quiet()
    found = study(asked, options.runs, options.device)
    rows = [{key: value for key, value in vars(row).items() if value is not None} for row in found.whole]
    if options.json:
        say_json({"run": str(found.folder), "notes": list(found.notes), "results": rows})
        return
    first = found.whole[0]
    say(
        f"{options.model} in {options.scheme}: widest of {sum(row.layer != 'all' for row in found.rows)} rows of layers"
    )
    say(
        f"data types {first.data_type} bits, weights {first.weight}, seen in any order {first.any_order}, "
        f"in order {first.in_order}, results {first.final} ({first.method})"
    )
    say()
    head = ("accumulator", "weights", "need", "overflowed", "gates", "pJ/MAC", "right", "PSNR, dB")
    say(table([_line(row) for row in found.whole], head, right=range(2, 8)))
    say()
    say(
        paragraph(
            "need: bits that hold any sum of these weights; overflowed: share of outputs that did, in a short run; "
            "gates: of a multiply-accumulate; right: prompts obeyed. PSNR is against full precision."
        )
    )
    for note in found.notes:
        say(paragraph(note))
    say(f"table and plot: {found.folder}")


def candidates(options: argparse.Namespace) -> tuple[Any, ...]:
    """What the options ask for. Raises ValueError for options that do not go together."""
    from dataclasses import replace

    from analysis.accumulators import Candidate, grid

    bits = options.bits or (() if options.accumulator else DEFAULT_BITS)
    made = grid(bits, options.overflow, options.method, options.tile, options.outer)
    if options.trained is not None:
        trained = [one for one in made if one.method == "a2q"]
        if len(trained) != 1:
            raise ValueError("--trained goes with --method a2q and one width of --bits")
        kept = {key: value for key, value in trained[0].options.items() if key in ("bits", "tile", "outer")}
        one = replace(trained[0], options={**kept, "trained": options.trained})
        made = tuple(one if row is trained[0] else row for row in made)
    return (*made, *(Candidate(accumulator=words) for words in options.accumulator))


def _line(row: Any) -> tuple[str, ...]:
    return (
        row.accumulator,
        row.method.partition(" ")[0] + (", trained" if "trained=" in row.method else ""),
        str(row.weight),
        "" if row.overflowed is None else f"{row.overflowed:.2%}",
        "" if row.gates is None else f"{row.gates:.0f}",
        "" if row.energy is None else f"{row.energy / row.macs * 1e12:.3f}",
        "" if row.correct is None else f"{row.correct:.0%}",
        "" if row.psnr is None else f"{row.psnr:.1f}",
    )


def bounds(options: argparse.Namespace) -> None:
    """A model without weights: only the data types bound its sums."""
    from analysis.accumulators.partial_sums import by_data_type
    from analysis.registry import workload
    from analysis.scheme import scheme
    from fpsim.formats import Format
    from fpsim.nn.quantizer import Quantizer
    from hwmodels.ops import Conv

    def row_of(quantizer: Quantizer) -> Format:
        found = quantizer.row
        return found if isinstance(found, Format) else found.element

    chosen = scheme(options.scheme)
    products: dict[tuple[int, int], list[float]] = {}
    for op in workload(options.model).ops:
        kind = {"Gemm": "Linear", "Conv2d": "Conv2d"}.get(type(op).__name__)
        rule = chosen.rule_for(op.path, kind) if kind is not None and op.path else None
        if rule is None or rule.weight is None or rule.activation is None or rule.weight.is_cast:
            continue
        depth = (op.gemm() if isinstance(op, Conv) else op).k  # type: ignore[attr-defined]
        block = min([one.block for one in (rule.weight, rule.activation) if one.block is not None], default=depth)
        size = min(block, depth)
        width = by_data_type(row_of(rule.activation), row_of(rule.weight), size)
        seen = products.setdefault((width, size), [0, 0.0])
        seen[0] += op.count
        seen[1] += op.macs * op.count
    if not products:
        raise ValueError(f"no layer of {options.model} multiplies codes by codes in {options.scheme!r}")
    total = sum(macs for _, macs in products.values())
    rows = [
        {"bits": width, "products": size, "layers": int(count), "macs": macs / total}
        for (width, size), (count, macs) in sorted(products.items(), reverse=True)
    ]
    if options.json:
        say_json({"model": options.model, "scheme": options.scheme, "results": rows})
        return
    say(f"{options.model} in {options.scheme}: bits that hold any sum of the two data types (no weights, no inputs)")
    say()
    cells = [(row["bits"], row["products"], row["layers"], f"{row['macs']:.1%}") for row in rows]
    say(table(cells, ("bits", "products per sum", "layers", "share of products"), right=range(4)))
