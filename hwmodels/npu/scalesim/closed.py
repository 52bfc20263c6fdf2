"""Cycles, SRAM accesses and utilisations of SCALE-Sim 3.0.0, as closed forms.

With the folds of `schedule.py`, fr = ceil(Sr / R), fc = ceil(Sc / C):

* cycles: fr * fc * P - 1, since the last line's index is reported and not the number of lines;
* SRAM: os M*K*fc, K*N*fr, M*N + fr*fc*(R + C), the last term counted by mistake; ws fc*M*K, K*N, fr*M*N;
  is M*K, fc*K*N, fr*M*N;
* overall utilisation: 100 * M*N*K / (cycles * R * C); mapping and compute utilisation: means over folds of a*b / (R*C)
  and of a*b*T / (R*C*X), with X = R + C + T - 2 (os) and 2R + 2C + T - 3 (ws, is), which is not its own P.

The means are added up fold by fold, in order, because floating-point sums depend on it and the last digit counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .cfg import Config
from .schedule import widths
from .topology import Indices, Layer

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Closed:
    """One element per layer; percentages as SCALE-Sim prints them, cycles without stalls."""

    cycles: Indices
    ifmap_sram: Indices
    filter_sram: Indices
    ofmap_sram: Indices
    overall: Floats
    mapping: Floats
    compute: Floats


def _mean(rows: Indices, columns: Indices, scale: int, area: int) -> float:
    """Mean over folds of a*b*scale / area, added up in the order of the folds."""
    values = columns[:, None] * rows[None, :] * scale / area
    return float(np.add.accumulate(values.ravel())[-1]) / values.size


def _means(sr: int, sc: int, t: int, config: Config) -> tuple[float, float]:
    r, c = config.rows, config.columns
    rows, columns = widths(sr, r), widths(sc, c)
    span = r + c + t - 2 if config.dataflow == "os" else 2 * r + 2 * c + t - 3
    if rows[-1] == r and columns[-1] == c:  # all folds alike, but 0.1 + 0.1 + ... is not n * 0.1
        mapping = 1.0
    else:
        mapping = _mean(rows, columns, 1, r * c)
    return mapping, _mean(rows, columns, t, r * c * span)


def closed_forms(layers: Sequence[Layer], config: Config) -> Closed:
    """All closed forms of all layers; layers of one shape are computed once."""
    shapes: dict[tuple[int, ...], int] = {}
    index = np.array([shapes.setdefault(layer.shape, len(shapes)) for layer in layers], dtype=np.int64)
    first = [layers[i] for i in np.unique(index, return_index=True)[1]]
    m, n, k = (np.array([getattr(layer, axis) for layer in first], dtype=np.int64) for axis in ("m", "n", "k"))
    r, c, flow = config.rows, config.columns, config.dataflow
    sr, sc, t = {"os": (m, n, k), "ws": (k, n, m), "is": (k, m, n)}[flow]
    fr, fc = -(-sr // r), -(-sc // c)
    period = (r if flow == "os" else 2 * r) + c + t - 2
    cycles = fr * fc * period - 1
    if flow == "os":
        sram = (fc * m * k, fr * k * n, m * n + fr * fc * (r + c))
    elif flow == "ws":
        sram = (fc * m * k, k * n, fr * m * n)
    else:
        sram = (m * k, fc * k * n, fr * m * n)
    means = np.array([_means(*sizes, config) for sizes in zip(sr.tolist(), sc.tolist(), t.tolist(), strict=True)])
    return Closed(
        cycles=cycles[index],
        ifmap_sram=sram[0][index],
        filter_sram=sram[1][index],
        ofmap_sram=sram[2][index],
        # integers below 2**53 on both sides, so this is the correctly rounded quotient Python's integers give
        overall=((m * n * k * 100) / (cycles * r * c))[index],
        mapping=(means[:, 0] * 100)[index],
        compute=(means[:, 1] * 100)[index],
    )
