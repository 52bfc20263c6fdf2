"""What-if accumulators: how narrow the register may be that a quantized model's products are added in.

For each candidate, an accumulator and the method that made the weights: what every layer needs (two guarantees and
three observations, `analysis.accumulators.partial_sums`), how many outputs would leave the register on calibration
inputs, how often it overflowed when it ran, the pictures it made, bit for bit in exact arithmetic, and what the unit
costs in gates and joules beside the one with a 32-bit register.

    found = study(Study(pipeline="shapes-sd", scheme="int8-w8a8", candidates=grid([16, 18, 20])))
    found.table()           # tidy: a row per candidate and layer, and one per candidate over all layers

Observations come from `watched` prompts, at the inputs that layers meet when nothing overflows. Quality and overflow
counts are those of the narrow register itself, whose errors change what later layers and steps see.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.accumulators.registers import Register, register_of
from fpsim.accumulators import Accumulator, FixedPoint
from fpsim.formats import scalar_format

if TYPE_CHECKING:
    import pandas as pd

LOG = logging.getLogger(__name__)

#: called with (what is being done, how much of it is done, in all)
Tell = Callable[[str, float, float], None]

#: What measurements depend on besides `analysis.plan`'s sources.
_FILES = (
    "accumulators/__init__.py",
    "accumulators/runs.py",
    "accumulators/partial_sums.py",
    "accumulators/registers.py",
)


def _sources() -> dict[str, str]:
    """File -> hash, of those and of what judges pictures."""
    here = Path(__file__).parent.parent
    files = [*(here / name for name in _FILES), *sorted((here / "metrics").glob("*.py"))]
    return {str(file.relative_to(here)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One accumulator and the method that made the weights for it.

    accumulator : as words (`hwmodels.rtl.accumulator`: "int16-saturate", "fixed40", "f16-rz", "dot16-f25"), or "" for
                  tiles, whose `register` says it all
    overflow    : of a two-level register
    """

    accumulator: str = ""
    register: Register | None = None
    overflow: str = "wrap"
    method: str = "rtn"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.accumulator) == (self.register is not None):
            raise ValueError("a candidate is an accumulator in words or a two-level register: give one of the two")
        if self.overflow not in ("wrap", "saturate"):
            raise ValueError(f"overflow must be 'wrap' or 'saturate', not {self.overflow!r}")
        self.kind  # noqa: B018 - words that spell nothing are refused here

    @property
    def kind(self) -> Accumulator:
        """The accumulator itself."""
        if self.register is not None:
            return self.register.accumulator("saturate" if self.overflow == "saturate" else "wrap")
        return _spelled(self.accumulator)

    @property
    def bits(self) -> int | None:
        """Width of the register, the inner one of two; None for floats, and where there is none."""
        kind = self.kind
        found = register_of(kind)
        if found is not None:
            return found.bits
        return kind.bits if isinstance(kind, FixedPoint) else None

    def reach(self, a: str, b: str) -> int | None:
        """Bits of a register that begins at the smallest product of the formats a and b and reaches as high as this."""
        kind, row = self.kind, scalar_format
        if not isinstance(kind, FixedPoint) or kind.lsb is None:
            return self.bits
        return kind.bits + kind.lsb - (FixedPoint(kind.bits).placed(row(a), row(b)).lsb or 0)

    @property
    def words(self) -> str:
        """The accumulator: "int16-saturate", "int16 per 64 in int22"."""
        if self.register is None:
            return self.accumulator
        return self.register.label + ("-saturate" if self.overflow == "saturate" else "")

    @property
    def recipe(self) -> str:
        """The method with its options: "rtn", "a2q search=true"."""
        return " ".join([self.method, *(f"{key}={str(value).lower()}" for key, value in self.options.items())])

    @property
    def label(self) -> str:
        """Unique within a study."""
        return f"{self.words}, {self.recipe}"


@lru_cache(maxsize=256)
def _spelled(words: str) -> Accumulator:
    from hwmodels import rtl

    return rtl.accumulator(words)


#: Options that methods are given in `grid`: the better rounding and steps, which cost nothing and bound as surely.
OPTIONS: Mapping[str, Mapping[str, Any]] = {"a2q": {"search": True, "rounding": "nearest"}}


def grid(
    bits: Sequence[int],
    overflow: Sequence[str] = ("wrap", "saturate"),
    methods: Sequence[str] = ("rtn",),
    tile: int | None = None,
    outer: int | None = None,
) -> tuple[Candidate, ...]:
    """Every integer register of `bits` with every method. Methods that leave no overflow run with the first kind of it.

    tile, outer : two-level registers, `bits` being the inner ones; `outer` by default 8 bits wider
    """
    if bool(outer) and tile is None:
        raise ValueError("outer belongs to tiles: give tile too")
    made = []
    for method in methods:
        for width in bits:
            options: dict[str, Any] = dict(OPTIONS.get(method, {}))
            if method in GUARDED:
                options["bits"] = width
            register = None
            if tile is not None:
                register = Register(bits=width, tile=tile, outer=outer or width + 8)
                if method in GUARDED:
                    options |= {"tile": tile, "outer": register.outer}
            for kind in overflow[:1] if method in GUARDED else overflow:
                words = "" if register is not None else f"int{width}" + ("" if kind == "wrap" else f"-{kind}")
                made.append(
                    Candidate(accumulator=words, register=register, overflow=kind, method=method, options=options)
                )
    return tuple(made)


