"""The rows of the quality table, and of the table of single prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from analysis.plan import Row

Values = npt.NDArray[np.float64]

#: PSNR of equal pictures is infinite; float32 pictures in [0, 1] differ by 2**-24 at least, which is 144 dB.
EQUAL_DB = 144.0

#: metric -> (what a reader calls it, unit, +1 if more is better)
METRICS: Mapping[str, tuple[str, str, int]] = {
    "correct": ("prompts obeyed", "fraction", 1),
    "residual": ("residual to the nearest legal scene", "mean squared error", -1),
    "psnr": ("PSNR to full precision, same seed", "dB", 1),
    "ssim": ("SSIM to full precision, same seed", "", 1),
    "temporal_psnr": ("PSNR of frame-to-frame differences to full precision's, same seed", "dB", 1),
    "flicker": ("temporal flickering score of VBench, 1 for a still", "", 0),
    "flicker_change": ("change of the temporal flickering score", "", 0),
    "psnr_to_shortcut": ("PSNR to the same scheme summed in float32", "dB", 1),
    "frechet": ("Fréchet distance to clean scenes", "", -1),
    "correct_change": ("change of prompts obeyed", "fraction", 1),
    "residual_change": ("change of residual", "mean squared error", -1),
    "recovery": ("prompts obeyed, as a share of full precision's", "fraction", 1),
    "frechet_full": ("Fréchet distance to full precision's pictures", "", -1),
    "zeros": ("exact zeros among the quantized layers' weights", "fraction", 0),
}


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """One configuration and one metric. low, high: the bootstrap interval over prompts (None: no interval)."""

    configuration: str
    role: str
    scheme: str
    method: str
    engine: str
    metric: str
    unit: str
    against: str
    value: float
    low: float | None
    high: float | None
    prompts: int
    kind: str = "measured"


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One picture's scores; None where there is nothing to measure it against.

    psnr, ssim : to full precision, None for full precision itself; correct, residual : of scenes
    extra      : what else was asked for, by metric
    """

    configuration: str
    prompt: int
    caption: str
    seed: int
    correct: bool | None
    residual: float | None
    psnr: float | None
    ssim: float | None
    extra: Mapping[str, float | None]

    def flat(self) -> dict[str, Any]:
        """One record, each further metric under its own name."""
        made = {name: value for name, value in vars(self).items() if name != "extra"}
        return made | dict(self.extra)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A further metric as tables know it. paired: it compares with full precision, so there is none of it itself."""

    name: str
    title: str
    unit: str
    better: int
    package: str
    paired: bool


def interval_row(
    row: Row, metric: str, unit: str, values: Any, against: str = "", confidence: float = 0.95
) -> QualityRow:
    """Mean of per-prompt values with its bootstrap interval; an infinite PSNR counts as `EQUAL_DB`."""
    from analysis.metrics import bootstrap

    found = np.minimum(numbers(values), EQUAL_DB) if "psnr" in metric else numbers(values)
    made = bootstrap(found, confidence=confidence)
    return plain_row(row, metric, unit, float(made.estimate), against, float(made.low), float(made.high), len(found))


def plain_row(
    row: Row,
    metric: str,
    unit: str,
    value: float,
    against: str = "",
    low: float | None = None,
    high: float | None = None,
    prompts: int | None = None,
) -> QualityRow:
    """A number of a configuration, without an interval if none is given."""
    return QualityRow(
        configuration=row.label,
        role=row.role,
        scheme=row.configuration.scheme,
        method=row.configuration.method,
        engine=row.configuration.engine or "",
        metric=metric,
        unit=unit,
        against=against,
        value=value,
        low=low,
        high=high,
        prompts=row.prompts if prompts is None else prompts,
    )


def numbers(values: Any) -> Values:
    """Per-prompt values, however they are stored, as float64 (N,)."""
    return np.asarray(values, dtype=np.float64)
