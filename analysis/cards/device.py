"""A device on a card: what the cost model used, each figure with its source. Shown by the CLI and in the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hwmodels import Device, Quantity


def device_card(name: str) -> dict[str, Any]:
    """Plain values: figures (name, value in SI units, text, source key, status, note), rates, sources, decisions."""
    import hwmodels

    device = hwmodels.device(name)
    return {
        "name": device.name,
        "title": device.title,
        "vendor": device.vendor,
        "kind": device.kind,
        "architecture": device.architecture,
        "figures": _figures(device),
        "rates": _rates(device),
        "sources": [
            {"key": row.key, "title": row.title, "date": row.date, "url": row.url} for row in device.sources.values()
        ],
        "decisions": list(device.decisions),
    }


def _figures(device: Device) -> list[dict[str, Any]]:
    from analysis.units import count

    found = []

    def add(name: str, quantity: Quantity | None, text: str) -> None:
        if quantity is not None:
            found.append({"name": name, "text": text, **_sourced(quantity)})

    if device.units is not None:
        add(device.unit_name, device.units, f"{device.units.value:g}")
    for name, clock in device.clocks.items():
        add(f"{name} clock", clock, count(clock.value, "Hz"))
    for memory in (device.dram, *device.caches.values()):
        if memory.capacity is not None:
            add(f"{memory.name} capacity", memory.capacity, count(memory.capacity.value, "B"))
        if memory.bandwidth is not None:
            add(f"{memory.name} bandwidth", memory.bandwidth, count(memory.bandwidth.value, "B/s"))
    if device.power is not None:
        add("power limit", device.power, count(device.power.value, "W"))
    return found


def _rates(device: Device) -> list[dict[str, Any]]:
    """Dense rates, operand types that share one joined."""
    from analysis.units import count

    joined: dict[tuple[str, float, str, str], list[str]] = {}
    sourced = {}
    for rate in device.rates.values():
        pair = rate.activation if rate.activation == rate.weight else f"{rate.activation} x {rate.weight}"
        key = (rate.accumulator, rate.peak.value, rate.peak.source, "matrix" if rate.matrix else "vector")
        joined.setdefault(key, []).append(pair)
        sourced[key] = _sourced(rate.peak)
    return [
        {"operands": pairs, "accumulator": key[0], "unit": key[3], "text": count(key[1], "op/s"), **sourced[key]}
        for key, pairs in joined.items()
    ]


def _sourced(quantity: Quantity) -> dict[str, Any]:
    return {
        "value": quantity.value,
        "source": quantity.source,
        "status": quantity.status,
        "note": quantity.note,
    }
