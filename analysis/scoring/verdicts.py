"""Whether a configuration can be told from full precision on the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from analysis.plan import REFERENCE, Plan
from analysis.scoring.rows import Asked, QualityRow

#: what decides where there is ground truth, with the direction that is worse
DECISIVE = {"correct_change": -1, "residual_change": 1}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What paired differences to full precision say.

    asked      : the metrics that decide: those of ground truth; without it, further ones that know which way is better.
                 Empty: nothing does, PSNR and SSIM say how far a picture is and not whether it is worse
    told_apart : those whose interval leaves out zero, in the worse direction; better : in the other one
    resolution : the change of prompts obeyed that this many prompts cannot rule out (95 %: a loss this large may hide);
                 None without ground truth
    """

    configuration: str
    prompts: int
    asked: tuple[str, ...]
    told_apart: tuple[str, ...]
    better: tuple[str, ...]
    resolution: float | None

    @property
    def indistinguishable(self) -> bool:
        return bool(self.asked) and not self.told_apart and not self.better


def verdicts(plan: Plan, table: Sequence[QualityRow], extra: Sequence[Asked] = ()) -> dict[str, Verdict]:
    """One per configuration and for the noise floor."""
    found = {}
    for row in plan.rows:
        if row.label == REFERENCE:
            continue
        ours = {entry.metric: entry for entry in table if entry.configuration == row.label}
        deciding = {metric: worse for metric, worse in (decisive(table, extra)).items() if metric in ours}
        told = {metric: _direction(ours[metric]) * worse for metric, worse in deciding.items()}
        change = ours.get("correct_change")
        resolution = None
        if change is not None:
            resolution = max(-(change.low or 0.0), unseen(row.prompts, plan.experiment.quality.confidence))
        found[row.label] = Verdict(
            configuration=row.label,
            prompts=row.prompts,
            asked=tuple(deciding),
            told_apart=tuple(metric for metric, way in told.items() if way > 0),
            better=tuple(metric for metric, way in told.items() if way < 0),
            resolution=resolution,
        )
    return found


def decisive(table: Sequence[QualityRow], extra: Sequence[Asked]) -> Mapping[str, int]:
    """Metric -> the direction that is worse."""
    if any(entry.metric in DECISIVE for entry in table):
        return DECISIVE
    return {f"{one.name}_change": -one.better for one in extra if one.better and not one.paired}


def _direction(entry: QualityRow) -> int:
    """+1 or -1 if the interval leaves out zero on that side, 0 if it does not."""
    if entry.low is None or entry.high is None or entry.low <= 0 <= entry.high:
        return 0
    return 1 if entry.value > 0 else -1


def unseen(prompts: int, confidence: float) -> float:
    """The rate of an event that a sample without a single one cannot rule out: 1 - (1 - confidence)**(1/n).

    The exact binomial bound (Clopper and Pearson 1934) at zero successes; about 3/n at 95 %. A bootstrap of equal
    values has width zero, which would read as certainty.
    """
    return float(1 - (1 - confidence) ** (1 / prompts))
