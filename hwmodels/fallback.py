"""What a device does with a format it has no rate for.

One rule, as data rather than cases: **widen to the fastest operand type that holds every value of the format**.  Bytes
in memory stay as narrow as the format; the kernel widens on the way to the matrix engine, so only the rate changes, and
no value does.  Whether a type holds another is computed from the two `Format` rows, not listed.  The one place where
practice accepts a change of values is listed in `RENOUNCES`, and an estimate that uses it says so.  If neither applies,
the answer is `UnsupportedFormat`, never an invented rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from fpsim.formats import BlockFormat, Format
from fpsim.formats import format as format_row

from .device import ComputeRate, Device
from .precision import Precision

#: format -> (type computed in instead, what is given up): only where no exact host has a rate.
RENOUNCES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "bf16": ("f16", "values beyond float16's range overflow or vanish"),
        "mxfp8": ("f16", "block scales beyond float16's range overflow or vanish"),
        "mxfp6": ("f16", "block scales beyond float16's range overflow or vanish"),
        "mxfp4": ("f16", "block scales beyond float16's range overflow or vanish"),
    }
)

#: format -> formats with the same codes at another scale: a power of two in the tensor's scale makes them equal.
RESCALED: Mapping[str, tuple[str, ...]] = MappingProxyType({"e4m3": ("e4m3fnuz",), "e5m2": ("e5m2fnuz",)})

#: accumulators that hold the sums of another one: a narrower request may be answered by them.
WIDE_ACCUMULATORS = ("f32", "int32", "f64")


class UnsupportedFormat(ValueError):  # noqa: N818 - the name users read in tables
    """A device has no rate for a format and no wider type that holds it."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a device runs one precision: the rate it uses, whether that is the asked one, and the note to print."""

    rate: ComputeRate
    native: bool
    exact: bool
    note: str = ""


@lru_cache(maxsize=1024)
def holds(host: str, guest: str) -> bool:
    """Whether every value of `guest` is a value of `host`.

    A block format is held if the element fits beside its scale: by a type with as many significand bits as the product
    of element and scale has, and as wide an exponent field as a power-of-two scale.
    """
    if host == guest or host in RESCALED.get(guest, ()):
        return True
    outer, inner = format_row(host), format_row(guest)
    if isinstance(outer, BlockFormat) or "codebook" in (outer.kind, getattr(inner, "kind", "")):
        return False
    if isinstance(inner, BlockFormat):
        if outer.kind != "float":
            return False
        bits = inner.element.precision + inner.scale.precision - 1
        if inner.tensor_scale:  # the block scale is a small float; the tensor scale multiplies the sum
            low = inner.element.smallest_subnormal * inner.scale.smallest_subnormal
            return outer.precision >= bits and outer.max >= inner.max and outer.smallest_normal <= low
        return outer.precision >= bits and outer.exponent_bits >= inner.scale.exponent_bits
    if inner.kind == "int":
        if outer.kind == "int":
            return outer.max >= inner.max and outer.min <= inner.min and outer.bias == inner.bias
    elif outer.kind != "float":
        return False
    if inner.signed and not outer.signed:
        return False
    return (
        outer.precision >= inner.precision
        and outer.max >= max(inner.max, -inner.min)
        and outer.smallest_subnormal <= inner.smallest_subnormal
    )


def _kind(name: str) -> str:
    row = format_row(name)
    return (row.element if isinstance(row, BlockFormat) else row).kind


def _width(name: str) -> float:
    row = format_row(name)
    return row.bits if isinstance(row, Format) else row.bits_per_element


def _candidates(device: Device, activation: str, weight: str, accumulator: str) -> list[ComputeRate]:
    """Rates that hold both operands, fastest first; at equal speed the same kind, then the narrower, comes first."""
    found = [
        rate
        for rate in device.rates.values()
        if holds(rate.activation, activation)
        and holds(rate.weight, weight)
        and (rate.accumulator == accumulator or rate.accumulator in WIDE_ACCUMULATORS)
    ]
    kinds = (_kind(activation), _kind(weight))
    return sorted(
        found,
        key=lambda r: (
            -r.peak.value,
            (_kind(r.activation), _kind(r.weight)) != kinds,
            r.accumulator != accumulator,
            _width(r.activation) + _width(r.weight),
        ),
    )


def _pair(activation: str, weight: str) -> str:
    return activation if activation == weight else f"{activation} x {weight}"


def execution(precision: Precision, device: Device) -> Execution:
    """The rate `device` runs `precision` at.

    Raises UnsupportedFormat (a ValueError) naming the device, the format and what the device has.
    """
    activation, weight = precision.operands()
    exact = device.rates.get((activation, weight, precision.accumulator))
    if exact is not None:
        return Execution(rate=exact, native=True, exact=True)
    asked = _pair(activation, weight)
    found = _candidates(device, activation, weight, precision.accumulator)
    if found:
        rate = found[0]
        got = _pair(rate.activation, rate.weight)
        if rate.activation in RESCALED.get(activation, ()):
            note = f"{asked} runs as {got}: the same codes at another power-of-two scale"
        elif got == asked:
            note = (
                f"{asked} with {precision.accumulator} accumulation has no rate: {rate.accumulator} accumulation used"
            )
        elif activation == rate.activation:
            note = f"{weight} weights widened to {rate.weight}: computed at the {got} rate, stored as {weight}"
        else:
            note = f"{asked} unsupported: operands widened to {got} and computed at its rate; bytes stay {asked}"
        return Execution(rate=rate, native=False, exact=True, note=note)
    hosts = [RENOUNCES.get(name, (name, ""))[0] for name in (activation, weight)]
    found = _candidates(device, hosts[0], hosts[1], precision.accumulator)
    if found:
        lost = next(RENOUNCES[name][1] for name in (activation, weight) if name in RENOUNCES)
        got = _pair(found[0].activation, found[0].weight)
        note = f"{asked} unsupported: computed in {got}, where {lost}; bytes stay {asked}"
        return Execution(rate=found[0], native=False, exact=False, note=note)
    have = sorted({_pair(a, w) for a, w, _ in device.rates})
    raise UnsupportedFormat(
        f"{device.name} has no rate for {asked} and no wider type that holds it (it has: {', '.join(have)}); "
        "choose one of those, or another device"
    )


def vector_rate(device: Device) -> float | None:
    """Operations per second of the ordinary float32 units, None where the device file does not state them."""
    if device.vector is not None:
        return device.vector.value
    rate = device.rates.get(("f32", "f32", "f32"))
    return rate.peak.value if rate is not None and not rate.matrix else None
