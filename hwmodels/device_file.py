"""Devices by name, and the strict reader of their TOML files: what it does not know, it refuses by file and key."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fpsim._names import printable
from fpsim.formats import format as format_row

from ._names import choose
from .device import ComputeRate, Device, Memory, Quantity, Source
from .npu.array import DATAFLOWS, Layout
from .parameters import NAMES as PARAMETER_NAMES
from .precision import accumulator_name
from .quantity import convert

FOLDER = Path(__file__).parent / "devices"
STATUSES = ("published", "measured", "derived", "assumed")
KINDS = ("gpu", "npu", "tpu")


class Table:
    """A TOML table being consumed: every key is taken exactly once, the rest is an error."""

    def __init__(self, file: str, path: str, data: object) -> None:
        if not isinstance(data, Mapping):
            raise ValueError(f"{file}: {printable(path)}: expected a table, got {data!r}")
        self.file, self.path, self.data, self.taken = file, path, data, set[str]()

    def error(self, key: str, text: str) -> ValueError:
        return ValueError(f"{self.file}: {printable('.'.join(p for p in (self.path, key) if p))}: {text}")

    def text(self, key: str, default: str | None = None) -> str:
        self.taken.add(key)
        value = self.data.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, "missing; a string is required" if value is None else f"{value!r} is not a string")
        return value

    def one_of(self, key: str, allowed: tuple[str, ...], default: str | None = None) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise self.error(key, f"{value!r}; allowed: {', '.join(allowed)}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        self.taken.add(key)
        value = self.data.get(key)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value) or not value:
            raise self.error(key, f"{value!r}; a list of strings is required" if key in self.data else "missing")
        return tuple(value)

    def formats(self, key: str) -> tuple[str, ...]:
        names = self.texts(key)
        try:
            return tuple(format_row(name).name for name in names)
        except ValueError as error:
            raise self.error(key, str(error)) from error

    def table(self, key: str) -> Table | None:
        self.taken.add(key)
        return Table(self.file, f"{self.path}.{key}".strip("."), self.data[key]) if key in self.data else None

    def tables(self, key: str) -> dict[str, Table]:
        inner = self.table(key)
        if inner is None:
            return {}
        return {str(k): Table(self.file, f"{inner.path}.{k}", v) for k, v in inner.data.items()}

    def quantity(self, key: str, dimension: str, sources: Mapping[str, Source]) -> Quantity | None:
        inner = self.table(key)
        if inner is None:
            return None
        inner.taken.add("value")
        value = inner.data.get("value")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise inner.error("value", f"{value!r}; allowed: a positive number")
        unit, source = inner.text("unit"), inner.text("source")
        if source not in sources:
            raise inner.error("source", f"{source!r} is not declared; allowed: {', '.join(sources) or 'none declared'}")
        try:
            base = convert(dimension, float(value), unit)
        except ValueError as error:
            raise inner.error("unit", str(error)) from error
        status = inner.one_of("status", STATUSES, "published")
        out = Quantity(value=base, unit=unit, source=source, status=status, note=inner.text("note", ""))
        inner.done()
        return out

    def needed(self, key: str, dimension: str, sources: Mapping[str, Source]) -> Quantity:
        out = self.quantity(key, dimension, sources)
        if out is None:
            raise self.error(key, f"missing; a {dimension} {{ value, unit, source }} is required")
        return out

    def flag(self, key: str, default: bool) -> bool:
        self.taken.add(key)
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"{value!r}; allowed: true, false")
        return value

    def done(self) -> None:
        for key in self.data:
            if key not in self.taken:
                raise self.error(key, f"unknown key; allowed: {', '.join(sorted(self.taken))}")


def _memory(table: Table, name: str, sources: Mapping[str, Source]) -> Memory:
    out = Memory(
        name=name,
        technology=table.text("technology", ""),
        capacity=table.quantity("capacity", "capacity", sources),
        bandwidth=table.quantity("bandwidth", "bandwidth", sources),
    )
    table.done()
    return out


def _rates(root: Table, sources: Mapping[str, Source], clocks: Mapping[str, Quantity]) -> dict[Any, ComputeRate]:
    rows = root.data.get("rate")
    root.taken.add("rate")
    if not isinstance(rows, list) or not rows:
        raise root.error("rate", "at least one [[rate]] is required")
    out: dict[tuple[str, str, str], ComputeRate] = {}
    for number, row in enumerate(rows):
        table = Table(root.file, f"rate[{number}]", row)
        activations = table.formats("operands")
        weights = table.formats("weights") if "weights" in table.data else None
        table.taken.add("weights")
        clock = table.text("clock", "")
        if clock and clock not in clocks:
            raise table.error("clock", f"{clock!r}; allowed: {', '.join(clocks) or 'no clock is declared'}")
        accumulator = accumulator_name(table.text("accumulator"))
        peak = table.needed("peak", "rate", sources)
        per_clock = table.quantity("per_clock", "per clock", sources)
        matrix = table.flag("matrix", True)
        mixed = table.flag("mixed", False)
        table.done()
        if weights is not None:
            pairs = [(a, w) for a in activations for w in weights]
        elif mixed:
            pairs = [(a, w) for a in activations for w in activations]
        else:
            pairs = [(a, a) for a in activations]
        for a, w in pairs:
            rate = ComputeRate(
                activation=a,
                weight=w,
                accumulator=accumulator,
                peak=peak,
                per_clock=per_clock,
                clock=clock,
                matrix=matrix,
            )
            if rate.key in out:
                raise table.error("operands", f"the rate of {a} x {w} with accumulator {accumulator} is given twice")
            out[rate.key] = rate
    return out


def _calibration(root: Table) -> dict[str, float]:
    """Parameters of the GPU model fitted to this device's own measurements (`fpsim calibrate` writes them)."""
    table = root.table("calibration")
    if table is None:
        return {}
    table.taken |= set(PARAMETER_NAMES)
    table.done()
    for name, value in table.data.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise table.error(name, f"{value!r}; allowed: a number from 0 to 1e9")
    return {name: float(value) for name, value in table.data.items()}


