"""Writes the tables of docs/mixed-precision.md: measures sensitivities, allocates, and holds every scheme to account.

    python docs/update_mixed_precision.py

Half an hour of one core (`--runs` keeps what is measured; started again, it goes on). Numbers are measured or computed
here, never typed: the blocks between markers are replaced. `--quick --page FILE` goes the same way in minutes, on one
caption and timestep, to see that it works: its numbers are not for the docs.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.allocation import allocate, decoupled, front
from analysis.allocation.costs import Costs, costs
from analysis.allocation.outcomes import Outcome, best, measured, mixed, uniform
from analysis.metrics import psnr
from analysis.plan import held_out
from analysis.registry import workload
from analysis.runner import quantize, sample
from analysis.scheme import scheme
from analysis.sensitivity import Sensitivity, Studied, Study, decibel, run
from analysis.store import digest, read_json, write_json
from analysis.units import digits

PAGE = Path(__file__).with_name("mixed-precision.md")
FLOATS = ("bf16", "fp8-w8a8", "nvfp4")
INTEGERS = ("bf16", "int8-w8a8", "int4-w4a4+dynamic")
STUDIES = {"shapes-sd": ("bf16", "fp8-w8a8", "nvfp4", "int8-w8a8", "int4-w4a4+dynamic"), "shapes-dit": FLOATS}
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
PICTURES = 16  # prompts, drawn in full with 20 steps


@dataclass(frozen=True, kw_only=True)
class Case:
    """One table: a pipeline, its candidates, and what they are priced on."""

    pipeline: str
    candidates: tuple[str, ...]
    device: str
    batch: int
    mode: str
    what: str = "latency"
    node: str | None = None
    points: int = 6
    check: bool = True  # run the schemes too

    @property
    def command(self) -> str:
        """What prints the same."""
        words = [f"fpsim allocate {self.pipeline} --candidates {' '.join(self.candidates)} --device {self.device}"]
        words += [f"--batch {self.batch} --mode {self.mode} --points {self.points}"]
        words += ["--metric quality"]  # the fronts of the page are of SQNR
        words += [f"--cost {self.what} --node {self.node}"] if self.node else []
        words += [] if self.check else ["--no-check"]
        return " ".join(words)


CASES = {
    "rtx": Case(pipeline="shapes-sd", candidates=FLOATS, device="rtx-5090", batch=64, mode="compiled"),
    "dit": Case(pipeline="shapes-dit", candidates=FLOATS, device="rtx-5090", batch=64, mode="compiled"),
    "b200": Case(pipeline="shapes-sd", candidates=FLOATS, device="b200-sxm", batch=64, mode="graph", check=False),
    "npu": Case(pipeline="shapes-sd", candidates=INTEGERS, device="my-npu", batch=2, mode="compiled"),
    "joules": Case(
        pipeline="shapes-sd",
        candidates=INTEGERS,
        device="my-npu",
        batch=2,
        mode="compiled",
        what="energy",
        node="7nm",
        check=False,
    ),
}


def only(found: Sensitivity, candidates: Sequence[str]) -> Sensitivity:
    """The sensitivity with some of its candidates."""
    from dataclasses import replace

    which = [list(found.candidates).index(name) for name in candidates]
    return replace(
        found,
        candidates={name: found.candidates[name] for name in candidates},
        quality=found.quality[:, which],
        content=None if found.content is None else found.content[:, which],
    )


class Tables:
    """Everything the page shows, with what has been measured kept in a folder."""

    def __init__(self, studies: dict[str, Studied], keep: Path, prompts: int = PICTURES) -> None:
        self.studies, self.keep, self.prompts = studies, keep, prompts

    def priced(self, case: Case) -> tuple[Sensitivity, Costs]:
        found = only(self.studies[case.pipeline].sensitivity, case.candidates)
        work = workload(case.pipeline, case.batch)
        made = costs(work, tuple(found.layers), found.candidates, case.device, case.what, case.mode, node=case.node)
        return found, made

    def measured(self, pipeline: str, rows: Sequence[Outcome]) -> tuple[Outcome, ...]:
        """Scores of whole schemes, from the folder where they are known."""
        from dataclasses import replace

        def file(one: Outcome) -> Path:
            rules = one.scheme.to_dict()
            del rules["name"]
            return self.keep / f"{digest([pipeline, rules])}.json"

        missing = [one for one in rows if not file(one).exists()]
        names = ("measured_quality", "measured_content", "other_quality", "other_content")
        for one in measured(missing, self.studies[pipeline]) if missing else ():
            write_json(file(one), {"scores": {name: getattr(one, name) for name in names}})
        return tuple(replace(one, **read_json(file(one))["scores"]) for one in rows)

    def front(self, name: str) -> str:
        """Uniform schemes, then the front."""
        case = CASES[name]
        found, made = self.priced(case)
        rows = (*uniform(found, made), *mixed(front(found, made, case.points, "quality"), made))
        done = self.measured(case.pipeline, rows) if case.check else rows
        return f"```\n{case.command}\n```\n\n{listed(done, made)}"

    def decoupled(self) -> str:
        """One budget, one program or two."""
        case = CASES["rtx"]
        found, made = self.priced(case)
        budget = 0.85 * made.unquantized
        single = [allocate(found, made, budget, metric, metric) for metric in ("quality", "content")]
        rows = self.measured(case.pipeline, mixed(single, made))
        shares = self.measured(case.pipeline, mixed(decoupled(found, made, budget, SHARES, name="share"), made))
        chosen = best(shares)
        return listed((*rows, *shares), made) + f"\n\nPictures change least with `{chosen.name}`."

    def layers(self) -> str:
        """The most sensitive layers, and whether the candidate pays there."""
        case = CASES["rtx"]
        found, made = self.priced(case)
        quality, content = found.scores("quality"), found.scores("content")
        rows = []
        for i in np.argsort(-quality[:, -1])[:8]:
            saved = [made.values[0, i, 0] - made.values[0, i, c] for c in (1, 2)]
            rows.append(
                (
                    f"`{list(found.layers)[i]}`",
                    *(f"{decibel(value):.1f}" for value in quality[i]),
                    f"{content[i, -1]:.5f}",
                    *(f"{1e6 * value:+.2f}" for value in saved),
                )
            )
        head = (
            "layer",
            *(f"{name}, dB" for name in found.candidates),
            "nvfp4, 1 - SSIM",
            "fp8 saves, µs",
            "nvfp4 saves, µs",
        )
        return table(head, rows)

    def times(self) -> str:
        """Sums over layers at each timestep."""
        frame = only(self.studies["shapes-sd"].sensitivity, FLOATS).by_timestep()
        rows = []
        for time_ in dict.fromkeys(frame.timestep):
            part = frame[frame.timestep == time_].set_index("candidate")
            cells = [(f"{part.sqnr_db[name]:.1f}", f"{part.content[name]:.4f}") for name in FLOATS]
            rows.append((f"{time_:g}", *(cell for pair in cells for cell in pair)))
        head = ("timestep", *(f"{name}, {what}" for name in FLOATS for what in ("dB", "1 - SSIM")))
        return table(head, rows)

    def pays(self) -> str:
        """For how many layers a candidate is cheaper than bf16, by device and batch."""
        rows = []
        for device in ("rtx-5090", "b200-sxm", "h200-sxm"):
            for batch in (2, 64, 512):
                for mode in ("graph", "compiled"):
                    case = Case(pipeline="shapes-sd", candidates=FLOATS, device=device, batch=batch, mode=mode)
                    _, made = self.priced(case)
                    cheaper = [int((made.values[0, :, c] < made.values[0, :, 0]).sum()) for c in (1, 2)]
                    lowest = float(made.values[0].min(axis=1).sum() + made.rest[0]) / made.unquantized
                    all_in = [made.uniform(name) / made.unquantized for name in FLOATS[1:]]
                    rows.append(
                        (
                            *(device, str(batch), mode, *(f"{number} of {len(made.layers)}" for number in cheaper)),
                            *(f"{value - 1:+.1%}" for value in (*all_in, lowest)),
                        )
                    )
        head = ("device", "rows", "mode", "fp8 pays in", "nvfp4 pays in", "all fp8", "all nvfp4", "cheapest mixture")
        return table(head, rows)

    def pictures(self) -> str:
        """Whole pictures of a few schemes of the first front, beside full precision."""
        case = CASES["rtx"]
        found, made = self.priced(case)
        budget = 0.85 * made.unquantized
        chosen = [
            *uniform(found, made)[1:],
            *mixed(
                [allocate(found, made, budget, metric, f"{metric} at 85 %") for metric in ("quality", "content")], made
            ),
            best(self.measured(case.pipeline, mixed(decoupled(found, made, budget, SHARES, name="share"), made))),
        ]
        studied = self.studies[case.pipeline]
        captions, seeds = held_out(self.prompts, (1, 2, 3, 4), 0).captions(), list(range(self.prompts))
        reference: Any = None
        rows = []
        for one in chosen:
            rules = one.scheme.to_dict()
            del rules["name"]
            file = self.keep / f"{digest(['pictures', self.prompts, case.pipeline, rules])}.json"
            if not file.exists():
                if reference is None:
                    reference = sample(studied.pipe, captions, seeds, batch_size=self.prompts)
                pipe = quantize(studied.pipe, one.scheme, calibration=studied.calibration)
                drawn = psnr(sample(pipe, captions, seeds, batch_size=self.prompts), reference)
                write_json(file, {"psnr": [float(value) for value in drawn]})
            values = np.array(read_json(file)["psnr"])
            error = float(values.std(ddof=1) / len(values) ** 0.5)
            rows.append(
                (one.name, f"{1e3 * one.cost:.3f}", f"{one.relative - 1:+.1%}", f"{values.mean():.2f} ± {error:.2f}")
            )
        return table(
            ("scheme", "ms", "of bf16", f"PSNR against full precision, dB ({self.prompts} prompts, ± s.e.)"), rows
        )


def listed(rows: Sequence[Outcome], made: Costs) -> str:
    """One row per scheme; measured columns where there is something in them."""
    factor, unit = {"s": (1e3, "ms"), "J": (1e3, "mJ")}[made.unit]

    def db(value: float | None) -> str:
        return "" if value is None else f"{decibel(value):.1f}"

    def plain(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    columns: dict[str, Callable[[Outcome], str]] = {
        "scheme": lambda one: one.name if len(one.counts) > 1 else f"**{one.name}**",
        unit: lambda one: digits(one.cost * factor, 4),
        "of bf16": lambda one: f"{one.relative - 1:+.1%}",
        "predicted dB": lambda one: db(one.quality),
        "measured dB": lambda one: db(one.measured_quality),
        "other captions, dB": lambda one: db(one.other_quality),
        "predicted 1 - SSIM": lambda one: plain(one.content),
        "measured 1 - SSIM": lambda one: plain(one.measured_content),
        "other captions, 1 - SSIM": lambda one: plain(one.other_content),
        "layers in": lambda one: ", ".join(f"{number} {name}" for name, number in one.counts.items()),
    }
    cells = {name: [show(one) for one in rows] for name, show in columns.items()}
    filled = {name: column for name, column in cells.items() if any(column)}
    return table(tuple(filled), zip(*filled.values(), strict=True))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def page(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """The page with its generated blocks as they should be."""
    for name, make in blocks.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f"{PAGE.name} has {text.count(start)} blocks <!-- {name} -->; it needs one")
        head, _, rest = text.partition(start)
        text = f"{head}{start}{make()}\n{end}{rest.partition(end)[2]}"
    return text


def blocks(found: Tables) -> dict[str, Callable[[], str]]:
    fronts = {name: functools.partial(found.front, name) for name in CASES}
    others = (found.decoupled, found.layers, found.times, found.pays, found.pictures)
    return fronts | {make.__name__: make for make in others}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--quick", action="store_true", help="one caption, one timestep, two pictures")
    parser.add_argument("--page", type=Path, default=PAGE, help="write here instead")
    options = parser.parse_args()
    if options.quick and options.page == PAGE:
        parser.error("--quick is not for the docs: give it a --page of its own")
    size: dict[str, Any] = {"images": 1, "steps": 1, "captions": 2} if options.quick else {}
    studies = {}
    for name, candidates in STUDIES.items():
        began = time.process_time()
        study = Study(pipeline=name, candidates=tuple(scheme(one) for one in candidates), **size)
        studies[name] = run(study, runs=options.runs)
        sys.stdout.write(f"{name}: {time.process_time() - began:.0f} s of CPU\n")
    keep = studies["shapes-sd"].folder / "schemes"
    tables = Tables(studies, keep, 2 if options.quick else PICTURES)
    options.page.write_text(page(PAGE.read_text(encoding="utf-8"), blocks(tables)), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
