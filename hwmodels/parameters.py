"""The global parameters of the GPU model, and the file they live in."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The global parameters, one set for all devices (values: fitted by `calibrate.py` on hwmodels/measurements).

    Times in seconds, prologues and latency in SM cycles, the fill window in bytes, loads in bytes and rates in elements
    per clock and SM, the rest are fractions.  Efficiencies are relative to the rate at the sustained clock; attention's
    may exceed 1, since it draws less power than a product.  mma, wgmma, tcgen05: how a generation feeds its tensor
    cores (`gpu_tiles.ENGINES`).
    """

    fixed: float
    efficiency_mma: float
    efficiency_wgmma: float
    efficiency_tcgen05: float
    prologue_mma: float
    prologue_wgmma: float
    fill_window: float
    fill_bytes: float
    store_bytes: float
    load_bytes: float
    l2_bytes: float
    l2_share: float
    hbm: float
    tail: float
    split_fixed: float
    throttle: float
    pointwise_fixed: float
    pointwise_hbm: float
    amax_fixed: float
    amax_bytes: float
    scalar_rate: float
    math_rate: float
    latency: float
    attention_overlap: float
    attention_efficiency: float

    def to_dict(self) -> dict[str, float]:
        """Name -> value."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


NAMES = tuple(item.name for item in fields(Parameters))
PARAMETERS = Path(__file__).parent / "gpu_parameters.toml"


@lru_cache(maxsize=8)
def load(path: Path = PARAMETERS) -> Parameters:
    """The fitted parameters; ValueError names one that is missing or unknown."""
    with path.open("rb") as file:
        values = tomllib.load(file)
    known = {item.name for item in fields(Parameters)}
    wrong = sorted(known ^ values.keys())
    if wrong:
        raise ValueError(f"{path.name}: {', '.join(wrong)} missing or unknown; allowed: {', '.join(sorted(known))}")
    return Parameters(**{name: float(value) for name, value in values.items()})
