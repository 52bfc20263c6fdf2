"""Mixed precision with real costs: which arithmetic each layer gets under a budget of time, energy or memory.

One candidate per layer is chosen so that the summed sensitivity (`analysis.sensitivity`) is as small as a budget
allows, where a choice costs what `hwmodels` says it costs on the device (`analysis.allocation.costs`), not its bits.
That is an integer program,

    minimise  sum_l s[l, c(l)]   such that   rest + sum_l cost[l, c(l)] <= budget,   one candidate c(l) per layer l

(a multiple-choice knapsack), which `scipy.optimize.milp` solves to optimality. Quantize work is part of the cost, so
a layer that is dearer in low precision stays out of it by itself.

`decoupled` does what MixDQ does (arXiv:2405.17873, section 4.3): scores of different metrics are not comparable, so
layers that decide content (cross-attention, feed-forward) and layers that decide quality (the others) get a program
and a share of the budget each; several shares are tried, and pictures say which was best.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.allocation.costs import Costs
from analysis.allocation.mixture import mixture
from analysis.allocation.program import SLACK, Indices, Values, least
from analysis.allocation.program import solve as solve
from analysis.pareto import front as undominated
from analysis.sensitivity import Metric, Sensitivity
from analysis.units import count, digits, seconds, size

if TYPE_CHECKING:
    from analysis.scheme import Scheme

#: Layers that decide what is in a picture; all others decide how well it is drawn.
CONTENT = ("*.ff.*", "*.attn2.*")


class Infeasible(ValueError):  # noqa: N818 - it reads as what is wrong
    """No choice keeps to the budget; `smallest` is the least budget that one keeps to."""

    def __init__(self, message: str, smallest: float) -> None:
        super().__init__(message)
        self.smallest = smallest


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """A candidate for every layer.

    budget  : what was allowed; cost : what it comes to, in the costs' unit
    metric  : what was minimised: "quality", "content", or "decoupled" with the `share` of the budget that content got
    quality, content : predicted scores of the whole, sums over layers (content None if it was not measured)
    choice  : layer path -> candidate
    scheme  : the same for `analysis.quantize`, `hwmodels.estimate` and experiment files
    """

    budget: float
    cost: float
    metric: str
    quality: float
    content: float | None
    choice: Mapping[str, str]
    scheme: Scheme
    share: float | None = None

    def counts(self) -> dict[str, int]:
        """Layers in each candidate, the most used first."""
        return dict(Counter(self.choice.values()).most_common())


def allocate(
    sensitivity: Sensitivity, costs: Costs, budget: float, metric: Metric | None = None, name: str = "mixed"
) -> Allocation:
    """The least sensitive choice that costs at most `budget`, in the unit of `costs`.

    metric : what to keep; None is `usual_metric`

    Raises Infeasible, a ValueError of one line that names the smallest feasible budget, and ValueError where the two
    speak of different layers or candidates.
    """
    metric = metric or usual_metric(sensitivity)
    scores = _scores(sensitivity, costs, metric)
    chosen = solve(scores, costs.values, _within(costs, budget))
    return _allocation(sensitivity, costs, budget, metric, chosen, name)


def usual_metric(sensitivity: Sensitivity) -> Metric:
    """Content where pictures were judged: at equal cost a mixture chosen by it drew pictures of 43.8 dB, one chosen by
    the SQNR of the output 39.8 dB (docs/mixed-precision.md, shapes-sd, 16 prompts, 2026-11-22)."""
    return "quality" if sensitivity.content is None else "content"


def front(
    sensitivity: Sensitivity, costs: Costs, points: int = 8, metric: Metric | None = None, name: str = "mixed"
) -> tuple[Allocation, ...]:
    """Allocations from the cheapest there is to the least sensitive one, budgets evenly spread between; cheapest first.

    metric : what to keep; None is `usual_metric`
    Each costs more than the one before it and is less sensitive; equal ones are left out. The last one's cost is the
    least at which nothing is gained by spending more.
    """
    if points < 2:
        raise ValueError(f"a front takes at least 2 points, not {points}")
    metric = metric or usual_metric(sensitivity)
    scores = _scores(sensitivity, costs, metric)
    low = cheapest(costs)
    high = _cost(costs, solve(scores, costs.values, np.full(len(costs.rest), np.inf)))
    found = []
    for i, budget in enumerate(np.linspace(low, max(low, high), points).tolist()):
        chosen = solve(scores, costs.values, _within(costs, budget))
        found.append(_allocation(sensitivity, costs, budget, metric, chosen, f"{name}-{i + 1}"))
    kept = undominated([(one.cost, -(getattr(one, metric) or 0.0)) for one in found])
    return tuple(found[index] for index in kept)


def decoupled(
    sensitivity: Sensitivity,
    costs: Costs,
    budget: float,
    shares: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    content: Sequence[str] = CONTENT,
    name: str = "mixed",
) -> tuple[Allocation, ...]:
    """Two programs, one for each metric: an allocation for each share of the budget that content layers get.

    Every group first gets what its cheapest choice costs; `shares` divides what is left. Layers whose path matches one
    of the shell patterns `content` are judged by content, the others by quality. Equal allocations are left out.

    Raises Infeasible as `allocate` does, and ValueError for patterns that match no layer, or all.
    """
    content_scores, quality_scores = (_scores(sensitivity, costs, metric) for metric in ("content", "quality"))
    inside = np.array([any(fnmatch.fnmatchcase(path, one) for one in content) for path in costs.layers])
    if inside.all() or not inside.any():
        raise ValueError(
            f"patterns {', '.join(content)} match {'all' if inside.all() else 'none'} of the layers, "
            f"which are named like {costs.layers[0]}: there are no two groups to decouple"
        )
    limits = _within(costs, budget)
    base = least(costs)
    spent = costs.values[:, np.arange(len(base)), base]
    spare = limits - spent.sum(axis=1)
    found: dict[bytes, Allocation] = {}
    for share in shares:
        if not 0 <= share <= 1:
            raise ValueError(f"a share lies between 0 and 1, not {share}")
        chosen = base.copy()
        for group, scores, part in ((inside, content_scores, share), (~inside, quality_scores, 1 - share)):
            room = spent[:, group].sum(axis=1) + part * np.maximum(spare, 0.0)
            chosen[group] = solve(scores[group], costs.values[:, group], room * (1 + SLACK))
        if chosen.tobytes() not in found:
            label = f"{name}-{round(100 * share)}"
            found[chosen.tobytes()] = _allocation(sensitivity, costs, budget, "decoupled", chosen, label, share)
    return tuple(found.values())


def cheapest(costs: Costs) -> float:
    """The smallest budget there is a choice for."""
    return _cost(costs, least(costs))


def _within(costs: Costs, budget: float) -> Values:
    """What each sum may come to. Raises Infeasible if nothing does."""
    smallest = cheapest(costs)
    if not budget >= smallest * (1 - SLACK):
        raise Infeasible(
            f"no choice keeps to {costs.what} {in_units(costs, budget)}; the smallest feasible budget is "
            f"{in_units(costs, smallest)} ({costs.about})",
            smallest,
        )
    return budget * (1 + SLACK) - costs.rest


def in_units(costs: Costs, value: float) -> str:
    """A cost for people, with enough digits to be given back as a budget."""
    show = {"s": seconds, "B": size}.get(costs.unit)
    if show is not None and abs(value) > 0:
        return f"{show(value)} ({digits(value, 6)} {costs.unit})"
    return count(value, costs.unit)


def _cost(costs: Costs, chosen: Indices) -> float:
    return float((costs.values[:, np.arange(len(chosen)), chosen].sum(axis=1) + costs.rest).max())


def _scores(sensitivity: Sensitivity, costs: Costs, metric: Metric) -> Values:
    if tuple(sensitivity.layers) != costs.layers or tuple(sensitivity.candidates) != costs.candidates:
        raise ValueError("sensitivity and costs must speak of the same layers and candidates, in the same order")
    return sensitivity.scores(metric)


def _allocation(
    sensitivity: Sensitivity,
    costs: Costs,
    budget: float,
    metric: str,
    chosen: Indices,
    name: str,
    share: float | None = None,
) -> Allocation:
    choice = {path: costs.candidates[which] for path, which in zip(costs.layers, chosen.tolist(), strict=True)}
    rows = np.arange(len(chosen))
    return Allocation(
        budget=budget,
        cost=_cost(costs, chosen),
        metric=metric,
        quality=float(sensitivity.scores("quality")[rows, chosen].sum()),
        content=None if sensitivity.content is None else float(sensitivity.scores("content")[rows, chosen].sum()),
        choice=choice,
        scheme=mixture(name, choice, sensitivity.layers, sensitivity.candidates),
        share=share,
    )
