"""What is no number, and what does not fit: the codes of NaN and Inf, per format, as constants.

Two rules of `fpsim.accumulators`. Steps (fused dot products): any NaN gives the engine's one NaN, overflow gives Inf
whatever the rounding. Chains (multiply-adds): IEEE 754, 7.4, or the overflow policy that the accumulator names.
"""

from __future__ import annotations

from dataclasses import dataclass

from fpsim.formats import Format, container

#: The NaN an engine returns, by container (NVIDIA's canonical NaN; float64 has the IEEE quiet NaN).
ENGINE_NAN = {"f32": 0x7FFFFFFF, "f16": 0x7FFF, "f64": 0x7FF8000000000000, "bf16": 0x7FFF}


@dataclass(frozen=True, kw_only=True)
class Specials:
    """Codes in the container of a result format. Pairs are (of a positive value, of a negative one)."""

    nan: int
    infinite: tuple[int, int]
    too_large: tuple[int, int]


def step_specials(row: Format) -> Specials:
    """Specials of a step: one NaN, overflow to Inf, else to NaN, else to the largest value."""
    held = container(row)
    if held.infinity_code is not None:
        infinite = _signed(held.infinity_code, held)
    else:
        infinite = _signed(held.max_code, held) if held.nan_code is None else (engine_nan(held),) * 2
    return Specials(nan=engine_nan(held), infinite=infinite, too_large=infinite)


def chain_specials(row: Format, rounding: str, overflow: str) -> Specials:
    """Specials of an IEEE operation with an overflow policy of `fpsim.rounding`."""
    wanted = {"saturate": "max", "nan": "nan"}.get(overflow, "inf")
    infinite = tuple(_code(row, wanted)[minus] for minus in (0, 1))
    too_large = []
    for minus in (0, 1):
        inward = rounding in ("rz", "rodd") or rounding == ("ru" if minus else "rd")
        finite = overflow in ("saturate", "propagate") or (overflow == "infinity" and inward)
        too_large.append(_code(row, "max" if finite else "nan" if overflow == "nan" else "inf")[minus])
    held = container(row)
    nan = row.max_code << row.shift if held.nan_code is None else engine_nan(held)
    return Specials(nan=nan, infinite=(infinite[0], infinite[1]), too_large=(too_large[0], too_large[1]))


def engine_nan(held: Format) -> int:
    """The one NaN of accumulators in `held`: the engine's, else the format's own, else the largest value."""
    own = held.max_code if held.nan_code is None else held.nan_code
    return ENGINE_NAN.get(held.name, own << held.shift)


def _code(row: Format, wanted: str) -> tuple[int, int]:
    """Inf if wanted and there is one, else NaN unless "max" is wanted, else the largest value."""
    held = container(row)
    if wanted == "inf" and row.infinity_code is not None:
        return _signed(row.infinity_code << row.shift, held)
    if wanted != "max" and held.nan_code is not None:
        return (engine_nan(held),) * 2
    return _signed(row.max_code << row.shift, held)


def _signed(code: int, held: Format) -> tuple[int, int]:
    return code, code | held.sign_bit
