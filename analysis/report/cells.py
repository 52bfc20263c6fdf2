"""One number of a page, with its interval or its unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.pricing import FALLBACK, NOT_SUPPORTED, CostRow
from analysis.scoring import QualityRow
from analysis.units import count, digits

#: what stands in place of an interval where the number is no estimate from a sample
_WITHOUT = {"zeros": "counted"}

#: metric -> (factor, digits after the point, sign shown)
_SHOWN: Mapping[str, tuple[float, int, bool]] = {
    "correct": (100, 1, False),
    "correct_change": (100, 1, True),
    "residual": (1000, 2, False),
    "residual_change": (1000, 2, True),
    "psnr": (1, 1, False),
    "psnr_to_shortcut": (1, 1, False),
    "ssim": (1, 3, False),
    "temporal_psnr": (1, 1, False),
    "flicker_change": (1, 4, True),
    "frechet": (1, 2, False),
    "frechet_full": (1, 2, False),
    "zeros": (100, 1, False),
    "recovery": (100, 1, False),
}


#: metrics that others bring
_SHOWN_OTHERWISE = (1, 3, False)


def cell(row: QualityRow | None) -> dict[str, Any]:
    """Main number, interval under it, and the number itself for sorting."""
    if row is None:
        return {"main": "—", "interval": "", "value": ""}
    factor, places, sign = _SHOWN.get(row.metric, _SHOWN_OTHERWISE)
    form = f"{{:{'+' if sign else ''}.{places}f}}"
    shown = [
        form.format(_unsigned(value * factor, places)) for value in (row.value, row.low, row.high) if value is not None
    ]
    return {
        "main": shown[0],
        "interval": f"{shown[1]} to {shown[2]}" if len(shown) == 3 else _WITHOUT.get(row.metric, "no interval"),
        "value": row.value,
    }


def _unsigned(value: float, places: int) -> float:
    """No minus sign before a zero."""
    return 0.0 if round(value, places) == 0 else value


def interval_cell(row: QualityRow | None, *, short: bool = False) -> str:
    """`98.4 (95.3 to 100.0)`; short: `98.4 [95.3, 100.0]`."""
    if row is None:
        return "—"
    made = cell(row)
    if row.low is None:
        return str(made["main"])
    return (
        f"{made['main']} [{made['interval'].replace(' to ', ', ')}]"
        if short
        else f"{made['main']} ({made['interval']})"
    )


def seconds_cell(value: float) -> str:
    return f"{digits(value)} s" if value >= 0.1 else f"{digits(value * 1000)} ms"


def cost_cell(row: CostRow) -> str:
    """`1.23 s (1.80x) *` for a terminal; the star marks a fallback."""
    if row.time_per_image is None:
        return NOT_SUPPORTED
    speedup = "" if row.speedup is None else f" ({row.speedup:.2f}x)"
    return f"{seconds_cell(row.time_per_image)}{speedup}{' *' if row.support == FALLBACK else ''}"


def silicon_words(row: CostRow) -> list[str]:
    """`12.3 Mcycles`, `0.12 J`, `586 gates`: what is known of an array."""
    return [
        *([] if row.cycles_per_image is None else [f"{count(row.cycles_per_image)}cycles"]),
        *([] if row.energy_per_image is None else [f"{digits(row.energy_per_image)} J"]),
        *([] if row.gates is None else [f"{row.gates:.0f} gates"]),
    ]
