"""The integer programs behind `analysis.allocation`: one candidate per layer, sums within limits."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.allocation.costs import Costs

#: Relative slack of a budget: sums of floats in another order differ by less.
SLACK = 1e-9

Values = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def solve(scores: Values, values: Values, limits: Values) -> Indices:
    """The choice per layer with the least summed score, within every limit: int64 (layers,).

    scores : (layers, candidates), at least 0; values : (sums, layers, candidates); limits : (sums,), inf for none

    Optimal to 1e-6 of the optimum: the solver's absolute tolerance counts in units of the answer, found by solving
    again without the choices that are worse than all of a known answer. Raises ValueError if nothing fits.
    """
    allowed = ~_dominated(scores, values)
    unit, chosen = float(scores.max(axis=1).sum()), np.argmin(np.where(allowed, scores, np.inf), axis=1)
    rows = np.arange(len(scores))
    if (values[:, rows, chosen].sum(axis=1) <= limits).all():
        return chosen
    while unit > 0:
        chosen = _program(scores / unit, values, limits, allowed)
        reached = float(scores[rows, chosen].sum())
        if reached > 1e-3 * unit:
            break
        unit, allowed = reached, allowed & (scores <= reached)
    return chosen


def _program(scores: Values, values: Values, limits: Values, allowed: npt.NDArray[np.bool_]) -> Indices:
    from scipy.optimize import Bounds, LinearConstraint
    from scipy.sparse import csr_array

    where, which = np.nonzero(allowed)
    one_each = csr_array((np.ones(len(where)), (where, np.arange(len(where)))), shape=(len(scores), len(where)))
    amounts = values[:, where, which]
    scale = np.where(limits > 0, limits, np.abs(amounts).max(axis=1, initial=1e-300) * len(scores))
    room = limits / scale
    for _ in range(4):
        found = _milp(
            scores[where, which],
            integrality=np.ones(len(where)),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(amounts / scale[:, None], -np.inf, room)],
            options={"mip_rel_gap": 1e-6},
        )
        if found.x is None:
            break
        chosen = np.zeros(len(scores), dtype=np.int64)
        taken = found.x > 0.5
        chosen[where[taken]] = which[taken]
        over = values[:, np.arange(len(scores)), chosen].sum(axis=1) / scale - limits / scale
        if (over <= SLACK).all():
            return chosen
        room = room - np.maximum(over, 0) - 1e-9  # the solver lets rows be 1e-6 over; ask for that much less
    raise ValueError(f"no choice keeps to the limits {limits.tolist()} ({found.message})")


def _milp(*arguments: Any, **options: Any) -> Any:
    """`scipy.optimize.milp`, silently: some versions of its solver print a line for debugging that no option stops, and
    standard output may be JSON."""
    from scipy.optimize import milp

    sys.stdout.flush()
    own = os.dup(1)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        return milp(*arguments, **options)
    finally:
        ctypes.CDLL(None).fflush(None)  # what the solver's C library still holds back
        os.dup2(own, 1)
        os.close(own)


def _dominated(scores: Values, values: Values) -> npt.NDArray[np.bool_]:
    """(layers, candidates): another candidate costs no more in any sum and scores no worse, the first of equal ones."""
    number = scores.shape[1]
    worse = np.zeros(scores.shape, dtype=bool)
    for a in range(number):
        for b in range(number):
            if a != b:
                no_better = (scores[:, b] <= scores[:, a]) & (values[:, :, b] <= values[:, :, a]).all(axis=0)
                better = (scores[:, b] < scores[:, a]) | (values[:, :, b] < values[:, :, a]).any(axis=0)
                worse[:, a] |= no_better & (better | (b < a))
    return worse


def least(costs: Costs) -> Indices:
    """The cheapest choice. With several sums, the one whose largest is least."""
    from scipy.optimize import Bounds, LinearConstraint
    from scipy.sparse import csr_array, hstack

    sums, layers, candidates = costs.values.shape
    if sums == 1:
        return np.argmin(costs.values[0], axis=1).astype(np.int64)
    cells = layers * candidates  # one variable for each, and one more: the largest sum
    one_each = csr_array((np.ones(cells), (np.arange(cells) // candidates, np.arange(cells))), shape=(layers, cells))
    scale = float(np.abs(costs.values).max() * layers + np.abs(costs.rest).max()) or 1.0
    found = _milp(
        np.append(np.zeros(cells), 1.0),
        integrality=np.append(np.ones(cells), 0),
        bounds=Bounds(0, np.append(np.ones(cells), np.inf)),
        constraints=[
            LinearConstraint(hstack([one_each, csr_array((layers, 1))]), 1, 1),
            LinearConstraint(
                np.column_stack([costs.values.reshape(sums, cells) / scale, -np.ones(sums)]),
                -np.inf,
                -costs.rest / scale,
            ),
        ],
    )
    if found.x is None:
        raise ValueError(f"the cheapest choice was not found: {found.message}")
    return np.argmax(found.x[:cells].reshape(layers, candidates), axis=1).astype(np.int64)
