"""Pictures for the report: the image grid and the Pareto plots, as PNG bytes.

Drawn without a display and without global state: each figure is an object of its own, so several threads may draw.
"""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.pareto import front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from analysis.store import Images

INK, SOFT, RULE = "#1d2733", "#6b7785", "#d9dee4"
#: Okabe and Ito's colours, told apart by people who do not see red or green; shapes repeat the distinction.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6d31")
SHAPES = ("o", "s", "D", "^", "v", "P", "X", "*")
FONT = {"family": "DejaVu Sans", "size": 9}


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One line of the image grid: a name, a remark under it, and its pictures (None where it has no such prompt)."""

    label: str
    remark: str
    images: Sequence[Images | None]  # each (3, H, W) in [0, 1]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration in a Pareto plot. low, high: the interval of the quality, None if there is none."""

    label: str
    cost: float
    quality: float
    low: float | None = None
    high: float | None = None


def picture(image: Images) -> str:
    """One (3, H, W) picture in [0, 1] as a base64 PNG."""
    from PIL import Image

    out = io.BytesIO()
    pixels = np.rint(np.clip(np.moveaxis(image, 0, -1), 0, 1) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(out, format="png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def image_grid(rows: Sequence[GridRow], captions: Sequence[str], scale: int = 2, dpi: int = 144) -> bytes:
    """Rows are configurations, columns prompts; every picture of a column started from the same noise.

    Pictures are enlarged by repeating pixels, so that what is seen is what was made.
    """
    from matplotlib.figure import Figure

    size = next(image.shape[-1] for row in rows for image in row.images if image is not None) * scale
    gap, left, top = 8, 210, 136
    width = left + len(captions) * (size + gap)
    height = top + len(rows) * (size + gap)
    figure = Figure(figsize=(width / 72, height / 72), dpi=dpi, facecolor="white")
    for column, caption in enumerate(captions):
        x = left + column * (size + gap)
        figure.text(
            x / width,
            1 - (top - 8) / height,
            "\n".join(textwrap.wrap(caption, 24)),
            fontsize=7.6,
            color=SOFT,
            va="bottom",
            family=FONT["family"],
        )
    for line, row in enumerate(rows):
        y = top + line * (size + gap)
        middle = 1 - (y + size / 2) / height
        name = "\n".join(textwrap.wrap(row.label, 22))
        figure.text(0.008, middle, name, fontsize=11, color=INK, va="bottom", weight="bold", family=FONT["family"])
        figure.text(0.008, middle - 4 / height, row.remark, fontsize=9, color=SOFT, va="top", family=FONT["family"])
        for column, image in enumerate(row.images):
            x = left + column * (size + gap)
            box = (x / width, 1 - (y + size) / height, size / width, size / height)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            if image is None:
                axes.text(0.5, 0.5, "not measured", ha="center", va="center", fontsize=7, color=SOFT)
            else:
                axes.imshow(np.clip(np.moveaxis(image, 0, -1), 0, 1), interpolation="nearest")
    return _png(figure)


def pareto(
    points: Sequence[Point],
    *,
    title: str,
    cost_name: str,
    quality_name: str,
    floor: float | None = None,
    floor_name: str = "",
    baseline: float | None = None,
    baseline_name: str = "",
    colours: dict[str, int] | None = None,
    dpi: int = 160,
) -> bytes:
    """Quality against projected time, the points that nobody beats joined by a line.

    floor: a dashed line, what chance alone gives; baseline: a dotted one, a cost to compare with.
    colours: label -> index, so that plots side by side agree.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.9), dpi=dpi, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    _frame(axes)
    index_of = colours or {point.label: index for index, point in enumerate(points)}
    if floor is not None:
        axes.axhline(floor, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            floor_name,
            (1, floor),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color=SOFT,
        )
    if baseline is not None:
        axes.axvline(baseline, color=SOFT, linewidth=0.9, linestyle=":", zorder=1)
        axes.annotate(
            baseline_name,
            (baseline, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3, -4),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",  # the floor's label lies at the bottom
            fontsize=7,
            color=SOFT,
        )
    best = [points[index] for index in front([(point.cost, point.quality) for point in points])]
    axes.plot(
        [point.cost for point in best],
        [point.quality for point in best],
        color=RULE,
        linewidth=3,
        zorder=1,
        solid_capstyle="round",
    )
    for point in points:
        colour = COLOURS[index_of[point.label] % len(COLOURS)]
        shape = SHAPES[index_of[point.label] % len(SHAPES)]
        if point.low is not None and point.high is not None:
            axes.plot([point.cost, point.cost], [point.low, point.high], color=colour, linewidth=1.3, zorder=2)
        axes.plot(
            point.cost,
            point.quality,
            shape,
            color=colour,
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.8,
            zorder=3,
            label=point.label,
            linestyle="none",
        )
    axes.set_title(title, fontsize=10, color=INK, loc="left", weight="bold", family=FONT["family"])
    axes.set_xlabel(cost_name, fontsize=8, color=SOFT)
    axes.set_ylabel(quality_name, fontsize=8, color=SOFT)
    axes.set_xlim(left=0)
    axes.margins(x=0.08, y=0.12)
    figure.legend(
        loc="outside lower center",
        ncols=3,
        fontsize=7.5,
        frameon=False,
        handletextpad=0.3,
        columnspacing=1.2,
        labelcolor=INK,
    )
    return _png(figure)


def _frame(axes: Axes) -> None:
    axes.grid(color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(RULE)
    axes.tick_params(colors=SOFT, labelsize=8, length=0)


def _png(figure: Figure) -> bytes:
    """PNG without the software's name or a date, so that equal figures are equal files."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