def sources_of(root: Table) -> dict[str, Source]:
    """The [sources] of a file, which its numbers name."""
    sources = {}
    for key, table in root.tables("sources").items():
        sources[key] = Source(key=key, title=table.text("title"), date=table.text("date"), url=table.text("url", ""))
        table.done()
    return sources


def _layout(
    table: Table | None, sources: Mapping[str, Source], clocks: Mapping[str, Quantity], caches: Mapping[str, Memory]
) -> Layout | None:
    if table is None:
        return None
    found = {key: table.needed(key, "count", sources) for key in ("rows", "columns", "arrays")}
    for key, value in found.items():
        if value.value != int(value.value):
            raise table.error(key, f"{value.value!r}; allowed: a whole number")
    out = Layout(
        **found,
        dataflow=table.one_of("dataflow", DATAFLOWS),
        overlap=table.flag("overlap", True),
        clock=table.one_of("clock", tuple(clocks)),
        scratchpad=table.one_of("scratchpad", tuple(caches)),
        accumulators=table.one_of("accumulators", ("", *caches), ""),
    )
    table.done()
    return out


def parse_device(text: str, name: str, file: str = "") -> Device:
    """The device described by a TOML text.  ValueError names file, key and what is allowed."""
    file = file or f"{name}.toml"
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: arrays in arrays in arrays
        raise ValueError(f"{file}: not TOML: {error}") from error
    root = Table(file, "", data)
    sources = sources_of(root)
    clock_table = root.table("clocks")
    clocks: dict[str, Quantity] = {}
    if clock_table is not None:
        clocks = {key: clock_table.needed(key, "clock", sources) for key in clock_table.data}
    units_table = root.table("units")
    units, unit_name = None, "unit"
    if units_table is not None:
        unit_name = units_table.text("name")
        units = units_table.needed("count", "count", sources)
        units_table.done()
    dram_table = root.table("dram")
    if dram_table is None:
        raise root.error("dram", "missing; a table with bandwidth (and capacity) is required")
    if "bandwidth" not in dram_table.data:
        raise dram_table.error("bandwidth", "missing; a bandwidth { value, unit, source } is required")
    caches = MappingProxyType({k: _memory(t, k, sources) for k, t in root.tables("cache").items()})
    device = Device(
        name=name,
        title=root.text("title"),
        vendor=root.text("vendor"),
        kind=root.one_of("kind", KINDS),
        architecture=root.text("architecture"),
        rates=MappingProxyType(_rates(root, sources, clocks)),
        dram=_memory(dram_table, "dram", sources),
        caches=caches,
        units=units,
        unit_name=unit_name,
        clocks=MappingProxyType(clocks),
        power=root.quantity("power", "power", sources),
        vector=root.quantity("vector", "rate", sources),
        sources=MappingProxyType(sources),
        decisions=root.texts("decisions") if "decisions" in root.data else (),
        npu=_layout(root.table("npu"), sources, clocks, caches),
        calibration=MappingProxyType(_calibration(root)),
    )
    root.taken.add("decisions")
    root.done()
    return device


@lru_cache(maxsize=256)
def load_device(path: Path) -> Device:
    """Read one TOML file; its stem is the device's name."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not TOML: {error}") from error
    return parse_device(text, path.stem, path.name)


class _Devices(Mapping[str, Device]):
    """The folder `devices/`, read on first use of each name."""

    def __init__(self, folder: Path) -> None:
        self._paths = {p.stem: p for p in sorted(folder.glob("*.toml"))}

    def __getitem__(self, name: str) -> Device:
        return load_device(self._paths[name])

    def __iter__(self) -> Any:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


DEVICES: Mapping[str, Device] = _Devices(FOLDER)


def device(name: str | Device | Path) -> Device:
    """A device by name, from a TOML file of your own (a path ending in .toml), or itself.

    ValueError, naming the nearest known device, for an unknown name.
    """
    if isinstance(name, Device):
        return name
    if str(name).endswith(".toml"):
        path = Path(name)
        if not path.is_file():
            raise ValueError(f"no device file {path}; give a TOML file or one of: {', '.join(DEVICES)}")
        return load_device(path.resolve())
    return DEVICES[choose("device", str(name).lower(), DEVICES)]
