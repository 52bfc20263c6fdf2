"""One picture of a study of accumulators: what each layer needs, and what pictures are like when it does not get it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.accumulators import ALL, Found, Row
from analysis.plots import COLOURS, FONT, INK, SHAPES, SOFT, _frame, _png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: width of a layer -> how it is called
WIDTHS = {
    "data_type": "data types",
    "weight": "weights",
    "any_order": "seen, any order",
    "in_order": "seen, in order",
}


def draw(found: Found, dpi: int = 160) -> bytes:
    """PNG. Above, for each layer in the order of execution, the widths that hold its sums, as the first method made
    them; below, against the register's width, the fidelity of the pictures and the gates of the unit."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 6.4), dpi=dpi, facecolor="white", layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1, 1.15))
    first = found.whole[0]
    layers = [row for row in found.rows if row.layer != ALL and _same(row, first)]
    _layers(above, layers, first)
    _quality(below, found)
    return _png(figure)


def _same(row: Row, other: Row) -> bool:
    return (row.method, row.accumulator) == (other.method, other.accumulator)


def _layers(axes: "Axes", rows: Sequence[Row], first: Row) -> None:
    _frame(axes)
    places = range(len(rows))
    for index, (name, label) in enumerate(WIDTHS.items()):
        values = [getattr(row, name) for row in rows]
        axes.step(places, values, where="mid", color=COLOURS[index], linewidth=1.3, label=label)
    axes.set_title(
        f"Bits each layer's sums need: {first.pipeline}, {first.scheme}, {first.method}",
        fontsize=10, color=INK, loc="left", weight="bold", family=FONT["family"],
    )  # fmt: skip
    axes.set_xlabel("layers, in the order the denoiser defines them", fontsize=8, color=SOFT)
    axes.set_ylabel("bits", fontsize=8, color=SOFT)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7.5, frameon=False, labelcolor=INK)


def _quality(axes: "Axes", found: Found) -> None:
    _frame(axes)
    for index, (label, rows) in enumerate(_series(found.whole).items()):
        colour, shape = COLOURS[index % len(COLOURS)], SHAPES[index % len(SHAPES)]
        points = sorted((row for row in rows if row.psnr is not None), key=lambda row: row.bits or 0)
        aside = 0.12 * (index - 1)  # so that series do not hide each other
        where = [(row.bits or 0) + aside for row in points]
        axes.plot(where, [row.psnr or 0.0 for row in points], color=colour, linewidth=1, alpha=0.6)
        for x, row in zip(where, points, strict=True):
            axes.plot([x, x], [row.psnr_low or 0.0, row.psnr_high or 0.0], color=colour, linewidth=1.3)
        axes.plot(
            where, [row.psnr or 0.0 for row in points], shape, color=colour, markersize=6.5,
            markeredgecolor="white", markeredgewidth=0.8, linestyle="none", label=label,
        )  # fmt: skip
    plain = [row for row in found.whole if not row.accumulator.endswith("saturate")]
    widths = {row.bits: row.gates for row in plain if row.bits is not None and row.gates is not None}
    ticks = sorted({row.bits for row in found.whole if row.bits is not None})
    axes.set_xticks(ticks, [f"{bits}\n{widths[bits]:.0f}" if bits in widths else str(bits) for bits in ticks])
    axes.set_title(
        "Pictures against full precision, in that register bit for bit",
        fontsize=10, color=INK, loc="left", weight="bold", family=FONT["family"],
    )  # fmt: skip
    axes.set_xlabel("bits of the register; below, gates of the multiply-accumulate that wraps", fontsize=8, color=SOFT)
    axes.set_ylabel("PSNR, dB", fontsize=8, color=SOFT)
    axes.margins(x=0.05, y=0.1)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7.5, frameon=False, labelcolor=INK)


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Candidates that differ in nothing but their width, under a name."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.bits is None:
            continue
        rule = "saturates" if row.accumulator.endswith("saturate") else "wraps"
        tiles = "" if " per " not in row.accumulator else f", tiles of {row.accumulator.split()[2]}"
        method = " ".join(word for word in row.method.split() if not _of_width(word))
        found.setdefault(f"{_short(method)}{tiles}" + (f", {rule}" if method == "rtn" else ""), []).append(row)
    return found


def _of_width(word: str) -> bool:
    return word.partition("=")[0] in ("bits", "tile", "outer", "search", "rounding")


def _short(method: str) -> str:
    words: dict[str, Any] = {"rtn": "round to nearest", "a2q": "A2Q bound", "oaq": "overflow-aware"}
    name, _, rest = method.partition(" ")
    trained = "trained=" in rest
    return f"{words.get(name, name)}{', trained' if trained else ''}"