#: Methods that know the register they quantize for.
GUARDED = ("a2q", "oaq")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What to find out, on which pipeline.

    prompts, steps, guidance, seed : of the pictures; calibration : other prompts, for activation ranges
    watched : calibration prompts whose partial sums are looked at, `rows` random rows of each call of a layer
    counted : steps of one prompt that every overflow is counted on, output by output; 0: none
    """

    pipeline: str
    candidates: tuple[Candidate, ...]
    scheme: str = "int8-w8a8"
    prompts: int = 8
    steps: int = 20
    guidance: float = 3.0
    seed: int = 0
    batch: int = 8
    calibration: int = 8
    watched: int = 2
    rows: int = 128
    counted: int = 2

    def __post_init__(self) -> None:
        labels = [one.label for one in self.candidates]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"candidate {label!r} is there twice")
        for name in ("prompts", "steps", "batch", "calibration", "watched", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.watched > self.calibration or self.counted < 0:
            raise ValueError(f"watched is at most calibration={self.calibration}, counted at least 0")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One candidate in one layer, or in all of them (layer "all": the widest of each width, sums of counts).

    a, b : formats of the codes; products : per sum; macs : of a picture, all its steps and both halves of guidance
    data_type .. final : widths in bits that hold sums, see `analysis.accumulators.partial_sums`
    needing  : share of watched outputs with a partial sum in order beyond the register; None for tiles
    overflow, overflowed : overflows, and the share of outputs with any, while it ran; truncated: share of products that
        lost bits in alignment; None where nothing was counted
    gates    : of a multiply-accumulate, register aside; energy : joules per picture of the products of quantized layers
    gates_saved, energy_saved : against the 32-bit register, for integers
    correct, psnr : of all layers; intervals from a bootstrap over prompts
    """

    pipeline: str
    scheme: str
    method: str
    accumulator: str
    bits: int | None
    layer: str
    kind: str
    a: str
    b: str
    products: int
    macs: float
    data_type: int
    weight: int
    any_order: int
    in_order: int
    final: int
    needing: float | None
    overflow: int | None = None
    overflowed: float | None = None
    truncated: float | None = None
    gates: float | None = None
    gates_saved: float | None = None
    energy: float | None = None
    energy_saved: float | None = None
    correct: float | None = None
    correct_low: float | None = None
    correct_high: float | None = None
    psnr: float | None = None
    psnr_low: float | None = None
    psnr_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A finished study; `notes` say what is missing and why; `folder`: its files, None if it was not kept."""

    study: Study
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def table(self) -> pd.DataFrame:
        """Tidy: a row per candidate and layer, and one per candidate with layer "all"."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows], columns=[item.name for item in fields(Row)])

    @property
    def whole(self) -> tuple[Row, ...]:
        """The rows over all layers."""
        return tuple(row for row in self.rows if row.layer == ALL)


ALL = "all"


def study(asked: Study, runs: Path | None = None, device: str = "cpu", progress: Tell | None = None) -> Found:
    """Answer `asked`; with `runs`, candidates that are done are kept there and a stopped study goes on.

    Writes results.csv and accumulators.png into its run directory. Raises ValueError for anything wrong with the input.
    """
    from analysis.models import embedded
    from analysis.plan import surroundings
    from analysis.store import RunDirectory, digest

    if runs is None:
        return _answer(asked, None, device, progress or (lambda *_: None))
    row = embedded.PIPELINES.get(asked.pipeline)
    folder = Path(asked.pipeline) if row is None else row.directory
    around = surroundings(folder, variant=asked.pipeline if row is not None and row.outliers else "", device=device)
    settings = {item.name: getattr(asked, item.name) for item in fields(asked) if item.name != "candidates"}
    # Candidates are no part of the key: a study with one more finds what the others measured.
    key = digest({"study": settings, "surroundings": around, "sources": _sources()})
    named = f"accumulators-{asked.pipeline if row is not None else folder.name}"
    directory = RunDirectory.open(runs, name=named, key=key, manifest={"study": settings, "surroundings": around})
    with directory.lock():
        return _answer(asked, directory.path, device, progress or (lambda *_: None))


def _answer(asked: Study, folder: Path | None, device: str, tell: Tell) -> Found:
    from analysis.accumulators.cost import costs
    from analysis.accumulators.plot import draw
    from analysis.accumulators.runs import Laboratory
    from analysis.store import digest, write_atomic

    lab = Laboratory(asked, device, tell)
    measured: list[list[Row]] = []
    for index, candidate in enumerate(asked.candidates):
        tell("measuring", index, len(asked.candidates))
        file = None if folder is None else folder / f"{digest(to_dict(candidate))[:16]}.json"
        measured.append(lab.rows(candidate, file))
        LOG.info("%s: done", candidate.label)
    tell("measuring", len(asked.candidates), len(asked.candidates))
    rows: list[Row] = []
    notes: dict[str, None] = {}
    for candidate, parts in zip(asked.candidates, measured, strict=True):
        unit = costs(candidate, parts[0].a, parts[0].b)
        notes |= dict.fromkeys(unit.notes)
        rows += [unit.added(row) for row in parts]
    found = Found(study=asked, rows=tuple(rows), notes=tuple(notes), folder=folder)
    if folder is not None:
        write_atomic(folder / "results.csv", found.table().to_csv(index=False).encode())
        write_atomic(folder / "accumulators.png", draw(found))
    return found


def to_dict(candidate: Candidate) -> dict[str, Any]:
    """Plain values."""
    return {**asdict(candidate), "options": dict(candidate.options)}
